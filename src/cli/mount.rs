//! `loopmount IMAGE TARGET` and `loopmount IMAGE -- COMMAND`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdserve::cx::Observer;
use nbdserve::layer::split::look;
use nbdserve::source::http::Http;
use nbdserve::source::{File, OpenMode, split};
use nbdserve::store::DEFAULT_LIMIT;
use nbdserve::{Cx, Error, Kind, Result};

use super::Cli;
use crate::sys::namespace;
use crate::sys::rights::may_mount_devices;
use crate::unit::cache::DiskCache;
use crate::unit::exit::Exit;
use crate::unit::find;
use crate::unit::front::{Front, Terminal, Unreported, print_report};
use crate::unit::image::{Image, Remote};
use crate::unit::launch;
use crate::unit::message::{Cow, Request, Show};
use crate::unit::record;
use crate::unit::secrets::{Asking, Keys};
use crate::unit::serve::WRITE_APART;
use crate::unit::state::StateDir;
use crate::unit::stop::{self, Outcome};
use crate::unit::supervise::supervise;
use crate::unit::{command, out, plain, target};
use nbdfuse::mount::Mode;

/// Makes the image appear, or runs the command in it.
pub(super) fn command(cli: &Cli, image: &Path) -> Result<Exit> {
    let terminal = Arc::new(Terminal::new());
    let asked = Asked {
        keys: cli.keys.open(&terminal)?,
        terminal,
    };
    let source = Source::open(cli, image)?;
    let name = source.name(image)?;
    let id = record::new_id()?;
    if cli.command.is_empty() {
        let target = cli
            .target
            .as_deref()
            .ok_or_else(|| Error::new(Kind::Io, "no target"))?;
        let (target, missing) = target::check(target, cli.show())?;
        let request = cli.request(id, name, target, missing, false)?;
        return up(cli, request, source, asked);
    }
    run_command(cli, name, source, id, &asked)
}

/// Whoever answers while the unit starts.
struct Asked {
    keys: Arc<Keys>,
    terminal: Arc<Terminal>,
}

/// A plain image that the kernel reads by itself.
const NOTHING_TO_PREFETCH: &str =
    "nothing is decoded, so there is nothing to prefetch: the kernel keeps what is read";

/// Makes the image appear and returns, or with --foreground stays.
fn up(cli: &Cli, mut request: Request, source: Source, asked: Asked) -> Result<Exit> {
    if let Some(mounted) = source.try_plain(&mut request)? {
        if request.prefetch {
            out::tell(format_args!("loopmount: {NOTHING_TO_PREFETCH}"));
        }
        if cli.foreground {
            mounted.stay()?;
        }
        return Ok(Exit::Done);
    }
    let image = source.into_image();
    if cli.foreground {
        return stay(request, image, asked);
    }
    match start(&request, &image, &asked) {
        Ok(started) => {
            tracing::debug!("mounted by {}", started.via);
            Ok(Exit::Done)
        }
        Err(report) => {
            print_report(&report);
            Ok(Exit::Failed)
        }
    }
}

/// Starts a unit; once more with a scratch layer if the kernel has to write before it can mount.
fn start(
    request: &Request,
    image: &Image,
    asked: &Asked,
) -> Result<launch::Started, launch::Failure> {
    let launch =
        |request: &Request| launch::start(request, image, Arc::clone(&asked.keys), &asked.terminal);
    let started = match launch(request) {
        Err(report) if request.replay_may_help(report.kind) => {
            tracing::debug!("once more, with a scratch layer: {report}");
            asked.keys.repeat();
            launch(&with_replay(request.clone()))
        }
        other => other,
    };
    asked.keys.forget();
    started
}

fn with_replay(mut request: Request) -> Request {
    request.cow = Some(Cow::Replay);
    request
}

/// The same in this process, until the end.
fn stay(request: Request, image: Image, asked: Asked) -> Result<Exit> {
    let terminal: Arc<dyn Front> = asked.terminal;
    // It prints its error itself.
    let run = |request: Request, image: Image, front: &Arc<dyn Front>| -> Result<Exit> {
        let (_asking, asker) = Asking::start(Arc::clone(&asked.keys))?;
        Ok(match supervise(request, image, asker, front, None) {
            Ok(()) => Exit::Done,
            Err(_) => Exit::Failed,
        })
    };
    let Ok(second) = image.try_clone() else {
        return run(request, image, &terminal);
    };
    let keys = Arc::clone(&asked.keys);
    let forget = Box::new(move || keys.forget());
    let quiet = Arc::new(Unreported::new(Arc::clone(&terminal), forget));
    let front: Arc<dyn Front> = quiet.clone();
    let exit = run(request.clone(), image, &front)?;
    match quiet.failure() {
        Some(report) if request.replay_may_help(report.kind) => {
            asked.keys.repeat();
            run(with_replay(request), second, &terminal)
        }
        Some(report) => {
            terminal.failed(&report);
            Ok(Exit::Failed)
        }
        None => Ok(exit),
    }
}

