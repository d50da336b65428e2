//! Blocks in a file that is kept.
//!
//! A flush makes the blocks durable, then the map that says which there are: so a map that is found
//! after a crash never tells of a block that was not stored.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Storage;
use super::base::Base;
use super::header::{self, Header, SECTOR_LEN, SLOT_LEN, SLOTS_LEN, State as FileState, WORDS};
use super::map::{Map, State};
use super::medium::{Medium, OnDisk};
use crate::bytes::is_zero;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// Bytes of the map that are read at once.
const MAP_PIECE: u64 = 1 << 20;

/// A cow file that is open.
#[derive(Debug)]
pub(super) struct Kept {
    name: String,
    medium: Box<dyn Medium>,
    header: Header,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// Whether anything was written since the last flush.
    written: AtomicBool,
    /// Why written data may be lost: the kernel reports it to one sync only.
    failed: OnceLock<Error>,
}

impl Kept {
    /// Opens the file at `path`, or makes it, for what `base` says of `below`.
    ///
    /// # Errors
    /// As [`OnDisk::open`], [`Header::of_file`] and [`Base::check`].
    pub(super) fn open(
        path: &Path,
        create: bool,
        below: &Volume,
        base: &Base,
    ) -> Result<(Self, Map)> {
        let name = path.display().to_string();
        let medium = Box::new(OnDisk::open(path, create)?);
        Self::on(medium, name, below, base)
    }

