//! The pass that finds the size and the checkpoints.

use std::time::{Duration, Instant};

use super::cursor::{Cursor, Event};
use super::index::{Builder, DISTANCE, Entry, Index};
use super::{Framing, Source, memory, wide};
use crate::bytes::is_zero;
use crate::sys::zlib::{Inflate, Stop, WINDOW};
use crate::{Cx, Error, Kind, Result};

/// Decoded bytes per step. What was decoded is still in the second-level cache when its checksum
/// is made, and few enough steps are made that copies into zlib's window cost nothing.
const STEP: usize = 256 << 10;
/// Progress is told this often.
const TELL: Duration = Duration::from_millis(300);

/// Decodes all of `source` once. Everything in it is checked.
///
/// # Errors
/// What the source's framing says; `Corrupt` for damage anywhere; what the volume below says, and
/// that the unit is being taken down.
pub(crate) fn pass<F: Framing>(name: &str, source: &Source<F>, cx: &Cx) -> Result<Index> {
    pass_each(name, source, DISTANCE, cx)
}

/// As [`pass`], with about `distance` decoded bytes between two checkpoints.
pub(crate) fn pass_each<F: Framing>(
    name: &str,
    source: &Source<F>,
    distance: u64,
    cx: &Cx,
) -> Result<Index> {
    let inflate = Inflate::new()
        .map_err(|failure| Error::new(Kind::Limit, "no memory for a decoder").caused_by(failure))?;
    let range = source.range;
    let mut cursor = Cursor::new(source, range, Box::new(inflate));
    let mut builder = Builder::with_distance(range.start(), distance, memory(cx));
    let mut buf = vec![0; STEP];
    let mut window = Box::new([0; WINDOW]);
    let mut end = range.start();
    let mut told = Instant::now();
    let tell = |at: u64| {
        let what = format!("{name}: decoding once, to find places to enter");
        let done = at.saturating_sub(range.start());
        cx.indexing(&what, done, range.len());
    };
    loop {
        cx.cancel.check()?;
        let left = builder.until_block();
        let stop = if left == 0 { Stop::Block } else { Stop::Never };
        let most = match usize::try_from(left) {
            Ok(0) | Err(_) => STEP,
            Ok(left) => left.min(STEP),
        };
        let out = buf.get_mut(..most).unwrap_or(&mut []);
        let (written, event) = cursor.step(out, stop, &|| cx.cancel.check())?;
        let bytes = buf.get(..written).unwrap_or(&[]);
        builder.extend(wide(written), builder.is_zero() && is_zero(bytes))?;
        match event {
            Event::Within => {}
            Event::Boundary(bit) => {
                let len = cursor.window(&mut window)?;
                let entry = Entry::block(window.get(..len).unwrap_or(&[]))?;
                builder.enter(bit, entry, Some(cursor.take_crc()));
                if len == WINDOW && is_zero(&window[..]) {
                    zeroes(&mut cursor, &mut builder, bit, &window, cx)?;
                }
            }
            Event::Between => {
                end = cursor.at();
                if builder.is_stream_due() {
                    builder.stream(end, Some(cursor.take_crc()));
                }
            }
            Event::End => break,
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            tell(cursor.at());
        }
    }
    tell(range.end());
    Ok(builder.finish(end, Some(cursor.take_crc())))
}

/// Goes over blocks of zeroes from the boundary at `bit` on, behind `window`, which is all zero, and
/// puts entries among them.
fn zeroes<F: Framing>(
    cursor: &mut Cursor<'_, F>,
    builder: &mut Builder,
    mut bit: u64,
    window: &[u8; WINDOW],
    cx: &Cx,
) -> Result<()> {
    let beat = || cx.cancel.check();
    while let Some((len, next)) = cursor.skip_zeroes(bit, builder.until_block(), window, &beat)? {
        bit = next;
        builder.extend(len, true)?;
        if builder.until_block() == 0 {
            builder.enter(bit, Entry::block(window)?, Some(cursor.take_crc()));
        }
    }
    Ok(())
}
