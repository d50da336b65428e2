//! The socket by which the server asks, and the launcher answers. The supervisor passes one end on
//! and sees nothing of what goes over it.
//!
//! A question is its length and JSON; an answer is one byte that says which, its length, and the key
//! itself or, as JSON, why there is none.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nbdserve::error::Report;
use nbdserve::secret::{LockedBytes, MOST_BYTES, Question, Secret, Secrets};
use nbdserve::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::keys::Keys;
use crate::sys::process::{forbid_core_files, forbid_dumps};

/// Longest question or refusal, in bytes.
const LONGEST_TEXT: usize = 64 << 10;
/// An answer: the key.
const KEY: u8 = 1;
/// An answer: why there is none.
const NONE: u8 = 0;
/// Whoever answers is given this long to put the terminal right.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// [`Question`] on its way.
#[derive(Serialize, Deserialize)]
struct Asked {
    what: String,
    attempt: u32,
}

/// The server's end.
#[derive(Debug)]
pub struct Asker {
    stream: Mutex<UnixStream>,
}

impl Asker {
    /// With the descriptor that came along.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self {
            stream: Mutex::new(UnixStream::from(fd)),
        }
    }

    /// Nothing more will be asked.
    pub fn done(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Secrets for Asker {
    /// Waits for as long as a person takes. The process cannot be dumped from the first question on.
    fn answer(&self, question: &Question) -> Result<Secret> {
        forbid_dumps();
        forbid_core_files();
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |error| {
            let text = format!("nobody is there to ask for the key of {}", question.what);
            Error::new(Kind::Secret, text).caused_by(error)
        };
        ask(&mut stream, question).map_err(gone)?
    }
}

fn ask(stream: &mut UnixStream, question: &Question) -> std::io::Result<Result<Secret>> {
    let asked = Asked {
        what: question.what.clone(),
        attempt: question.attempt,
    };
    send(stream, &serde_json::to_vec(&asked)?)?;
    let mut which = [NONE];
    stream.read_exact(&mut which)?;
    let most = if which == [KEY] {
        MOST_BYTES
    } else {
        LONGEST_TEXT
    };
    let bytes = receive(stream, most)?;
    if which == [KEY] {
        return Ok(Ok(Secret::from(bytes)));
    }
    let report: Report = serde_json::from_slice(&bytes)?;
    Ok(Err(report.into()))
}

/// The launcher's end, with the thread that answers. Dropped, it answers no more.
#[derive(Debug)]
pub struct Asking {
    stream: UnixStream,
    ended: Receiver<()>,
}

impl Asking {
    /// Starts answering by what `keys` have; the descriptor is for the server.
    ///
    /// # Errors
    /// When the system has no more descriptors or threads.
    pub fn start(keys: Arc<Keys>) -> Result<(Self, OwnedFd)> {
        let no_socket = |error| Error::io("cannot make a socket pair", error);
        let (ours, theirs) = UnixStream::pair().map_err(no_socket)?;
        let mut stream = ours.try_clone().map_err(no_socket)?;
        let (sender, ended) = mpsc::channel();
        let body = move || {
            if let Err(error) = answer_all(&mut stream, &keys) {
                tracing::debug!("no more questions: {error}");
            }
            // The keys are wiped before anybody goes on.
            drop(keys);
            let _ = sender.send(());
        };
        std::thread::Builder::new()
            .name("secrets".to_owned())
            .spawn(body)
            .map_err(|error| Error::io("cannot start the thread secrets", error))?;
        let asking = Self {
            stream: ours,
            ended,
        };
        Ok((asking, theirs.into()))
    }
}

impl Drop for Asking {
    /// Waits until the terminal is as it was.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        // A pipe that gives no key and has no end keeps the thread; it has nothing to put right.
        let _ = self.ended.recv_timeout(LAST_WORDS);
    }
}

/// Until the server is gone.
fn answer_all(stream: &mut UnixStream, keys: &Keys) -> std::io::Result<()> {
    loop {
        let bytes = receive(stream, LONGEST_TEXT)?;
        let Asked { what, attempt } = serde_json::from_slice(&bytes)?;
        let asker = stream.try_clone()?;
        match keys.answer_to(&Question { what, attempt }, Some(asker.as_fd())) {
            Ok(secret) => {
                stream.write_all(&[KEY])?;
                send(stream, secret.bytes())?;
            }
            Err(error) => {
                stream.write_all(&[NONE])?;
                send(stream, &serde_json::to_vec(&error.report())?)?;
            }
        }
    }
}

fn send(stream: &mut UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&len.to_le_bytes())?;
    stream.write_all(bytes)
}

/// The next `most` bytes or fewer.
fn receive(stream: &mut UnixStream, most: usize) -> std::io::Result<LockedBytes> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = usize::try_from(u32::from_le_bytes(len)).map_err(std::io::Error::other)?;
    if len > most {
        return Err(std::io::Error::other(format!("{len} bytes are too many")));
    }
    let mut bytes = LockedBytes::new(len);
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::KeyOptions;
    use super::*;
    use crate::unit::front::Terminal;

    fn question(attempt: u32) -> Question {
        Question {
            what: "luks: disk".to_owned(),
            attempt,
        }
    }

    fn asking(file: &std::path::Path) -> (Asking, Asker) {
        let options = KeyOptions {
            files: vec![file.to_owned()],
            ..KeyOptions::default()
        };
        let keys = Keys::open(&options, &Arc::new(Terminal::new())).unwrap();
        let (asking, fd) = Asking::start(Arc::new(keys)).unwrap();
        (asking, Asker::from_fd(fd))
    }

    #[test]
    fn a_key_of_any_length_and_a_refusal_come_over_the_socket() {
        for len in [0, 5, MOST_BYTES] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let key = vec![b'k'; len];
            std::fs::write(file.path(), &key).unwrap();
            let (_asking, asker) = asking(file.path());
            assert!(asker.answer(&question(0)).unwrap().bytes() == key);
            let error = asker.answer(&question(1)).unwrap_err();
            assert_eq!(error.kind(), Kind::Secret);
            assert!(error.to_string().contains("does not open luks: disk"));
            // After a refusal another thing may ask.
            assert!(asker.answer(&question(0)).unwrap().bytes() == key);
        }
    }

    #[test]
    fn whoever_is_left_alone_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (asking, asker) = asking(file.path());
        drop(asking);
        let error = asker.answer(&question(0)).unwrap_err();
        assert_eq!(error.kind(), Kind::Secret);
        let (asking, asker) = self::asking(file.path());
        asker.done();
        let ended = asking.ended.recv_timeout(Duration::from_secs(10));
        assert_eq!(ended, Ok(()), "the answering thread goes on");
    }
}
