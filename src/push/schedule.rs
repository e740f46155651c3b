//! Which upload is next. Pure: whoever asks does the work, and says how it went.
//!
//! NARs are uploaded side by side, in no order that anybody could rely on. A narinfo says that a path is there, so it waits for the
//! path's own NAR and for the narinfos of all that the path refers to: at no time does the cache promise what it has not got. What failed
//! fails all that needs it. Narinfos go first, for the sooner a path is whole, the less has to be done again after an interruption.

use std::collections::VecDeque;

use super::closure::referrers;

/// What somebody is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Encode and upload the NAR of this path.
    Nar(u32),
    /// Upload the narinfo of this path.
    Narinfo(u32),
}

/// What there is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This.
    Task(Task),
    /// Nothing before something that is being done has ended.
    Wait,
    /// Nothing any more.
    Done,
}

/// How far each path is.
#[derive(Debug)]
pub struct Schedule {
    nodes: Vec<Node>,
    /// No NAR before this one waits to be begun.
    next_nar: usize,
    /// Narinfos that can be uploaded.
    ready: VecDeque<u32>,
    /// Paths that are neither there nor failed.
    left: usize,
}

#[derive(Debug)]
struct Node {
    state: State,
    /// How many of its references are not there yet.
    waits_for: usize,
    referrers: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was done yet.
    Missing,
    /// Its NAR is being uploaded.
    Uploading,
    /// Its NAR is there; its narinfo is not, or is on its way.
    Stored,
    /// It is there, with all that it refers to.
    There,
    /// It cannot be.
    Failed,
}

impl Schedule {
    /// A schedule for paths that have these references, none to themselves. Those of which `is_there` holds need nothing.
    pub fn new<'a>(
        references: &(impl ExactSizeIterator<Item = &'a [u32]> + Clone),
        is_there: impl Fn(u32) -> bool,
    ) -> Self {
        let nodes = (0..).zip(references.clone()).zip(referrers(references.clone()));
        let nodes: Vec<Node> = nodes
            .map(|((position, references), referrers)| Node {
                state: if is_there(position) { State::There } else { State::Missing },
                waits_for: references.iter().filter(|reference| !is_there(**reference)).count(),
                referrers,
            })
            .collect();
        let left = nodes.iter().filter(|node| node.state == State::Missing).count();
        Self { nodes, next_nar: 0, ready: VecDeque::new(), left }
    }

    /// What to do next; it counts as begun.
    pub fn take(&mut self) -> Next {
        while let Some(position) = self.ready.pop_front() {
            if self.node(position).state == State::Stored {
                return Next::Task(Task::Narinfo(position));
            }
        }
        while let Some(node) = self.nodes.get_mut(self.next_nar) {
            let position = u32::try_from(self.next_nar).unwrap_or(u32::MAX);
            self.next_nar += 1;
            if node.state == State::Missing {
                node.state = State::Uploading;
                return Next::Task(Task::Nar(position));
            }
        }
        if self.left == 0 { Next::Done } else { Next::Wait }
    }

    /// The NAR is in the cache.
    pub fn nar_is_there(&mut self, position: u32) {
        let node = self.node(position);
        if node.state == State::Uploading {
            node.state = State::Stored;
            if node.waits_for == 0 {
                self.ready.push_back(position);
            }
        }
    }

    /// The narinfo is in the cache.
    pub fn narinfo_is_there(&mut self, position: u32) {
        let node = self.node(position);
        if node.state != State::Stored {
            return;
        }
        node.state = State::There;
        self.left -= 1;
        for referrer in self.node(position).referrers.clone() {
            let node = self.node(referrer);
            node.waits_for -= 1;
            if node.waits_for == 0 && node.state == State::Stored {
                self.ready.push_back(referrer);
            }
        }
    }

    /// The path cannot be uploaded. Gives all that need it, and fail with it, each with the path that it needs; `None` when it had failed
    /// already.
    pub fn failed(&mut self, position: u32) -> Option<Vec<(u32, u32)>> {
        if !self.fail(position) {
            return None;
        }
        let mut failed = Vec::new();
        let mut causes = VecDeque::from([position]);
        while let Some(cause) = causes.pop_front() {
            for referrer in self.node(cause).referrers.clone() {
                if self.fail(referrer) {
                    failed.push((referrer, cause));
                    causes.push_back(referrer);
                }
            }
        }
        Some(failed)
    }

    /// False when there is nothing to fail any more.
    fn fail(&mut self, position: u32) -> bool {
        let node = self.node(position);
        let fails = !matches!(node.state, State::There | State::Failed);
        if fails {
            node.state = State::Failed;
            self.left -= 1;
        }
        fails
    }

