//! The socket between launcher, supervisor and server: whole messages with file descriptors.
//!
//! `SOCK_SEQPACKET` keeps message boundaries, delivers descriptors with the message they belong
//! to, and reports the death of the other side as an end of file.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
/// Most descriptors with one message: the sockets of a kernel NBD device.
const MAX_FDS: usize = 16;

/// One end. Messages may be sent from several threads.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
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
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// The end that a parent passed as standard input.
    #[must_use]
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self { socket }
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
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            let len = bytes.len();
            return Err(Error::new(
                Kind::Limit,
                format!("a message of {len} bytes is too long"),
            ));
        }
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
                &[IoSlice::new(&bytes)],
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other.map_err(|errno| Error::io("cannot receive a message", errno))?,
        };
        let mut fds = Vec::new();
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
        let message = serde_json::from_slice(&bytes[..received.bytes])
            .map_err(|cause| Error::new(Kind::Io, "cannot decode a message").caused_by(cause))?;
        Ok(Some((message, fds)))
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
    fn sending_to_a_dead_process_is_an_error_and_no_signal() {
        let (a, b) = Channel::pair().unwrap();
        drop(b);
        assert!(a.send(&"hello", &[]).is_err());
    }
}
