//! How other threads talk to a worker: a queue and a bell that its ring listens to.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// The worker's end.
pub struct Inbox<M> {
    receiver: Receiver<M>,
    bell: Arc<OwnedFd>,
}

/// The other threads' end.
#[derive(Debug)]
pub struct Mailbox<M> {
    sender: Sender<M>,
    bell: Arc<OwnedFd>,
}

/// A queue with its two ends. What bounds it is that every message answers a question of the worker's, whose number is
/// bounded, or hands over a connection, whose number is bounded too.
pub fn inbox<M>() -> Result<(Mailbox<M>, Inbox<M>), Errno> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Mailbox { sender, bell: Arc::clone(&bell) }, Inbox { receiver, bell }))
}

impl<M> Inbox<M> {
    /// The next message, if there is one.
    pub fn next(&self) -> Option<M> {
        self.receiver.try_recv().ok()
    }

    /// A descriptor of the bell for the worker's ring.
    pub fn bell(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&*self.bell, 0)
    }
}

impl<M> Mailbox<M> {
    /// Leaves a message and rings. A worker that has ended gives it back.
    pub fn send(&self, message: M) -> Result<(), M> {
        self.sender.send(message).map_err(|error| error.0)?;
        // It can fail only when the counter is full, and then the bell is ringing anyway.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        Ok(())
    }
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}
