//! The kernel's nbd client by generic netlink (`drivers/block/nbd.c`, `linux/nbd-netlink.h`).
//!
//! All calls need `CAP_SYS_ADMIN` in the initial user namespace.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nbdserve::proto::TransmissionFlags;
use nbdserve::{Error, Kind, Result};
use nix::errno::Errno;

use super::netlink::{Attributes, Family, Outcome, Socket, refused};

/// Name of the family.
const FAMILY: &str = "nbd";
/// Name of its multicast group.
const GROUP: &str = "nbd_mc_group";

/// `NBD_CMD_*`
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const LINK_DEAD: u8 = 4;
    pub(super) const STATUS: u8 = 5;
}

/// `NBD_ATTR_*`, `NBD_SOCK_*` and `NBD_DEVICE_*`
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const CLIENT_FLAGS: u16 = 6;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    pub(super) const SOCK_ITEM: u16 = 1;
    pub(super) const SOCK_FD: u16 = 1;
    pub(super) const DEVICE_INDEX: u16 = 1;
    pub(super) const DEVICE_CONNECTED: u16 = 2;
}

/// `NBD_CFLAG_DESTROY_ON_DISCONNECT`: the device vanishes with its last user.
pub const DESTROY_ON_DISCONNECT: u64 = 1;
/// `NBD_CFLAG_DISCONNECT_ON_CLOSE`: the last close of the node disconnects.
pub const DISCONNECT_ON_CLOSE: u64 = 2;

/// What a device is connected with.
#[derive(Debug)]
pub struct Connect<'a> {
    /// Bytes, a multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: 512 up to the page size, a power of two. The kernel's own
    /// default of 1024 would break partition tables.
    pub block_size: u64,
    /// What the server can do.
    pub server_flags: TransmissionFlags,
    /// [`DESTROY_ON_DISCONNECT`], [`DISCONNECT_ON_CLOSE`].
    pub client_flags: u64,
    /// A request that takes longer kills its socket. Whole seconds.
    pub timeout: Duration,
    /// How long requests wait for a replacement once all sockets are dead. Whole seconds, zero:
    /// they fail at once.
    pub dead_conn_timeout: Duration,
    /// Shown in `/sys/block/nbdN/backend`.
    pub backend: &'a str,
    /// One connected stream socket (`AF_UNIX`, TCP) per connection. The kernel takes its own
    /// reference; the caller's copies must be closed, else the server sees no end of file.
    pub sockets: Vec<BorrowedFd<'a>>,
}

/// One device as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// N of `/dev/nbdN`.
    pub index: u32,
    /// Whether it has a connection.
    pub connected: bool,
}

/// The control side of the kernel's nbd client.
#[derive(Debug)]
pub struct Control {
    socket: Socket,
    family: Family,
}

