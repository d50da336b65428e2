//! The transmission phase on one connection.
//!
//! Threads take turns: the one whose turn it is reads the next request, hands the turn on and
//! carries the request out itself. A request whose bytes are at hand is thus answered by the
//! thread that read it, without a switch, while one that waits for a slow medium holds up nobody.
//! A thread is added when a request arrives and none is left to read the next.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use crate::proto::{Errno, Header, Request, SimpleReply};
use crate::{Error, Kind, Result};

use super::budget::{Budget, Grant};
use super::execute::execute;
use super::{End, Limits, Server};

/// A thread keeps a buffer of this size between requests; a larger one lives for one request.
/// The kernel's client asks for at most this much at a time once it is tuned.
const KEPT_BUFFER: usize = 1 << 20;
/// Payloads nobody wants are read in pieces of this size.
const DRAIN_PIECE: usize = 64 << 10;

/// The socket of one connection and what it may hold.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixStream,
    pub(super) budget: Budget,
}

impl Link {
    pub(super) fn new(socket: UnixStream, limits: &Limits) -> Result<Self> {
        socket
            .set_nonblocking(false)
            .and_then(|()| socket.set_read_timeout(Some(limits.no_progress)))
            .and_then(|()| socket.set_write_timeout(Some(limits.no_progress)))
            .map_err(|error| Error::io("cannot set up the NBD socket", error))?;
        Ok(Self {
            socket,
            budget: Budget::new(limits.bytes_in_flight),
        })
    }

    /// Ends the connection for both sides; a thread that waits on the socket wakes up.
    pub(super) fn close(&self) {
        // The only failure is that the peer is already gone.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Serves one connection to its end.
pub(super) fn run(server: &Server, link: &Link) -> Result<End> {
    let connection = Connection {
        server,
        link,
        turn: Mutex::new(None),
        sending: Mutex::new(()),
        waiting: AtomicUsize::new(0),
        workers: AtomicUsize::new(1),
    };
    std::thread::scope(|scope| connection.work(scope));
    let end = connection.turn.into_inner();
    // Every worker leaves only after an end was noted.
    end.unwrap_or_else(PoisonError::into_inner)
        .unwrap_or(Ok(End::Closed))
}

struct Connection<'a> {
    server: &'a Server,
    link: &'a Link,
    /// Held by the thread that reads; `Some` once nothing more is to be read.
    turn: Mutex<Option<Result<End>>>,
    /// Held while an answer is sent, so that answers do not mix.
    sending: Mutex<()>,
    /// Threads that wait for their turn.
    waiting: AtomicUsize,
    /// Threads in all.
    workers: AtomicUsize,
}

/// A request that was read whole.
struct Job<'a> {
    header: Header,
    request: Result<Request, Errno>,
    /// Its bytes count until the answer is sent.
    _grant: Grant<'a>,
}

