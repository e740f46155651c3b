//! The layouts of NARs that one worker knows: kept, growing, and those of damaged paths.
//!
//! A NAR is walked once for all who ask for it. Damage is remembered for a while, or until the database changes; the next
//! walk after that tells nobody anything before it has seen the whole tree.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;
use tracing::error;

use super::known_path::KnownPath;
use super::nar_body::{Footprint, SharedLayout};
use super::plane::{Demand, Interest};
use super::refusal::Failure;
use crate::codec::nar::layout::Part;
use crate::limits::{
    DAMAGE_REMEMBERED, DAMAGED_PATHS_MAX, KEPT_CONTENTS_LEN_MAX, LAYOUTS_ALIVE_LEN_MAX, LAYOUTS_LEN_MAX,
};
use crate::ring::op::{ConnectionId, FileStatus};
use crate::store::catalog::NarKey;
use crate::store::change::Stamp;

/// What a walk has to say.
#[derive(Debug)]
pub enum WalkNews {
    /// A part behind which there is another.
    Part(Part),
    /// The last part, and the length of the NAR in bytes. They come together, so that a tree that is known to be damaged
    /// is not there, rather than there and broken off.
    Complete(Option<Part>, u64),
    /// The tree cannot be walked. The cause was logged.
    Failed(Failure),
}

/// What is known of a NAR's layout.
pub enum Found {
    /// It can be sent, as far as it is known.
    Layout(Rc<SharedLayout>),
    /// The path is damaged.
    Damaged,
    /// A walk is under way, and will answer the one who has asked.
    Joined,
    /// Another tree is being walked that had this place a moment ago.
    Busy,
    /// Nothing: it has to be walked.
    Unknown,
}

/// The layouts of one worker.
pub struct Layouts {
    kept: Cache<NarKey, Rc<SharedLayout>, LayoutWeighter>,
    walks: HashMap<NarKey, Walk>,
    damaged: HashMap<NarKey, Damage>,
    footprint: Footprint,
    /// No walk begins above it. Bytes.
    alive_len_max: usize,
}

/// A walk under way.
struct Walk {
    path: Arc<KnownPath>,
    layout: Rc<SharedLayout>,
    /// The state of the database when it began.
    stamp: Stamp,
    /// Whether the path was damaged before: then nothing is sent before the whole is known.
    is_suspect: bool,
    /// Who waits for its beginning.
    waiting: Vec<ConnectionId>,
    /// Who is being sent what it has found.
    readers: Vec<ConnectionId>,
    /// Keeps it going.
    interest: Interest,
    /// Whether nobody waited and nobody read at the last tick.
    was_unwanted: bool,
}

/// What a walk has found out.
struct Damage {
    /// Until then the path is absent, and afterwards suspected.
    until: Instant,
    /// The state of the database then.
    stamp: Stamp,
}

/// Whom the news of a walk concern.
pub struct Told {
    /// Those who have waited for the beginning.
    pub waiting: Vec<ConnectionId>,
    /// Those who are being sent it.
    pub readers: Vec<ConnectionId>,
    /// What those who have waited get.
    pub outcome: Result<Rc<SharedLayout>, Failure>,
}

impl Default for Layouts {
    fn default() -> Self {
        Self::bounded(LAYOUTS_LEN_MAX, LAYOUTS_ALIVE_LEN_MAX)
    }
}

impl Layouts {
    /// None yet, and at most so many bytes of them: kept, and all together.
    pub fn bounded(kept_len_max: u64, alive_len_max: usize) -> Self {
        Self {
            kept: Cache::with_weighter(128, kept_len_max, LayoutWeighter),
            walks: HashMap::new(),
            damaged: HashMap::new(),
            footprint: Footprint::default(),
            alive_len_max,
        }
    }

    /// The layout of a NAR that is here to its last byte, so that its root does not matter. It has the hash of the key.
    pub fn whole(&self, key: &NarKey) -> Option<Rc<SharedLayout>> {
        self.kept.get(key).filter(|layout| layout.is_whole()).map(Rc::clone)
    }

