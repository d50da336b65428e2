//! What the kernel holds of a unit, and taking it away again.
//!
//! Everything is found by the unit's id, never by a remembered path or number alone, so that
//! undoing twice is harmless and nothing of anybody else is touched.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbdserve::error::shell;
use nbdserve::{Error, Kind, Result};

use super::dir::UnitDir;
use super::loops::Guess;
use super::record::{Record, Undo};
use super::target;
use crate::sys::block::BlockDevice;
use crate::sys::mountinfo::{self, Mount};
use crate::target::{NAME_PREFIX, id_in_name, kernel_nbd, loop_device};
use nbdfuse::mount::{Mode, Unmounted};

/// Loop devices and NBD devices that still vanish are waited for this long.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
/// Pauses between two looks at what still vanishes: a device is usually gone at once, and one with a
/// holder may stay for days.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A mount that is in the table and not where the table says is looked for that often.
const LOOKS: usize = 8;

/// A picture of what the kernel has, taken once.
#[derive(Debug)]
pub struct Kernel {
    /// The mount table.
    pub mounts: Vec<Mount>,
    loops: Vec<KernelDevice>,
    nbds: Vec<KernelDevice>,
}

/// A loop or NBD device that carries the id of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDevice {
    /// N of `/dev/loopN` or `/dev/nbdN`.
    pub index: u32,
    /// Its usual node.
    pub path: PathBuf,
    /// Major and minor number.
    pub number: Option<(u64, u64)>,
    id: String,
}

impl KernelDevice {
    fn new(kind: &str, index: u32, id: String) -> Self {
        let name = format!("{kind}{index}");
        let number = BlockDevice::named(&name)
            .ok()
            .and_then(|block| block.number());
        Self {
            index,
            path: PathBuf::from(format!("/dev/{name}")),
            number,
            id,
        }
    }
}

/// What the kernel has of one unit.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// FUSE mounts, the unit's file or tree.
    pub fuse: Vec<Mount>,
    /// Mounts of the kernel's file systems on the unit's device.
    pub kernel: Vec<Mount>,
    /// Loop devices.
    pub loops: Vec<KernelDevice>,
    /// NBD devices.
    pub nbds: Vec<KernelDevice>,
}

impl Kernel {
    /// Looks at the mount table, and as root at the loop and NBD devices.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn look() -> Result<Self> {
        let (mut loops, mut nbds) = devices(&mountinfo::mounts()?)?;
        let mounts = mountinfo::mounts()?;
        if !loops.is_empty() || !nbds.is_empty() {
            // One that went meanwhile may be another's by now, and the mount that was seen on it, too.
            let (loops_now, nbds_now) = devices(&mounts)?;
            loops.retain(|device| loops_now.contains(device));
            nbds.retain(|device| nbds_now.contains(device));
        }
        Ok(Self {
            mounts,
            loops,
            nbds,
        })
    }

    /// A kernel that has nothing but these mounts.
    #[cfg(test)]
    pub(super) fn with_mounts(mounts: Vec<Mount>) -> Self {
        Self {
            mounts,
            loops: Vec::new(),
            nbds: Vec::new(),
        }
    }

    /// What is there of the unit `id`.
    #[must_use]
    pub fn of(&self, id: &str) -> Traces {
        let source = source_of(id);
        let of_unit = |devices: &[KernelDevice]| -> Vec<KernelDevice> {
            devices
                .iter()
                .filter(|device| device.id == id)
                .cloned()
                .collect()
        };
        let (loops, nbds) = (of_unit(&self.loops), of_unit(&self.nbds));
        let devices: Vec<_> = loops.iter().chain(&nbds).collect();
        let is_on_ours = |mount: &Mount| {
            let is_on = |device: &&KernelDevice| is_on_device(mount, device.number, &device.path);
            devices.iter().any(is_on)
        };
        let mounts = |is_ours: &dyn Fn(&Mount) -> bool| -> Vec<Mount> {
            self.mounts
                .iter()
                .filter(|mount| is_ours(mount))
                .cloned()
                .collect()
        };
        Traces {
            fuse: mounts(&|mount| mount.source == *source && is_own_fuse(mount)),
            kernel: mounts(&is_on_ours),
            loops,
            nbds,
        }
    }

    /// The ids of all units that the kernel has something of.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let own = self.mounts.iter().filter(|mount| is_own_fuse(mount));
        let from_mounts = own.filter_map(|m| {
            let id = id_in_name(m.source.to_str()?)?;
            super::record::is_id(id).then(|| id.to_owned())
        });
        let mut ids: Vec<_> = from_mounts
            .chain(self.loops.iter().map(|d| d.id.clone()))
            .chain(self.nbds.iter().map(|d| d.id.clone()))
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

