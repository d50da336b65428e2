//! Serving a volume over NBD.
//!
//! A [`Server`] owns what the connections of one export share. Each connection is one call of
//! [`Server::serve`] on a thread of the caller's. Negotiation is not here: a connected socket in
//! the transmission phase is expected, as the kernel's client wants it.

mod budget;
mod execute;
mod padded;
mod transmission;

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::proto::{Rules, TransmissionFlags, wire};
use crate::{Result, Volume};

pub use padded::pad_to_block;

use transmission::Link;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest READ or WRITE, bytes. At least 32 MiB is what clients may expect.
    pub max_payload: u32,
    /// Bytes of requests that are read and not yet answered. One request may exceed it.
    pub bytes_in_flight: usize,
    /// Threads, and so requests carried out at the same time. Started when first needed.
    pub workers: usize,
    /// A peer that neither takes nor gives a byte in the middle of a message for this long is
    /// gone.
    pub no_progress: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: wire::DEFAULT_MAX_PAYLOAD,
            bytes_in_flight: 64 << 20,
            workers: 32,
            no_progress: crate::cx::NO_PROGRESS_LIMIT,
        }
    }
}

/// How an export is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Refuse writes even when the volume could take them.
    pub read_only: bool,
    /// Bounds of each connection.
    pub limits: Limits,
}

/// How a connection ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client sent DISC; all earlier requests were answered.
    Disconnected,
    /// The client closed the socket without DISC. All requests that arrived whole were carried
    /// out.
    Closed,
    /// [`Server::stop`] closed it.
    Stopped,
}

/// What an export of `volume` can do, as CONNECT and the handshake advertise it.
#[must_use]
pub fn flags_for(volume: &Volume, read_only: bool) -> TransmissionFlags {
    // Several connections agree with each other: there is no cache per connection, and a flush
    // of the volume covers every write that has returned, whoever made it.
    let shared = TransmissionFlags::HAS_FLAGS
        .union(TransmissionFlags::CAN_MULTI_CONN)
        .union(TransmissionFlags::SEND_CACHE);
    match volume.writer() {
        Some(writer) if !read_only => {
            let features = writer.features();
            shared
                .union(TransmissionFlags::SEND_FLUSH)
                .union(TransmissionFlags::SEND_FUA)
                .union(TransmissionFlags::SEND_WRITE_ZEROES)
                .with_if(TransmissionFlags::SEND_FAST_ZERO, features.zero)
                .with_if(TransmissionFlags::SEND_TRIM, features.trim)
        }
        _ => shared.union(TransmissionFlags::READ_ONLY),
    }
}

/// One export: a volume and what all its connections share.
#[derive(Debug)]
pub struct Server {
    volume: Volume,
    rules: Rules,
    limits: Limits,
    stopping: AtomicBool,
    links: Mutex<Vec<Arc<Link>>>,
}

impl Server {
    /// An export of `volume`. For a block device pad the volume first, see [`pad_to_block`].
    #[must_use]
    pub fn new(volume: Volume, options: &Options) -> Self {
        let rules = Rules {
            size: volume.size(),
            flags: flags_for(&volume, options.read_only),
            max_payload: options.limits.max_payload,
            // Volume serves any offset and length.
            min_block: 1,
        };
        Self {
            volume,
            rules,
            limits: options.limits,
            stopping: AtomicBool::new(false),
            links: Mutex::new(Vec::new()),
        }
    }

    /// What this export has to advertise.
    #[must_use]
    pub fn flags(&self) -> TransmissionFlags {
        self.rules.flags
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.rules.size
    }

    /// Answers the requests that arrive on `socket` until the client is done or gone. Returns
    /// when every request that was accepted is carried out.
    ///
    /// Requests are carried out in parallel and answered in any order; every one is answered, a
    /// failed one with an error. The client's end may vanish at any byte: that is no error.
    ///
    /// # Errors
    /// `Corrupt` when the client's bytes are no request, `TimedOut` when it stops in the middle
    /// of a message or takes no answer, `Io` when the socket fails.
    pub fn serve(&self, socket: UnixStream) -> Result<End> {
        let link = Arc::new(Link::new(socket, &self.limits)?);
        self.links().push(Arc::clone(&link));
        // A stop between the check and the push would be missed, hence the check after it.
        let end = if self.is_stopping() {
            Ok(End::Stopped)
        } else {
            transmission::run(self, &link)
        };
        link.close();
        self.links().retain(|other| !Arc::ptr_eq(other, &link));
        end
    }

    /// Ends every connection: requests that are being carried out are finished and answered until
    /// `deadline` from now, those that still arrive are answered with `ESHUTDOWN`, then the
    /// sockets are closed. Returns whether all were answered in time. The export is of no use
    /// afterwards.
    pub fn stop(&self, deadline: Duration) -> bool {
        self.stopping.store(true, Ordering::Release);
        let deadline = Instant::now() + deadline;
        let links = self.links().clone();
        let mut drained = true;
        for link in &links {
            drained &= link.budget.wait_idle(deadline);
        }
        for link in &links {
            link.close();
        }
        drained
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