impl Control {
    /// Finds the family; `None` when the nbd module is not loaded.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> Result<Option<Self>> {
        let mut socket = Socket::open()?;
        let family = socket.family(FAMILY)?;
        Ok(family.map(|family| Self { socket, family }))
    }

    /// Connects a free device, made if need be, and gives its index. Race-free: the kernel picks.
    ///
    /// # Errors
    /// `Denied` without the right to, else what the kernel says.
    pub fn connect(&mut self, connect: &Connect<'_>) -> Result<u32> {
        let mut index = None;
        let outcome = self.socket.request(
            self.family.id,
            command::CONNECT,
            |request| {
                request
                    .u64(attribute::SIZE_BYTES, connect.size)
                    .u64(attribute::BLOCK_SIZE_BYTES, connect.block_size)
                    .u64(attribute::TIMEOUT, connect.timeout.as_secs())
                    .u64(
                        attribute::DEAD_CONN_TIMEOUT,
                        connect.dead_conn_timeout.as_secs(),
                    )
                    .u64(attribute::SERVER_FLAGS, connect.server_flags.0.into())
                    .u64(attribute::CLIENT_FLAGS, connect.client_flags)
                    .string(attribute::BACKEND_IDENTIFIER, connect.backend)
                    .nested(attribute::SOCKETS, |list| {
                        for socket in &connect.sockets {
                            list.nested(attribute::SOCK_ITEM, |item| {
                                // File descriptors in use are never negative.
                                let fd = u32::try_from(socket.as_raw_fd()).unwrap_or(u32::MAX);
                                item.u32(attribute::SOCK_FD, fd);
                            });
                        }
                    });
            },
            |_, attributes| index = attributes.u32(attribute::INDEX).or(index),
        )?;
        let what = || {
            format!(
                "cannot connect an nbd device of {} bytes with {} sockets",
                connect.size,
                connect.sockets.len()
            )
        };
        match outcome {
            Outcome::Done => index.ok_or_else(|| {
                Error::new(
                    Kind::Io,
                    format!("{}: the kernel has not said which it took", what()),
                )
            }),
            Outcome::Refused {
                errno: errno @ Errno::EPERM,
                text,
            } => Err(refused(what(), errno, text).hint(
                "kernel nbd needs root outside of any container's user namespace; --via fuse does not",
            )),
            Outcome::Refused { errno, text } => Err(refused(what(), errno, text)),
        }
    }

    /// Whether this process may connect devices. Asks to disconnect one that cannot exist: the
    /// kernel looks at the caller's rights first.
    ///
    /// # Errors
    /// What the kernel says beside yes and no.
    pub fn is_allowed(&mut self) -> Result<bool> {
        // Device numbers have 20 bits.
        const NO_DEVICE: u32 = 0x7fff_ffff;
        let outcome = self.socket.request(
            self.family.id,
            command::DISCONNECT,
            |request| {
                request.u32(attribute::INDEX, NO_DEVICE);
            },
            |_, _| {},
        )?;
        match outcome {
            Outcome::Refused {
                errno: Errno::EPERM | Errno::EACCES,
                ..
            } => Ok(false),
            Outcome::Done | Outcome::Refused { .. } => Ok(true),
        }
    }

    /// Disconnects device `index`: in-flight requests fail, nothing is flushed. False when it is
    /// not connected (any more). Returns when the kernel's receivers have ended.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn disconnect(&mut self, index: u32) -> Result<bool> {
        let outcome = self.socket.request(
            self.family.id,
            command::DISCONNECT,
            |request| {
                request.u32(attribute::INDEX, index);
            },
            |_, _| {},
        )?;
        match outcome {
            Outcome::Done => Ok(true),
            // EINVAL: no such device. The kernel answers success when it is not connected.
            Outcome::Refused {
                errno: Errno::EINVAL | Errno::ENOENT | Errno::ENODEV,
                ..
            } => Ok(false),
            Outcome::Refused { errno, text } => Err(refused(
                format!("cannot disconnect nbd{index}"),
                errno,
                text,
            )),
        }
    }

    /// Every device there is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn list(&mut self) -> Result<Vec<Status>> {
        let mut devices = Vec::new();
        let outcome = self.socket.request(
            self.family.id,
            command::STATUS,
            |_| {},
            |_, attributes| {
                let list = attributes.find(attribute::DEVICE_LIST).unwrap_or(&[]);
                devices.extend(Attributes(list).iter().filter_map(|(_, item)| {
                    let item = Attributes(item);
                    Some(Status {
                        index: item.u32(attribute::DEVICE_INDEX)?,
                        connected: *item.find(attribute::DEVICE_CONNECTED)?.first()? != 0,
                    })
                }));
            },
        )?;
        match outcome {
            Outcome::Done => Ok(devices),
            Outcome::Refused { errno, text } => Err(refused(
                "cannot list the nbd devices".to_owned(),
                errno,
                text,
            )),
        }
    }
}

/// The death of connections, as the kernel reports it. The descriptor becomes readable when
/// [`Self::take`] has something.
#[derive(Debug)]
pub struct LinkEvents {
    socket: Socket,
    family: u16,
}

/// What [`LinkEvents::take`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLinks {
    /// Devices that have lost a connection, one entry per connection.
    pub devices: Vec<u32>,
    /// Events were lost because nobody read them in time: look at the devices themselves.
    pub overrun: bool,
}

impl LinkEvents {
    /// Subscribes; `None` when the nbd module is not loaded.
    ///
    /// # Errors
    /// What the system says.
    pub fn subscribe() -> Result<Option<Self>> {
        let mut socket = Socket::open()?;
        let Some(family) = socket.family(FAMILY)? else {
            return Ok(None);
        };
        socket.subscribe(&family, GROUP)?;
        Ok(Some(Self {
            socket,
            family: family.id,
        }))
    }

    /// What has happened since the last call. Does not wait.
    ///
    /// # Errors
    /// What the system says.
    pub fn take(&mut self) -> Result<DeadLinks> {
        let mut found = DeadLinks::default();
        let family = self.family;
        let complete = self.socket.next_events(|from, command, attributes| {
            if from == family && command == command::LINK_DEAD {
                found.devices.extend(attributes.u32(attribute::INDEX));
            }
        })?;
        found.overrun = !complete;
        Ok(found)
    }
}

impl AsFd for LinkEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
