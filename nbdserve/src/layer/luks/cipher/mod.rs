//! Ciphers of sectors: AES in the modes XTS and CBC, with the initialisation vectors of `dm-crypt`.

mod aes;
mod cbc;
mod iv;
mod xts;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use cbc::Cbc;
use iv::{Iv, IvSpec};
use xts::Xts;

use crate::error::escape;
use crate::{Error, Kind, Result};

/// Numbers of sectors count these, however long the sectors are.
pub(crate) const IV_UNIT: usize = 512;
/// What one core works on at a time when several work on one request.
const PIECE: usize = 128 << 10;

/// A cipher, its mode and the length of its key, as a header states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CipherSpec {
    /// `aes-xts-plain64`.
    name: String,
    chaining: Chaining,
    iv: IvSpec,
    key_len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chaining {
    Xts,
    Cbc,
}

impl CipherSpec {
    /// `name` is of the form `aes-xts-plain64`, the length of the key in bytes.
    ///
    /// # Errors
    /// `Unsupported` for another cipher, by its name; `Corrupt` when it takes no such key.
    pub(super) fn parse(name: &str, key_len: u64) -> Result<Self> {
        let known = || {
            let (chaining, iv) = name.strip_prefix("aes-")?.split_once('-')?;
            let chaining = match chaining {
                "xts" => Chaining::Xts,
                "cbc" => Chaining::Cbc,
                _ => return None,
            };
            Some((chaining, IvSpec::parse(iv)?))
        };
        let Some((chaining, iv)) = known() else {
            let what = format!(
                "the cipher \"{}\" is none that this version has",
                escape(name)
            );
            let hint = "it has aes-xts and aes-cbc, with plain, plain64, plain64be or essiv:sha256";
            return Err(Error::new(Kind::Unsupported, what).hint(hint));
        };
        let lens: &[u64] = match chaining {
            Chaining::Xts => &[32, 48, 64],
            Chaining::Cbc => &[16, 24, 32],
        };
        let fits = lens.contains(&key_len);
        let Some(len) = usize::try_from(key_len).ok().filter(|_| fits) else {
            let what = format!("{name} takes no key of {key_len} bytes");
            return Err(Error::new(Kind::Corrupt, what));
        };
        Ok(Self {
            name: name.to_owned(),
            chaining,
            iv,
            key_len: len,
        })
    }

    /// Bytes of the key: at most 64.
    pub(super) fn key_len(&self) -> usize {
        self.key_len
    }
}

impl fmt::Display for CipherSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// Which sectors a buffer holds.
#[derive(Clone, Copy, Debug)]
struct Sectors {
    /// Bytes of each.
    len: usize,
    /// The number of the first one.
    number: u64,
    /// From one number to the next.
    step: u64,
}

enum Mode {
    Xts(Xts),
    Cbc(Cbc),
}

/// Encrypts and decrypts sectors, with all cores when there is much to do and they are free. Its
/// keys are wiped when it is dropped. Shared by many threads.
pub(crate) struct SectorCipher {
    mode: Mode,
    iv: Iv,
    sector: usize,
    step: u64,
    cores: usize,
    /// Calls that are being worked on.
    active: AtomicUsize,
}

impl SectorCipher {
    /// A cipher of sectors of so many bytes, a multiple of 512; `cores` may work on one request.
    ///
    /// # Errors
    /// `Corrupt` when the key does not go with the cipher.
    pub(super) fn new(spec: &CipherSpec, key: &[u8], sector: usize, cores: usize) -> Result<Self> {
        let mode = match spec.chaining {
            Chaining::Xts => Xts::new(key).map(Mode::Xts),
            Chaining::Cbc => Cbc::new(key).map(Mode::Cbc),
        };
        let step = sector.checked_div(IV_UNIT).unwrap_or(0);
        let whole = sector > 0 && sector.is_multiple_of(IV_UNIT);
        let iv = Iv::new(spec.iv, key).filter(|_| key.len() == spec.key_len && whole);
        match (mode, iv, u64::try_from(step)) {
            (Some(mode), Some(iv), Ok(step)) => Ok(Self {
                mode,
                iv,
                sector,
                step,
                cores,
                active: AtomicUsize::new(0),
            }),
            _ => {
                let len = key.len();
                let what = format!("{spec} with a key of {len} bytes on sectors of {sector}");
                Err(Error::new(Kind::Corrupt, what))
            }
        }
    }

    /// Bytes of a sector.
    pub(crate) fn sector(&self) -> usize {
        self.sector
    }

    /// Decrypts whole sectors in place. `number` is that of the first, in units of 512 bytes: for
    /// longer sectors, eight apart say.
    ///
    /// # Panics
    /// When `buf` is not of whole sectors: an error of the caller.
    pub(crate) fn decrypt(&self, buf: &mut [u8], number: u64) {
        self.spread(buf, number, Direction::Decrypt);
    }

    /// Encrypts whole sectors in place, as [`Self::decrypt`] decrypts them.
    ///
    /// # Panics
    /// When `buf` is not of whole sectors: an error of the caller.
    pub(crate) fn encrypt(&self, buf: &mut [u8], number: u64) {
        self.spread(buf, number, Direction::Encrypt);
    }

    /// Lets the cores that no other call keeps busy share the work.
    fn spread(&self, buf: &mut [u8], number: u64, direction: Direction) {
        assert!(buf.len().is_multiple_of(self.sector), "{} bytes", buf.len());
        let active = self
            .active
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let pieces = buf.len() / PIECE;
        let workers = self.cores.checked_div(active).unwrap_or(1).min(pieces);
        if workers <= 1 {
            self.run(buf, number, direction);
        } else {
            // A multiple of every sector length.
            let units = u64::try_from(PIECE / IV_UNIT).unwrap_or(0);
            let queue = Mutex::new(buf.chunks_mut(PIECE).zip(0_u64..));
            let work = || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((piece, index)) = next else { break };
                    let number = number.wrapping_add(index.wrapping_mul(units));
                    self.run(piece, number, direction);
                }
            };
            thread::scope(|scope| {
                for _ in 1..workers {
                    // Without the thread the others do its part.
                    let name = "cipher".to_owned();
                    let _ = thread::Builder::new().name(name).spawn_scoped(scope, work);
                }
                work();
            });
        }
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    fn run(&self, buf: &mut [u8], number: u64, direction: Direction) {
        let sectors = Sectors {
            len: self.sector,
            number,
            step: self.step,
        };
        match &self.mode {
            Mode::Xts(mode) => mode.run(buf, sectors, &self.iv, direction),
            Mode::Cbc(mode) => mode.run(buf, sectors, &self.iv, direction),
        }
    }
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No keys.
        write!(f, "SectorCipher({} bytes)", self.sector)
    }
}
