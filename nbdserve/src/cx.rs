//! What a layer is given beside the volume below it: threads, memory, and a way to be stopped.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::{BlockCache, Pool};
use crate::references::References;
use crate::secret::{NoSecrets, Secrets};
use crate::store::{Place, Store};
use crate::{Error, Kind, Result};

/// A wait that sees no progress for this long ends with `TimedOut`.
pub const NO_PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// The context shared by all layers of a unit. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cx {
    /// Threads that decode.
    pub pool: Arc<Pool>,
    /// Decoded blocks, with the byte budget of the unit.
    pub cache: Arc<BlockCache>,
    /// Set when the unit is taken down.
    pub cancel: Cancel,
    /// Told of progress and of damage.
    pub observer: Arc<dyn Observer>,
    /// Where unlinked temp files go.
    pub temp_dir: PathBuf,
    /// The cache on disk; `None` when nothing is kept.
    pub store: Option<Arc<Store>>,
    /// Where things about the layer that is being opened are kept for the next mount, which
    /// [`crate::plan`] finds in the store; `None` when nothing is kept.
    pub place: Option<Place>,
    /// Most bytes that the temp files of one layer may take; some of their file system always
    /// stays free as well.
    pub temp_limit: u64,
    /// Do not serve a byte before the check of its block has passed.
    pub verify: bool,
    /// Waits end with `TimedOut` after this long without progress.
    pub no_progress: Duration,
    /// Which files the image may refer to.
    pub references: References,
    /// Whom to ask for passphrases.
    pub secrets: Arc<dyn Secrets>,
}

impl Cx {
    /// A context with a pool of all cores, `cache_bytes` of memory for decoded blocks and
    /// decoders, and an observer that listens to nothing.
    #[must_use]
    pub fn new(cache_bytes: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pool = Pool::new(cores);
        let cache = Arc::new(BlockCache::new(cache_bytes));
        let resting = Arc::downgrade(&cache);
        pool.on_idle(move || resting.upgrade().is_none_or(|cache| cache.rest()));
        Self {
            pool: Arc::new(pool),
            cache,
            cancel: Cancel::default(),
            observer: Arc::new(Silent),
            temp_dir: std::env::temp_dir(),
            store: None,
            place: None,
            temp_limit: u64::MAX,
            verify: false,
            no_progress: NO_PROGRESS_LIMIT,
            references: References::none(),
            secrets: Arc::new(NoSecrets),
        }
    }
}

impl Cx {
    /// Tells the observer how far a pass is that finds out what lies where, and where that is kept.
    pub(crate) fn indexing(&self, what: &str, done: u64, total: u64) {
        self.observer.begins(&Pass {
            what: what.to_owned(),
            why: String::new(),
            kept: self.kept(true),
        });
        self.observer.progress(what, done, total);
    }

    /// For a file that the image refers to, which may refer to `references` itself. What is kept is
    /// kept for the image that was named, and this is another file.
    #[must_use]
    pub(crate) fn of_referred(&self, references: References) -> Self {
        Self {
            references,
            place: None,
            ..self.clone()
        }
    }

    /// Where the result of a pass of the layer that is being opened is kept: what is decoded, or
    /// only (`index`) where what lies.
    #[must_use]
    pub fn kept(&self, index: bool) -> String {
        match (&self.place, index) {
            (Some(place), _) => format!("kept in {} for the next time", place.folder().display()),
            (None, true) => "kept in memory until the end".to_owned(),
            (None, false) => format!("kept in {} until the end", self.temp_dir.display()),
        }
    }
}

/// A flag that ends waits and background work. Clones share it; it cannot be reset.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends all waits that observe this flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was set.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// # Errors
    /// `Io` when the flag is set.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(
                Kind::Io,
                "stopped: the image is being taken down",
            ));
        }
        Ok(())
    }
}

/// A pass over an image that some reads wait for: all texts are for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// What is done, as [`Observer::progress`] will say it.
    pub what: String,
    /// Why that has to be; may be empty.
    pub why: String,
    /// Where the result is kept, and for how long; may be empty.
    pub kept: String,
}

/// Hears what happens inside the layers. Called from any thread; must return quickly.
pub trait Observer: Send + Sync {
    /// A pass begins, however long it will take. One that nobody announces is known by its progress.
    fn begins(&self, pass: &Pass) {
        let _ = pass;
    }

    /// A pass over `total` bytes has reached `done`; called at most a few times a second.
    fn progress(&self, what: &str, done: u64, total: u64) {
        let _ = (what, done, total);
    }

    /// Bytes that were already served have turned out to be wrong: what the kernel caches of this
    /// image must be dropped. The error says which layer and where.
    fn poisoned(&self, error: &Error) {
        let _ = error;
    }
}

impl fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// An [`Observer`] that listens to nothing.
#[derive(Debug)]
pub struct Silent;

impl Observer for Silent {}
