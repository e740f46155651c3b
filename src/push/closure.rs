//! What has to be in a cache so that a path can be: the path, all it refers to, all they refer to, and so on. In an order in which each can
//! be uploaded once those before it are there.

use std::collections::{HashMap, VecDeque};

use crate::codec::store_path::StorePath;
use crate::limits::PUSH_BATCH;
use crate::store::StoreError;
use crate::store::db::{Database, RowId};

/// What is to be uploaded, with everything that it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All valid paths.
    All,
    /// These, whatever happens.
    These(Vec<StorePath>),
    /// These, unless they go away again.
    Appeared(Vec<StorePath>),
}

/// A set of paths that is closed under references, each after those that it refers to, as far as that is possible.
#[derive(Debug, Default)]
pub struct Closure {
    /// Never more than `u32` can count.
    pub entries: Vec<Entry>,
    /// Rows of the database that are no store paths, and why.
    pub bad_rows: Vec<StoreError>,
}

/// One of them. Small, for there may be hundreds of thousands.
#[derive(Debug)]
pub struct Entry {
    /// The path.
    pub path: StorePath,
    /// Length of its NAR in bytes; 0 if that is not known.
    pub nar_size: u64,
    /// Positions in the closure of what it refers to, itself excepted. Smaller than its own, unless there is a problem.
    pub references: Vec<u32>,
    /// Why it cannot be uploaded, whatever the others do.
    pub problem: Option<Problem>,
}

/// Why a path cannot be uploaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The database does not know it any more.
    #[error("it is no valid path of the store")]
    Invalid,
    /// The database contradicts itself.
    #[error("{0}")]
    Damaged(String),
    /// In no order would each come after its references. Nix makes no such paths.
    #[error("it refers to itself by way of others")]
    Circle,
}

impl Closure {
    /// Asks the database. `go_on` is told how many are known, now and then, and may end it: then there is none.
    pub fn gather(
        database: &mut Database,
        wanted: &Wanted,
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Self>, StoreError> {
        let mut gathering = Gathering::default();
        match wanted {
            Wanted::These(paths) | Wanted::Appeared(paths) => {
                for path in paths {
                    gathering.add(path);
                }
            }
            Wanted::All => {
                let mut last = RowId::default();
                loop {
                    let rows = database.valid_paths(last, PUSH_BATCH)?;
                    let Some((row, _)) = rows.last() else { break };
                    last = *row;
                    for (_, path) in rows {
                        match path {
                            Ok(path) => gathering.add(&path),
                            Err(error) => gathering.bad_rows.push(error),
                        }
                    }
                }
            }
        }
        let mut next = 0;
        while next < gathering.entries.len() {
            if !go_on(gathering.entries.len()) {
                return Ok(None);
            }
            gathering.ask(database, next)?;
            next += 1;
        }
        Ok(Some(gathering.sorted()))
    }
}

/// A closure that grows.
#[derive(Default)]
struct Gathering {
    entries: Vec<Entry>,
    positions: HashMap<StorePath, u32>,
    bad_rows: Vec<StoreError>,
}

impl Gathering {
    fn add(&mut self, path: &StorePath) {
        self.position(path);
    }

    /// Where the path is, or from now on will be.
    fn position(&mut self, path: &StorePath) -> u32 {
        if let Some(position) = self.positions.get(path) {
            return *position;
        }
        let position = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.positions.insert(path.clone(), position);
        self.entries.push(Entry { path: path.clone(), nar_size: 0, references: Vec::new(), problem: None });
        position
    }