fn run_command(
    cli: &Cli,
    name: PathBuf,
    source: Source,
    id: String,
    asked: &Asked,
) -> Result<Exit> {
    let state = StateDir::of_user();
    state.create()?;
    hide_mounts()?;
    // No mount follows a symbolic link, and XDG_RUNTIME_DIR may be behind one.
    let folder = state.private_target(&id);
    let folder = find::absolute_without_touching(&folder).unwrap_or(folder);
    let mut request = cli.request(id, name, folder.clone(), true, true)?;
    let mut channel = None;
    if source.try_plain(&mut request)?.is_none() {
        match start(&request, &source.into_image(), asked) {
            Ok(started) => channel = Some(started.channel),
            Err(report) => {
                print_report(&report);
                return Ok(Exit::BEFORE_COMMAND);
            }
        }
    }
    namespace::drop_mount_right()?;
    let outcome = command::run(&cli.command, &folder);
    take_down(&request.id)?;
    drop(channel);
    outcome.or_else(|(exit, error)| {
        print_report(&error.report());
        Ok(exit)
    })
}

/// Makes the mounts of this process and its children invisible to others. Where a user may not, the
/// mount is at least below a folder that only the user can enter.
fn hide_mounts() -> Result<()> {
    if may_mount_devices() {
        return namespace::private_mounts();
    }
    match namespace::private_mounts_as_user() {
        Err(error) if error.kind() == Kind::Denied => {
            tracing::debug!("{}", error.report());
            Ok(())
        }
        other => other,
    }
}

/// What the command has left running keeps files open; the mount goes all the same.
fn take_down(id: &str) -> Result<()> {
    for unit in find::named(id.as_ref())? {
        let outcome = match stop::take_down(&unit, Mode::Normal)? {
            Outcome::Busy(_) => stop::take_down(&unit, Mode::Lazy)?,
            other => other,
        };
        if let Outcome::Lost(why) = &outcome {
            print_report(&stop::lost_error(why).report());
        }
        tracing::debug!("{outcome:?}");
    }
    Ok(())
}

/// An image on this machine, opened with the caller's rights, once; or one elsewhere.
enum Source {
    Files(Vec<File>),
    Remote(Remote),
}

impl Source {
    fn open(cli: &Cli, image: &Path) -> Result<Self> {
        if let Some(remote) = cli.remote(image)? {
            if cli.write {
                let what = "an image on a web server cannot be written to";
                return Err(Error::new(Kind::ReadOnly, what).hint(WRITE_APART));
            }
            return Ok(Self::Remote(remote));
        }
        let mode = if cli.write {
            OpenMode::Write
        } else {
            OpenMode::ReadOnly
        };
        let opened = split::open(image, look(&cli.layers)?, mode, &cli.references);
        let opened = opened.map_err(|error| {
            let may_not = matches!(error.kind(), Kind::Denied | Kind::ReadOnly);
            // Another reason, such as a lock, has its own hint.
            let unhinted = cli.write && may_not && error.report().hint.is_none();
            match unhinted && File::open(image, OpenMode::ReadOnly).is_ok() {
                true => error.hint(WRITE_APART),
                false => error,
            }
        });
        opened.map(Self::Files)
    }

    /// The image's name in messages and in the record.
    fn name(&self, image: &Path) -> Result<PathBuf> {
        match self {
            Self::Remote(remote) => Ok(PathBuf::from(remote.shown())),
            Self::Files(_) => image
                .canonicalize()
                .map_err(|error| Error::io(format!("cannot resolve {}", image.display()), error)),
        }
    }

    /// Mounted by the kernel's loop device alone, where that will do. If that would have to write,
    /// `request` asks for a scratch layer from here on.
    fn try_plain(&self, request: &mut Request) -> Result<Option<plain::Mounted>> {
        let Self::Files(files) = self else {
            return Ok(None);
        };
        let [file] = &files[..] else {
            return Ok(None);
        };
        match plain::try_mount(request, file) {
            Err(error) if request.replay_may_help(error.kind()) => {
                tracing::debug!("with a scratch layer: {}", error.report());
                request.cow = Some(Cow::Replay);
                Ok(None)
            }
            other => other,
        }
    }

