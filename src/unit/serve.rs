//! The server: opens the image, says what it is, shows it, and answers until the kernel is done.
//!
//! It is the only process that touches image data and the only one that holds /dev/fuse. It ends
//! when the kernel has closed the last use of what it shows, or when its supervisor is gone.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbdfuse::Session;
use nbdfuse::file::{FileOptions, serve_file};
use nbdfuse::mount::{MountOptions, set_read_ahead};
use nbdfuse::tree::{TreeOptions, serve_tree};
use nbdserve::cx::Pass;
use nbdserve::layer::split;
use nbdserve::plan::{self, Resolved};
use nbdserve::prefetch::Prefetch;
use nbdserve::references::References;
use nbdserve::secret::{Remembered, Secrets};
use nbdserve::source::OpenMode;
use nbdserve::{Access, ByteRange, Cx, Error, Kind, Result, Volume, foresight, server};

use super::channel::Channel;
use super::events::{self, FOREVER};
use super::image::{Image, open_files};
use super::message::{Cow, FromServer, Means, Opened, Request, Show, ToServer};
use super::plain;
use super::respawn::{self, Role};
use super::secrets::Asker;
use super::state::StateDir;
use super::undo::source_of;
use crate::sys::process::{bound_heap, set_io_flusher};
use crate::sys::rights::may_mount_devices;

/// After the supervisor's death, holders of open files keep the server for at most this long.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);
/// Block devices are made of these, in bytes.
const SECTOR: u32 = 512;
/// How far root's kernel reads ahead on a FUSE mount, in bytes: the longest request there is.
const READ_AHEAD: u64 = 1 << 20;
/// Progress is reported at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What to do about an image that cannot be written.
pub const WRITE_APART: &str = "--cow takes writes and drops them at the end, --cow=FILE keeps them in FILE; without -w it can be read";

enum Event {
    Order(ToServer, Vec<OwnedFd>),
    SupervisorGone,
    /// The kernel has closed the connection.
    SessionEnded,
    Signal,
}

/// The process's whole life.
///
/// # Errors
/// What could not be done; the supervisor has been told.
pub fn main(id: &str) -> Result<()> {
    bound_heap();
    let channel = Arc::new(respawn::inherit()?);
    let (sender, events) = mpsc::channel();
    events::watch_signals(&sender, || Event::Signal)?;
    events::watch_channel(&channel, &sender, Event::Order, Event::SupervisorGone)?;
    let result = Server {
        id: id.to_owned(),
        channel: Arc::clone(&channel),
        sender,
        events,
    }
    .run();
    if let Err(error) = &result {
        tracing::error!("{}", error.report());
        let _ = channel.send(&FromServer::Failed(error.report()), &[]);
    }
    result
}

/// What was written and is not in the image, where nobody has been told: a kernel's file system writes
/// long after the program that did has ended.
fn what_was_lost(request: &Request, volume: &Volume, closed: &Result<()>) -> Option<String> {
    if matches!(request.cow, Some(Cow::Scratch)) {
        return None;
    }
    if let Err(error) = closed {
        let report = error.report();
        return Some([vec![report.what], report.because].concat().join(": "));
    }
    let failed = volume.stats().writes.errors;
    // Who writes to the file has seen the error.
    (failed > 0 && request.show == Show::Tree)
        .then(|| format!("{failed} writes of the file system failed"))
}