    /// The same on any medium; an empty one becomes a new file, and so does one in which nothing was
    /// ever stored when it belongs to something else.
    pub(super) fn on(
        medium: Box<dyn Medium>,
        name: String,
        below: &Volume,
        base: &Base,
    ) -> Result<(Self, Map)> {
        let mut start = vec![0; SLOTS_LEN];
        let cannot = |error| Error::io(format!("cannot read {name}"), error);
        let len = medium.read_at(&mut start, 0).map_err(cannot)?;
        start.truncate(len);
        // Also what a crash may leave of a file in which nothing was ever flushed.
        let is_new = len == 0 || (len == SLOT_LEN && is_zero(&start));
        let header = match is_new {
            true => {
                let header = new_header(below, base)?;
                write_header(&*medium, &name, &header)?;
                header
            }
            false => {
                let parsed = Header::of_file(&start);
                let header = parsed.map_err(|error| in_file(&name, &error))?;
                match base.check(below, &header) {
                    Ok(()) => header,
                    // Left by a mount that came to nothing, for instance.
                    Err(_) if header.state == FileState::Open && is_empty(&*medium) => {
                        let mut new = new_header(below, base)?;
                        new.sequence = header.sequence.saturating_add(1);
                        write_header(&*medium, &name, &new)?;
                        new
                    }
                    Err(error) => return Err(in_file(&name, &error)),
                }
            }
        };
        let map = Map::new(header.blocks());
        let kept = Self {
            name,
            medium,
            header,
            flushing: Mutex::new(()),
            written: AtomicBool::new(false),
            failed: OnceLock::new(),
        };
        if !is_new {
            kept.load(&map)?;
        }
        Ok((kept, map))
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn cannot(&self, what: &str, error: std::io::Error) -> Error {
        Error::io(format!("cannot {what} {}", self.name), error)
    }

    /// Reads the map.
    fn load(&self, map: &Map) -> Result<()> {
        let sector_len = u64::try_from(SECTOR_LEN).unwrap_or(u64::MAX);
        let sectors = self.header.sectors();
        let end = header::MAP_AT.saturating_add(sectors.saturating_mul(sector_len));
        let mut buf = vec![0; usize::try_from(MAP_PIECE).unwrap_or(SECTOR_LEN)];
        let mut at = header::MAP_AT;
        while at < end {
            let data = self.medium.next_data(at);
            let Some(data) = data.map_err(|error| self.cannot("look for the map in", error))?
            else {
                break;
            };
            // Whole sectors.
            at = data.max(at);
            at = at.saturating_sub(at % 512);
            if at >= end {
                break;
            }
            let len = MAP_PIECE.min(end.saturating_sub(at));
            let len = usize::try_from(len).unwrap_or(SECTOR_LEN);
            let piece = buf.get_mut(..len).unwrap_or_default();
            let read = self.medium.read_at(piece, at);
            let read = read.map_err(|error| self.cannot("read the map of", error))?;
            // What lies behind the end of the file was never written.
            piece.get_mut(read..).unwrap_or_default().fill(0);
            let first = at.saturating_sub(header::MAP_AT) / 512;
            for (index, sector) in (first..).zip(piece.chunks(SECTOR_LEN)) {
                let words = self.header.parse_sector(index, sector);
                let words = words.map_err(|error| in_file(&self.name, &error))?;
                if let Some(words) = words {
                    map.load(index, &words);
                }
            }
            at = at.saturating_add(MAP_PIECE);
        }
        Ok(())
    }

    fn place(&self, offset: u64) -> u64 {
        self.header.data_at().saturating_add(offset)
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let stored = self.medium.write_at(bytes, self.place(offset));
        stored.map_err(|error| self.cannot(&format!("store the bytes at {offset} in"), error))
    }

    /// Said last, when file and map are changed: a flush that has begun before may have missed them.
    fn note_written(&self) {
        self.written.store(true, Ordering::Release);
    }

    fn sync(&self) -> Result<()> {
        self.medium.sync().map_err(|error| {
            let error = self.cannot("store what was written to", error);
            self.failed.get_or_init(|| error).clone()
        })
    }

    fn write_map(&self, dirty: &[(u64, [u64; WORDS])]) -> Result<()> {
        let mut rest = dirty;
        while let Some((first, _)) = rest.first() {
            // Neighbours in one request.
            let row = rest.iter().zip(*first..);
            let row = row.take_while(|((number, _), next)| number == next).count();
            let (now, later) = rest.split_at(row.clamp(1, rest.len()));
            let mut bytes = Vec::with_capacity(now.len().saturating_mul(SECTOR_LEN));
            for (number, words) in now {
                bytes.extend(self.header.encode_sector(*number, words));
            }
            let at = first.saturating_mul(512).saturating_add(header::MAP_AT);
            let written = self.medium.write_at(&bytes, at);
            written.map_err(|error| self.cannot("write the map of", error))?;
            rest = later;
        }
        Ok(())
    }

    /// Notes durably how far a commit is. Nothing is written at the same time.
    pub(super) fn set_state(&mut self, state: FileState) -> Result<()> {
        self.header.sequence = self.header.sequence.saturating_add(1);
        self.header.state = state;
        write_header(&*self.medium, &self.name, &self.header)
    }

    /// Empties the file, durably and at once, and binds it to what the base is now.
    pub(super) fn empty(&mut self, below: &Volume, base: &Base) -> Result<()> {
        base.bind(below, &mut self.header)?;
        let next = self.header.epoch.checked_add(1);
        self.header.epoch = next.ok_or_else(|| {
            let what = format!("{} was committed {} times", self.name, self.header.epoch);
            Error::new(Kind::Limit, what)
        })?;
        self.set_state(FileState::Open)?;
        // From here on the map means nothing; its space and that of the blocks is given back.
        let end = self.place(self.header.size);
        let end = end.saturating_add(u64::from(self.header.block));
        self.medium.punch(ByteRange::between(header::MAP_AT, end));
        Ok(())
    }

    /// Reads blocks that are stored.
    pub(super) fn read_blocks(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.medium.read_at(buf, self.place(offset));
        let read =
            read.map_err(|error| self.cannot(&format!("read the bytes at {offset} of"), error))?;
        if read < buf.len() {
            let (name, len) = (&self.name, buf.len());
            let what = format!("{name} ends within the {len} bytes that its map has at {offset}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(())
    }
}

/// Whether nothing was ever stored behind the headers, as far as can be seen.
fn is_empty(medium: &dyn Medium) -> bool {
    matches!(medium.next_data(header::MAP_AT), Ok(None))
}

fn new_header(below: &Volume, base: &Base) -> Result<Header> {
    // The standard library's only source of chance: each RandomState hashes with other keys.
    let id = RandomState::new().build_hasher().finish();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut header = Header {
        block: header::block_for(below.size())?,
        size: below.size(),
        id,
        sequence: 0,
        epoch: 1,
        state: FileState::Open,
        created: now.map_or(0, |now| now.as_secs()),
        fingerprint: 0,
        name: String::new(),
        identity: String::new(),
        place: String::new(),
        layers: String::new(),
    };
    base.bind(below, &mut header)?;
    Ok(header)
}

fn write_header(medium: &dyn Medium, name: &str, header: &Header) -> Result<()> {
    let bytes = header.encode();
    let written = medium.write_at(&bytes, header.slot_at());
    written
        .and_then(|()| medium.sync())
        .map_err(|error| Error::io(format!("cannot write the header of {name}"), error))
}

/// An error in what a file holds, with the file's name.
fn in_file(name: &str, error: &Error) -> Error {
    let report = error.report();
    let named = Error::new(error.kind(), format!("{name}: {}", report.what));
    match (report.hint, error.kind()) {
        (Some(hint), _) => named.hint(hint),
        (None, Kind::Corrupt) => {
            named.hint("what is in it cannot be trusted; the image is as it was")
        }
        (None, Kind::NotThisFormat) => {
            named.hint("it is left as it is; give a file that does not exist, to have it made")
        }
        (None, _) => named,
    }
}

impl Storage for Kept {
    fn write(&self, map: &Map, offset: u64, buf: &[u8]) -> Result<()> {
        self.store(offset, buf)?;
        let block = u64::from(self.header.block).max(1);
        let len = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len).div_ceil(block);
        // Nothing of the map has to be stored for a block that is there.
        let mut at = offset.checked_div(block).unwrap_or(0);
        while at < end {
            let (state, run_end) = map.run(at, end);
            if state != State::Stored {
                map.set(at, run_end, State::Stored);
            }
            at = run_end;
        }
        self.note_written();
        Ok(())
    }

    fn patch(&self, _state: State, _block: u64, offset: u64, bytes: &[u8]) -> Result<bool> {
        self.store(offset, bytes)?;
        self.note_written();
        Ok(true)
    }

    fn read(&self, _state: State, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_blocks(offset, buf).map(|()| buf.len())
    }

    fn clear(&self, map: &Map, state: State, blocks: (u64, u64), range: ByteRange) {
        map.set(blocks.0, blocks.1, State::Zero);
        if state == State::Stored {
            // The map on disk may still tell of the blocks: as a hole they are zeroes too.
            let (start, end) = (self.place(range.start()), self.place(range.end()));
            self.medium.punch(ByteRange::between(start, end));
        }
        self.note_written();
    }

    fn flush(&self, map: &Map) -> Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.failed.get() {
            return Err(error.clone());
        }
        if !self.written.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let dirty = map.take_dirty();
        let result = self
            .sync()
            .and_then(|()| self.write_map(&dirty))
            .and_then(|()| {
                if dirty.is_empty() {
                    Ok(())
                } else {
                    self.sync()
                }
            });
        if result.is_err() {
            self.written.store(true, Ordering::Release);
            map.put_back(&dirty);
        }
        result
    }

    fn is_durable(&self) -> bool {
        true
    }
}
