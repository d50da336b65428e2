//! `loopmount -u WHAT`: find the unit, unmount, wait until the image is free.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nbdserve::error::{escape, shell};
use nbdserve::{Error, Kind, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::busy::{self, Holder};
use super::dir::{UnitDir, Waited};
use super::events;
use super::exit::Exit;
use super::find::{self, Unit};
use super::front::print_report;
use super::out;
use super::processes::{self, is_server};
use super::record::Stage;
use super::respawn::Role;
use super::state::StateDir;
use super::undo::{self, Kernel, Server, Stayed, Traces};
use crate::sys::process::wait_readable;
use crate::target::kernel_nbd;
use nbdfuse::mount::Mode;

/// After the unmount, supervisor and server have this long to free the image.
const END_LIMIT: Duration = Duration::from_secs(30);
/// One that takes writes writes back what it holds, to a disk that may be slow.
const WRITE_BACK_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The user is told what is waited for after this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// A detached unit without users is gone within this time.
const DETACH_LIMIT: Duration = Duration::from_secs(1);
/// Unmounting what nobody serves may take this long before it gets help.
const RESCUE_AFTER: Duration = Duration::from_millis(500);
/// A process that uses a mount for that long means to; a fork that has not yet become another
/// program does not.
const HELD_FOR: Duration = Duration::from_millis(200);
/// A mount that is in use by nobody who can be found is tried again for that long.
const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// At most this many users of a busy mount are printed.
const MAX_HOLDERS: usize = 10;

/// How taking down one unit ended.
#[derive(Debug)]
pub enum Outcome {
    /// All gone, the image is free.
    Gone,
    /// The same, and not all that was written is in the image: why.
    Lost(String),
    /// Out of the mount table; it ends with its last user.
    Detached,
    /// In use: by whom. Nothing was changed.
    Busy(Error),
    /// Detached or half taken down; this is left.
    Left(Vec<String>),
}

/// The command `-u`: takes down every unit that `what` names.
///
/// # Errors
/// When the mount table cannot be read.
pub fn command(what: &OsStr, mode: Mode) -> Result<Exit> {
    let units = find::named(what)?;
    if units.is_empty() {
        print_report(&nothing_there(what).report());
        return Ok(Exit::NotOurs);
    }
    let mut exit = Exit::Done;
    for unit in units {
        let one = match take_down(&unit, mode) {
            Ok(Outcome::Gone) => Exit::Done,
            Ok(Outcome::Lost(why)) => {
                print_report(&lost_error(&why).report());
                Exit::Failed
            }
            Ok(Outcome::Detached) => {
                let id = &unit.id;
                let line = format!("loopmount: detached; unit {id} ends with its last user");
                out::tell(line);
                Exit::Done
            }
            Ok(Outcome::Busy(error)) => {
                print_report(&error.report());
                Exit::Busy
            }
            Ok(Outcome::Left(left)) => {
                print_report(&left_error(&unit, &left).report());
                Exit::Partly
            }
            Err(error) => {
                print_report(&error.report());
                Exit::Failed
            }
        };
        if exit == Exit::Done {
            exit = one;
        }
    }
    Ok(exit)
}

/// What to say of [`Outcome::Lost`].
#[must_use]
pub fn lost_error(why: &str) -> Error {
    let what = format!("unmounted, but not all that was written is in the image: {why}");
    Error::new(Kind::Io, what)
        .hint("is there room where the image is? fsck may find what is missing")
}

pub(super) fn nothing_there(what: &OsStr) -> Error {
    let shown = escape(&what.to_string_lossy());
    let path = find::absolute_without_touching(Path::new(what));
    let foreign = crate::sys::mountinfo::mounts().ok().and_then(|mounts| {
        mounts
            .into_iter()
            .find(|mount| Some(&mount.target) == path.as_ref())
    });
    match foreign {
        Some(mount) if mount.fstype == "fuse.loopmount" => {
            let what = format!("{shown} was mounted by the loopmount of another user");
            Error::new(Kind::Denied, what).hint(format!(
                "they take it down, or root does: umount {}",
                shell(&shown.to_string())
            ))
        }
        Some(mount) => Error::new(
            Kind::Denied,
            format!(
                "{shown} was not mounted by loopmount (it is {})",
                escape(&mount.fstype.to_string_lossy())
            ),
        )
        .hint(format!("umount {}", shell(&shown.to_string()))),
        None => Error::new(Kind::Io, format!("{shown} is not mounted"))
            .hint("loopmount --list shows what is; root and each user have their own mounts"),
    }
}

fn busy_error(error: &Error, holders: &[Holder]) -> Error {
    let mut what = error.to_string();
    for holder in holders.iter().take(MAX_HOLDERS) {
        what.push_str(" by ");
        what.push_str(&holder.to_string());
        what.push(';');
    }
    if let Some(more) = holders
        .len()
        .checked_sub(MAX_HOLDERS)
        .filter(|more| *more > 0)
    {
        what.push_str(&format!(" and {more} more;"));
    }
    if holders.is_empty() {
        what.push_str(
            ", by nothing that can be seen from here: a process of another user, another ",
        );
        what.push_str("mount namespace, a swap file");
    }
    Error::new(Kind::Denied, what.trim_end_matches(';'))
        .hint("end that, or detach it now and let it finish: loopmount -u --lazy")
}

fn left_error(unit: &Unit, left: &[String]) -> Error {
    let left = if left.is_empty() {
        "its processes".to_owned()
    } else {
        left.join(", ")
    };
    Error::new(
        Kind::TimedOut,
        format!("unit {} is only partly gone, left: {left}", unit.id),
    )
    .hint(format!(
        "it goes when its last user ends; look again with loopmount -u {}",
        unit.id
    ))
}

/// Takes one unit down.
///
/// # Errors
/// When something other than a user of the mount is in the way.
pub fn take_down(unit: &Unit, mode: Mode) -> Result<Outcome> {
    // Its folder goes with it.
    let lost = unit.dir.as_ref().and_then(UnitDir::open_lost);
    let seen = match unmount_what_is_seen(unit, mode)? {
        Attempt::Done { seen } => seen,
        Attempt::Busy(error, holders) => {
            return Ok(Outcome::Busy(busy_error(&error, &holders)));
        }
        Attempt::Covered(error) => return Ok(Outcome::Busy(error)),
    };
    if seen == 0 {
        if mode == Mode::Normal && is_run_in(unit) {
            return Ok(Outcome::Busy(run_in_error(unit)));
        }
        ask_to_end(unit);
    }
    let outcome = wait_for_the_end(unit, mode)?;
    let mut why = String::new();
    match lost.map(|mut file| file.read_to_string(&mut why)) {
        Some(Ok(_)) if matches!(outcome, Outcome::Gone) && !why.is_empty() => {
            Ok(Outcome::Lost(why))
        }
        _ => Ok(outcome),
    }
}

/// Whether the unit is that of a command which runs in it, where nobody else sees the mount.
fn is_run_in(unit: &Unit) -> bool {
    let record = unit.record.as_ref();
    let private =
        record.is_some_and(|record| record.request.private && record.stage == Stage::Mounted);
    private && (unit.alive || unit.traces.has_devices())
}

fn run_in_error(unit: &Unit) -> Error {
    let what = format!("a command runs in the image, in unit {}", unit.id);
    Error::new(Kind::Denied, what)
        .hint("end that, or detach it now and let it finish: loopmount -u --lazy")
}

/// How unmounting what the user sees of a unit ended.
enum Attempt {
    /// There were that many mounts, and now none.
    Done { seen: usize },
    /// One stays: these use it.
    Busy(Error, Vec<Holder>),
    /// One stays below another.
    Covered(Error),
}

/// Unmounts what the user sees of the unit.
///
/// A file may be held for a moment by who does not know of it: a child between fork and exec, an
/// indexer, a walk over all mounts. So a mount is in use when a process keeps it so for
/// [`HELD_FOR`], or when it stays so for [`BUSY_LIMIT`] and nobody is found.
fn unmount_what_is_seen(unit: &Unit, mode: Mode) -> Result<Attempt> {
    let deadline = Instant::now() + BUSY_LIMIT;
    let mut held: HashMap<Holder, Instant> = HashMap::new();
    let mut pause = Duration::from_millis(2);
    loop {
        let (error, holders) = match try_to_unmount(unit, mode)? {
            Attempt::Busy(error, holders) => (error, holders),
            other => return Ok(other),
        };
        let now = Instant::now();
        held.retain(|holder, _| holders.contains(holder));
        for holder in &holders {
            held.entry(holder.clone()).or_insert(now);
        }
        if now >= deadline || held.values().any(|since| now - *since >= HELD_FOR) {
            return Ok(Attempt::Busy(error, holders));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(HELD_FOR / 4);
    }
}

fn try_to_unmount(unit: &Unit, mode: Mode) -> Result<Attempt> {
    let kernel = Kernel::look()?;
    let traces = kernel.of(&unit.id);
    // What the user sees; a FUSE file under a loop device goes by itself.
    let seen = if traces.kernel.is_empty() && traces.loops.is_empty() && traces.nbds.is_empty() {
        &traces.fuse
    } else {
        &traces.kernel
    };
    let orphan = !unit.alive && unit.server.is_none_or(|pid| !is_server(pid, &unit.id));
    let _rescue = orphan
        .then(|| Rescue::start(&unit.id, &traces))
        .transpose()?;
    for mount in seen.iter().rev() {
        match undo::unmount(mount, mode) {
            Ok(()) => {}
            Err(Stayed::Busy(error)) => {
                return Ok(Attempt::Busy(error, busy::holders(mount, &kernel.mounts)));
            }
            Err(Stayed::Covered(error)) => return Ok(Attempt::Covered(error)),
            Err(Stayed::Failed(error)) => return Err(error),
        }
    }
    Ok(Attempt::Done { seen: seen.len() })
}

/// Cuts off NBD devices that nobody serves if unmounting takes long: the kernel then waits for the
/// answer to a write until its own timer ends. One that is busy, which is known at once, stays.
struct Rescue {
    /// Closed by drop: it is not needed.
    _needed: mpsc::Sender<()>,
}

impl Rescue {
    fn start(id: &str, traces: &Traces) -> Result<Self> {
        let (sender, needed) = mpsc::channel::<()>();
        let (id, devices) = (id.to_owned(), traces.nbds.clone());
        events::watch("rescue", move || {
            if needed.recv_timeout(RESCUE_AFTER) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            for device in devices {
                if let Err(error) = kernel_nbd::sever(device.index, &id) {
                    tracing::warn!("{}", error.report());
                }
            }
        })?;
        Ok(Self { _needed: sender })
    }
}

/// The supervisor sees that its mount is gone and ends everything. Without one we do it.
fn wait_for_the_end(unit: &Unit, mode: Mode) -> Result<Outcome> {
    let limit = match mode {
        Mode::Lazy => DETACH_LIMIT,
        Mode::Normal => END_LIMIT,
    };
    let deadline = Instant::now() + limit;
    let left = || -> Result<Outcome> { Ok(Outcome::Left(Kernel::look()?.of(&unit.id).describe())) };
    if let Some(dir) = &unit.dir {
        match wait_for_lock(unit, dir, limit)? {
            Waited::Locked(_lock) => {
                match undo::undo_within(&unit.id, mode, Server::Dead, limit) {
                    Err(Stayed::Busy(error)) => {
                        return Ok(Outcome::Busy(busy_error(&error, &[])));
                    }
                    other => other?,
                }
                let traces = Kernel::look()?.of(&unit.id);
                if mode == Mode::Lazy && traces.kernel.is_empty() && traces.has_devices() {
                    // The device goes with its last user, the record when somebody looks next.
                    note_ending(dir)?;
                    return Ok(Outcome::Detached);
                }
                undo::remove_files(dir, unit.record.as_ref())?;
            }
            Waited::Gone => {}
            Waited::Held if mode == Mode::Lazy => return Ok(Outcome::Detached),
            Waited::Held => return left(),
        }
    } else {
        undo::undo_within(&unit.id, mode, Server::Dead, limit)?;
    }
    if !ended_by(unit.server, &unit.id, deadline) || !Kernel::look()?.of(&unit.id).is_empty() {
        return if mode == Mode::Lazy {
            Ok(Outcome::Detached)
        } else {
            left()
        };
    }
    Ok(Outcome::Gone)
}

/// Waits for the end of who looks after the unit, and says so when it takes long. As soon as the kernel
/// has nothing of it any more, all that is left is to store what was written: that may take longer.
fn wait_for_lock(unit: &Unit, dir: &UnitDir, limit: Duration) -> Result<Waited> {
    let record = unit.record.as_ref();
    let stores = limit > PATIENCE && record.is_some_and(|record| record.request.stores_writes());
    let began = Instant::now();
    let mut said = false;
    loop {
        match dir.lock_within(limit.min(PATIENCE))? {
            Waited::Held => {}
            waited => return Ok(waited),
        }
        let writes_back = stores && Kernel::look()?.of(&unit.id).is_empty();
        let longest = if writes_back { WRITE_BACK_LIMIT } else { limit };
        if began.elapsed() >= longest {
            return Ok(Waited::Held);
        }
        if writes_back && !said {
            out::tell("loopmount: waiting until all that was written is in the image");
            said = true;
        }
    }
}

fn note_ending(dir: &UnitDir) -> Result<()> {
    let Some(mut record) = dir.read()? else {
        return Ok(());
    };
    record.stage = Stage::Ending;
    dir.write(&record)
}

/// Whether the server with this process id is gone at the deadline, with all that it had open. A
/// process that only has the same number does not count.
fn ended_by(pid: Option<u32>, id: &str, deadline: Instant) -> bool {
    let pidfd = pid
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let (Some(pid), Some(pidfd)) = (pid, pidfd) else {
        return true;
    };
    // Looked at while the descriptor holds the number.
    let left = deadline.saturating_duration_since(Instant::now());
    if is_server(pid, id) {
        return wait_readable(pidfd.as_fd(), left).unwrap_or(false);
    }
    if processes::is_ending(pid) {
        // It may be the server, or anybody.
        let _ = wait_readable(pidfd.as_fd(), left.min(PATIENCE));
    }
    true
}

/// Tells the supervisor of a unit that is still starting, or mounted where we cannot see it, or detached
/// and in use. One whose server writes back what it holds goes on with that.
fn ask_to_end(unit: &Unit) {
    let Some(record) = &unit.record else { return };
    let Some((number, pid)) = record
        .supervisor
        .and_then(|number| Some((number, Pid::from_raw(number.cast_signed())?)))
    else {
        return;
    };
    // Looked at while the descriptor holds the number: no other process can get the signal.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let is_it = match record.supervisor_began {
        Some(began) => processes::began(number) == Some(began),
        // A record of an earlier version.
        None => processes::role_of(number) == Some((Role::Supervise, unit.id.clone())),
    };
    if is_it {
        let _ = pidfd_send_signal(&pidfd, Signal::TERM);
    }
}

/// The janitor's whole life: undoes what a dead supervisor has left.
///
/// # Errors
/// When something stays.
pub fn janitor(id: &str) -> Result<()> {
    let _channel = super::respawn::inherit()?;
    let Ok(state) = StateDir::trusted() else {
        // It went with the user's login, or with a cleaner.
        return Ok(undo::undo_all(id, Mode::Lazy, Server::Dead)?);
    };
    let dir = state.unit(id);
    crate::log::to_file(&dir.join("log"), 0);
    let _lock = match dir.lock_within(END_LIMIT)? {
        Waited::Held => return Ok(()),
        Waited::Gone => None,
        Waited::Locked(lock) => Some(lock),
    };
    undo::undo_all(id, Mode::Lazy, Server::Dead)?;
    let record = dir.read().unwrap_or(None);
    if Kernel::look()?.of(id).is_empty() {
        undo::remove_files(&dir, record.as_ref())?;
    }
    Ok(())
}
