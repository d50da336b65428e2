//! What launcher, supervisor and server say to each other, and the order that starts a unit.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nbdserve::cx::Pass;
use nbdserve::error::Report;
use nbdserve::plan::{self, LayerSpec, Pick, Plan, Purpose, Resolved};
use nbdserve::{Access, Error, Kind, Result, Volume};
use serde::{Deserialize, Serialize};

use super::cache::DiskCache;
use super::image::{Image, Remote};
use super::path_text;

/// Everything a unit is started with. Holds no secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Eight hexadecimal digits.
    pub id: String,
    /// The image as an absolute path, for messages and `--list`; never opened again.
    #[serde(with = "path_text")]
    pub image: PathBuf,
    /// The mount point or file, absolute.
    #[serde(with = "path_text")]
    pub target: PathBuf,
    /// What appears there.
    pub show: Show,
    /// The means asked for.
    pub via: Via,
    /// Writes go to the image.
    pub write: bool,
    /// Writes are kept apart from it.
    #[serde(default)]
    pub cow: Option<Cow>,
    /// Layers that the user named.
    pub layers: Vec<LayerSpec>,
    /// Which part of the image, where the user said so.
    pub partition: Option<String>,
    /// Options for the kernel's file system, as after `mount -o`.
    pub mount_options: Option<String>,
    /// Bytes for decoded blocks and decoders.
    pub cache_bytes: u64,
    /// Where temp files go.
    #[serde(with = "path_text")]
    pub temp_dir: PathBuf,
    /// What is kept for the next mount.
    #[serde(default)]
    pub disk_cache: DiskCache,
    /// Wait for the check of a block before serving it.
    pub verify: bool,
    /// The target does not exist: it is made, and removed again.
    pub create_target: bool,
    /// The mount lives in a namespace of its own, and the unit ends with its launcher.
    pub private: bool,
    /// How much goes into the log.
    pub verbosity: u8,
    /// Read all of it once, in the background.
    #[serde(default)]
    pub prefetch: bool,
    /// Folders that the image may refer to, beside its own; absolute.
    #[serde(default)]
    pub references: Vec<PathBuf>,
}

/// Where writes go that the image is not to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cow {
    /// To memory and a temp file; they are gone at the end.
    Scratch,
    /// The same, and only the kernel writes, which repairs a file system that is mounted read-only.
    Replay,
    /// To this file, absolute, for the next time.
    File(#[serde(with = "path_text")] PathBuf),
}

impl Request {
    /// Whether the user may write to what is shown.
    #[must_use]
    pub fn takes_writes(&self) -> bool {
        self.write || matches!(self.cow, Some(Cow::Scratch | Cow::File(_)))
    }

    /// Whether what the user writes is stored, so that the end has to wait for it.
    #[must_use]
    pub fn stores_writes(&self) -> bool {
        self.write || matches!(self.cow, Some(Cow::File(_)))
    }

    /// Whether the kernel may write to the bytes below the file system.
    #[must_use]
    pub fn has_writable_device(&self) -> bool {
        self.write || self.cow.is_some()
    }

    /// Whether it is worth another try with [`Cow::Replay`] after such an error: a kernel does not
    /// mount a file system whose journal it cannot write back.
    #[must_use]
    pub fn replay_may_help(&self, error: Kind) -> bool {
        error == Kind::ReadOnly && self.show == Show::Tree && !self.has_writable_device()
    }

    /// What is to be found in the image.
    #[must_use]
    pub fn wanted(&self) -> plan::Request {
        let (otherwise, purpose) = match self.show {
            Show::Tree => (Pick::Auto, Purpose::FileSystem),
            Show::File => (Pick::Disk, Purpose::Bytes),
        };
        let pick = self.partition.clone().map_or(otherwise, Pick::Partition);
        plan::Request {
            layers: self.layers.clone(),
            pick,
            purpose,
            cow: self.cow.as_ref().map(|cow| match cow {
                Cow::Scratch | Cow::Replay => LayerSpec::cow(None),
                Cow::File(path) => LayerSpec::cow(Some(path)),
            }),
        }
    }

    /// Whether `name` is among the options after `-o`.
    #[must_use]
    pub fn has_mount_option(&self, name: &str) -> bool {
        self.mount_options
            .iter()
            .flat_map(|options| options.split(','))
            .any(|o| o == name)
    }
}

/// What appears at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Show {
    /// The files of a file system.
    Tree,
    /// The decoded bytes as one file.
    File,
}

