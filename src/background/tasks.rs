//! The tasks that decide what is done when; each runs until the plane is to end.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use tracing::{debug, info, warn};

use super::Hint;
use super::check;
use super::fill::{self, Filled, Order};
use super::report::State;
use super::room::{Need, Room};
use super::settings::Policy;
use super::workshop::Workshop;
use crate::codec::store_path::HashPart;
use crate::limits::{
    ASKED_ONCE_MAX, FOLLOW_AGAIN_INTERVAL, FOLLOW_BATCH, FOLLOW_INTERVAL, HOUSEKEEPING_INTERVAL,
    INBOX_INTERVAL, MENDED_LOOK_INTERVAL, STUCK_RETRY_MAX, STUCK_RETRY_MIN,
};
use crate::store::catalog::Soundness;
use crate::store::change::ChangeCounter;
use crate::store::db::RowId;
use crate::store::{StoreError, fault};
use crate::tally::Tally as _;

/// Lets files and records agree after whatever ended the last process. False when the plane ends before.
pub async fn reconcile(workshop: &Rc<Workshop>) -> bool {
    if workshop.folder.soundness() == Soundness::Rebuilt {
        warn!(
            "the catalog of the NAR cache was damaged, or of another version; it is made anew from the files"
        );
    }
    let mut retry = Retry::new();
    loop {
        let (folder, shared) = (Arc::clone(&workshop.folder), Arc::clone(&workshop.shared));
        let job = move || folder.reconcile(&mut || !shared.is_ending());
        match workshop.disks.runtime().wait_for(job).await {
            Ok(reconciled) => {
                info!("the NAR cache has {} bytes", workshop.catalog().stored_len_bytes());
                debug!("{reconciled:?}");
                workshop.shared.enter(State::Working);
                return !workshop.shared.is_ending();
            }
            Err(error) => {
                workshop.shared.enter(State::Failing(error.to_string()));
            }
        }
        if !workshop.pause(retry.next()).await {
            return false;
        }
    }
}

/// Takes hints, and orders what they are reason enough for.
pub async fn listen(workshop: Rc<Workshop>, orders: Sender<Order>) {
    let mut asked_once = AskedOnce::default();
    while workshop.pause(INBOX_INTERVAL).await {
        while let Some(Hint { hash_part, has_small_files }) = workshop.shared.hints.take() {
            let is_wanted = match workshop.settings.policy {
                Policy::Off => false,
                Policy::Hot => has_small_files || asked_once.is_again(hash_part),
                Policy::All => true,
            };
            if !is_wanted || !workshop.claim(hash_part) {
                continue;
            }
            if orders.try_send(Order { hash_part, has_small_files, need: Need::Wanted }).is_err() {
                workshop.release(hash_part);
                workshop.shared.counters.hints_dropped.add(1);
            }
        }
    }
}

/// Looks into files that were not what the catalog says when they were to be sent.
pub async fn look_into(workshop: Rc<Workshop>) {
    while workshop.pause(INBOX_INTERVAL).await {
        while let Some((nar, coding)) = workshop.shared.doubts.take() {
            check::look_into(&workshop, nar, coding).await;
        }
    }
}

/// Carries out orders, those that were asked for before those of paths that are merely there.
pub async fn fill(workshop: Rc<Workshop>, asked: Receiver<Order>, followed: Receiver<Order>) {
    let next = async || {
        let asked = async { asked.recv().await.ok() };
        // Without the policy to encode all there never are any.
        let followed = async {
            match followed.recv().await {
                Ok(order) => Some(order),
                Err(_) => future::pending().await,
            }
        };
        future::or(asked, followed).await
    };
    while let Some(order) = next().await {
        if workshop.shared.is_ending() {
            return;
        }
        fault::may_panic("background: order taken");
        let is_ended = !carry_out(&workshop, order).await;
        workshop.release(order.hash_part);
        if is_ended {
            return;
        }
    }
}

/// Encodes one NAR, as often as the cache is in the way. False when the plane ends meanwhile.
pub async fn carry_out(workshop: &Rc<Workshop>, order: Order) -> bool {
    let counters = &workshop.shared.counters;
    let mut retry = Retry::new();
    loop {
        match fill::fill(workshop, order).await {
            Filled::Done => {
                counters.fills_done.add(1);
                workshop.failure.take();
                workshop.found_working();
                return true;
            }
            Filled::Damaged => {
                counters.fills_damaged.add(1);
                return true;
            }
            // Such as a NAR that is kept compressed alone, and that clients go on to ask for as it is.
            Filled::Nothing => {}
            Filled::Refused => counters.fills_refused.add(1),
            Filled::NoRoom(reason) => {
                counters.fills_refused.add(1);
                workshop.found_full(order.need, reason);
            }
            Filled::Failed(reason) => workshop.found_failing(reason),
            Filled::Stuck(_) if workshop.shared.is_ending() => return false,
            Filled::Stuck(reason) => {
                counters.fills_failed.add(1);
                workshop.shared.enter(State::Failing(reason));
                workshop.stuck.set(workshop.stuck.get() + 1);
                let goes_on = workshop.pause(retry.next()).await;
                workshop.stuck.set(workshop.stuck.get() - 1);
                if !goes_on {
                    return false;
                }
                continue;
            }
        }
        // What nobody has asked for does not come again soon, and whoever asks for it does not wait for that.
        if order.need == Need::Wanted {
            workshop.leave_alone(order.hash_part);
        }
        return true;
    }
}