    /// What is known of a NAR with this root, for `id`, while the database is in the state of `stamp`.
    pub fn find(
        &mut self,
        key: &NarKey,
        root_status: Option<FileStatus>,
        id: ConnectionId,
        stamp: Stamp,
    ) -> Found {
        if let Some(layout) = self.kept.get(key)
            && layout.is_sound()
            && (layout.is_whole() || layout.is_of(root_status))
        {
            if !layout.is_outdated() {
                return Found::Layout(Rc::clone(layout));
            }
            self.kept.remove(key);
        }
        if let Some(damage) = self.damaged.get(key)
            && damage.stamp == stamp
            && Instant::now() < damage.until
        {
            return Found::Damaged;
        }
        let Some(walk) = self.walks.get_mut(key) else { return Found::Unknown };
        if !walk.layout.is_of(root_status) {
            return Found::Busy;
        }
        if walk.is_suspect || !walk.layout.has_begun() || !walk.layout.is_sound() {
            walk.waiting.push(id);
            return Found::Joined;
        }
        if !walk.readers.contains(&id) {
            walk.readers.push(id);
        }
        Found::Layout(Rc::clone(&walk.layout))
    }

    /// Whether another layout may be made. The ones that are being sent cannot be given up, unless their readers stall; and each walk
    /// under way may bring a good deal more.
    pub fn has_room(&self) -> bool {
        let len_bytes = self.footprint.len_bytes() + self.walks.len() * KEPT_CONTENTS_LEN_MAX;
        let has_room = len_bytes < self.alive_len_max;
        self.footprint.note(!has_room);
        has_room
    }

    /// Notes that a walk was begun for `id`. It goes on while `interest` is held here.
    pub fn begin(
        &mut self,
        path: Arc<KnownPath>,
        root_status: Option<FileStatus>,
        id: ConnectionId,
        stamp: Stamp,
        interest: Interest,
    ) {
        let key = key_of(&path);
        let was_damaged = self.damaged.remove(&key).is_some();
        // A kept one that is still there was found damaged while it was sent, or the path has changed.
        let broke = self.kept.remove(&key).is_some();
        let walk = Walk {
            layout: Rc::new(SharedLayout::new(path.nar_size, root_status, self.footprint.clone())),
            path,
            stamp,
            is_suspect: was_damaged || broke,
            waiting: vec![id],
            readers: Vec::new(),
            interest,
            was_unwanted: false,
        };
        self.walks.insert(key, walk);
    }

    /// Forgets somebody who waits for a walk, and has gone.
    pub fn leave(&mut self, key: &NarKey, id: ConnectionId) {
        if let Some(walk) = self.walks.get_mut(key) {
            walk.waiting.retain(|waiting| *waiting != id);
        }
    }

    /// Gives up walks that nobody has wanted since the last time: otherwise clients that ask for large trees and go would keep all
    /// threads walking. One whose connection broke a moment ago may come again, and finds its walk.
    pub fn tick(&mut self) {
        let Self { walks, damaged, .. } = self;
        walks.retain(|key, walk| {
            // Whoever reads has the layout as well.
            let is_wanted = !walk.waiting.is_empty() || Rc::strong_count(&walk.layout) > 1;
            let goes_on = is_wanted || !walk.was_unwanted;
            walk.was_unwanted = !is_wanted;
            if !goes_on && walk.is_suspect {
                remember(damaged, *key, Damage { until: Instant::now(), stamp: walk.stamp });
            }
            goes_on
        });
    }