    fn node(&mut self, position: u32) -> &mut Node {
        &mut self.nodes[position as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn schedule(graph: &[Vec<u32>], there: &HashSet<u32>) -> Schedule {
        Schedule::new(&graph.iter().map(Vec::as_slice), |position| there.contains(&position))
    }

    /// Everything that is broken, or needs what is, in as many rounds as it takes.
    fn naively_failed(graph: &[Vec<u32>], there: &HashSet<u32>, broken: &HashSet<u32>) -> HashSet<u32> {
        let mut failed: HashSet<u32> = broken.difference(there).copied().collect();
        loop {
            let before = failed.len();
            for (position, references) in (0..).zip(graph) {
                if !there.contains(&position) && references.iter().any(|reference| failed.contains(reference))
                {
                    failed.insert(position);
                }
            }
            if failed.len() == before {
                return failed;
            }
        }
    }

    /// Each refers to some of those before it.
    fn graphs() -> impl Strategy<Value = Vec<Vec<u32>>> {
        (1..25_u32).prop_flat_map(|len| {
            let node = |position: u32| {
                prop::collection::btree_set(0..position.max(1), 0..=(position as usize).min(3))
            };
            (0..len)
                .map(move |position| {
                    node(position)
                        .prop_map(move |set| if position == 0 { vec![] } else { Vec::from_iter(set) })
                })
                .collect::<Vec<_>>()
        })
    }

    proptest! {
        #[test]
        fn a_narinfo_comes_after_all_that_it_promises_and_everything_ends(
            graph in graphs(),
            there in prop::collection::hash_set(0..25_u32, 0..6),
            broken in prop::collection::hash_map(0..25_u32, any::<bool>(), 0..4),
            draws in prop::collection::vec(any::<prop::sample::Index>(), 200),
            jobs in 1..5_usize,
        ) {
            let expected = naively_failed(&graph, &there, &broken.keys().copied().collect());
            let mut schedule = schedule(&graph, &there);
            let (mut whole, mut nars, mut failed) = (there.clone(), HashSet::new(), HashSet::new());
            let mut draws = draws.iter().cycle();
            let mut at_work: Vec<Task> = Vec::new();
            loop {
                let next = if at_work.len() < jobs { schedule.take() } else { Next::Wait };
                match next {
                    Next::Task(task) => { at_work.push(task); continue }
                    Next::Done if at_work.is_empty() => break,
                    Next::Done | Next::Wait => prop_assert!(!at_work.is_empty(), "waits for nobody"),
                }
                // Whoever has ended is told in any order.
                let task = at_work.swap_remove(draws.next().unwrap().index(at_work.len()));
                let (Task::Nar(position) | Task::Narinfo(position)) = task;
                let breaks = broken.get(&position).is_some_and(|early| *early == matches!(task, Task::Nar(_)));
                match task {
                    _ if breaks => {
                        let needing = schedule.failed(position);
                        prop_assert_eq!(failed.insert(position), needing.is_some());
                        for (other, cause) in needing.into_iter().flatten() {
                            prop_assert!(failed.insert(other), "twice");
                            prop_assert!(graph[other as usize].contains(&cause) && failed.contains(&cause));
                        }
                    }
                    Task::Nar(position) => {
                        prop_assert!(nars.insert(position), "twice");
                        schedule.nar_is_there(position);
                    }
                    Task::Narinfo(position) => {
                        prop_assert!(nars.contains(&position));
                        prop_assert!(graph[position as usize].iter().all(|reference| whole.contains(reference)));
                        prop_assert!(whole.insert(position), "twice");
                        schedule.narinfo_is_there(position);
                    }
                }
            }
            prop_assert_eq!(&failed, &expected.iter().copied().filter(|position| (*position as usize) < graph.len()).collect::<HashSet<_>>());
            let len = u32::try_from(graph.len()).unwrap();
            prop_assert!((0..len).all(|position| whole.contains(&position) != failed.contains(&position)));
        }
    }

    #[test]
    fn who_has_failed_is_not_begun_and_fails_nobody_twice() {
        let graph = [vec![], vec![0], vec![0, 1], vec![]];
        let mut schedule = schedule(&graph, &HashSet::new());
        assert_eq!(schedule.take(), Next::Task(Task::Nar(0)));
        assert_eq!(schedule.take(), Next::Task(Task::Nar(1)));
        assert_eq!(schedule.failed(0), Some(vec![(1, 0), (2, 0)]));
        assert_eq!(schedule.failed(1), None);
        // Its NAR has come too late.
        schedule.nar_is_there(1);
        assert_eq!(schedule.take(), Next::Task(Task::Nar(3)));
        assert_eq!(schedule.take(), Next::Wait);
        schedule.nar_is_there(3);
        assert_eq!(schedule.take(), Next::Task(Task::Narinfo(3)));
        schedule.narinfo_is_there(3);
        assert_eq!(schedule.take(), Next::Done);
    }

    #[test]
    fn narinfos_go_first() {
        let mut schedule = schedule(&[vec![], vec![], vec![]], &HashSet::from([1]));
        assert_eq!(schedule.take(), Next::Task(Task::Nar(0)));
        schedule.nar_is_there(0);
        assert_eq!(schedule.take(), Next::Task(Task::Narinfo(0)));
        assert_eq!(schedule.take(), Next::Task(Task::Nar(2)));
    }
}
