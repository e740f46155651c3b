//! A whole worker in a simulated world: the real reactor, node, sources and uploads over a real small store, on the simulated ring.
//!
//! The seed decides everything that could be otherwise: what the kernel, the disk and the peers do, which job of which plane is done
//! next and when its messages arrive, what others do to the store and its database meanwhile, and of what there is little. An
//! [`oracle`] knows what each peer has to hear. In the end everybody has gone, and nothing may be left.

mod ground;
mod oracle;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Receiver;

use self::ground::Ground;
use self::oracle::{Ask, Ear, Item, Judge, Moment, Said, Talk, Troubles};

use super::config::{AccessConfig, AccessLog};
use super::directory::Directory;
use super::layouts::Layouts;
use super::live_store::LiveStore;
use super::lookup::SharedStore;
use super::metrics::Metrics;
use super::node::{CacheNode, Means, Overview, Source};
use super::page::index::Index;
use super::plane::{Job, Plane, Planes, Toolbox};
use super::proxy::TrustedProxies;
use super::request::{Message, Terms};
use super::uploads::{OtherSource, SharedUploads, Uploads};
use crate::codec::cache_info::CacheInfo;
use crate::limits::{
    ENCODE_THREADS, INTAKE_BUFFERS_MAX, KEPT_CONTENTS_LEN_MAX, LAYOUTS_ALIVE_LEN_MAX, LAYOUTS_LEN_MAX,
    LOOKUP_THREADS, METRICS_THREADS, PACK_BUFFERS_MAX, PLANE_QUEUE_LEN_MAX, TEXT_THREADS, UPLOAD_THREADS,
    WALK_THREADS,
};
use crate::ring::admission::Admission;
use crate::ring::descriptor::Descriptor;
use crate::ring::inbox::{Inbox, Mailbox, inbox};
use crate::ring::pool::Pool;
use crate::ring::reactor::{self, Peers, Reactor};
use crate::ring::sim::{DiskFaults, Ending, Faults, Peer, Random, Reading, Sim, Socket, for_each_seed};
use crate::store::change::{ChangeCounter, meanwhile};
use crate::store::upload::{UploadFolder, UploadSettings};
use crate::tally::Tally as _;

/// Worlds of one run.
const SEEDS: u64 = 2_000;
/// Turns after which a world that still moves is taken to go round in circles.
const TURNS_MAX: usize = 60_000;
/// The same while the worker ends: when it is stuck, a second passes in each of them.
const DRAIN_TURNS_MAX: usize = 6_000;
/// Longer than every deadline together. Seconds.
const PATIENCE_S: u64 = 5_000;

type Mail = reactor::Message<Message>;

/// The threads of a plane, of which the seed decides who works when.
struct Hands {
    jobs: Receiver<Job>,
    threads: usize,
    /// Jobs that a thread has taken.
    taken: Vec<Job>,
    toolbox: Toolbox,
}

impl Hands {
    fn new(jobs: Receiver<Job>, threads: usize) -> Self {
        Self { jobs, threads, taken: Vec::new(), toolbox: Toolbox::default() }
    }

    /// One of the jobs that were taken.
    fn next(&mut self, random: &mut Random) -> Option<Job> {
        while self.taken.len() < self.threads {
            let Ok(job) = self.jobs.try_recv() else { break };
            self.taken.push(job);
        }
        if self.taken.is_empty() {
            return None;
        }
        Some(self.taken.swap_remove(random.below(self.taken.len())))
    }
}

/// The world around the worker.
struct World<'a> {
    random: Random,
    ground: Rc<RefCell<Ground>>,
    reactor: Reactor<&'a mut Sim, CacheNode>,
    /// Where jobs leave what they have to say.
    said: Inbox<Mail>,
    /// What each job has said and has not arrived.
    on_its_way: Vec<VecDeque<Mail>>,
    mailbox: Mailbox<Mail>,
    planes: Vec<Hands>,
    talks: Vec<Talk>,
    /// Peers that say what comes next when they have heard the answer: the index of that.
    dialogues: Vec<Option<usize>>,
    /// Peers that have not come yet.
    coming: Vec<(Vec<Said>, Peer, bool)>,
    turn: u64,
    may_change: bool,
    may_damage: bool,
    is_ended: bool,
}