impl Traces {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fuse.is_empty()
            && self.kernel.is_empty()
            && self.loops.is_empty()
            && self.nbds.is_empty()
    }

    /// Whether one of the mounts has this number.
    #[must_use]
    pub fn has_mount(&self, id: u64) -> bool {
        let mut mounts = self.kernel.iter().chain(&self.fuse);
        mounts.any(|mount| mount.id == id)
    }

    /// Whether there is a loop or NBD device.
    #[must_use]
    pub fn has_devices(&self) -> bool {
        !self.loops.is_empty() || !self.nbds.is_empty()
    }

    /// What is left, as the user would look for it.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let mounts = self.kernel.iter().chain(&self.fuse);
        mounts
            .map(|m| format!("mount {}", m.target.display()))
            .chain(
                self.loops
                    .iter()
                    .chain(&self.nbds)
                    .map(|d| d.path.display().to_string()),
            )
            .collect()
    }
}

/// The loop and NBD devices of units.
fn devices(mounts: &[Mount]) -> Result<(Vec<KernelDevice>, Vec<KernelDevice>)> {
    // Nobody else can have made devices, or look at them.
    if !rustix::process::geteuid().is_root() {
        return Ok((Vec::new(), Vec::new()));
    }
    let loop_device =
        |found: loop_device::Found| KernelDevice::new("loop", found.status.number, found.id);
    let nbd_device = |found: kernel_nbd::Found| KernelDevice::new("nbd", found.index, found.id);
    let guess = Guess::new(mounts);
    let loops = loop_device::find(|number, file| guess.is_worth_asking(number, file))?;
    Ok((
        loops.into_iter().map(loop_device).collect(),
        kernel_nbd::find()?.into_iter().map(nbd_device).collect(),
    ))
}

/// Whether a FUSE mount was made by this user. The units of others are not ours to judge: whether
/// somebody looks after them is written where we may not read.
fn is_own_fuse(mount: &Mount) -> bool {
    let wanted = format!("user_id={}", rustix::process::geteuid().as_raw());
    let options = mount.super_options.to_string_lossy();
    options.split(',').any(|option| option == wanted)
}

/// Whether `mount` shows the file system on a device with this number and this path.
#[must_use]
pub fn is_on_device(mount: &Mount, number: Option<(u64, u64)>, path: &Path) -> bool {
    // btrfs has a device number of its own, which is no device's; the source tells. That of a FUSE
    // mount is what its owner likes, and proves nothing.
    let anonymous = mount.device.0 == 0 && !mount.fstype.as_encoded_bytes().starts_with(b"fuse");
    Some(mount.device) == number || (anonymous && mount.source == *path)
}

/// The source of a unit's FUSE mount in the mount table.
#[must_use]
pub fn source_of(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// Whether the server of a unit can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// It answers: what the kernel holds can be written back.
    Answers,
    /// It is dead, or treated so: devices are cut off.
    Dead,
}

