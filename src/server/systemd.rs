//! What is said to the service manager: ready, alive, stopping. See sd_notify(3) and sd_watchdog_enabled(3).
//!
//! Without a service manager (no NOTIFY_SOCKET) every call does nothing. One that cannot be reached is logged and
//! forgiven: the manager draws its own conclusions, and clients need not suffer from them.

use std::time::Duration;

use sd_notify::NotifyState;

/// The sockets listen: units ordered after this one may start.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Settings are being read again; [`ready`] says that it is over.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    // Type=notify-reload wants to know since when.
    states.extend(NotifyState::monotonic_usec_now().ok());
    notify(&states);
}

/// No new connection is accepted any more.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// To be called once every [`watchdog_interval`] by whoever would notice that the server is stuck.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// Whether there is a service manager that wants to hear of the process.
pub fn is_listening() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// How often the service manager wants to hear [`alive`]: half of its patience, as sd_watchdog_enabled(3) advises.
/// `None` when it does not care.
pub fn watchdog_interval() -> Option<Duration> {
    let mut patience_us = 0;
    let enabled = sd_notify::watchdog_enabled(false, &mut patience_us);
    (enabled && patience_us > 0).then(|| Duration::from_micros(patience_us) / 2)
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