    fn into_image(self) -> Image {
        match self {
            Self::Files(files) => Image::Files(files.into_iter().map(File::into_fd).collect()),
            Self::Remote(remote) => Image::Remote(remote),
        }
    }
}

impl Cli {
    /// The image as an address, if it is one and no file has that name.
    ///
    /// # Errors
    /// `Unsupported` for an address that is not http or https.
    pub(super) fn remote(&self, image: &Path) -> Result<Option<Remote>> {
        let Some(url) = image
            .to_str()
            .filter(|text| is_address(text) && !image.exists())
        else {
            return Ok(None);
        };
        Http::shown(url)?;
        Ok(Some(Remote {
            url: url.to_owned(),
            headers: self.headers.clone(),
            // The server runs in another folder.
            ca: self
                .ca
                .as_ref()
                .map(|path| std::path::absolute(path).unwrap_or(path.clone())),
            download: self.download,
        }))
    }

    fn show(&self) -> Show {
        if self.fuse { Show::File } else { Show::Tree }
    }

    /// A context for a look at the image in this process.
    ///
    /// # Errors
    /// When a key or a temp folder that was named cannot be opened.
    pub(super) fn cx(&self, terminal: &Arc<Terminal>) -> Result<Cx> {
        let mut cx = Cx::new(self.cache_bytes());
        cx.observer = Arc::clone(terminal) as Arc<dyn Observer>;
        cx.temp_dir = self.temp_dir()?;
        cx.verify = self.verify;
        cx.secrets = self.keys.open(terminal)?;
        cx.store = self.disk_cache().open();
        Ok(cx)
    }

    /// The folders that the image may refer to, as the server will find them.
    fn references(&self) -> Vec<PathBuf> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        self.references.iter().map(absolute).collect()
    }

    /// The cache on disk.
    pub(super) fn disk_cache(&self) -> DiskCache {
        DiskCache::of_user(self.cache_limit.unwrap_or(DEFAULT_LIMIT))
    }

    /// Large files go where space is: /tmp is often memory.
    ///
    /// # Errors
    /// When the user named one that is no folder: a temp file may be needed only much later.
    fn temp_dir(&self) -> Result<PathBuf> {
        if let Some(named) = &self.temp_dir {
            let fail = |cause| {
                let what = format!("cannot use the temp folder {}", named.display());
                Error::io(what, cause).hint("--temp-dir=DIR takes a folder that is there")
            };
            let meta = std::fs::metadata(named).map_err(fail)?;
            if !meta.is_dir() {
                return Err(fail(rustix::io::Errno::NOTDIR.into()));
            }
        }
        let named = self
            .temp_dir
            .clone()
            .or_else(|| std::env::var_os("TMPDIR").map(PathBuf::from));
        let dir = named.unwrap_or_else(|| PathBuf::from("/var/tmp"));
        Ok(std::path::absolute(&dir).unwrap_or(dir))
    }

    /// The smaller of 1 GiB and a quarter of memory, where the user said nothing.
    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache_size
            .unwrap_or_else(|| (total_memory() / 4).min(1 << 30))
    }

    fn request(
        &self,
        id: String,
        image: PathBuf,
        target: PathBuf,
        create_target: bool,
        private: bool,
    ) -> Result<Request> {
        Ok(Request {
            id,
            image,
            target,
            show: self.show(),
            via: self.via,
            write: self.write,
            cow: self.cow.as_ref().map(|file| match file {
                None => Cow::Scratch,
                // The server runs in another folder.
                Some(file) => Cow::File(std::path::absolute(file).unwrap_or(file.clone())),
            }),
            layers: self
                .layers
                .iter()
                .map(|spec| spec.clone().with_absolute_paths())
                .collect(),
            partition: self.partition.clone(),
            mount_options: self.options.clone(),
            cache_bytes: self.cache_bytes(),
            temp_dir: self.temp_dir()?,
            disk_cache: self.disk_cache(),
            verify: self.verify,
            create_target,
            private,
            verbosity: self.verbose,
            prefetch: self.prefetch,
            references: self.references(),
        })
    }
}

/// Bytes of memory of the machine.
fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Whether this has the form `scheme://rest`.
fn is_address(text: &str) -> bool {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    !scheme.is_empty()
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+')
}