impl World<'_> {
    fn now(&self) -> Moment {
        Moment { turn: self.turn, version: self.ground.borrow().version() }
    }

    /// One turn of the worker, and what the peers have said and heard in it.
    fn turn(&mut self) {
        let before = self.now();
        self.turn += 1;
        if !self.is_ended {
            self.is_ended = !self.reactor.turn().expect("a simulation does not fail");
        }
        let now = self.now();
        let sim = self.reactor.driver_mut();
        for (index, talk) in self.talks.iter_mut().enumerate() {
            let Some(socket) = sim.sockets().get(index) else { break };
            while let Some(next) = talk.asked.get(talk.said.len())
                && next.head_end <= socket.said_len()
            {
                talk.said.push(before);
            }
            talk.ear.listen(socket.sent(), &talk.asked, now);
            talk.end = socket.end();
            if let Some(next) = &mut self.dialogues[index]
                && talk.ear.answers.len() >= *next
                && let Some(said) = talk.asked.get(*next)
            {
                *next += 1;
                sim.socket_mut(index).say(&said.bytes);
            }
        }
    }

    /// A job is done, or something that one has said arrives. False when there is neither, or nobody hears of it.
    fn work(&mut self) -> bool {
        let messages_len = self.on_its_way.len();
        let count = self.planes.len() + messages_len;
        let first = self.random.below(count);
        for offset in 0..count {
            let index = (first + offset) % count;
            if let Some(messages) = self.on_its_way.get_mut(index) {
                let message = messages.pop_front().expect("those that are empty are gone");
                if messages.is_empty() {
                    self.on_its_way.swap_remove(index);
                }
                // A worker that has ended gives it back.
                let _ = self.mailbox.send(message);
                return true;
            }
            let hands = &mut self.planes[index - messages_len];
            while let Some(job) = hands.next(&mut self.random) {
                if self.may_change {
                    let (ground, mut random) = (Rc::clone(&self.ground), Random(self.random.draw()));
                    meanwhile::set(Some(Box::new(move || {
                        if random.chance(15) {
                            ground.borrow_mut().commit_something(&mut random);
                        }
                    })));
                }
                job(&mut hands.toolbox);
                meanwhile::set(None);
                let said: VecDeque<_> = std::iter::from_fn(|| self.said.next()).collect();
                if !said.is_empty() {
                    self.on_its_way.push(said);
                    return true;
                }
            }
        }
        false
    }

    /// How much those have said who wait for answers.
    fn said_count(&self) -> usize {
        self.dialogues.iter().flatten().sum()
    }

    /// A peer comes.
    fn dial(&mut self) -> bool {
        let Some((asked, mut peer, is_dialogue)) = self.coming.pop() else { return false };
        peer.says = match asked.first() {
            Some(first) if is_dialogue => first.bytes.clone(),
            _ => asked.iter().flat_map(|said| said.bytes.clone()).collect(),
        };
        let is_cut = peer.resets_at.is_some() || matches!(peer.reading, Reading::UpTo(_));
        self.dialogues.push(is_dialogue.then_some(1));
        self.talks.push(Talk { asked, said: Vec::new(), ear: Ear::default(), is_cut, end: None });
        self.reactor.driver_mut().dial(peer);
        true
    }

    /// Some of a life.
    fn live(&mut self) {
        let pace = self.random.pick(&[5, 30, 80]);
        for _ in 0..self.random.below(250) {
            self.turn();
            if self.random.chance(pace) {
                self.work();
            }
            match self.random.below(60) {
                0..=5 => drop(self.dial()),
                6..=9 if self.may_change => {
                    self.ground.borrow_mut().change(&mut self.random, self.may_damage);
                }
                10 => self.reactor.driver_mut().pass(1),
                _ => {}
            }
        }
    }

    /// Goes on until nothing can happen unless time passes.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let said = self.said_count();
            self.turn();
            let is_stuck = self.is_ended || self.reactor.driver_mut().is_stuck();
            if is_stuck || self.random.chance(40) {
                let has_worked = self.work();
                let goes_on = has_worked || self.dial() || said != self.said_count();
                if is_stuck && !goes_on {
                    return;
                }
            }
        }
        panic!("it goes round in circles");
    }

    /// Lets time pass until everybody has gone.
    fn wait_for_all(&mut self) {
        self.settle();
        let mut waited_s = 0;
        while self.reactor.connection_count() > 0
            || self.talks.len() > self.reactor.driver_mut().sockets().len()
        {
            if self.is_ended {
                return;
            }
            assert!(
                waited_s < PATIENCE_S,
                "{} connections wait for nothing",
                self.reactor.connection_count()
            );
            self.reactor.driver_mut().pass(50);
            waited_s += 50;
            self.settle();
        }
    }

    /// Tells the worker to end, and waits for that.
    fn drain(&mut self) {
        self.mailbox.send(reactor::Message::Drain).expect("it is there");
        for _ in 0..DRAIN_TURNS_MAX {
            self.turn();
            if self.random.chance(50) || self.reactor.driver_mut().is_stuck() {
                self.work();
            }
            if self.is_ended {
                return;
            }
        }
        panic!("the worker does not end");
    }
}

