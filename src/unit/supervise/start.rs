//! From the request to a usable target.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbdserve::proto::TransmissionFlags;
use nbdserve::{Error, Kind, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::choose::choose;
use super::{Device, Event, Supervisor};
use crate::sys::nbd::LinkEvents;
use crate::sys::process::wait_readable;
use crate::target::{kernel_mount, kernel_nbd, loop_device};
use crate::unit::events::{self, FOREVER};
use crate::unit::image::Image;
use crate::unit::message::{Cow, FromServer, Means, Opened, Request, Show, Start, ToServer, Via};
use crate::unit::record::{Stage, Undo};
use crate::unit::respawn::{self, Role};
use crate::unit::undo::Kernel;

/// A request to the NBD device that takes longer kills its connection: longer than a layer waits
/// without progress.
const NBD_TIMEOUT: Duration = Duration::from_secs(120);
/// There is no second server to wait for.
const NBD_DEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// More connections than this bring nothing.
const MAX_CONNECTIONS: usize = 4;
/// Bytes.
const SECTOR: u64 = 512;

impl Supervisor {
    /// Makes the target usable, by the means that is returned.
    pub(super) fn start(&mut self, image: Image, asker: OwnedFd) -> Result<Via> {
        self.spawn_server()?;
        let (start, fds) = Start::new(&self.record.request, &image, &asker);
        self.tell(&ToServer::Open(Box::new(start)), &fds)?;
        drop(fds);
        // Only the server holds the image: it is free as soon as that process is gone. And whoever
        // answers its questions sees when it is.
        drop((image, asker));
        let opened = self.wait_for(|message| match message {
            FromServer::Opened(opened) => Some(*opened),
            _ => None,
        })?;
        if opened.replay {
            self.record.request.cow = Some(Cow::Replay);
        }
        let via = choose(&self.record.request, &opened)?;
        self.record.opened = Some(opened.clone());
        self.record.via = Some(via);
        events::watch_mounts(&self.sender, || Event::MountsChanged)?;
        match (self.record.request.show, via) {
            (Show::File, _) => self.attach_fuse(Means::File(self.record.request.target.clone()))?,
            (Show::Tree, Via::Fuse | Via::Auto) => {
                self.attach_fuse(Means::Tree(self.record.request.target.clone()))?;
            }
            (Show::Tree, Via::Loop) => self.attach_loop(&opened)?,
            (Show::Tree, Via::Nbd) => self.attach_nbd(&opened)?,
        }
        self.record.stage = Stage::Mounted;
        self.save()?;
        Ok(via)
    }

    fn spawn_server(&mut self) -> Result<()> {
        let (child, channel) = respawn::respawn(Role::Serve, self.dir.id())?;
        self.record.server = Some(child.id());
        self.server_pidfd = Pid::from_raw(child.id().cast_signed())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let channel = Arc::new(channel);
        self.server = Some(Arc::clone(&channel));
        events::watch_child(child, &self.sender, Event::ServerGone)?;
        self.server_alive = true;
        let server = |message, _| Event::Server(message);
        events::watch_channel(&channel, &self.sender, server, Event::ServerSilent)?;
        self.save()
    }

    fn attach_fuse(&mut self, means: Means) -> Result<()> {
        self.will_undo(Undo::FuseMount)?;
        self.tell(&ToServer::Attach(means), &[])?;
        self.wait_for(|message| matches!(message, FromServer::Attached).then_some(()))
    }

    fn attach_loop(&mut self, opened: &Opened) -> Result<()> {
        let disk = self.dir.join("disk");
        File::create_new(&disk)
            .map_err(|error| Error::io(format!("cannot make {}", disk.display()), error))?;
        // No mount follows a symbolic link, and /run may be one.
        let disk = disk.canonicalize().unwrap_or(disk);
        self.attach_fuse(Means::Disk(disk.clone()))?;
        self.will_undo(Undo::Loop)?;
        self.will_undo(Undo::KernelMount)?;
        let (request, opened) = (self.record.request.clone(), opened.clone());
        self.attach_in_thread(move || {
            let file = OpenOptions::new()
                .read(true)
                .write(request.has_writable_device())
                .open(&disk)
                .map_err(|error| Error::io("cannot open our own FUSE file", error))?;
            let options = loop_device::LoopOptions {
                id: &request.id,
                read_only: !request.has_writable_device(),
                // Else the kernel reads ahead twice: in the file system, which knows of files, and
                // in the image, which it takes for one.
                direct_io: opened.remote,
                ..Default::default()
            };
            let device = loop_device::attach(file.as_fd(), &options)?;
            mount_device(&device.path, &request, &opened)?;
            Ok(Device::of_loop(device.number, &device.path))
        })
    }

    fn attach_nbd(&mut self, opened: &Opened) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (ours, theirs) = socket_pairs(cores.clamp(1, MAX_CONNECTIONS))?;
        self.connections = ours.len();
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        self.tell(&ToServer::Attach(Means::Nbd), &fds)?;
        drop(theirs);
        self.wait_for(|message| matches!(message, FromServer::Attached).then_some(()))?;
        self.will_undo(Undo::Nbd)?;
        self.will_undo(Undo::KernelMount)?;
        self.watch_links()?;
        let (request, opened) = (self.record.request.clone(), opened.clone());
        self.attach_in_thread(move || {
            let options = kernel_nbd::NbdOptions {
                id: &request.id,
                size: opened.size.next_multiple_of(SECTOR),
                flags: TransmissionFlags(opened.nbd_flags),
                timeout: NBD_TIMEOUT,
                dead_conn_timeout: NBD_DEAD_TIMEOUT,
                block_size: 512,
            };
            let device = kernel_nbd::connect(ours, &options)?;
            mount_device(&device.path, &request, &opened)?;
            Ok(Device::of_nbd(device))
        })
    }

    fn watch_links(&self) -> Result<()> {
        let Some(mut links) = LinkEvents::subscribe()? else {
            return Ok(());
        };
        let sender = self.sender.clone();
        events::watch("links", move || {
            loop {
                if let Err(error) = wait_readable(links.as_fd(), FOREVER) {
                    tracing::error!("cannot watch the NBD connections: {error}");
                    return;
                }
                match links.take() {
                    Ok(dead) => {
                        for index in dead.devices {
                            if sender.send(Event::LinkDead(index)).is_err() {
                                return;
                            }
                        }
                    }
                    Err(error) => {
                        tracing::error!("{}", error.report());
                        return;
                    }
                }
            }
        })
    }

    /// Runs `work` beside the main thread and waits for it, for as long as nothing goes wrong at
    /// either end. What goes wrong ends the server, and with it the work.
    fn attach_in_thread(
        &mut self,
        work: impl FnOnce() -> Result<Device> + Send + 'static,
    ) -> Result<()> {
        events::job("attach", &self.sender, work, Event::Attached)?;
        let mut cause = None;
        loop {
            match self.next() {
                Event::Attached(result) => {
                    return match (cause, result) {
                        (None, Ok(device)) => {
                            self.record.device = Some(device.path.clone());
                            self.device = Some(device);
                            Ok(())
                        }
                        (Some(cause), _) | (None, Err(cause)) => Err(cause),
                    };
                }
                event => {
                    if let Err(error) = self.must_go_on(event) {
                        // A server that does not answer would keep the thread in the kernel.
                        cause.get_or_insert(error);
                        self.kill_server();
                        self.sever_in_thread();
                    }
                }
            }
        }
    }

    /// Waits until the server says what `pick` is looking for.
    fn wait_for<T>(&mut self, pick: impl Fn(FromServer) -> Option<T>) -> Result<T> {
        loop {
            match self.next() {
                Event::Server(message @ (FromServer::Opened(_) | FromServer::Attached)) => {
                    if let Some(found) = pick(message) {
                        return Ok(found);
                    }
                }
                event => self.must_go_on(event)?,
            }
        }
    }

    /// While starting: an error for every event that ends the attempt.
    fn must_go_on(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Server(FromServer::Failed(report)) => Err(report.into()),
            Event::Server(FromServer::Progress { what, done, total }) => {
                self.front.progress(&what, done, total);
                Ok(())
            }
            Event::Server(FromServer::Pass(pass)) => {
                self.front.begins(&pass);
                Ok(())
            }
            // It is told apart from the end of the channel by how it ended.
            Event::ServerGone(how) => {
                self.server_alive = false;
                Err(self.last_words().map_or_else(
                    || {
                        let what = format!("the server ended before the image was usable ({how})");
                        Error::new(Kind::Io, what)
                    },
                    Error::from,
                ))
            }
            Event::ServerSilent => {
                self.server_silent = true;
                Ok(())
            }
            Event::LauncherGone => Err(Error::new(Kind::Io, "interrupted")),
            Event::Signal | Event::Server(FromServer::StopWanted) => {
                Err(Error::new(Kind::Io, "stopped by a signal"))
            }
            _ => Ok(()),
        }
    }

    /// Requests to an NBD device do not fail by themselves when its server dies.
    fn sever_in_thread(&self) {
        let id = self.dir.id().to_owned();
        let work = move || {
            let devices = Kernel::look()
                .map(|kernel| kernel.of(&id).nbds)
                .unwrap_or_default();
            for device in devices {
                if let Err(error) = kernel_nbd::sever(device.index, &id) {
                    tracing::error!("{}", error.report());
                }
            }
        };
        if let Err(error) = events::watch("sever", work) {
            tracing::error!("{error}");
        }
    }
}

fn mount_device(device: &Path, request: &Request, opened: &Opened) -> Result<()> {
    let options = kernel_mount::MountOptions {
        fstype: opened.filesystem.as_deref().unwrap_or("auto"),
        read_only: !request.takes_writes(),
        first_pass: opened.first_pass,
        options: request.mount_options.as_deref().unwrap_or(""),
    };
    kernel_mount::mount_fs(device, &request.target, &options)
        .map(drop)
        .map_err(|error| opened.plan.content.explain(error))
}

/// The kernel's and the server's ends of so many connections.
fn socket_pairs(count: usize) -> Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let pairs = (0..count)
        .map(|_| UnixStream::pair().map(|(a, b)| (OwnedFd::from(a), OwnedFd::from(b))))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| Error::io("cannot make a socket pair", error))?;
    Ok(pairs.into_iter().unzip())
}
