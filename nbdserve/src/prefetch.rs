//! Reading a volume once, ahead of everybody, so that what its layers keep is there when it is
//! wanted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cx::Cancel;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// One request.
const PIECE: u64 = 1 << 20;
/// So much is looked at for zeroes at once.
const STEP: u64 = 64 << 20;
/// Runs of a step: a part with more is read.
const MOST_RUNS: usize = 256;
/// While others read, it waits so long before it looks again.
const PAUSE: Duration = Duration::from_millis(10);
/// After so many pauses it reads a piece all the same.
const MOST_PAUSES: u32 = 10;

/// How far it is. Shared with those who want to know.
#[derive(Debug)]
pub struct Prefetch {
    total: u64,
    done: AtomicU64,
    failed: AtomicU64,
    ended: AtomicBool,
}

/// What a [`Prefetch`] has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that were read or are known to be zero.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Bytes of damaged parts, which are among those done.
    pub failed: u64,
    /// Whether nothing more will be read.
    pub ended: bool,
}

impl Prefetch {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(volume: &Volume) -> Self {
        Self {
            total: volume.size(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.done.load(Ordering::Relaxed),
            total: self.total,
            failed: self.failed.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Acquire),
        }
    }

    /// Reads all of `volume` in order, a piece at a time. Others who read it meanwhile go first; what
    /// is known to be zero is passed over, and so is what is damaged. `told` hears after each piece
    /// how far it is.
    ///
    /// # Errors
    /// What keeps all of it from being read: the source fails, or `cancel` is set. What was read
    /// until then is kept.
    pub fn run(
        &self,
        volume: &Volume,
        cancel: &Cancel,
        mut told: impl FnMut(Progress),
    ) -> Result<()> {
        let result = self.read(volume, cancel, &mut told);
        self.ended.store(true, Ordering::Release);
        told(self.progress());
        result
    }

    fn read(
        &self,
        volume: &Volume,
        cancel: &Cancel,
        told: &mut impl FnMut(Progress),
    ) -> Result<()> {
        let mut turn = Turn::new(volume);
        let mut buf = Vec::new();
        let mut at = 0;
        while at < self.total {
            cancel.check()?;
            let step = ByteRange::between(at, at.saturating_add(STEP).min(self.total));
            let extents = volume.extents_limited(step, MOST_RUNS);
            let runs = extents.as_ref().map_or(&[][..], |extents| extents.runs());
            for run in runs {
                if run.flags.zero {
                    self.passed(run.range.len());
                    told(self.progress());
                } else {
                    self.read_run(volume, run.range, &mut turn, &mut buf, cancel, told)?;
                }
                at = run.range.end();
            }
            if runs.is_empty() {
                // The search for zeroes failed: reading tells why.
                self.read_run(volume, step, &mut turn, &mut buf, cancel, told)?;
                at = step.end();
            }
        }
        Ok(())
    }

    fn read_run(
        &self,
        volume: &Volume,
        run: ByteRange,
        turn: &mut Turn<'_>,
        buf: &mut Vec<u8>,
        cancel: &Cancel,
        told: &mut impl FnMut(Progress),
    ) -> Result<()> {
        let mut at = run.start();
        while at < run.end() {
            turn.wait(cancel)?;
            // Whole pieces of the volume, whatever the run begins with.
            let next = (at / PIECE).saturating_add(1).saturating_mul(PIECE);
            let len = next.min(run.end()).saturating_sub(at);
            // At most PIECE, which fits.
            buf.resize(len as usize, 0);
            let result = volume.read_at(buf, at);
            turn.took();
            cancel.check()?;
            if let Err(error) = result {
                if !is_local(&error) {
                    return Err(error);
                }
                tracing::warn!("prefetch: {error}");
                self.failed.fetch_add(len, Ordering::Relaxed);
            }
            self.passed(len);
            told(self.progress());
            at = at.saturating_add(len);
        }
        Ok(())
    }

    fn passed(&self, len: u64) {
        self.done.fetch_add(len, Ordering::Relaxed);
    }
}

/// Whether other parts of the image may be as they should.
fn is_local(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Corrupt | Kind::Unsupported | Kind::Limit
    )
}