/// Orders all valid paths, and those that become valid, if that is the policy.
pub async fn follow(workshop: Rc<Workshop>, orders: Sender<Order>) {
    if workshop.settings.policy != Policy::All {
        return;
    }
    loop {
        match follow_database(&workshop, &orders).await {
            Ok(ControlFlow::Break(())) => return,
            Ok(ControlFlow::Continue(())) => {}
            Err(error) => debug!("valid paths cannot be listed: {error}"),
        }
        if !workshop.pause(FOLLOW_INTERVAL).await {
            return;
        }
    }
}

/// Orders the paths of one database, until another takes its place.
async fn follow_database(
    workshop: &Rc<Workshop>,
    orders: &Sender<Order>,
) -> Result<ControlFlow<()>, StoreError> {
    let (runtime, places) = (workshop.disks.runtime(), Arc::clone(&workshop.places));
    let counter = runtime.wait_for(move || ChangeCounter::open(&places)).await?;
    let mut after = RowId::default();
    let mut seen = None;
    let mut began = Instant::now();
    while counter.still_current() {
        if began.elapsed() > FOLLOW_AGAIN_INTERVAL {
            // What could not be encoded, or was put aside, is behind it.
            (after, seen, began) = (RowId::default(), None, Instant::now());
            workshop.is_spare_room_gone.set(false);
        }
        // Before the question, so that what is registered meanwhile shows.
        let stamp = counter.stamp();
        while seen != Some(stamp) {
            let paths =
                workshop.database.ask(move |database| database.valid_paths(after, FOLLOW_BATCH)).await?;
            if paths.is_empty() {
                seen = Some(stamp);
            }
            for (row, path) in paths {
                after = row;
                // What a damaged row is about can be served to nobody; a scrub tells of it.
                let Ok(path) = path else { continue };
                let hash_part = path.hash_part();
                if !workshop.claim(hash_part) {
                    continue;
                }
                let ended = async {
                    workshop.shared.end().await;
                    false
                };
                let order = Order { hash_part, has_small_files: false, need: Need::Spare };
                if !future::or(ended, async { orders.send(order).await.is_ok() }).await {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        if !workshop.pause(FOLLOW_INTERVAL).await {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Looks now and then at what nobody asks for.
pub async fn keep_house(workshop: Rc<Workshop>) {
    let mut kept_at: Option<Instant> = None;
    loop {
        if let Err(error) = check::look_again(&workshop).await {
            debug!("{error}");
        }
        if let Err(error) = workshop.keep_marks().await {
            debug!("{error}");
        }
        if kept_at.is_none_or(|kept_at| kept_at.elapsed() >= HOUSEKEEPING_INTERVAL) {
            if let Err(error) = keep_house_once(&workshop).await {
                debug!("{error}");
            }
            kept_at = Some(Instant::now());
        }
        if !workshop.pause(MENDED_LOOK_INTERVAL).await {
            return;
        }
    }
}

/// Looks whether the cache can be written and has room. It works again when a fill has not found otherwise since the last look.
pub async fn keep_house_once(workshop: &Rc<Workshop>) -> Result<(), StoreError> {
    let folder = Arc::clone(&workshop.folder);
    // A file that is begun says whether there can be any.
    let look = move || folder.draft().and_then(|_| folder.catalog().keep_uses());
    let mut looked = workshop.look_there().await;
    if looked.is_ok() {
        looked = workshop.disks.runtime().wait_for(look).await.map_err(|error| error.to_string());
    }
    if let Err(reason) = looked {
        workshop.shared.enter(State::Failing(reason));
        return Ok(());
    }
    match workshop.make_room(0, Need::Wanted).await? {
        Room::Made(_) => {
            workshop.found_working();
            workshop.has_lacked_room.set(false);
        }
        Room::None(reason) => workshop.found_full(Need::Wanted, reason),
    }
    Ok(())
}

/// Longer and longer waits.
struct Retry(Duration);

impl Retry {
    fn new() -> Self {
        Self(STUCK_RETRY_MIN)
    }

    fn next(&mut self) -> Duration {
        let next = self.0;
        self.0 = (2 * next).min(STUCK_RETRY_MAX);
        next
    }
}

/// The paths that were asked for once: about the last [`ASKED_ONCE_MAX`].
#[derive(Default)]
struct AskedOnce {
    recent: HashSet<HashPart>,
    older: HashSet<HashPart>,
}

impl AskedOnce {
    /// Whether a path was asked for before; remembers it otherwise.
    fn is_again(&mut self, hash_part: HashPart) -> bool {
        if self.older.remove(&hash_part) || !self.recent.insert(hash_part) {
            self.recent.remove(&hash_part);
            return true;
        }
        if self.recent.len() >= ASKED_ONCE_MAX {
            self.older = std::mem::take(&mut self.recent);
        }
        false
    }
}
