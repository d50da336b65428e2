//! An image as a kernel nbd device.
//!
//! The kernel's DISCONNECT fails what is in flight and flushes nothing. Hence the order of a clean
//! end: unmount, nobody else holds it, write back, DISCONNECT, wait until it is gone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nbdserve::proto::TransmissionFlags;
use nbdserve::{Error, Kind, Result};

use crate::sys::block::{self, BlockDevice, Options};
use crate::sys::nbd::{Connect, Control, DESTROY_ON_DISCONNECT, DISCONNECT_ON_CLOSE};

use super::{NAME_PREFIX, id_in_name};

/// Longest request in KiB: what the server keeps buffers for.
const MAX_SECTORS_KB: u64 = 1024;
/// Read-ahead in KiB: a few decoded blocks of common formats.
const READ_AHEAD_KB: u64 = 2048;
/// How long `modprobe` may take.
const MODPROBE_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a device that is going away.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether the kernel's nbd client can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Yes.
    Ready,
    /// The kernel has no nbd module, or not loaded and we may not load it.
    NoModule,
    /// It needs root outside of any container's user namespace.
    Forbidden,
}

/// Finds out whether kernel nbd can be used; tries to load the module once.
///
/// # Errors
/// What the system says beside yes and no.
pub fn availability() -> Result<Availability> {
    let mut control = Control::open()?;
    if control.is_none() && nix::unistd::geteuid().is_root() {
        load_module();
        control = Control::open()?;
    }
    let Some(mut control) = control else {
        return Ok(Availability::NoModule);
    };
    Ok(if control.is_allowed()? {
        Availability::Ready
    } else {
        Availability::Forbidden
    })
}

/// How a device is connected.
#[derive(Clone, Copy, Debug)]
pub struct NbdOptions<'a> {
    /// The unit's id, by which the device is found again. Without blanks.
    pub id: &'a str,
    /// Bytes, a multiple of `block_size`.
    pub size: u64,
    /// As the server advertises them.
    pub flags: TransmissionFlags,
    /// A request that takes longer kills its connection: longer than any wait of the server's.
    pub timeout: Duration,
    /// How long requests wait for another server once all connections are dead.
    pub dead_conn_timeout: Duration,
    /// Logical block size in bytes: 512, or 4096 for an image made on such a disk.
    pub block_size: u32,
}

/// A connected device. Holding it keeps it connected, whoever else opens and closes the node;
/// when the last holder is gone the kernel disconnects it.
#[derive(Debug)]
pub struct NbdDevice {
    /// N of `/dev/nbdN`.
    pub index: u32,
    /// Its node.
    pub path: PathBuf,
    /// The open node.
    pub node: File,
}

/// Connects a device to a server that already answers on the other ends of `kernel_ends`: the
/// kernel reads the partition table when the node is first opened, which happens here.
///
/// Every connection needs a socket; several need `CAN_MULTI_CONN`. The descriptors are closed
/// here and must not be held elsewhere, or the server never learns that the kernel is done.
///
/// # Errors
/// `Unsupported` without the nbd module, `Denied` without the right to, else what the kernel says.
/// Nothing is left connected.
pub fn connect(kernel_ends: Vec<OwnedFd>, options: &NbdOptions<'_>) -> Result<NbdDevice> {
    let several = kernel_ends.len() > 1;
    if several && !options.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
        return Err(Error::new(
            Kind::Unsupported,
            "several connections to a server that does not keep them in step",
        ));
    }
    if !options
        .size
        .is_multiple_of(options.block_size.max(1).into())
    {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "{} bytes are no whole number of blocks of {} bytes",
                options.size, options.block_size
            ),
        ));
    }
    let mut control = control()?;
    let backend = backend(options.id);
    let index = control.connect(&Connect {
        size: options.size,
        block_size: options.block_size.into(),
        server_flags: options.flags,
        client_flags: DESTROY_ON_DISCONNECT | DISCONNECT_ON_CLOSE,
        timeout: options.timeout,
        dead_conn_timeout: options.dead_conn_timeout,
        backend: &backend,
        sockets: kernel_ends.iter().map(AsFd::as_fd).collect(),
    })?;
    drop(kernel_ends);
    let block = device(index)?;
    tune(&block);
    let open = Options {
        write: !options.flags.contains(TransmissionFlags::READ_ONLY),
        exclusive: false,
    };
    match block.open(&open) {
        Ok((node, path)) => Ok(NbdDevice { index, path, node }),
        Err(error) => {
            // The cause is worth more than a second failure.
            if let Err(second) = control.disconnect(index) {
                tracing::warn!("nbd{index} stays connected: {}", second.report());
            }
            Err(error)
        }
    }
}

/// How an attempt to disconnect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Disconnected {
    /// The device is gone.
    Done,
    /// It is mounted or held by somebody else, and still connected.
    Busy,
}

impl NbdDevice {
    /// As [`disconnect`], for the process that holds the device. When it is busy the others who
    /// hold it keep it connected, and it goes with the last of them.
    ///
    /// # Errors
    /// As [`disconnect`].
    pub fn disconnect(self, id: &str, limit: Duration) -> Result<Disconnected> {
        end(self.index, Some(self.node), id, limit)
    }
}

/// Ends the device of unit `id` in an orderly way: what the kernel holds is written back, then the
/// device is disconnected and gone from `/sys`. Mounts of it must be gone before, and descriptors
/// of this process closed ([`NbdDevice::disconnect`] does that). The server has to answer still;
/// if it does not, the device's own timeout ends the wait, see [`sever`].
///
/// # Errors
/// `Denied` when the device is not the unit's, `TimedOut` when it is still there after `limit`,
/// `Io` when data could not be written back; the device is disconnected all the same.
pub fn disconnect(index: u32, id: &str, limit: Duration) -> Result<Disconnected> {
    end(index, None, id, limit)
}