/// Peers as a seed wants them.
fn drawn_peer(random: &mut Random, ground: &Ground, items: &[Item]) -> (Vec<Said>, Peer, bool) {
    let uploads_percent = random.pick(&[0, 0, 20, 90]);
    let mut asked = Vec::new();
    let mut len = 0;
    for _ in 0..=random.below(8) {
        let mut ask = Ask::drawn(random, ground, items, uploads_percent);
        if let Ask::Put(item) = ask
            && random.chance(10)
        {
            ask = Ask::HalfPut(item);
        }
        let is_head = random.chance(10) && !matches!(ask, Ask::Put(_) | Ask::HalfPut(_));
        let (bytes, head_len) = ask.say(random, ground, items, is_head);
        let head_end = len + head_len;
        len += bytes.len();
        let is_last = matches!(ask, Ask::HalfPut(_));
        asked.push(Said { ask, is_head, bytes, head_end });
        if is_last {
            break;
        }
    }
    let is_dialogue = random.chance(40);
    let peer = Peer {
        says: Vec::new(),
        ending: if is_dialogue || random.chance(50) { Ending::Silence } else { Ending::HalfClose },
        reading: match random.below(12) {
            0 => Reading::UpTo(random.below(300_000)),
            1..=3 => Reading::Slow(5_000 + random.below(200_000)),
            _ => Reading::Eager,
        },
        resets_at: random.chance(12).then(|| {
            let len_max = random.pick(&[500, 200_000]);
            random.below(len_max)
        }),
        is_polite: is_dialogue || random.chance(80),
    };
    (asked, peer, is_dialogue)
}

