//! What a supervisor or server reacts to, gathered from small threads into one queue, so that the
//! main thread never waits for anything but an event.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use nbdserve::{Error, Result};
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::channel::Channel;
use crate::sys::mountinfo::MountWatch;

/// A wait without a bound, one hour at a time.
pub const FOREVER: Duration = Duration::from_secs(3600);
/// Threads that only wait need no more stack than this many bytes.
const STACK: usize = 64 * 1024;

/// The queue of events, at the main thread's end.
#[derive(Debug)]
pub struct Inbox<E> {
    queue: Receiver<E>,
    /// What came while something else was looked for; earlier than all in the queue.
    aside: VecDeque<E>,
}

impl<E> Inbox<E> {
    /// Takes from `queue`.
    #[must_use]
    pub fn new(queue: Receiver<E>) -> Self {
        Self {
            queue,
            aside: VecDeque::new(),
        }
    }

    /// Waits for the next event. `None` when nobody can send one any more.
    pub fn wait(&mut self) -> Option<E> {
        self.aside.pop_front().or_else(|| self.queue.recv().ok())
    }

    /// The next event, if there is one within `limit`.
    pub fn wait_within(&mut self, limit: Duration) -> Option<E> {
        let waited = || self.queue.recv_timeout(limit).ok();
        self.aside.pop_front().or_else(waited)
    }

    /// Waits for the event that `pick` is looking for, at most for `limit`. It gives back the others,
    /// which come again with [`Self::wait`].
    pub fn find<T>(
        &mut self,
        limit: Duration,
        pick: impl Fn(E) -> std::result::Result<T, E>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut others = VecDeque::new();
        let found = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wait_within(left).map(&pick) {
                Some(Ok(found)) => break Some(found),
                Some(Err(other)) => others.push_back(other),
                None => break None,
            }
        };
        others.append(&mut self.aside);
        self.aside = others;
        found
    }
}

/// Starts a small thread that waits for something.
///
/// # Errors
/// When the system has no more threads.
pub fn watch(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(body)
        .map(drop)
        .map_err(|error| Error::io(format!("cannot start the thread {name}"), error))
}

/// Turns every message on `channel` into an event, and its end into `end`.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch_channel<M, E>(
    channel: &Arc<Channel>,
    events: &Sender<E>,
    make: impl Fn(M, Vec<OwnedFd>) -> E + Send + 'static,
    end: E,
) -> Result<()>
where
    M: DeserializeOwned + 'static,
    E: Send + 'static,
{
    let (channel, events) = (Arc::clone(channel), events.clone());
    watch("channel", move || {
        loop {
            match channel.recv::<M>() {
                Ok(Some((message, fds))) => {
                    if events.send(make(message, fds)).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!("{error}");
                    break;
                }
            }
        }
        let _ = events.send(end);
    })
}

/// Turns SIGTERM, SIGINT and SIGHUP into events.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn watch_signals<E: Send + 'static>(
    events: &Sender<E>,
    make: impl Fn() -> E + Send + 'static,
) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Error::io("cannot install signal handlers", error))?;
    let events = events.clone();
    watch("signals", move || {
        for _ in signals.forever() {
            if events.send(make()).is_err() {
                return;
            }
        }
    })
}

/// Turns the end of a child into an event.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch_child<E: Send + 'static>(
    mut child: Child,
    events: &Sender<E>,
    make: impl Fn(String) -> E + Send + 'static,
) -> Result<()> {
    let events = events.clone();
    watch("child", move || {
        let how = match child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let _ = events.send(make(how));
    })
}

/// Turns every change of the mount table into an event.
///
/// # Errors
/// When the table cannot be watched.
pub fn watch_mounts<E: Send + 'static>(
    events: &Sender<E>,
    make: impl Fn() -> E + Send + 'static,
) -> Result<()> {
    let table = MountWatch::new()?;
    let events = events.clone();
    watch("mounts", move || {
        loop {
            match table.wait(FOREVER) {
                Ok(false) => {}
                Ok(true) => {
                    if events.send(make()).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!("{error}");
                    return;
                }
            }
        }
    })
}

/// Runs something that may block, and turns its result into an event.
///
/// # Errors
/// When the thread cannot be started.
pub fn job<T: Send + 'static, E: Send + 'static>(
    name: &str,
    events: &Sender<E>,
    work: impl FnOnce() -> T + Send + 'static,
    make: impl FnOnce(T) -> E + Send + 'static,
) -> Result<()> {
    let events = events.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _ = events.send(make(work()));
        })
        .map(drop)
        .map_err(|error| Error::io(format!("cannot start the thread {name}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn what_was_not_looked_for_comes_again_in_order() {
        let (sender, queue) = mpsc::channel();
        let mut inbox = Inbox::new(queue);
        let even = |n: u32| if n.is_multiple_of(2) { Ok(n) } else { Err(n) };
        for n in [1, 3, 4, 5, 6] {
            sender.send(n).unwrap();
        }
        assert_eq!(inbox.find(FOREVER, even), Some(4));
        assert_eq!(inbox.find(FOREVER, even), Some(6));
        sender.send(7).unwrap();
        assert_eq!(inbox.find(Duration::ZERO, even), None);
        assert_eq!(inbox.wait(), Some(1));
        assert_eq!(inbox.wait_within(Duration::ZERO), Some(3));
        assert_eq!(inbox.wait(), Some(5));
        assert_eq!(inbox.wait(), Some(7));
        assert_eq!(inbox.wait_within(Duration::ZERO), None);
        drop(sender);
        assert_eq!(inbox.wait(), None);
    }
}