    /// Takes what a walk has found that was begun for `demand`; says whom it concerns.
    pub fn take(&mut self, key: NarKey, demand: &Demand, news: WalkNews) -> Option<Told> {
        let walk = self.walks.get_mut(&key).filter(|walk| demand.is_of(&walk.interest))?;
        let outcome = match news {
            WalkNews::Part(part) => {
                walk.layout.push(part);
                let waiting = if walk.is_suspect { Vec::new() } else { std::mem::take(&mut walk.waiting) };
                let told =
                    Told { waiting, readers: walk.readers.clone(), outcome: Ok(Rc::clone(&walk.layout)) };
                walk.readers.extend_from_slice(&told.waiting);
                return Some(told);
            }
            WalkNews::Complete(part, len_bytes) => {
                if let Some(part) = part {
                    walk.layout.push(part);
                }
                if walk.layout.complete(len_bytes) {
                    Ok(())
                } else {
                    let (name, nar_size) = (walk.path.base_name(), walk.path.nar_size);
                    error!("{name} is damaged: its NAR has {len_bytes} bytes, the database says {nar_size}");
                    Err(Failure::Damaged)
                }
            }
            WalkNews::Failed(failure) => Err(failure),
        };
        let Walk { layout, stamp, waiting, readers, .. } = self.walks.remove(&key)?;
        let outcome = match outcome {
            Ok(()) => {
                self.kept.insert(key, Rc::clone(&layout));
                Ok(layout)
            }
            Err(failure) => {
                layout.fail();
                // What says something about this moment says nothing about the path.
                if failure != Failure::Busy {
                    self.remember_damage(key, stamp);
                }
                Err(failure)
            }
        };
        Some(Told { waiting, readers, outcome })
    }

    /// Remembers that the tree of a NAR was found damaged, in this state of the database.
    pub fn remember_damage(&mut self, key: NarKey, stamp: Stamp) {
        remember(&mut self.damaged, key, Damage { until: Instant::now() + DAMAGE_REMEMBERED, stamp });
    }
}

fn remember(damaged: &mut HashMap<NarKey, Damage>, key: NarKey, damage: Damage) {
    if damaged.len() >= DAMAGED_PATHS_MAX {
        damaged.clear();
    }
    damaged.insert(key, damage);
}

/// For simulations.
#[cfg(test)]
impl Layouts {
    /// Checks that nothing is under way, and that nothing but what is kept takes memory.
    pub fn assert_at_rest(&self) {
        assert!(self.walks.is_empty(), "{} walks are left", self.walks.len());
        assert!(
            self.footprint.len_bytes() as u64 <= self.kept.weight(),
            "layouts are left that nobody keeps"
        );
        assert!(self.kept.weight() <= self.kept.capacity(), "more is kept than may be");
        assert!(self.damaged.len() <= DAMAGED_PATHS_MAX, "too many damaged paths are remembered");
    }
}

/// The NAR of a path.
pub fn key_of(path: &KnownPath) -> NarKey {
    (path.hash_part(), path.nar_hash)
}

/// The memory of a layout, which no longer changes when it is kept.
#[derive(Clone)]
struct LayoutWeighter;

