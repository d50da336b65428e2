//! A plain image for root: nothing to translate, so the kernel's loop device does all of it and no
//! process of ours stays.

use std::os::fd::AsFd;
use std::sync::mpsc;

use nbdserve::plan::{self, Resolved};
use nbdserve::source::File;
use nbdserve::{Cx, Error, Kind, Result, Volume};

use super::device::Device;
use super::dir::UnitDir;
use super::events;
use super::message::{Opened, Request, Show, Via};
use super::notify::{READY, STOPPING, notify};
use super::record::{Record, Stage, Undo};
use super::state::StateDir;
use super::target;
use super::undo::{self, Kernel, Server, Stayed};
use crate::target::{kernel_mount, loop_device};
use nbdfuse::mount::Mode;

/// Probing a plain image caches nothing.
const PROBE_CACHE: u64 = 16 << 20;

/// An image that the kernel's loop device shows by itself.
#[derive(Debug)]
pub struct Mounted {
    dir: UnitDir,
    device: Device,
}

/// Mounts the image by a loop device if that is all it needs and the user did not ask for another
/// way; `None` leaves everything as it was.
///
/// # Errors
/// When the image is plain and cannot be mounted; nothing is left behind but a target that was
/// created.
pub fn try_mount(request: &Request, image: &File) -> Result<Option<Mounted>> {
    let allowed = request.show == Show::Tree
        && request.cow.is_none()
        && matches!(request.via, Via::Auto | Via::Loop)
        && crate::sys::rights::may_mount_devices();
    if !allowed {
        return Ok(None);
    }
    let source = Volume::new(image.try_clone()?);
    if !plan::looks_plain(&source, &request.layers)? {
        return Ok(None);
    }
    let cx = Cx::new(PROBE_CACHE);
    let resolved = match plan::resolve(
        source,
        &request.image.to_string_lossy(),
        &request.wanted(),
        &crate::unit::looks_like_root,
        &cx,
    ) {
        // There is a lock further inside. The server asks for the key.
        Err(error) if error.kind() == Kind::Secret => return Ok(None),
        other => other?,
    };
    let Some(window) = resolved.source_range else {
        return Ok(None);
    };
    // The journal is written back to a layer of ours.
    if needs_replay(request, &resolved) {
        return Ok(None);
    }
    let state = StateDir::of_user();
    state.create()?;
    let dir = state.unit(&request.id);
    let mut record = record(request, &resolved);
    let lock = dir.create(|dir| dir.write(&record))?;
    if let Err(error) = target::create(request) {
        // What is there is not ours to remove.
        dir.remove()?;
        return Err(error);
    }
    let label = request.image.to_string_lossy();
    let options = loop_device::LoopOptions {
        id: &request.id,
        label: &label,
        offset: window.start(),
        size: window.len(),
        read_only: !request.write,
        ..Default::default()
    };
    match attach(image, &options, request, &record) {
        Ok(device) => {
            record.device = Some(device.path.clone());
            record.stage = Stage::Mounted;
            dir.write(&record)?;
            drop(lock);
            Ok(Some(Mounted { dir, device }))
        }
        Err(error) => {
            if let Err(stayed) = undo::undo_all(&request.id, Mode::Lazy, Server::Dead) {
                tracing::warn!("{}", Error::from(stayed).report());
            }
            undo::remove_files(&dir, Some(&record))?;
            Err(error)
        }
    }
}

/// Whether the kernel would have to write before it could mount the file system, which is to be
/// mounted read-only.
#[must_use]
pub fn needs_replay(request: &Request, resolved: &Resolved) -> bool {
    let by_kernel = request.show == Show::Tree && request.via != Via::Fuse;
    let file_system = resolved.content.file_system();
    by_kernel
        && !request.has_writable_device()
        && crate::sys::rights::may_mount_devices()
        && file_system.is_some_and(|info| {
            let options = request.mount_options.as_deref().unwrap_or("");
            kernel_mount::needs_replay(&info.name, options, |offset, buf| {
                resolved.volume.read_at(buf, offset).is_ok()
            })
        })
}

fn record(request: &Request, resolved: &Resolved) -> Record {
    let mut record = Record::new(request.clone());
    record.via = Some(Via::Loop);
    record.opened = Some(Opened::new(resolved, 0));
    if request.create_target {
        record.undo.push(Undo::RemoveTarget);
    }
    record.undo.extend([Undo::Loop, Undo::KernelMount]);
    record
}

fn attach(
    image: &File,
    options: &loop_device::LoopOptions<'_>,
    request: &Request,
    record: &Record,
) -> Result<Device> {
    let device = loop_device::attach(image.as_fd(), options)?;
    let filesystem = record
        .opened
        .as_ref()
        .and_then(|opened| opened.filesystem.as_deref());
    let options = kernel_mount::MountOptions {
        fstype: filesystem.unwrap_or("auto"),
        read_only: !request.write,
        first_pass: false,
        options: request.mount_options.as_deref().unwrap_or(""),
    };
    kernel_mount::mount_fs(&device.path, &request.target, &options).map_err(
        |error| match &record.opened {
            Some(opened) => opened.plan.content.explain(error),
            None => error,
        },
    )?;
    Ok(Device::of_loop(device.number, &device.path))
}

enum Event {
    MountsChanged,
    Signal,
}

impl Mounted {
    /// Waits until somebody unmounts it, or a signal asks us to.
    ///
    /// # Errors
    /// When it cannot be watched or unmounted.
    pub fn stay(&self) -> Result<()> {
        let (sender, queue) = mpsc::channel();
        events::watch_signals(&sender, || Event::Signal)?;
        events::watch_mounts(&sender, || Event::MountsChanged)?;
        notify(READY);
        let mut asked = false;
        while self.is_mounted() {
            match queue.recv() {
                // What was above it may be gone.
                Ok(Event::MountsChanged) if asked => self.take_down()?,
                Ok(Event::MountsChanged) => {}
                Ok(Event::Signal) | Err(_) => {
                    notify(STOPPING);
                    asked = true;
                    self.take_down()?;
                }
            }
        }
        let record = self.dir.read()?;
        // The device goes a moment after the mount.
        undo::undo_all(self.dir.id(), Mode::Lazy, Server::Dead)?;
        if Kernel::look()?.of(self.dir.id()).is_empty() {
            undo::remove_files(&self.dir, record.as_ref())?;
        }
        Ok(())
    }

    /// Unmounts it, and leaves it to its last user where it is in use. Below another mount it stays.
    fn take_down(&self) -> Result<()> {
        let id = self.dir.id();
        let undone = undo::undo_all(id, Mode::Normal, Server::Dead)
            .or_else(|_| undo::undo_all(id, Mode::Lazy, Server::Dead));
        match undone {
            Err(Stayed::Covered(error)) => {
                tracing::warn!("{}", error.report());
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Whether it is still in the mount table. On doubt it is.
    fn is_mounted(&self) -> bool {
        crate::sys::mountinfo::mounts().map_or(true, |mounts| {
            self.device.is_mounted(self.dir.id(), &mounts)
        })
    }
}
