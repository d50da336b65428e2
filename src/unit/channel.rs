//! The socket between launcher, supervisor and server: whole messages with file descriptors.
//!
//! `SOCK_SEQPACKET` keeps message boundaries, delivers descriptors with the message they belong
//! to, and reports the death of the other side as an end of file.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nbdserve::source::split::MOST_PARTS;
use nbdserve::{Error, Kind, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message in bytes; a plan with its partition table stays far below.
const MAX_MESSAGE: usize = 128 * 1024;
/// Most descriptors in one packet: the kernel takes 253.
const MAX_FDS: usize = 250;
/// Most descriptors with one message: the parts of a split image, and a few.
const MAX_ALL_FDS: usize = MOST_PARTS + 16;
/// A packet that only brings descriptors, for the message that follows.
const MORE_FDS: &[u8] = b"+";

/// One end. Messages may be sent from several threads.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Held while the packets of a message are sent.
    sending: Mutex<()>,
}

impl Channel {
    /// Two connected ends, both close-on-exec.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| Error::io("cannot make a socket pair", errno))?;
        Ok((Self::from_fd(a), Self::from_fd(b)))
    }

    /// The end that a parent passed as standard input.
    #[must_use]
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self {
            socket,
            sending: Mutex::new(()),
        }
    }

    /// Gives the end away, to be passed to a child.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the other side is gone or the message is too long.
    pub fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(message)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode a message").caused_by(cause))?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_ALL_FDS {
            let len = bytes.len();
            return Err(Error::new(
                Kind::Limit,
                format!("a message of {len} bytes is too long"),
            ));
        }
        let _alone = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packets = fds.chunks(MAX_FDS);
        let last = packets.next_back().unwrap_or(&[]);
        for fds in packets {
            self.send_packet(MORE_FDS, fds)?;
        }
        self.send_packet(&bytes, last)
    }

    fn send_packet(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::new(
                Kind::Limit,
                "too many descriptors in one message",
            ));
        }
        rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.socket,
                &[IoSlice::new(bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })
        .map_err(|errno| Error::io("the other process is gone", errno))?;
        Ok(())
    }

    /// Waits for the next message; `None` when the other side has closed its end.
    ///
    /// # Errors
    /// When the socket fails or the message is not one of ours.
    pub fn recv<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut fds = Vec::new();
        loop {
            let Some(len) = self.recv_packet(&mut bytes, &mut fds)? else {
                return Ok(None);
            };
            if &bytes[..len] == MORE_FDS && fds.len() <= MAX_ALL_FDS {
                continue;
            }
            let message = serde_json::from_slice(&bytes[..len]).map_err(|cause| {
                Error::new(Kind::Io, "cannot decode a message").caused_by(cause)
            })?;
            return Ok(Some((message, fds)));
        }
    }

    /// Waits for a packet and says how many bytes it has; its descriptors are added to `fds`.
    fn recv_packet(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Option<usize>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other.map_err(|errno| Error::io("cannot receive a message", errno))?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Error::new(Kind::Io, "a message was cut off"));
        }
        Ok(Some(received.bytes))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_and_then_the_end() {
        let (a, b) = Channel::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"image").unwrap();
        a.send(&vec!["x".repeat(1000)], &[file.as_fd()]).unwrap();
        drop(a);
        let (message, mut fds) = b.recv::<Vec<String>>().unwrap().unwrap();
        assert_eq!(message[0].len(), 1000);
        let mut passed = std::fs::File::from(fds.remove(0));
        let mut text = String::new();
        passed.rewind().unwrap();
        passed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "image");
        assert!(b.recv::<String>().unwrap().is_none());
    }

    #[test]
    fn descriptors_may_be_more_than_one_packet_takes_and_keep_their_order() {
        use std::os::unix::fs::MetadataExt;
        let (a, b) = Channel::pair().unwrap();
        let files: Vec<_> = (0..MAX_FDS + 3)
            .map(|_| tempfile::tempfile().unwrap())
            .collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        a.send(&"files", &fds).unwrap();
        a.send(&"after", &[]).unwrap();
        let inode = |file: &std::fs::File| file.metadata().unwrap().ino();
        let (text, passed) = b.recv::<String>().unwrap().unwrap();
        assert_eq!(text, "files");
        let passed: Vec<_> = passed.into_iter().map(std::fs::File::from).collect();
        let inodes = |files: &[std::fs::File]| files.iter().map(inode).collect::<Vec<_>>();
        assert_eq!(inodes(&passed), inodes(&files));
        let (text, passed) = b.recv::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), passed.len()), ("after", 0));
        let too_many = vec![files[0].as_fd(); MAX_ALL_FDS + 1];
        assert_eq!(a.send(&"x", &too_many).unwrap_err().kind(), Kind::Limit);
    }

    #[test]
    fn sending_to_a_dead_process_is_an_error_and_no_signal() {
        let (a, b) = Channel::pair().unwrap();
        drop(b);
        assert!(a.send(&"hello", &[]).is_err());
    }
}