/// How the image reaches the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The best that is possible here.
    Auto,
    /// The kernel's NBD client, the kernel's file system
    Nbd,
    /// A loop device (over a FUSE file when the image must be decoded), the kernel's file system
    Loop,
    /// The file system read in our own process
    Fuse,
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Nbd => "nbd",
            Self::Loop => "loop",
            Self::Fuse => "fuse",
        })
    }
}

/// From the launcher to the supervisor: begin. The socket of an [`Asker`](super::secrets::Asker) comes
/// along, and behind it the descriptors of a local image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// What is wanted.
    pub request: Request,
    /// Where the image is, when it is no local file.
    pub remote: Option<Remote>,
}

impl Start {
    /// The order with what comes along.
    #[must_use]
    pub fn new<'a>(
        request: &Request,
        image: &'a Image,
        asker: &'a OwnedFd,
    ) -> (Self, Vec<BorrowedFd<'a>>) {
        let (remote, files) = image.parts();
        let request = request.clone();
        let fds = std::iter::once(asker.as_fd()).chain(files).collect();
        (Self { request, remote }, fds)
    }

    /// What was wanted, and what came along.
    ///
    /// # Errors
    /// When it is not what [`Self::new`] sends.
    pub fn parts(self, mut fds: Vec<OwnedFd>) -> Result<(Request, Image, OwnedFd)> {
        if fds.is_empty() {
            return Err(Error::new(Kind::Io, "no socket came with the request"));
        }
        let files = fds.split_off(1);
        let image = Image::from_parts(self.remote, files)?;
        Ok((self.request, image, fds.remove(0)))
    }
}

/// To the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToServer {
    /// Open the image and say what it is. The same comes along as with [`Start`].
    Open(Box<Start>),
    /// Show it this way; for [`Means::Nbd`] the sockets come along.
    Attach(Means),
    /// Finish what is under way and exit.
    Stop,
}

/// What the server has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Means {
    /// A FUSE file at this path.
    File(#[serde(with = "path_text")] PathBuf),
    /// A FUSE file at this path that a loop device will use: whole sectors.
    Disk(#[serde(with = "path_text")] PathBuf),
    /// A FUSE tree at this path.
    Tree(#[serde(with = "path_text")] PathBuf),
    /// Answer the kernel on these sockets. Reads the whole image first if reads would have to
    /// wait for a first pass.
    Nbd,
}

/// From the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromServer {
    /// The image is open.
    Opened(Box<Opened>),
    /// The means that was asked for is in place.
    Attached,
    /// A pass begins.
    Pass(Pass),
    /// A pass has reached `done` of `total` bytes.
    Progress {
        /// What is being done.
        what: String,
        /// Bytes.
        done: u64,
        /// Bytes.
        total: u64,
    },
    /// Bytes that were served have turned out to be wrong.
    Poisoned(Report),
    /// A signal asks for an orderly end.
    StopWanted,
    /// It did not work; the server exits.
    Failed(Report),
}

/// What an image turned out to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The layers, the partition, the content.
    pub plan: Plan,
    /// Bytes of what is shown.
    pub size: u64,
    /// The file system's kernel name, where there is one.
    pub filesystem: Option<String>,
    /// Every byte costs the decoding of all before it.
    pub first_pass: bool,
    /// Every read beyond what is needed costs: it comes from a server.
    #[serde(default)]
    pub remote: bool,
    /// Transmission flags of the NBD protocol.
    pub nbd_flags: u16,
    /// The file system has a journal to be written back: that goes to a scratch layer.
    #[serde(default)]
    pub replay: bool,
}

impl Opened {
    /// What an image turned out to be.
    #[must_use]
    pub fn new(resolved: &Resolved, nbd_flags: u16) -> Self {
        Self {
            plan: resolved.plan.clone(),
            size: resolved.volume.size(),
            filesystem: resolved.content.file_system().map(|info| info.name.clone()),
            first_pass: resolved.volume.geometry().access == Access::FirstPass,
            remote: resolved.chain.first().is_some_and(Volume::gathers),
            nbd_flags,
            replay: false,
        }
    }
}

/// From the supervisor to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToLauncher {
    /// A pass begins.
    Pass(Pass),
    /// A pass has reached `done` of `total` bytes.
    Progress {
        /// What is being done.
        what: String,
        /// Bytes.
        done: u64,
        /// Bytes.
        total: u64,
    },
    /// The target can be used.
    Ready {
        /// The means that was chosen.
        via: Via,
    },
    /// Not started; nothing is left behind.
    Failed(Report),
}
