//! What each volume of a unit was asked, and how long that took.
//!
//! Counting costs two looks at the clock and two relaxed additions for a request: no lock, no
//! memory. A snapshot taken meanwhile may be one request off between its figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Result;

/// Parts of an octave that the histogram tells apart: a percentile is off by a fifth at most.
const PARTS: u32 = 4;
/// Buckets: up to 2^40 ns, 18 minutes; what takes longer is in the last one.
const BUCKETS: usize = 40 * PARTS as usize;

/// What a volume was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStats {
    /// The device's name.
    pub name: String,
    /// Reads.
    pub reads: RequestStats,
    /// Writes.
    pub writes: RequestStats,
    /// Its decoded blocks, where it has such.
    pub blocks: Option<BlockStats>,
}

/// Requests of one sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStats {
    /// How many, failed ones included.
    pub requests: u64,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
    /// Half of them took no longer, in nanoseconds.
    pub p50: u64,
    /// Nine of ten took no longer.
    pub p90: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
}

/// Decoded blocks of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Reads of a block that was there, decoded as a whole or known to be zero.
    pub hits: u64,
    /// Reads of a block that had to be decoded or was being decoded.
    pub misses: u64,
    /// How often the decoding of a block was begun, ahead of reads or for them.
    pub decodes: u64,
}

/// The counters of requests of one sort.
pub(crate) struct Requests {
    bytes: AtomicU64,
    errors: AtomicU64,
    took: [AtomicU64; BUCKETS],
}

impl Requests {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            took: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Carries out and counts a request for `bytes` bytes.
    pub(crate) fn count<T>(&self, bytes: u64, request: impl FnOnce() -> Result<T>) -> Result<T> {
        self.count_if(bytes, request, |_| true)
    }

    /// As [`Self::count`], but does not count what comes to something that is not `counted`.
    pub(crate) fn count_if<T>(
        &self,
        bytes: u64,
        request: impl FnOnce() -> Result<T>,
        counted: impl FnOnce(&Result<T>) -> bool,
    ) -> Result<T> {
        let begun = Instant::now();
        let result = request();
        if !counted(&result) {
            return result;
        }
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // bucket() is below BUCKETS.
        self.took[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if result.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    pub(crate) fn snapshot(&self) -> RequestStats {
        let took: Vec<_> = self
            .took
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let requests = took.iter().sum();
        RequestStats {
            requests,
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            p50: percentile(&took, requests, 50),
            p90: percentile(&took, requests, 90),
            p99: percentile(&took, requests, 99),
        }
    }
}

/// The bucket of a duration: its octave, and the two bits below its highest one.
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(u64::from(PARTS));
    let octave = nanos.ilog2();
    let part = (nanos >> (octave - 2)) & 3;
    let number = (octave - 2) * PARTS + part as u32;
    (number as usize).min(BUCKETS - 1)
}

/// The longest duration of a bucket, in nanoseconds.
fn longest(bucket: usize) -> u64 {
    let (octave, part) = (bucket as u32 / PARTS, bucket as u64 % u64::from(PARTS));
    ((u64::from(PARTS) + part + 1) << octave) - 1
}

/// The duration that `percent` of all requests did not exceed; 0 when there are none.
fn percentile(took: &[u64], requests: u64, percent: u64) -> u64 {
    let wanted = requests.saturating_mul(percent).div_ceil(100);
    let mut seen = 0;
    for (number, count) in took.iter().enumerate() {
        seen += count;
        if *count > 0 && seen >= wanted {
            return longest(number);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Kind};

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        assert_eq!(bucket(0), 0);
        for number in 0..BUCKETS - 1 {
            let last = longest(number);
            assert_eq!(bucket(last), number, "{last}");
            assert_eq!(bucket(last + 1), number + 1, "{last}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_percentile_is_at_most_a_quarter_too_long() {
        let mut took = vec![0; BUCKETS];
        for nanos in 1..=1000 {
            took[bucket(nanos * 1000)] += 1;
        }
        for (percent, exact) in [(50, 500_000), (90, 900_000), (99, 990_000)] {
            let found = percentile(&took, 1000, percent);
            assert!(
                (exact..exact + exact / 4).contains(&found),
                "{percent}: {found}"
            );
        }
        assert_eq!(percentile(&[0; BUCKETS], 0, 50), 0);
    }

    #[test]
    fn failed_requests_count_too() {
        let requests = Requests::new();
        assert!(requests.count(10, || Ok(())).is_ok());
        let failed: Result<()> = requests.count(5, || Err(Error::new(Kind::Io, "no")));
        assert!(failed.is_err());
        let seen = requests.snapshot();
        assert_eq!((seen.requests, seen.bytes, seen.errors), (2, 15, 1));
        assert!(seen.p50 > 0 && seen.p50 <= seen.p99);
    }
}
