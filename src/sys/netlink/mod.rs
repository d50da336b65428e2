//! A generic netlink socket: requests with bounded waits, multicast events, extended errors.

mod message;

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nbdserve::{Error, Kind, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub(crate) use message::{Attributes, Builder, string};
use message::{Message, messages};

/// `GENL_ID_CTRL`, the family that names the others.
const CONTROL: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`
const FAMILY_NAME: u16 = 2;
/// `CTRL_ATTR_MCAST_GROUPS`
const GROUPS: u16 = 7;
/// `CTRL_ATTR_MCAST_GRP_NAME`
const GROUP_NAME: u16 = 1;
/// `CTRL_ATTR_MCAST_GRP_ID`
const GROUP_ID: u16 = 2;
/// How long an answer may take. The kernel carries a request out while it is being sent, so the
/// answer is there at once; this only guards against a lost one.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Larger than any answer we ask for: a status of 4000 nbd devices.
const RECEIVE_BUFFER: usize = 64 << 10;

/// A family of generic netlink messages.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(crate) id: u16,
    /// Name and number of its multicast groups.
    groups: Vec<(String, u32)>,
}

/// A generic netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open() -> Result<Self> {
        let fail = |errno: Errno| Error::io("cannot open a netlink socket", errno);
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .map_err(fail)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(fail)?;
        let limit = TimeVal::seconds(i64::try_from(ANSWER_LIMIT.as_secs()).unwrap_or(i64::MAX));
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).map_err(fail)?;
        // Errors in words, without the request repeated. Kernels before 4.12 have neither.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            if let Err(error) = set_netlink_option(fd.as_fd(), option, 1) {
                tracing::debug!("no netlink option {option}: {error}");
            }
        }
        Ok(Self { fd, sequence: 0 })
    }

    /// Looks a family up by name; `None` when the kernel has it not.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn family(&mut self, name: &str) -> Result<Option<Family>> {
        let mut found = None;
        let outcome = self.request(
            CONTROL,
            GET_FAMILY,
            |request| {
                request.string(FAMILY_NAME, name);
            },
            |_, attributes| {
                found = attributes.u16(FAMILY_ID).map(|id| Family {
                    id,
                    groups: groups(attributes),
                });
            },
        )?;
        match outcome {
            Outcome::Done => Ok(found),
            Outcome::Refused {
                errno: Errno::ENOENT,
                ..
            } => Ok(None),
            Outcome::Refused { errno, text } => Err(refused(
                format!("cannot look up the kernel's netlink family '{name}'"),
                errno,
                text,
            )),
        }
    }

    /// Sends a request and gives each message of the answer to `each` (command, attributes).
    ///
    /// # Errors
    /// What the system says; a refusal by the kernel is an [`Outcome`].
    pub(crate) fn request(
        &mut self,
        family: u16,
        command: u8,
        fill: impl FnOnce(&mut Builder),
        mut each: impl FnMut(u8, Attributes<'_>),
    ) -> Result<Outcome> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Builder::new(family, self.sequence, command, 1);
        fill(&mut request);
        let bytes = request.finish()?;
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())
            .map_err(|errno| Error::io("cannot send a netlink request", errno))?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let answer = self.receive(&mut buffer)?;
            for message in messages(answer) {
                match message {
                    Message::Outcome {
                        sequence,
                        errno,
                        text,
                    } if sequence == self.sequence => {
                        return Ok(if errno == 0 {
                            Outcome::Done
                        } else {
                            let errno = Errno::from_raw(errno);
                            Outcome::Refused { errno, text }
                        });
                    }
                    Message::Generic {
                        sequence,
                        command,
                        attributes,
                        ..
                    } if sequence == self.sequence => each(command, attributes),
                    // The rest of an answer nobody waited for.
                    _ => {}
                }
            }
        }
    }

    /// Joins a multicast group of `family` and stops waiting in [`Self::next_events`].
    ///
    /// # Errors
    /// `Unsupported` when the family has no such group, else what the system says.
    pub(crate) fn subscribe(&mut self, family: &Family, group: &str) -> Result<()> {
        let Some((_, id)) = family.groups.iter().find(|(name, _)| name == group) else {
            return Err(Error::new(
                Kind::Unsupported,
                format!("the kernel has no netlink group '{group}'"),
            ));
        };
        set_netlink_option(self.fd.as_fd(), libc::NETLINK_ADD_MEMBERSHIP, *id)
            .map_err(|error| Error::io(format!("cannot join the netlink group '{group}'"), error))
    }

    /// Gives the events that have arrived to `each` (family, command, attributes), without
    /// waiting. False when the kernel has dropped some because we were slow.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn next_events(
        &mut self,
        mut each: impl FnMut(u16, u8, Attributes<'_>),
    ) -> Result<bool> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => {
                    for message in messages(&buffer[..len]) {
                        if let Message::Generic {
                            family,
                            command,
                            attributes,
                            ..
                        } = message
                        {
                            each(family, command, attributes);
                        }
                    }
                }
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::ENOBUFS) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("cannot read netlink events", errno)),
            }
        }
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(len) => return Ok(&buffer[..len]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    return Err(Error::new(
                        Kind::TimedOut,
                        format!(
                            "the kernel has not answered a netlink request within {} s",
                            ANSWER_LIMIT.as_secs()
                        ),
                    ));
                }
                Err(errno) => return Err(Error::io("cannot read a netlink answer", errno)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How the kernel answered a request.
#[derive(Debug)]
#[must_use]
pub(crate) enum Outcome {
    /// Carried out.
    Done,
    /// Refused.
    Refused {
        /// Why, as a number.
        errno: Errno,
        /// Why, in the kernel's words.
        text: Option<String>,
    },
}

/// The error for a refusal; the kernel's words, where there are any, are the cause.
pub(crate) fn refused(what: String, errno: Errno, text: Option<String>) -> Error {
    let system = io::Error::from(errno);
    match text {
        Some(text) => Error::io(what, errno).caused_by(Refusal(format!("{text} ({system})"))),
        None => Error::io(what, errno),
    }
}

/// The kernel's words.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn groups(attributes: Attributes<'_>) -> Vec<(String, u32)> {
    let list = attributes.find(GROUPS).unwrap_or(&[]);
    Attributes(list)
        .iter()
        .filter_map(|(_, item)| {
            let item = Attributes(item);
            Some((string(item.find(GROUP_NAME)?), item.u32(GROUP_ID)?))
        })
        .collect()
}

/// Sets an option of level `SOL_NETLINK` that takes an int.
fn set_netlink_option(fd: BorrowedFd<'_>, option: libc::c_int, value: u32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(4);
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