    /// Asks what the database knows of the entry.
    fn ask(&mut self, database: &mut Database, index: usize) -> Result<(), StoreError> {
        let path = self.entries[index].path.clone();
        let info = match database.path_info(path.hash_part()) {
            Ok(info) => info.filter(|info| info.path == path),
            // The others may be as they must.
            Err(error @ StoreError::Damaged { .. }) => {
                self.entries[index].problem = Some(Problem::Damaged(error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(info) = info else {
            self.entries[index].problem = Some(Problem::Invalid);
            return Ok(());
        };
        let others = info.references.iter().filter(|reference| **reference != path);
        let references = others.map(|reference| self.position(reference)).collect();
        let entry = &mut self.entries[index];
        (entry.nar_size, entry.references) = (info.nar_size, references);
        Ok(())
    }

    fn sorted(self) -> Closure {
        let references: Vec<&[u32]> = self.entries.iter().map(|entry| &entry.references[..]).collect();
        let Order { sorted, in_circles } = order(&references);
        let mut new_position = vec![0; self.entries.len()];
        for (new, old) in (0..).zip(sorted.iter().chain(&in_circles)) {
            new_position[*old as usize] = new;
        }
        let mut entries: Vec<Option<Entry>> = self.entries.into_iter().map(Some).collect();
        let mut take = |old: &u32| {
            let mut entry = entries[*old as usize].take()?;
            entry.references.iter_mut().for_each(|reference| *reference = new_position[*reference as usize]);
            Some(entry)
        };
        let mut all: Vec<Entry> = sorted.iter().filter_map(&mut take).collect();
        all.extend(in_circles.iter().filter_map(&mut take).map(|mut entry| {
            entry.problem.get_or_insert(Problem::Circle);
            entry
        }));
        Closure { entries: all, bad_rows: self.bad_rows }
    }
}

/// The positions of a graph, each after those that it refers to; and those of which that cannot be, which are in circles or refer to one.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    sorted: Vec<u32>,
    in_circles: Vec<u32>,
}

/// Kahn's algorithm: who refers to nobody who is still waiting is next.
fn order(references: &[&[u32]]) -> Order {
    let referrers = referrers(references.iter().copied());
    let mut waits_for: Vec<usize> = references.iter().map(|references| references.len()).collect();
    let positions = || 0..u32::try_from(references.len()).unwrap_or(u32::MAX);
    let mut ready: VecDeque<u32> =
        positions().filter(|position| waits_for[*position as usize] == 0).collect();
    let mut sorted = Vec::with_capacity(references.len());
    while let Some(position) = ready.pop_front() {
        sorted.push(position);
        for referrer in &referrers[position as usize] {
            let left = &mut waits_for[*referrer as usize];
            *left -= 1;
            if *left == 0 {
                ready.push_back(*referrer);
            }
        }
    }
    let in_circles = positions().filter(|position| waits_for[*position as usize] > 0).collect();
    Order { sorted, in_circles }
}

/// Who refers to each.
pub(super) fn referrers<'a>(references: impl ExactSizeIterator<Item = &'a [u32]>) -> Vec<Vec<u32>> {
    let mut referrers = vec![Vec::new(); references.len()];
    for (position, references) in (0..).zip(references) {
        for reference in references {
            referrers[*reference as usize].push(position);
        }
    }
    referrers
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;
    use crate::store::LocalStore;
    use crate::store::demo::DemoStore;

    fn sort(graph: &[Vec<u32>]) -> Order {
        order(&graph.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// Takes whoever has everybody it refers to, from the beginning each time, until nobody is left who has.
    fn naively_in_circles(graph: &[Vec<u32>]) -> HashSet<u32> {
        let mut left: HashSet<u32> = (0..u32::try_from(graph.len()).unwrap()).collect();
        loop {
            let is_free = |node: &u32| graph[*node as usize].iter().all(|other| !left.contains(other));
            let Some(free) = left.iter().copied().find(is_free) else { return left };
            left.remove(&free);
        }
    }

    fn graphs() -> impl Strategy<Value = Vec<Vec<u32>>> {
        (1..30_u32).prop_flat_map(|len| {
            let edges = prop::collection::btree_set(0..len, 0..4);
            prop::collection::vec(edges.prop_map(Vec::from_iter), len as usize)
        })
    }

    proptest! {
        #[test]
        fn each_comes_after_what_it_refers_to(graph in graphs()) {
            let Order { sorted, in_circles } = sort(&graph);
            let mut seen = HashSet::new();
            for position in &sorted {
                prop_assert!(graph[*position as usize].iter().all(|reference| seen.contains(reference)));
                prop_assert!(seen.insert(*position), "twice");
            }
            prop_assert_eq!(in_circles.iter().copied().collect::<HashSet<_>>(), naively_in_circles(&graph));
            prop_assert_eq!(sorted.len() + in_circles.len(), graph.len());
        }
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let graph: Vec<Vec<u32>> =
            (0..200_000).map(|position| if position == 0 { vec![] } else { vec![position - 1] }).collect();
        assert_eq!(sort(&graph), Order { sorted: (0..200_000).collect(), in_circles: vec![] });
    }

    /// A store whose database alone is filled: of paths named by one letter, and their references.
    struct Paths {
        demo: DemoStore,
        connection: Connection,
    }

    impl Paths {
        fn new(references: &[(char, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let demo = DemoStore::create(Some(folder.path()), &mut |_| {}).unwrap();
            let connection = Connection::open(&demo.store.database).unwrap();
            let paths = Self { demo, connection };
            for (name, _) in references {
                paths.connection.execute(
                    "insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, 100)",
                    (path(*name).full(&paths.store().store_dir), format!("sha256:{}", "0".repeat(64))),
                ).unwrap();
            }
            for (name, others) in references {
                for other in others.chars() {
                    let ids = "(select id from ValidPaths where path = ?1), (select id from ValidPaths where path = ?2)";
                    let full = |name| path(name).full(&paths.store().store_dir);
                    paths
                        .connection
                        .execute(&format!("insert into Refs values ({ids})"), (full(*name), full(other)))
                        .unwrap();
                }
            }
            paths
        }

        fn store(&self) -> &LocalStore {
            &self.demo.store
        }

        fn gather(&self, wanted: &Wanted) -> Closure {
            let mut database = Database::open(self.store()).unwrap();
            Closure::gather(&mut database, wanted, &mut |_| true).unwrap().unwrap()
        }
    }

    fn path(name: char) -> StorePath {
        StorePath::parse_base_name(&format!("{}-{name}", "0".repeat(32 - 1) + &name.to_string())).unwrap()
    }

    fn names(closure: &Closure) -> String {
        closure.entries.iter().map(|entry| entry.path.name()).collect()
    }

    #[test]
    fn a_closure_has_what_is_referred_to_and_nothing_else() {
        let paths = Paths::new(&[('a', "abc"), ('b', "d"), ('c', "d"), ('d', ""), ('f', "a"), ('g', "")]);
        let closure = paths.gather(&Wanted::These(vec![path('a'), path('a')]));
        assert_eq!(names(&closure), "dbca");
        assert_eq!(closure.entries[3].references, [1, 2], "without itself");
        assert!(closure.entries.iter().all(|entry| entry.problem.is_none() && entry.nar_size == 100));
        assert_eq!(names(&paths.gather(&Wanted::All)).len(), 6);
    }

    #[test]
    fn what_the_database_does_not_know_or_contradicts_is_a_problem_of_its_own() {
        let paths = Paths::new(&[('a', "b"), ('b', "c"), ('c', "b"), ('d', ""), ('f', "d")]);
        paths.connection.execute("update ValidPaths set hash = 'none' where path like '%-d'", []).unwrap();
        paths
            .connection
            .execute("insert into ValidPaths (path, hash, registrationTime) values ('/etc/x', 'y', 1)", [])
            .unwrap();
        paths.connection.execute(
            "insert into Refs values ((select id from ValidPaths where path like '%-f'), (select id from ValidPaths where path = '/etc/x'))", []).unwrap();
        let closure = paths.gather(&Wanted::These(vec![path('a'), path('d'), path('f'), path('g')]));
        let problem = |name: char| {
            closure.entries.iter().find(|entry| entry.path == path(name)).unwrap().problem.clone()
        };
        assert_eq!(['a', 'b', 'c'].map(problem), [const { Some(Problem::Circle) }; 3]);
        assert_eq!(problem('g'), Some(Problem::Invalid));
        assert!(matches!(problem('d'), Some(Problem::Damaged(_))));
        assert!(matches!(problem('f'), Some(Problem::Damaged(reason)) if reason.contains("/etc/x")));
        assert!(
            matches!(&paths.gather(&Wanted::All).bad_rows[..], [row] if row.to_string().contains("/etc/x"))
        );
    }

    #[test]
    fn a_path_with_the_digits_of_another_is_not_valid() {
        let paths = Paths::new(&[('a', "")]);
        let other = StorePath::parse_base_name(&format!("{}a-other", "0".repeat(31))).unwrap();
        let closure = paths.gather(&Wanted::These(vec![other]));
        assert_eq!(closure.entries[0].problem, Some(Problem::Invalid));
    }

    #[test]
    fn whoever_does_not_want_to_wait_gets_none() {
        let paths = Paths::new(&[('a', "")]);
        let mut database = Database::open(paths.store()).unwrap();
        assert!(Closure::gather(&mut database, &Wanted::All, &mut |_| false).unwrap().is_none());
    }
}
