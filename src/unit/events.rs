//! What a supervisor or server reacts to, gathered from small threads into one queue, so that the
//! main thread never waits for anything but an event.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

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