impl Weighter<NarKey, Rc<SharedLayout>> for LayoutWeighter {
    fn weight(&self, _: &NarKey, layout: &Rc<SharedLayout>) -> u64 {
        (layout.memory_len_bytes() + size_of::<(NarKey, SharedLayout)>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::hash::Sha256Digest;
    use crate::codec::nar::layout::Builder;
    use crate::codec::narinfo::PathInfo;
    use crate::codec::store_path::{StoreDir, StorePath};
    use crate::ring::op::FileKind;
    use crate::server::known_path::Renderer;
    use crate::store::change::ChangeCounter;
    use crate::store::demo::DemoStore;

    const FIRST: ConnectionId = ConnectionId { slot: 0, generation: 1 };
    const SECOND: ConnectionId = ConnectionId { slot: 1, generation: 2 };

    /// Begins a walk for the first; gives what the thread says whom it walks for.
    fn begin(layouts: &mut Layouts, path: &Arc<KnownPath>, root: Option<FileStatus>, stamp: Stamp) -> Demand {
        let interest = Interest::default();
        let demand = interest.demand();
        layouts.begin(Arc::clone(path), root, FIRST, stamp, interest);
        demand
    }

    /// A database to take stamps of, and to change.
    struct Clock {
        demo: DemoStore,
        counter: ChangeCounter,
    }

    impl Clock {
        fn new() -> Self {
            let demo = DemoStore::create(None, &mut |_| {}).unwrap();
            let counter = ChangeCounter::open(&demo.store).unwrap();
            Self { demo, counter }
        }

        fn stamp(&self) -> Stamp {
            self.counter.stamp()
        }

        fn commit(&self) {
            let database = rusqlite::Connection::open(&self.demo.store.database).unwrap();
            database.execute("update ValidPaths set registrationTime = registrationTime + 1", []).unwrap();
        }
    }

    /// The NAR of a link in one part, and its length.
    fn link() -> (Part, u64) {
        let mut builder = Builder::new();
        builder.symlink(b"target").unwrap();
        let (part, len_bytes) = builder.finish();
        (part.unwrap(), len_bytes)
    }

    fn path(nar_size: u64) -> Arc<KnownPath> {
        let info = PathInfo {
            path: StorePath::parse_base_name("00000000000000000000000000000000-x").unwrap(),
            nar_hash: Sha256Digest([0; 32]),
            nar_size,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        Renderer::new(store_dir, Arc::from([]), Arc::default()).render(info, None, None)
    }

    #[test]
    fn a_walk_answers_all_who_wait_and_is_kept() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes), Layouts::default());
        let key = key_of(&path);
        assert!(matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Unknown));
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        assert!(matches!(layouts.find(&key, None, SECOND, clock.stamp()), Found::Joined));
        let told = layouts.take(key, &demand, WalkNews::Complete(Some(part), len_bytes)).unwrap();
        assert_eq!((told.waiting, told.outcome.is_ok()), (vec![FIRST, SECOND], true));
        clock.commit();
        assert!(
            matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Layout(_)),
            "contents do not change"
        );
    }

    #[test]
    fn readers_are_told_once_however_often_they_ask() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes + 8), Layouts::default());
        let key = key_of(&path);
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        assert_eq!(layouts.take(key, &demand, WalkNews::Part(part)).unwrap().waiting, [FIRST]);
        for _ in 0..3 {
            assert!(matches!(layouts.find(&key, None, SECOND, clock.stamp()), Found::Layout(_)));
        }
        let told = layouts.take(key, &demand, WalkNews::Complete(None, len_bytes)).unwrap();
        assert_eq!((told.readers, told.waiting), (vec![FIRST, SECOND], vec![]));
        assert!(matches!(told.outcome, Err(Failure::Damaged)));
    }

    #[test]
    fn damage_is_remembered_until_the_database_changes_and_suspected_afterwards() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes + 8), Layouts::default());
        let key = key_of(&path);
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        layouts.take(key, &demand, WalkNews::Complete(Some(part.clone()), len_bytes)).unwrap();
        assert!(matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Damaged));
        clock.commit();
        assert!(matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Unknown));
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        let told = layouts.take(key, &demand, WalkNews::Part(part)).unwrap();
        assert!(told.waiting.is_empty(), "nothing is sent before the whole is known");
    }

    #[test]
    fn what_was_found_damaged_while_it_was_sent_is_walked_to_its_end_first() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes), Layouts::default());
        let key = key_of(&path);
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        layouts
            .take(key, &demand, WalkNews::Complete(Some(part.clone()), len_bytes))
            .unwrap()
            .outcome
            .unwrap()
            .fail();
        assert!(matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Unknown));
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        assert!(layouts.take(key, &demand, WalkNews::Part(part)).unwrap().waiting.is_empty());
    }

    #[test]
    fn a_path_with_another_root_is_walked_again() {
        let (clock, mut layouts) = (Clock::new(), Layouts::default());
        let mut builder = Builder::new();
        builder.regular(false, 8).unwrap();
        let (part, len_bytes) = builder.finish();
        let path = path(len_bytes);
        let key = key_of(&path);
        let root = |changed_s| {
            let kind = FileKind::Regular;
            let (modified_s, modified_ns, changed_ns) = (1, 0, 0);
            Some(FileStatus { kind, len_bytes: 8, inode: 1, modified_s, modified_ns, changed_s, changed_ns })
        };
        let demand = begin(&mut layouts, &path, root(1), clock.stamp());
        assert!(matches!(layouts.find(&key, root(2), SECOND, clock.stamp()), Found::Busy));
        layouts.take(key, &demand, WalkNews::Complete(part, len_bytes)).unwrap();
        assert!(matches!(layouts.find(&key, root(1), FIRST, clock.stamp()), Found::Layout(_)));
        assert!(matches!(layouts.find(&key, root(2), FIRST, clock.stamp()), Found::Unknown));
        assert!(layouts.whole(&key).is_none());
    }

    #[test]
    fn a_walk_that_nobody_wants_for_a_while_is_given_up_and_its_late_news_are_ignored() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes + 8), Layouts::default());
        let key = key_of(&path);
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        layouts.tick();
        layouts.tick();
        assert!(demand.is_there(), "somebody waits");
        let told = layouts.take(key, &demand, WalkNews::Part(part.clone())).unwrap();
        layouts.tick();
        layouts.tick();
        assert!(demand.is_there(), "somebody reads");
        drop(told);
        layouts.tick();
        assert!(demand.is_there(), "somebody may come again");
        layouts.tick();
        assert!(!demand.is_there());
        // The next walk of the same NAR is another one.
        let next = begin(&mut layouts, &path, None, clock.stamp());
        assert!(layouts.take(key, &demand, WalkNews::Part(part)).is_none());
        assert!(layouts.take(key, &demand, WalkNews::Complete(None, len_bytes)).is_none());
        layouts.leave(&key, FIRST);
        layouts.tick();
        layouts.tick();
        assert!(!next.is_there(), "who has waited has gone");
    }

    #[test]
    fn a_walk_that_was_given_up_leaves_its_suspicion() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes + 8), Layouts::default());
        let key = key_of(&path);
        layouts.remember_damage(key, clock.stamp());
        for _ in 0..2 {
            let demand = begin(&mut layouts, &path, None, clock.stamp());
            assert!(layouts.take(key, &demand, WalkNews::Part(part.clone())).unwrap().waiting.is_empty());
            layouts.leave(&key, FIRST);
            layouts.tick();
            layouts.tick();
            assert!(!demand.is_there());
            assert!(matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Unknown));
        }
    }

    #[test]
    fn a_nar_that_is_here_needs_no_root() {
        let (clock, mut layouts) = (Clock::new(), Layouts::default());
        let (part, len_bytes) = link();
        let path = path(len_bytes);
        let key = key_of(&path);
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        assert!(layouts.whole(&key).is_none());
        layouts.take(key, &demand, WalkNews::Complete(Some(part), len_bytes)).unwrap();
        let whole = layouts.whole(&key).unwrap();
        let len = usize::try_from(len_bytes).unwrap();
        assert_eq!(whole.short(len).map(|nar| nar.len()), Some(len));
        assert!(whole.short(len - 1).is_none());
        whole.fail();
        assert!(layouts.whole(&key).is_none());
    }

    #[test]
    fn a_passing_failure_is_not_remembered() {
        let (clock, mut layouts) = (Clock::new(), Layouts::default());
        let path = path(8);
        let key = key_of(&path);
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        let told = layouts.take(key, &demand, WalkNews::Failed(Failure::Busy)).unwrap();
        assert!(matches!(told.outcome, Err(Failure::Busy)));
        assert!(matches!(layouts.find(&key, None, FIRST, clock.stamp()), Found::Unknown));
    }

    #[test]
    fn what_is_sent_counts_until_it_was_sent() {
        let (clock, (part, len_bytes)) = (Clock::new(), link());
        let (path, mut layouts) = (path(len_bytes), Layouts::default());
        let (key, part_len) = (key_of(&path), part.memory_len_bytes());
        let demand = begin(&mut layouts, &path, None, clock.stamp());
        let told = layouts.take(key, &demand, WalkNews::Complete(Some(part), len_bytes)).unwrap();
        assert_eq!(layouts.footprint.len_bytes(), part_len);
        layouts.kept.clear();
        assert_eq!(layouts.footprint.len_bytes(), part_len, "a reader has it");
        drop(told);
        assert_eq!(layouts.footprint.len_bytes(), 0);
        assert!(layouts.has_room());
        layouts.alive_len_max = 0;
        assert!(!layouts.has_room());
    }
}
