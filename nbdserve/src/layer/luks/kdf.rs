//! From a passphrase to the key of a keyslot. What an image asks for is bounded before it is done.

use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::hash::Hash;
use crate::secret::{LockedBytes, Secret, with_wiped_stack};
use crate::size::format_size;
use crate::{Cx, Error, Kind, Result};

/// How often a wait looks whether the image is being taken down.
const LOOK: Duration = Duration::from_millis(50);
/// An argon2 of less memory wipes it. The memory of a larger one goes back to the system at once,
/// which gives it to nobody before it has wiped it.
const WIPED: u64 = 64 << 20;

/// Bytes of stack that deriving and expanding keys use, generously.
pub(super) const STACK: usize = 32 << 10;

/// What an image may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Of pbkdf2: some minutes of work.
    pub(super) iterations: u32,
    /// Bytes of argon2: what cryptsetup allows.
    pub(super) memory: u64,
    /// Bytes of argon2, times its passes: some minutes of work.
    pub(super) work: u64,
    /// Lanes of argon2.
    pub(super) lanes: u32,
}

impl Bounds {
    pub(super) const USUAL: Self = Self {
        iterations: 1 << 30,
        memory: 4 << 30,
        work: 1 << 40,
        lanes: 64,
    };
    /// For tests with images that lie: nothing takes long.
    #[cfg(feature = "testing")]
    pub(super) const TINY: Self = Self {
        iterations: 5000,
        memory: 1 << 20,
        work: 4 << 20,
        lanes: 4,
    };
}

/// A way to derive a key, with all its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        salt: Vec<u8>,
        iterations: u32,
    },
    Argon2 {
        /// `argon2i` or `argon2id`.
        algorithm: Algorithm,
        salt: Vec<u8>,
        /// Passes.
        time: u32,
        /// KiB.
        memory: u32,
        lanes: u32,
    },
}

impl fmt::Display for Kdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pbkdf2 { hash, .. } => write!(f, "pbkdf2-{}", hash.name()),
            Self::Argon2 {
                algorithm, memory, ..
            } => write!(f, "{algorithm} {}", format_size(kib(*memory))),
        }
    }
}

fn kib(memory: u32) -> u64 {
    u64::from(memory).saturating_mul(1024)
}

impl Kdf {
    /// # Errors
    /// `Corrupt` for no iterations.
    pub(super) fn pbkdf2(hash: Hash, salt: Vec<u8>, iterations: u32) -> Result<Self> {
        if iterations == 0 {
            return Err(Error::new(Kind::Corrupt, "pbkdf2 with 0 iterations"));
        }
        Ok(Self::Pbkdf2 {
            hash,
            salt,
            iterations,
        })
    }

    /// Whether it is allowed to take that much.
    fn check(&self, bounds: &Bounds) -> Result<()> {
        let limit = |what: String| Err(Error::new(Kind::Limit, what));
        match self {
            Self::Pbkdf2 { iterations, .. } if *iterations > bounds.iterations => {
                let most = bounds.iterations;
                limit(format!(
                    "{iterations} iterations of pbkdf2, more than {most}"
                ))
            }
            Self::Pbkdf2 { .. } => Ok(()),
            Self::Argon2 {
                time,
                memory,
                lanes,
                ..
            } => {
                let (memory, lanes, time) = (kib(*memory), *lanes, *time);
                let wants = format!("argon2 with {} KiB of memory", memory / 1024);
                if memory > bounds.memory {
                    let most = bounds.memory / 1024;
                    return limit(format!("{wants}, more than {most} KiB"));
                }
                if memory.saturating_mul(u64::from(time)) > bounds.work {
                    let most = format_size(bounds.work);
                    return limit(format!(
                        "{wants} {time} times over, together more than {most}"
                    ));
                }
                if lanes > bounds.lanes {
                    return limit(format!(
                        "argon2 in {lanes} lanes, more than {}",
                        bounds.lanes
                    ));
                }
                match available_memory() {
                    Some(free) if free < memory => {
                        let free = format_size(free);
                        limit(format!("{wants}, of which {free} are available"))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The key of `len` bytes that it makes of `secret`. Takes seconds: that is its purpose.
    ///
    /// # Errors
    /// `Limit` when it would take too much, `Corrupt` for parameters that make no sense, `Io` when
    /// the image is taken down meanwhile.
    pub(super) fn derive(
        &self,
        secret: &Secret,
        len: usize,
        bounds: &Bounds,
        cx: &Cx,
    ) -> Result<LockedBytes> {
        self.check(bounds)?;
        let (kdf, secret, cores) = (self.clone(), secret.clone(), cx.pool.threads());
        in_background(cx, move || kdf.run(secret.bytes(), len, cores))
    }

    fn run(&self, password: &[u8], len: usize, cores: usize) -> Result<LockedBytes> {
        let mut key = LockedBytes::new(len);
        match self {
            Self::Pbkdf2 {
                hash,
                salt,
                iterations,
            } => hash.pbkdf2(password, salt, *iterations, &mut key),
            Self::Argon2 {
                algorithm,
                salt,
                time,
                memory,
                lanes,
            } => {
                let bad = |error: argon2::Error| match error {
                    argon2::Error::OutOfMemory => no_memory(*memory),
                    _ => Error::new(Kind::Corrupt, format!("{algorithm}: {error}")),
                };
                let params = Params::new(*memory, *time, *lanes, Some(len)).map_err(bad)?;
                let blocks = params.block_count();
                let argon2 = Argon2::new(*algorithm, Version::V0x13, params);
                // Threads of their own: they end with the work, unlike those that all share.
                let lanes = usize::try_from(*lanes).unwrap_or(usize::MAX);
                let threads = rayon::ThreadPoolBuilder::new()
                    .num_threads(lanes.min(cores).max(1))
                    .thread_name(|_| "kdf".to_owned())
                    .build()
                    .map_err(|error| {
                        Error::new(Kind::Io, "cannot start threads").caused_by(error)
                    })?;
                let work = || {
                    if kib(*memory) > WIPED {
                        return argon2.hash_password_into(password, salt, &mut key);
                    }
                    let mut memory = Zeroizing::new(Vec::new());
                    if memory.try_reserve_exact(blocks).is_err() {
                        return Err(argon2::Error::OutOfMemory);
                    }
                    memory.resize(blocks, argon2::Block::new());
                    argon2.hash_password_into_with_memory(
                        password,
                        salt,
                        &mut key,
                        memory.as_mut_slice(),
                    )
                };
                threads
                    .install(|| with_wiped_stack::<STACK, _>(work))
                    .map_err(bad)?;
            }
        }
        Ok(key)
    }
}

fn no_memory(memory: u32) -> Error {
    let what = format!("argon2 with {memory} KiB of memory, which are not to be had");
    Error::new(Kind::Limit, what)
}

/// Does `work` on a thread of its own, and stops waiting for it when the image is taken down.
pub(super) fn in_background<T: Send + 'static>(
    cx: &Cx,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, result) = channel();
    let run = move || {
        // Nobody listens any more when the image is taken down.
        let _ = sender.send(with_wiped_stack::<STACK, _>(work));
    };
    let started = thread::Builder::new().name("kdf".to_owned()).spawn(run);
    started.map_err(|error| Error::io("cannot start a thread", error))?;
    loop {
        match result.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => cx.cancel.check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Io, "deriving a key has failed"));
            }
        }
    }
}

/// Bytes that can be taken without swapping, as the kernel estimates it.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