struct Server {
    id: String,
    channel: Arc<Channel>,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

/// What is being shown.
enum Shown {
    Fuse(Arc<Session>),
    Nbd(Arc<server::Server>),
}

impl Server {
    fn run(self) -> Result<()> {
        let Some((ToServer::Open(start), fds)) = self.next_order()? else {
            return Ok(());
        };
        let (mut request, image, asker) = start.parts(fds)?;
        let dir = StateDir::trusted()?.unit(&self.id);
        crate::log::to_file(&dir.join("log"), request.verbosity);
        // Before any thread is started: all of them may serve a device of this machine.
        if may_mount_devices()
            && let Err(error) = set_io_flusher()
        {
            tracing::warn!("memory pressure may stall writes to this image: {error}");
        }
        let observer = Arc::new(Reporter::new(Arc::clone(&self.channel)));
        let mut cx = context(&request, &observer);
        let asker = Arc::new(Asker::from_fd(asker));
        let answers = Arc::new(Remembered::new(Arc::clone(&asker) as Arc<dyn Secrets>));
        cx.secrets = Arc::clone(&answers) as Arc<dyn Secrets>;
        let backing = (!request.has_writable_device())
            .then(|| image.regular_file())
            .flatten();
        let mut resolved = open(&request, image, cx.clone())?;
        let replay = plain::needs_replay(&request, &resolved);
        if replay {
            tracing::info!("the journal has to be written back: to a scratch layer");
            request.cow = Some(Cow::Replay);
            let source = resolved.chain.remove(0);
            answers.repeat();
            resolved = resolve(&request, source, &cx)?;
        }
        answers.forget();
        asker.done();
        let prefetch = request
            .prefetch
            .then(|| Arc::new(Prefetch::new(&resolved.volume)));
        let lost = request
            .takes_writes()
            .then(|| dir.make_lost())
            .transpose()?;
        super::stats::keep(dir, resolved.chain.clone(), prefetch.clone())?;
        let read_only = !request.has_writable_device();
        let flags = server::flags_for(&resolved.volume, read_only).0;
        let mut opened = Opened::new(&resolved, flags);
        opened.replay = replay;
        self.say(&FromServer::Opened(Box::new(opened)))?;

        let Some((ToServer::Attach(means), sockets)) = self.next_order()? else {
            return Ok(());
        };
        let prefetched = resolved.volume.clone();
        // A file is read by who knows what.
        if !matches!(means, Means::File(_))
            && let Some(source) = resolved.chain.first()
        {
            resolved.volume = foresight::watch(&resolved.volume, source);
        }
        let shown = self.show(&request, &resolved, means, sockets, backing, &observer)?;
        if self.say(&FromServer::Attached).is_err() {
            self.end_as_orphan();
        } else {
            if let Some(prefetch) = prefetch {
                start_prefetch(prefetch, &prefetched, &cx)?;
            }
            self.wait_for_the_end();
        }

        // Reads that still wait get an error at once, so that nothing holds up the end.
        cx.cancel.cancel();
        match &shown {
            Shown::Fuse(session) => {
                if let Err(error) = session.shutdown(ORPHAN_LIMIT) {
                    tracing::warn!("{}", error.report());
                }
            }
            Shown::Nbd(export) => {
                if !export.stop(ORPHAN_LIMIT) {
                    tracing::warn!("nbd requests were still under way");
                }
            }
        }
        let closed = resolved.volume.close();
        if let Some(mut file) = lost
            && let Some(text) = what_was_lost(&request, &resolved.volume, &closed)
            && let Err(error) = file.write_all(text.as_bytes())
        {
            tracing::error!("{text}; nobody could be told: {error}");
        }
        closed
    }

    fn say(&self, message: &FromServer) -> Result<()> {
        self.channel.send(message, &[])
    }

    /// The next order, or `None` when the server is to end.
    fn next_order(&self) -> Result<Option<(ToServer, Vec<OwnedFd>)>> {
        match self.events.recv() {
            Ok(Event::Order(ToServer::Stop, _) | Event::SupervisorGone | Event::Signal)
            | Err(_) => Ok(None),
            Ok(Event::Order(order, fds)) => Ok(Some((order, fds))),
            Ok(Event::SessionEnded) => Err(Error::new(Kind::Io, "the kernel ended too early")),
        }
    }

    fn show(
        &self,
        request: &Request,
        resolved: &Resolved,
        means: Means,
        sockets: Vec<OwnedFd>,
        backing: Option<Arc<OwnedFd>>,
        observer: &Arc<Reporter>,
    ) -> Result<Shown> {
        let volume = &resolved.volume;
        match means {
            Means::File(path) => {
                let whole = Some(ByteRange::between(0, volume.size()));
                let mut options = file_options(request);
                options.backing = backing.filter(|_| resolved.source_range == whole);
                self.show_file(volume.clone(), &path, request, &options, observer)
            }
            Means::Disk(path) => {
                // A loop device would leave out a last sector that is not whole.
                let padded = server::pad_to_block(volume, SECTOR)?;
                let mut options = file_options(request);
                options.under_device = true;
                self.show_file(padded, &path, request, &options, observer)
            }
            Means::Tree(path) => {
                let info = resolved.content.file_system();
                let kind = info.map_or("nothing", |info| &info.name);
                let tree = nbdfuse::tree::open(kind, volume.clone())
                    .map_err(|error| resolved.content.explain(error))?;
                let fd = mount(&path, request, true)?;
                let options = TreeOptions {
                    name: source_of(&self.id),
                };
                self.watch(serve_tree(tree, fd, &options)?, observer)
            }
            Means::Nbd => {
                if volume.geometry().access == Access::FirstPass {
                    finish_first_pass(volume)?;
                }
                self.serve_nbd(volume, sockets, !request.has_writable_device())
            }
        }
    }