/// One world: everything in it follows from the seed. Returns what tells two runs apart.
fn run(seed: u64, ground: &Rc<RefCell<Ground>>, items: &[Item]) -> u32 {
    let mut random = Random(seed);
    ground.borrow_mut().reset();
    ground.borrow_mut().choose(&mut random);
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(seed ^ 1, Faults::drawn(&mut random));
    let has_bad_disk = random.chance(25);
    if has_bad_disk {
        let mut percent = || random.pick(&[0, 0, 3, 20]);
        sim.disk.faults = DiskFaults {
            slow: 0,
            fails: percent(),
            vanished: percent(),
            exhausted: percent(),
            full: percent(),
        };
    }
    sim.disk.faults.slow = random.pick(&[0, 0, 50, 95]);
    let is_scarce = random.chance(40);
    let is_private = random.chance(3);
    let mut few = |enough: usize, little: &[usize]| if is_scarce { random.pick(little) } else { enough };
    let (packs, intakes) = (few(PACK_BUFFERS_MAX, &[1, 2, 5]), few(INTAKE_BUFFERS_MAX, &[2, 3, 6]));
    let [lookups, walks, texts, metrics] =
        [0; 4].map(|_| few(PLANE_QUEUE_LEN_MAX, &[1, 2, 8, PLANE_QUEUE_LEN_MAX]));
    let connections_max = few(1_000, &[1, 2, 3]);
    let has_few_places = connections_max < 1_000;
    let places = (few(32, &[1, 2]), few(256, &[1, 3]));
    let alive_len_max =
        few(LAYOUTS_ALIVE_LEN_MAX, &[1, KEPT_CONTENTS_LEN_MAX + 200_000, LAYOUTS_ALIVE_LEN_MAX]);
    let kept_len_max = if is_scarce { random.pick(&[100, 30_000, LAYOUTS_LEN_MAX]) } else { LAYOUTS_LEN_MAX };

    let (said_mailbox, said) = inbox().unwrap();
    let (mailbox, worker_inbox) = inbox().unwrap();
    let (lookups, lookup_jobs) = Plane::queue("lookup", lookups);
    let (walks, walk_jobs) = Plane::queue("walk", walks);
    let (texts, text_jobs) = Plane::queue("text", texts);
    let (encodes, encode_jobs) = Plane::queue("encode", PLANE_QUEUE_LEN_MAX);
    let (metrics, metrics_jobs) = Plane::queue("metrics", metrics);
    let planes = Planes { lookups, walks, texts, encodes, metrics };
    let store = ground.borrow().demo.store.clone();
    let is_store_first = random.chance(50);
    let counter = ChangeCounter::open(&store).unwrap();
    let index = usize::from(!is_store_first);
    let shared =
        Arc::new(SharedStore::new(index, store.clone(), counter, Arc::from([]), None, Arc::default()));
    let root = Descriptor::from(OwnedFd::from(File::open(&store.real_store).unwrap()));
    let live =
        LiveStore::new(Arc::clone(&shared), root, planes.clone(), said_mailbox.clone(), Arc::default())
            .with_layouts(Layouts::bounded(kept_len_max, alive_len_max));
    let settings = UploadSettings {
        directory: folder.path().to_path_buf(),
        store_dir: store.store_dir.clone(),
        len_max: 1 << 30,
        free_min: Some(0),
    };
    let upload_folder = UploadFolder::open(settings).unwrap();
    let others = vec![OtherSource::Store(Arc::clone(&shared))];
    let (uploads, upload_jobs) = SharedUploads::by_hand(upload_folder, others, places);
    let uploads = Uploads::new(uploads, said_mailbox.clone());
    let directory = Directory::new(Arc::new(OwnedFd::from(File::open(folder.path()).unwrap()))).unwrap();
    let mut sources = vec![Source::Store(Box::new(live)), Source::Directory(directory)];
    if !is_store_first {
        sources.reverse();
    }
    let terms = Terms {
        index: Index::default(),
        cache_info: CacheInfo { store_dir: store.store_dir.clone(), want_mass_query: true, priority: 30 },
        access: AccessConfig { is_upload_anonymous: !is_private, is_private, ..AccessConfig::default() },
        proxies: TrustedProxies::new(Arc::default()),
        access_log: AccessLog::Off,
    };
    let overview = Overview { stores: vec![Arc::clone(&shared)], metrics: Metrics::default(), browser: None };
    let node = CacheNode::new(
        sources,
        Arc::new(terms),
        Arc::new(overview),
        Some(uploads),
        Means {
            planes,
            mailbox: said_mailbox,
            figures: Arc::default(),
            scribe: Arc::default(),
            seed: 1,
            is_first: random.chance(50),
        },
    );
    let peers = Peers {
        index: 0,
        admission: Admission::new(1, connections_max, None),
        mailboxes: vec![mailbox.clone()],
        pulses: Arc::from([AtomicU64::new(0)]),
        figures: Arc::default(),
    };
    let (admission, figures) = (Arc::clone(&peers.admission), Arc::clone(&peers.figures));
    // Any descriptor does: the simulated ring accepts without it.
    let listeners = (0..=random.below(2)).map(|_| File::open("/dev/null").unwrap().into()).collect();
    let mut reactor = Reactor::new(&mut sim, node, worker_inbox, listeners, peers).unwrap();
    *reactor.pool_mut() = Pool::bounded(packs, intakes);
    reactor.begin();
    let coming = (0..=random.below(6)).map(|_| drawn_peer(&mut random, &ground.borrow(), items)).collect();
    let may_change = random.chance(60);
    let is_drained = random.chance(15);
    let mut world = World {
        may_damage: may_change && random.chance(40),
        ground: Rc::clone(ground),
        reactor,
        said,
        on_its_way: Vec::new(),
        mailbox,
        planes: vec![
            Hands::new(lookup_jobs, LOOKUP_THREADS),
            Hands::new(walk_jobs, WALK_THREADS),
            Hands::new(text_jobs, TEXT_THREADS),
            Hands::new(encode_jobs, ENCODE_THREADS),
            Hands::new(metrics_jobs, METRICS_THREADS),
            Hands::new(upload_jobs, UPLOAD_THREADS),
        ],
        talks: Vec::new(),
        dialogues: Vec::new(),
        coming,
        turn: 0,
        may_change,
        is_ended: false,
        random,
    };
    world.dial();
    world.live();
    if is_drained {
        world.coming.clear();
        world.drain();
    }
    world.wait_for_all();
    assert_eq!(world.reactor.pool_mut().packs.out(), 0, "pack buffers are out");
    assert_eq!(world.reactor.pool_mut().intakes.out(), 0, "buffers for bodies are out");
    // What the last connections have left is dropped on threads.
    while world.work() {
        world.turn();
    }
    if !world.is_ended {
        world.reactor.node().assert_at_rest();
        assert_eq!(open_files(&store.real_store), 0, "files of the store are open");
        assert_eq!(drafts(folder.path()), 0, "drafts are left");
        world.drain();
    }
    assert_eq!(admission.taken(), 0, "connections are counted");
    let World { reactor, talks, turn, planes, .. } = world;
    drop((reactor, planes, shared));
    sim.assert_at_rest();
    let ground = ground.borrow();
    let troubles = Troubles { is_scarce, has_bad_disk, is_drained, is_private, has_few_places };
    let mut talks = talks;
    for (index, talk) in talks.iter_mut().enumerate() {
        talk.end = sim.sockets().get(index).and_then(Socket::end);
    }
    let judge = Judge { ground: &ground, items, troubles, talks: &talks };
    let sent = |index: usize| sim.sockets().get(index).map_or(Vec::new(), |socket| socket.sent().to_vec());
    judge.judge(sent).unwrap_or_else(|fault| panic!("{fault}"));
    figures.assert_at_rest();
    let accepted = sim.sockets().len() as u64;
    assert_eq!((figures.accepted.get(), figures.opened.get()), (accepted, accepted));
    let sent_len = sim.sockets().iter().map(|socket| socket.sent().len() as u64).sum();
    judge.judge_figures(&figures, sent_len).unwrap_or_else(|fault| panic!("{fault}"));
    check_uploads(&judge, folder.path(), items);
    assert_eq!(descriptors_beneath(&store.real_store), 0, "descriptors are left");
    let mut digest = crc32fast::Hasher::new();
    digest.update(&turn.to_ne_bytes());
    for socket in sim.sockets() {
        digest.update(socket.sent());
    }
    digest.finalize()
}