/// Lets others go first.
struct Turn<'a> {
    volume: &'a Volume,
    /// Requests of our own.
    own: u64,
    /// Those of others, when we looked last.
    others: u64,
}

impl<'a> Turn<'a> {
    fn new(volume: &'a Volume) -> Self {
        Self {
            volume,
            own: 0,
            others: volume.stats().reads.requests,
        }
    }

    /// Waits while others read, for a while.
    fn wait(&mut self, cancel: &Cancel) -> Result<()> {
        for _ in 0..MOST_PAUSES {
            let requests = self.volume.stats().reads.requests;
            let others = requests.saturating_sub(self.own);
            if others == self.others {
                break;
            }
            self.others = others;
            thread::sleep(PAUSE);
            cancel.check()?;
        }
        Ok(())
    }

    fn took(&mut self) {
        self.own = self.own.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Memory;
    use crate::{Device, ExtentFlags, Extents, Geometry};
    use std::sync::Mutex;

    /// Data, a hole, and a damaged part, a STEP each; counts what is read.
    #[derive(Debug, Default)]
    struct Mixed(Mutex<Vec<ByteRange>>);

    impl Device for &'static Mixed {
        fn name(&self) -> &'static str {
            "mixed"
        }
        fn geometry(&self) -> Geometry {
            Geometry::bytes(3 * STEP)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let range = ByteRange::between(offset, offset + buf.len() as u64);
            self.0.lock().unwrap().push(range);
            if (2 * STEP..2 * STEP + PIECE).contains(&offset) {
                return Err(Error::new(Kind::Corrupt, "damaged"));
            }
            Ok(())
        }
        fn extents(&self, _: ByteRange, out: &mut Extents) -> Result<()> {
            out.push_until(STEP, ExtentFlags::DATA);
            out.push_until(2 * STEP, ExtentFlags::HOLE);
            Ok(())
        }
    }

    fn mixed() -> (&'static Mixed, Volume) {
        let device: &'static Mixed = Box::leak(Box::default());
        (device, Volume::new(device))
    }

    #[test]
    fn all_data_is_read_once_and_zeroes_and_damage_are_passed_over() {
        let (device, volume) = mixed();
        let prefetch = Prefetch::new(&volume);
        let mut last = 0;
        prefetch
            .run(&volume, &Cancel::default(), |progress| {
                assert!(progress.done >= last);
                last = progress.done;
            })
            .unwrap();
        let end = prefetch.progress();
        assert_eq!((end.done, end.failed), (3 * STEP, PIECE));
        assert!(end.ended);
        let reads = device.0.lock().unwrap();
        let bytes: u64 = reads.iter().map(|range| range.len()).sum();
        assert_eq!(bytes, 2 * STEP);
        let hole = ByteRange::between(STEP, 2 * STEP);
        assert!(reads.iter().all(|range| range.intersect(hole).is_empty()));
        assert!(reads.windows(2).all(|two| two[0].end() <= two[1].start()));
    }

    #[test]
    fn it_stops_when_it_is_told_to_and_says_how_far_it_was() {
        let (_, volume) = mixed();
        let (prefetch, cancel) = (Prefetch::new(&volume), Cancel::default());
        let result = prefetch.run(&volume, &cancel, |progress| {
            if progress.done == 5 * PIECE {
                cancel.cancel();
            }
        });
        result.unwrap_err();
        assert_eq!(prefetch.progress().done, 5 * PIECE);
        assert!(prefetch.progress().ended);
    }

    #[test]
    fn a_source_that_fails_ends_it() {
        let (source, faults) = crate::testing::Faulty::volume(Memory::volume(vec![1; 100]));
        faults.fail_all(Kind::TimedOut);
        let prefetch = Prefetch::new(&source);
        let error = prefetch.run(&source, &Cancel::default(), |_| {});
        assert_eq!(error.unwrap_err().kind(), Kind::TimedOut);
        assert_eq!(prefetch.progress().done, 0);
    }

    #[test]
    fn others_go_first_but_not_forever() {
        let volume = Memory::volume(vec![1; 100]);
        let mut turn = Turn::new(&volume);
        volume.read_vec(0, 1).unwrap();
        turn.wait(&Cancel::default()).unwrap();
        assert_eq!(turn.others, 1);
        turn.took();
    }
}