    fn show_file(
        &self,
        volume: Volume,
        path: &Path,
        request: &Request,
        options: &FileOptions,
        observer: &Reporter,
    ) -> Result<Shown> {
        let fd = mount(path, request, false)?;
        self.watch(serve_file(volume, fd, options)?, observer)
    }

    fn watch(&self, session: Session, observer: &Reporter) -> Result<Shown> {
        let session = Arc::new(session);
        if may_mount_devices()
            && let Err(error) = set_read_ahead(&source_of(&self.id), READ_AHEAD)
        {
            tracing::debug!("reads stay short: {}", error.report());
        }
        observer.invalidates(Arc::clone(&session));
        let (waiting, sender) = (Arc::clone(&session), self.sender.clone());
        events::watch("session", move || {
            // A mount may be in use for months.
            while waiting.wait(FOREVER).is_none() {}
            let _ = sender.send(Event::SessionEnded);
        })?;
        Ok(Shown::Fuse(session))
    }

    fn serve_nbd(&self, volume: &Volume, sockets: Vec<OwnedFd>, read_only: bool) -> Result<Shown> {
        let volume = server::pad_to_block(volume, SECTOR)?;
        let options = server::Options {
            read_only,
            ..server::Options::default()
        };
        let export = Arc::new(server::Server::new(volume, &options));
        let left = Arc::new(AtomicUsize::new(sockets.len()));
        for socket in sockets {
            let (export, left) = (Arc::clone(&export), Arc::clone(&left));
            let sender = self.sender.clone();
            let serve = move || {
                match export.serve(UnixStream::from(socket)) {
                    Ok(end) => tracing::debug!("nbd connection: {end:?}"),
                    Err(error) => tracing::error!("nbd connection: {}", error.report()),
                }
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    let _ = sender.send(Event::SessionEnded);
                }
            };
            std::thread::Builder::new()
                .name("nbd".to_owned())
                .spawn(serve)
                .map_err(|error| Error::io("cannot start a thread", error))?;
        }
        Ok(Shown::Nbd(export))
    }

    fn wait_for_the_end(&self) {
        loop {
            match self.events.recv() {
                Ok(Event::SessionEnded | Event::Order(ToServer::Stop, _)) | Err(_) => return,
                // The supervisor decides how; without it there is nobody to ask.
                Ok(Event::Signal) => {
                    if self.say(&FromServer::StopWanted).is_err() {
                        return self.end_as_orphan();
                    }
                }
                Ok(Event::SupervisorGone) => return self.end_as_orphan(),
                Ok(Event::Order(..)) => {}
            }
        }
    }

    /// The supervisor is dead. A process of its own undoes what the record lists, since unmounting
    /// may need answers from this one.
    fn end_as_orphan(&self) {
        tracing::error!("the supervisor is gone, taking the unit down");
        match respawn::respawn(Role::Undo, &self.id) {
            Ok((mut janitor, _channel)) => {
                let deadline = Instant::now() + ORPHAN_LIMIT;
                while Instant::now() < deadline {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    match self.events.recv_timeout(wait) {
                        Ok(Event::SessionEnded) | Err(_) => break,
                        Ok(_) => {}
                    }
                }
                let _ = janitor.try_wait();
            }
            Err(error) => tracing::error!("{error}"),
        }
    }
}

fn context(request: &Request, observer: &Arc<Reporter>) -> Cx {
    let mut cx = Cx::new(request.cache_bytes);
    cx.temp_dir.clone_from(&request.temp_dir);
    cx.verify = request.verify;
    cx.store = request.disk_cache.open();
    cx.observer = Arc::clone(observer) as Arc<dyn nbdserve::cx::Observer>;
    cx
}

/// Opens the layers of an image.
fn open(request: &Request, image: Image, mut cx: Cx) -> Result<Resolved> {
    let name = request.image.to_string_lossy();
    let source = match image {
        Image::Files(fds) => {
            let mode = if request.write {
                OpenMode::Write
            } else {
                OpenMode::ReadOnly
            };
            // The first part, of an image in parts. Its folder is the one that has this file in it.
            if let Some(opened) = fds.first() {
                cx.references = References::of(&request.image, opened, &request.references)?;
            }
            open_files(fds, &name, mode)?
        }
        Image::Remote(remote) => {
            remote.open(split::look(&request.layers)?, request.cache_bytes, &cx)?
        }
    };
    resolve(request, source, &cx)
}