/// What was acknowledged is there and whole; what is there is whole.
fn check_uploads(judge: &Judge<'_>, folder: &Path, items: &[Item]) {
    assert_eq!(drafts(folder), 0, "drafts are left");
    for (index, item) in items.iter().enumerate() {
        let found = fs::read(folder.join(&item.file)).ok();
        // Two items have the same name: what is bad is never there.
        let good = items.iter().find(|other| other.file == item.file && other.is_good);
        if let Some(found) = &found {
            assert!(good.is_some_and(|good| good.body == *found), "{} is not whole", item.file);
            assert!(!item.is_good || judge.was_put(index), "nobody has put {} there", item.file);
        }
        assert!(found.is_some() || !judge.is_acknowledged(index), "{} was acknowledged", item.file);
    }
}

/// Files in the folders of what is being uploaded.
fn drafts(folder: &Path) -> usize {
    let Ok(folders) = fs::read_dir(folder.join(".narwire-uploads")) else { return 0 };
    folders.map(|folder| fs::read_dir(folder.unwrap().path()).map_or(0, Iterator::count)).sum()
}

/// Descriptors of what lies in this folder.
fn open_files(folder: &Path) -> usize {
    links().filter(|link| link.starts_with(folder) && link != folder).count()
}

/// Descriptors of this folder and what lies beneath it.
fn descriptors_beneath(folder: &Path) -> usize {
    links().filter(|link| link.starts_with(folder)).count()
}

fn links() -> impl Iterator<Item = std::path::PathBuf> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    // Other tests close theirs meanwhile.
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
}

/// Seeds decide everything.
#[test]
fn a_whole_worker_answers_right_and_leaves_nothing() {
    for_each_seed("a_whole_worker_answers_right_and_leaves_nothing", SEEDS, || {
        let (ground, items) = (Rc::new(RefCell::new(Ground::new())), oracle::items());
        move |seed| {
            run(seed, &ground, &items);
        }
    });
}

/// Otherwise a failing seed could not be looked at.
#[test]
fn a_seed_makes_the_same_world_again() {
    let (ground, items) = (Rc::new(RefCell::new(Ground::new())), oracle::items());
    for seed in 0..15 {
        assert_eq!(run(seed, &ground, &items), run(seed, &ground, &items), "seed {seed}");
    }
}