/// Why a mount stayed.
#[derive(Debug)]
pub enum Stayed {
    /// Somebody uses it.
    Busy(Error),
    /// Another mount covers it.
    Covered(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Stayed> for Error {
    fn from(stayed: Stayed) -> Self {
        match stayed {
            Stayed::Busy(error) | Stayed::Covered(error) | Stayed::Failed(error) => error,
        }
    }
}

/// Takes one mount away, and no other that is in its place by now: others take mounts away too, a
/// second `-u`, the supervisor. Does not touch what is in it.
///
/// # Errors
/// `Busy` when it is in use (never with [`Mode::Lazy`]), `Covered` below another mount.
pub fn unmount(mount: &Mount, mode: Mode) -> Result<(), Stayed> {
    for _ in 0..LOOKS {
        // What was seen before may be old: unmounting what was above may have taken long.
        let all = mountinfo::mounts().map_err(Stayed::Failed)?;
        let Some(mount) = all.iter().find(|other| is_same(other, mount)) else {
            // Somebody else was faster.
            return Ok(());
        };
        let target = &mount.target;
        if all
            .iter()
            .any(|other| other.parent == mount.id && other.target == *target)
        {
            let shown = target.display();
            let what = format!("{shown} is covered by another mount");
            return Err(Stayed::Covered(Error::new(Kind::Denied, what).hint(
                format!(
                    "umount {} takes the upper one away",
                    shell(&shown.to_string())
                ),
            )));
        }
        let done = nbdfuse::mount::unmount_only(target, mount.id, mode).map_err(Stayed::Failed)?;
        match done {
            Unmounted::Done => return Ok(()),
            Unmounted::Busy => {
                let what = format!("{} is in use", target.display());
                return Err(Stayed::Busy(Error::new(Kind::Denied, what)));
            }
            // Gone, moved or covered since the look; or below a mount on a folder around it.
            Unmounted::NotMounted => {}
        }
    }
    let shown = mount.target.display();
    let what = format!("{shown} is hidden: another mount is on a folder above it");
    Err(Stayed::Covered(
        Error::new(Kind::Denied, what).hint("take that one away first: findmnt lists all mounts"),
    ))
}

/// Whether two looks have seen the same mount. Its number alone is used again.
fn is_same(one: &Mount, other: &Mount) -> bool {
    (one.id, one.device, &one.source) == (other.id, other.device, &other.source)
}

/// [`undo_within`] a limit that is long enough for devices without holders.
///
/// # Errors
/// The same.
pub fn undo_all(id: &str, mode: Mode, server: Server) -> Result<(), Stayed> {
    undo_within(id, mode, server, DEVICE_LIMIT)
}

/// Takes away whatever the kernel has of the unit: the mount on top first, then what it stood on.
/// Devices go when their last holder does; they are waited for `limit`.
///
/// # Errors
/// `Busy` when a mount is in use and `mode` is [`Mode::Normal`], `Covered` when another one is above
/// it; the unit then stays as it is.
pub fn undo_within(id: &str, mode: Mode, server: Server, limit: Duration) -> Result<(), Stayed> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let traces = Kernel::look().map_err(Stayed::Failed)?.of(id);
        if traces.is_empty() {
            return Ok(());
        }
        undo_once(id, &traces, mode, server)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn undo_once(id: &str, traces: &Traces, mode: Mode, server: Server) -> Result<(), Stayed> {
    // Later mounts stand on earlier ones.
    for mount in traces.kernel.iter().rev() {
        unmount(mount, mode)?;
    }
    for device in &traces.nbds {
        match server {
            Server::Answers => kernel_nbd::disconnect(device.index, id, DEVICE_LIMIT).map(drop),
            Server::Dead => kernel_nbd::sever(device.index, id).map(drop),
        }
        .map_err(Stayed::Failed)?;
    }
    for device in &traces.loops {
        loop_device::detach(device.index, id).map_err(Stayed::Failed)?;
    }
    // A file under a loop device is busy until the device has gone; nobody else sees it.
    let mode = if traces.loops.is_empty() {
        mode
    } else {
        Mode::Lazy
    };
    for mount in traces.fuse.iter().rev() {
        unmount(mount, mode)?;
    }
    Ok(())
}

/// Removes what the unit left on disk: a target that was created for it, and its folder.
///
/// # Errors
/// When something could not be removed.
pub fn remove_files(dir: &UnitDir, record: Option<&Record>) -> Result<()> {
    if let Some(record) = record
        && record.undo.contains(&Undo::RemoveTarget)
    {
        target::remove(&record.request)?;
    }
    dir.remove()
}
