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

use crate::error::quote;
use crate::secret::with_wiped_stack;
use crate::{Error, Kind, Result};

/// Numbers of sectors count these, however long the sectors are.
pub(crate) const IV_UNIT: usize = 512;
/// What one core works on at a time: it stays in the core's own cache between being read and being
/// decrypted.
pub(super) const PIECE: usize = 128 << 10;
/// A core takes part in a request when it has so much to do: a thread costs as much time as some 100 KiB.
const WORTH_A_THREAD: usize = 512 << 10;

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
            let what = format!("the cipher {} is none that this version has", quote(name));
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

/// Bytes of stack that the ciphers use: wiped after each request.
const STACK: usize = 8 << 10;
/// What is done with a piece, see `SectorCipher::spread`.
type Work<'a> = dyn Fn(&mut [u8], u64, u64) -> Result<()> + Sync + 'a;

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
        let work = |piece: &mut [u8], number, _| {
            self.run(piece, number, Direction::Decrypt);
            Ok(())
        };
        // It never fails.
        let _ = self.spread(buf, number, &work);
    }

    /// Encrypts whole sectors in place, as [`Self::decrypt`] decrypts them.
    ///
    /// # Panics
    /// When `buf` is not of whole sectors: an error of the caller.
    pub(crate) fn encrypt(&self, buf: &mut [u8], number: u64) {
        let work = |piece: &mut [u8], number, _| {
            self.run(piece, number, Direction::Encrypt);
            Ok(())
        };
        // It never fails.
        let _ = self.spread(buf, number, &work);
    }

    /// As [`Self::decrypt`], of what `read` fills a part of `buf` with, which begins at the byte it is
    /// told: each piece is decrypted while it is still in the processor's cache.
    ///
    /// # Errors
    /// What `read` says.
    ///
    /// # Panics
    /// As [`Self::decrypt`].
    pub(super) fn decrypt_read(
        &self,
        buf: &mut [u8],
        number: u64,
        read: impl Fn(&mut [u8], u64) -> Result<()> + Sync,
    ) -> Result<()> {
        self.spread(buf, number, &|piece, number, at| {
            read(piece, at)?;
            self.run(piece, number, Direction::Decrypt);
            Ok(())
        })
    }

    /// Lets the cores that no other call keeps busy share the `work`, which is given a piece, the
    /// number of its first sector, and where it begins in `buf`.
    fn spread(&self, buf: &mut [u8], number: u64, work: &Work<'_>) -> Result<()> {
        assert!(buf.len().is_multiple_of(self.sector), "{} bytes", buf.len());
        let active = self
            .active
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let free = self.cores.checked_div(active).unwrap_or(1);
        let workers = free.min(buf.len() / WORTH_A_THREAD);
        // A multiple of every sector length.
        let units = u64::try_from(PIECE / IV_UNIT).unwrap_or(0);
        let len = u64::try_from(PIECE).unwrap_or(0);
        let next = Mutex::new(buf.chunks_mut(PIECE).zip(0_u64..));
        let all = || {
            loop {
                let piece = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((piece, index)) = piece else {
                    return Ok(());
                };
                let number = number.wrapping_add(index.wrapping_mul(units));
                work(piece, number, index.saturating_mul(len))?;
            }
        };
        // A compiler that is short of registers puts round keys on the stack.
        let work = || with_wiped_stack::<STACK, _>(all);
        let result = if workers <= 1 {
            work()
        } else {
            thread::scope(|scope| {
                let others: Vec<_> = (1..workers)
                    .filter_map(|_| {
                        // Without the thread the others do its part.
                        let name = "cipher".to_owned();
                        let thread = thread::Builder::new().name(name);
                        thread.spawn_scoped(scope, work).ok()
                    })
                    .collect();
                let own = work();
                let gone = || Err(Error::new(Kind::Io, "a thread of the cipher has ended"));
                let ended = others
                    .into_iter()
                    .map(|other| other.join().unwrap_or_else(|_| gone()));
                ended.fold(own, Result::and)
            })
        };
        self.active.fetch_sub(1, Ordering::Relaxed);
        result
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
