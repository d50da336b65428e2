//! A device that fails when told to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    ByteRange, Device, Done, Error, Extents, Geometry, Kind, Result, Volume, WriteFeatures, Writer,
    ZeroOpts,
};

/// Passes everything to the volume below, except what [`Faults`] says must fail. Its errors name
/// the layer `faulty`.
#[derive(Debug)]
pub struct Faulty {
    below: Volume,
    faults: Faults,
}

/// The control of a [`Faulty`] device; clones control the same device.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<State>);

#[derive(Debug, Default)]
struct State {
    requests: AtomicU64,
    rules: Mutex<Vec<Rule>>,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The request with this number fails.
    Nth(u64, Kind),
    /// A request that touches these bytes fails.
    Bytes(ByteRange, Kind),
    /// Everything fails.
    All(Kind),
}

impl Faulty {
    /// A device over `below` that works until told otherwise.
    #[must_use]
    pub fn volume(below: Volume) -> (Volume, Faults) {
        let faults = Faults::default();
        let device = Self {
            below,
            faults: faults.clone(),
        };
        (Volume::new(device), faults)
    }
}

impl Faults {
    /// Lets the request fail that comes after `skip` further ones.
    pub fn fail_nth(&self, skip: u64, kind: Kind) {
        self.rules().push(Rule::Nth(self.requests() + skip, kind));
    }

    /// Lets every request fail that touches `range`; a flush touches nothing.
    pub fn fail_bytes(&self, range: ByteRange, kind: Kind) {
        self.rules().push(Rule::Bytes(range, kind));
    }

    /// A medium that ends early: every request fails that touches byte `len` or one beyond it.
    pub fn short_medium(&self, len: u64) {
        self.fail_bytes(ByteRange::between(len, u64::MAX), Kind::Io);
    }

    /// Lets every request fail, a flush too.
    pub fn fail_all(&self, kind: Kind) {
        self.rules().push(Rule::All(kind));
    }

    /// Everything works again.
    pub fn clear(&self) {
        self.rules().clear();
    }

    /// How many requests there were: reads, writes, zeroes, trims, flushes and extents queries.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::SeqCst)
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, what: &str, range: ByteRange) -> Result<()> {
        let number = self.0.requests.fetch_add(1, Ordering::SeqCst);
        let kind = self.rules().iter().find_map(|rule| match *rule {
            Rule::Nth(nth, kind) => (nth == number).then_some(kind),
            Rule::Bytes(bad, kind) => (!bad.intersect(range).is_empty()).then_some(kind),
            Rule::All(kind) => Some(kind),
        });
        kind.map_or(Ok(()), |kind| {
            Err(Error::new(kind, format!("injected fault: {what} {range}")))
        })
    }
}

impl Device for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.faults.request("read", ByteRange::of(buf, offset))?;
        self.below.read_at(buf, offset)
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        self.faults.request("extents", range)?;
        self.below
            .extents_moved(ByteRange::between(0, self.below.size()), out)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.below.writer().map(|_| self as &dyn Writer)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        self.below.will_need_parts(ranges);
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}

impl Writer for Faulty {
    fn features(&self) -> WriteFeatures {
        self.below
            .writer()
            .map_or_else(WriteFeatures::default, |writer| writer.features())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.faults.request("write", ByteRange::of(buf, offset))?;
        self.below.need_writer()?.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<()> {
        self.faults.request("flush", ByteRange::between(0, 0))?;
        self.below.need_writer()?.flush()
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        self.faults.request("zero", range)?;
        self.below.need_writer()?.zero(range, opts)
    }

    fn grow(&self, size: u64) -> Result<Done> {
        self.faults
            .request("grow", ByteRange::between(size, size))?;
        self.below.need_writer()?.grow(size)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        self.faults.request("trim", range)?;
        self.below.need_writer()?.trim(range, fua)
    }
}
