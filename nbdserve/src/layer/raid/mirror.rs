//! Writing to a mirror. Before the first write all members are marked as not in sync, so that a crash
//! between two copies is noticed; when nothing was written for a moment, and at the end, they are marked
//! as in sync again. That is how the kernel does it (`drivers/md/md.c`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::array::Found;
use super::header::{self, SUPERBLOCK, Superblock};
use super::mark::{Mark, marked};
use crate::bytes::{has, le64};
use crate::layer::parts::Part;
use crate::layer::scan::wide;
use crate::layer::striped::Keeper;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// After so long without a write the members are in sync, as in the kernel (`safe_mode_delay`).
const IDLE: Duration = Duration::from_millis(200);
/// The magic of a bitmap, and where it has its count of events.
const BITMAP_MAGIC: &[u8] = b"bitm";
const BITMAP_EVENTS: usize = 24;

/// A mirror that is written to.
#[derive(Debug)]
pub(super) struct Mirror(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    below: Volume,
    title: String,
    members: Vec<Superblocked>,
    state: Mutex<State>,
}

/// A member, and where its superblock is in the volume.
#[derive(Debug)]
struct Superblocked {
    part: Part,
    superblock: Superblock,
    at: u64,
}

/// Held while something is written: two writes to the same bytes reach all members in the same order.
#[derive(Debug)]
struct State {
    /// What all superblocks say.
    mark: Mark,
    last_write: Instant,
    /// Some member may not have what another has, until md copies one to the others.
    failed: bool,
}

impl Mirror {
    /// For the members of `found`; `Err` says why they are not written.
    ///
    /// # Errors
    /// What `below` says.
    pub(super) fn new(below: &Volume, found: &Found) -> Result<std::result::Result<Self, String>> {
        let mut members: Vec<Superblocked> = Vec::new();
        let mut mark: Option<Mark> = None;
        let mut taken: Vec<ByteRange> = Vec::new();
        let in_sync = found.in_sync()?;
        if let Some(missing) = found.missing(&in_sync) {
            return Ok(Err(format!("it is degraded: {missing}")));
        }
        for (_, member) in in_sync {
            let part = &member.part;
            let (version, size) = (member.superblock.array.version, part.range.len());
            let place = version.place(size);
            let at = place.and_then(|at| part.range.start().checked_add(at));
            let data = found.data(member, 1)?;
            let data = ByteRange::new(data.0, data.1);
            let own = at.and_then(|at| ByteRange::new(at, wide(SUPERBLOCK)));
            let (Some(at), Some(data), Some(own)) = (at, data, own) else {
                return Ok(Err(format!("{part} has no room for its superblock")));
            };
            taken.extend([data, own]);
            let own_mark = Mark::of(&member.superblock);
            if !own_mark.clean {
                return Ok(Err(format!(
                    "{part} was not stopped, and the members may differ; mdadm --assemble makes them the same"
                )));
            }
            if let Some(mark) = mark.filter(|mark| mark.events != own_mark.events) {
                return Ok(Err(format!(
                    "{part} has {} events, another member {}; mdadm --assemble makes them the same",
                    own_mark.events, mark.events
                )));
            }
            mark = Some(own_mark);
            if let Some(why) = stale_bitmap(below, part, at, &member.superblock)? {
                return Ok(Err(why));
            }
            members.push(Superblocked {
                part: part.clone(),
                superblock: member.superblock.clone(),
                at,
            });
        }
        taken.sort_by_key(|range| range.start());
        let followers = taken.iter().skip(1);
        if let Some((one, next)) = taken
            .iter()
            .zip(followers)
            .find(|(one, next)| one.end() > next.start())
        {
            return Ok(Err(format!(
                "its members overlap: {one} and {next} are data or superblocks"
            )));
        }
        let Some(mark) = mark else {
            return Ok(Err("it has no members".to_owned()));
        };
        Ok(Ok(Self(Arc::new(Inner {
            below: below.clone(),
            title: found.array.title(),
            members,
            state: Mutex::new(State {
                mark,
                last_write: Instant::now(),
                failed: false,
            }),
        }))))
    }
}