/// Finds out what it is, and whether it can be written if that is wanted.
fn resolve(request: &Request, source: Volume, cx: &Cx) -> Result<Resolved> {
    let resolved = plan::resolve(
        source,
        &request.image.to_string_lossy(),
        &request.wanted(),
        &crate::unit::looks_like_root,
        cx,
    )?;
    if request.has_writable_device() && resolved.volume.writer().is_none() {
        // The innermost to blame: what is above it only passes writes on. What is below a layer that
        // keeps writes apart is not to blame for anything.
        let cow = resolved.chain.iter().position(|v| v.name() == "cow");
        let mut chain = resolved.chain.iter().skip(cow.unwrap_or(0));
        let read_only = chain.find(|v| v.writer().is_none());
        let blamed = read_only.unwrap_or(&resolved.volume);
        let layer = blamed.name();
        let why = blamed.read_only_because();
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        return Err(Error::new(
            Kind::ReadOnly,
            format!("the layer {layer} cannot be written to{why}"),
        )
        .hint(match &request.cow {
            None => WRITE_APART,
            Some(_) => "leave --cow away to read it",
        }));
    }
    Ok(resolved)
}

fn mount(path: &Path, request: &Request, is_dir: bool) -> Result<OwnedFd> {
    let options = MountOptions {
        read_only: !request.has_writable_device(),
        allow_other: request.has_mount_option("allow_other"),
        no_exec: request.has_mount_option("noexec"),
        ..MountOptions::new(source_of(&request.id), is_dir)
    };
    nbdfuse::mount::mount(path, &options)
}

/// The file as the image's owner would see it, dated like the image.
fn file_options(request: &Request) -> FileOptions {
    let mut options = FileOptions::new(source_of(&request.id));
    options.writable = request.has_writable_device();
    if let Ok(modified) = std::fs::metadata(&request.image).and_then(|meta| meta.modified()) {
        options.mtime = modified;
    }
    options
}

/// Reads the volume once, so that no later read has to wait for a decoder.
fn finish_first_pass(volume: &Volume) -> Result<()> {
    let last = volume.size().saturating_sub(1);
    volume.will_need(ByteRange::between(0, volume.size()));
    volume
        .read_vec(last, usize::from(volume.size() > 0))
        .map(drop)
}

/// Reads all of the volume once, until the unit is taken down.
fn start_prefetch(prefetch: Arc<Prefetch>, volume: &Volume, cx: &Cx) -> Result<()> {
    let (volume, cancel) = (volume.clone(), cx.cancel.clone());
    tracing::info!("prefetch: {} bytes", volume.size());
    let run = move || match prefetch.run(&volume, &cancel, |_| {}) {
        Ok(()) => tracing::info!("prefetch: done"),
        Err(_) if cancel.is_cancelled() => tracing::info!("prefetch: stopped"),
        Err(error) => tracing::warn!("prefetch: {}", error.report()),
    };
    std::thread::Builder::new()
        .name("prefetch".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::io("cannot start a thread", error))
}

/// Tells the supervisor what the layers report, and makes the kernel drop wrong bytes.
struct Reporter {
    channel: Arc<Channel>,
    session: Mutex<Option<Arc<Session>>>,
    last: Mutex<Option<Instant>>,
}

impl Reporter {
    fn new(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            session: Mutex::new(None),
            last: Mutex::new(None),
        }
    }

    fn invalidates(&self, session: Arc<Session>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }
}

impl nbdserve::cx::Observer for Reporter {
    fn begins(&self, pass: &Pass) {
        let _ = self.channel.send(&FromServer::Pass(pass.clone()), &[]);
    }

    fn progress(&self, what: &str, done: u64, total: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) && done < total {
            return;
        }
        *last = Some(Instant::now());
        let what = what.to_owned();
        let _ = self
            .channel
            .send(&FromServer::Progress { what, done, total }, &[]);
    }

    fn poisoned(&self, error: &Error) {
        let session = self
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(session) = session {
            session.invalidate_all();
        }
        let _ = self
            .channel
            .send(&FromServer::Poisoned(error.report()), &[]);
    }
}