impl Connection<'_> {
    /// The life of one thread.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut buffer = Vec::with_capacity(SimpleReply::LEN + KEPT_BUFFER);
        loop {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let mut turn = lock(&self.turn);
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            if turn.is_some() {
                return;
            }
            let job = match self.read_request(&mut buffer) {
                Ok(Incoming::Job(job)) => job,
                Ok(Incoming::End(end)) => {
                    *turn = Some(Ok(end));
                    return;
                }
                Err(error) => {
                    *turn = Some(self.ended_by(error));
                    return;
                }
            };
            self.add_worker(scope);
            drop(turn);
            self.answer(&job, &mut buffer);
            if buffer.capacity() > SimpleReply::LEN + KEPT_BUFFER {
                buffer = Vec::with_capacity(SimpleReply::LEN + KEPT_BUFFER);
            }
        }
    }

    /// Makes sure that somebody reads the next request while this thread is busy, as far as the
    /// limit allows. Called with the turn held.
    fn add_worker<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let enough = self.waiting.load(Ordering::Acquire) > 0
            || self.workers.load(Ordering::Acquire) >= self.server.limits.workers;
        if enough {
            return;
        }
        self.workers.fetch_add(1, Ordering::AcqRel);
        let started = std::thread::Builder::new()
            .name("nbd".to_owned())
            .spawn_scoped(scope, || self.work(scope));
        if let Err(error) = started {
            // The threads there are go on alone.
            self.workers.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!("cannot start another thread to serve NBD requests: {error}");
        }
    }

    /// Reads the next request, the payload of a WRITE behind room for the reply's header.
    fn read_request(&self, buffer: &mut Vec<u8>) -> io::Result<Incoming<'_>> {
        let mut bytes = [0; Header::LEN];
        if !self.read_first(&mut bytes)? {
            return Ok(Incoming::End(if self.server.is_stopping() {
                End::Stopped
            } else {
                End::Closed
            }));
        }
        let header = Header::decode(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let mut request = header.check(&self.server.rules);
        if request == Ok(Request::Disconnect) {
            return Ok(Incoming::End(End::Disconnected));
        }
        if self.server.is_stopping() {
            request = Err(Errno::Shutdown);
        }
        let data_len = match request {
            Ok(Request::Read { range } | Request::Write { range, .. }) => range.len(),
            _ => 0,
        };
        // At most max_payload, a u32.
        let data_len = data_len as usize;
        let grant = self.link.budget.take(Header::LEN + data_len);
        resize(buffer, SimpleReply::LEN + data_len);
        match request {
            Ok(Request::Write { .. }) => {
                (&self.link.socket).read_exact(&mut buffer[SimpleReply::LEN..])?;
            }
            _ => self.drain(header.payload_len())?,
        }
        Ok(Incoming::Job(Job {
            header,
            request,
            _grant: grant,
        }))
    }

    /// Fills `bytes`; false when the peer has closed the socket before the first of them.
    /// Between two messages the peer may be silent for as long as it likes.
    fn read_first(&self, bytes: &mut [u8]) -> io::Result<bool> {
        loop {
            match (&self.link.socket).read(bytes) {
                Ok(0) => return Ok(false),
                Ok(got) => {
                    (&self.link.socket).read_exact(&mut bytes[got..])?;
                    return Ok(true);
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads and forgets `len` bytes.
    fn drain(&self, len: u32) -> io::Result<()> {
        let mut left = len as usize;
        let mut piece = vec![0; left.min(DRAIN_PIECE)];
        while left > 0 {
            let part = left.min(DRAIN_PIECE);
            (&self.link.socket).read_exact(&mut piece[..part])?;
            left -= part;
        }
        Ok(())
    }

    /// Carries a request out and sends the answer.
    fn answer(&self, job: &Job<'_>, buffer: &mut [u8]) {
        let outcome = match &job.request {
            Ok(request) => execute(
                &self.server.volume,
                request,
                &mut buffer[SimpleReply::LEN..],
            ),
            Err(errno) => Err(*errno),
        };
        let reply = SimpleReply {
            cookie: job.header.cookie,
            error: outcome.err(),
        };
        buffer[..SimpleReply::LEN].copy_from_slice(&reply.encode());
        let with_data = matches!(job.request, Ok(Request::Read { .. })) && outcome.is_ok();
        let len = if with_data {
            buffer.len()
        } else {
            SimpleReply::LEN
        };
        let sending = lock(&self.sending);
        if let Err(error) = (&self.link.socket).write_all(&buffer[..len]) {
            // Half an answer cannot be mended: the connection ends. The reader wakes up.
            self.link.close();
            if !is_gone(&error) {
                tracing::warn!("an answer could not be sent to the NBD client: {error}");
            }
        }
        drop(sending);
    }

    /// What an error of the socket means for the connection.
    fn ended_by(&self, error: io::Error) -> Result<End> {
        if error.kind() == io::ErrorKind::UnexpectedEof || is_gone(&error) {
            return Ok(if self.server.is_stopping() {
                End::Stopped
            } else {
                End::Closed
            });
        }
        if error.kind() == io::ErrorKind::InvalidData {
            return match error.downcast::<Error>() {
                Ok(ours) => Err(ours),
                Err(other) => Err(Error::io("cannot read the next NBD request", other)),
            };
        }
        if is_timeout(&error) {
            let limit = self.server.limits.no_progress.as_secs();
            return Err(Error::new(
                Kind::TimedOut,
                format!("the NBD client stopped in the middle of a request for {limit} s"),
            ));
        }
        Err(Error::io("cannot read the next NBD request", error))
    }
}

/// What reading a request gave.
enum Incoming<'a> {
    Job(Job<'a>),
    End(End),
}

/// Sets the length without moving old bytes to a larger place.
fn resize(buffer: &mut Vec<u8>, len: usize) {
    if len > buffer.capacity() {
        // Fresh zeroed pages cost nothing until touched.
        *buffer = vec![0; len];
    } else {
        buffer.resize(len, 0);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