/// Why the bitmap of writes that a member has stands in the way. It is not kept up to date here: with
/// less events than the superblock it is out of date, and md takes it for full. So it must not have
/// more already.
fn stale_bitmap(
    below: &Volume,
    part: &Part,
    at: u64,
    superblock: &Superblock,
) -> Result<Option<String>> {
    let Some(offset) = superblock.bitmap else {
        return Ok(None);
    };
    let damaged = || Ok(Some(format!("the bitmap of {part} is damaged")));
    let head = at
        .checked_add_signed(offset)
        .and_then(|at| ByteRange::new(at, 256))
        .filter(|head| part.range.contains(*head));
    let Some(head) = head else {
        return damaged();
    };
    let bytes = below.read_vec(head.start(), 256)?;
    match le64(&bytes, BITMAP_EVENTS) {
        Some(events) if has(&bytes, 0, BITMAP_MAGIC) => {
            Ok((events > superblock.events).then(|| {
                format!(
                    "the bitmap of {part} has {events} events, its superblock {}",
                    superblock.events
                )
            }))
        }
        _ => damaged(),
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the next mark into all superblocks, and makes it durable.
    fn mark(&self, state: &mut State, clean: bool) -> Result<()> {
        let events = state.mark.events.checked_add(1).ok_or_else(|| {
            let what = format!("{} has no numbers for events left", self.title);
            Error::new(Kind::Limit, what)
        })?;
        let next = Mark { events, clean };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let writer = self.below.need_writer()?;
        for member in &self.members {
            let bytes = self.check(member, state.mark)?;
            let version = member.superblock.array.version;
            let first = marked(&bytes, version, next, now).ok_or_else(|| {
                // It was parsed a moment ago.
                Error::new(Kind::Corrupt, format!("the superblock of {}", member.part))
            })?;
            writer.write_at(&first, member.at, false)?;
        }
        writer.flush()?;
        state.mark = next;
        Ok(())
    }

    /// The superblock of `member`, which must still be the one that is known.
    fn check(&self, member: &Superblocked, known: Mark) -> Result<Vec<u8>> {
        let bytes = self.below.read_vec(member.at, SUPERBLOCK)?;
        let (part, array) = (&member.part, &member.superblock.array);
        let place = member.at.saturating_sub(part.range.start());
        let found = header::superblock(&bytes, array.version, place, part.range.len())?;
        let is_known = Mark::of(&found) == known
            && found.array == *array
            && found.number == member.superblock.number
            && found.roles == member.superblock.roles;
        if !is_known {
            let what = format!("the superblock of {part} was changed by somebody else");
            return Err(Error::new(Kind::Changed, what));
        }
        Ok(bytes)
    }

    /// Marks the members as in sync, if they are and are not marked so.
    fn settle(&self, state: &mut State) -> Result<()> {
        if state.mark.clean || state.failed {
            return Ok(());
        }
        let flushed = self.below.need_writer().and_then(|writer| writer.flush());
        let result = flushed.and_then(|()| self.mark(state, true));
        state.failed |= result.is_err();
        result
    }

    /// Settles when nothing was written for a moment; until then, on a thread of its own.
    fn watch(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        let watch = std::thread::Builder::new().name("raid-idle".to_owned());
        if let Err(error) = watch.spawn(move || settle_when_idle(&weak)) {
            // It is done at the end.
            tracing::warn!("cannot start the thread raid-idle: {error}");
        }
    }
}

fn settle_when_idle(weak: &Weak<Inner>) {
    let mut rest = IDLE;
    loop {
        std::thread::sleep(rest);
        let Some(inner) = weak.upgrade() else {
            return;
        };
        let mut state = inner.lock();
        rest = IDLE.saturating_sub(state.last_write.elapsed());
        if rest.is_zero() {
            if let Err(error) = inner.settle(&mut state) {
                let title = &inner.title;
                tracing::error!("{title} stays marked as not in sync: {}", error.report());
            }
            return;
        }
    }
}

impl Keeper for Mirror {
    fn write(&self, write: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut state = self.0.lock();
        if state.mark.clean {
            self.0.mark(&mut state, false)?;
            self.0.watch();
        }
        let result = write();
        state.last_write = Instant::now();
        if let Err(error) = &result
            && !state.failed
        {
            state.failed = true;
            let title = &self.0.title;
            tracing::error!(
                "the members of {title} may differ from now on: {}",
                error.report()
            );
        }
        result
    }

    fn close(&self) -> Result<()> {
        self.0.settle(&mut self.0.lock())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(
                "{} stays marked as not in sync: {}",
                self.0.title,
                error.report()
            );
        }
    }
}