fn end(index: u32, held: Option<File>, id: &str, limit: Duration) -> Result<Disconnected> {
    let deadline = Instant::now() + limit;
    let block = device(index)?;
    if !is_ours(&block, id)? {
        return Ok(Disconnected::Done);
    }
    // Kept until after DISCONNECT, so that the index cannot become another device's meanwhile.
    let Some(node) = open_alone(&block, deadline)? else {
        return Ok(if is_ours(&block, id)? {
            Disconnected::Busy
        } else {
            Disconnected::Done
        });
    };
    let written = write_back(&node);
    let severed = control()?.disconnect(index);
    drop((node, held));
    let gone = severed.and_then(|_| wait_until_gone(&block, id, deadline));
    // Lost data is the worse news.
    written.and(gone).map(|()| Disconnected::Done)
}

/// Disconnects the device of unit `id` at once: the server is dead or will not answer. What is in
/// flight fails, mounted or not; the device goes with its last user. False when there was nothing
/// to disconnect.
///
/// # Errors
/// `Denied` when the device is not the unit's, else what the kernel says.
pub fn sever(index: u32, id: &str) -> Result<bool> {
    let block = device(index)?;
    // The node is not opened: that may read from the device.
    if !is_ours(&block, id)? {
        return Ok(false);
    }
    control()?.disconnect(index)
}

/// A device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// N of `/dev/nbdN`.
    pub index: u32,
    /// The unit's id.
    pub id: String,
}

/// All connected devices of ours.
///
/// # Errors
/// When `/sys/block` cannot be read.
pub fn find() -> Result<Vec<Found>> {
    let found = BlockDevice::all("nbd")?
        .into_iter()
        .filter_map(|(index, block)| {
            let name = block.attribute("backend")?;
            let id = id_in_name(&name)?.to_owned();
            is_connected(&block).then_some(Found { index, id })
        });
    Ok(found.collect())
}

fn backend(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

fn device(index: u32) -> Result<BlockDevice> {
    BlockDevice::named(&format!("nbd{index}"))
}

fn control() -> Result<Control> {
    Control::open()?.ok_or_else(|| {
        Error::new(
            Kind::Unsupported,
            "the kernel has no nbd client (module nbd is not loaded)",
        )
        .hint("as root: modprobe nbd; or use --via loop or --via fuse")
    })
}

/// `pid` is there from CONNECT until all receivers have ended.
fn is_connected(block: &BlockDevice) -> bool {
    block.attribute("pid").is_some()
}

/// Whether the device is connected for unit `id`; false when it is not connected at all.
fn is_ours(block: &BlockDevice, id: &str) -> Result<bool> {
    if !is_connected(block) {
        return Ok(false);
    }
    let found = block.attribute("backend");
    if found.as_deref() == Some(&backend(id)) {
        return Ok(true);
    }
    if !is_connected(block) {
        // Gone between the two looks.
        return Ok(false);
    }
    let owner = found.map_or_else(
        || "another program".to_owned(),
        |backend| format!("'{backend}'"),
    );
    Err(Error::new(
        Kind::Denied,
        format!("{} belongs to {owner}, not to us", block.name()),
    ))
}

/// Opens the node with nobody else mounting or claiming it; `None` when it stays in use.
fn open_alone(block: &BlockDevice, deadline: Instant) -> Result<Option<File>> {
    let alone = Options {
        write: false,
        exclusive: true,
    };
    loop {
        match block.open(&alone) {
            Ok((node, _)) => return Ok(Some(node)),
            Err(_) if !is_connected(block) => return Ok(None),
            Err(error) if !is_busy(&error) => return Err(error),
            Err(_) if Instant::now() >= deadline => return Ok(None),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn is_busy(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    source
        .and_then(|cause| cause.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error)
        == Some(libc::EBUSY)
}

/// Brings everything to the server and has it flushed there. Both steps are tried.
fn write_back(node: &File) -> Result<()> {
    let synced = node
        .sync_all()
        .map_err(|error| Error::io("cannot write back what was written to the device", error));
    let flushed = block::flush_buffers(node);
    synced.and(flushed)
}

fn wait_until_gone(block: &BlockDevice, id: &str, deadline: Instant) -> Result<()> {
    loop {
        let ours = block.attribute("backend").as_deref() == Some(&backend(id));
        let size = block.size().unwrap_or(0);
        if !is_connected(block) && (!ours || size == 0) {
            block.remove_own_node();
            return Ok(());
        }
        if is_connected(block) && !ours {
            // The number is somebody else's by now.
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::TimedOut,
                format!(
                    "{} was disconnected but is still there with {size} bytes",
                    block.name()
                ),
            ));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Larger requests and read-ahead than the defaults for a slow wire. Failing to is no error.
fn tune(block: &BlockDevice) {
    let most = block
        .attribute("queue/max_hw_sectors_kb")
        .and_then(|text| text.parse().ok())
        .unwrap_or(MAX_SECTORS_KB);
    for (attribute, value) in [
        ("queue/max_sectors_kb", MAX_SECTORS_KB.min(most)),
        ("queue/read_ahead_kb", READ_AHEAD_KB),
    ] {
        if let Err(error) = block.set_attribute(attribute, &value.to_string()) {
            tracing::debug!("{}: {}", block.name(), error.report());
        }
    }
}

/// Asks `modprobe` for the module. Whether it worked shows when the family is looked up again.
fn load_module() {
    let started = Command::new("modprobe")
        .args(["-q", "nbd"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else { return };
    let deadline = Instant::now() + MODPROBE_LIMIT;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    // It can only be gone already.
    let _ = child.kill();
    let _ = child.wait();
}
