//! Writing the blocks of a cow file back to the image.
//!
//! The file says that a commit was begun before the first block is written, and is emptied by one
//! write of its header after all of them are durable. Whatever happens between, it still has all
//! blocks: the commit is made again.

use std::path::Path;

use super::base::Base;
use super::header::State as FileState;
use super::kept::Kept;
use super::map::State;
use crate::error::shell;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume, ZeroOpts};

/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;

/// What a commit has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that were made zero.
    pub zeroed: u64,
}

/// Writes what is in the file at `path` to `below`, which is what `base` says and is not written by
/// anybody else; then the file is empty and goes with the new image, of which `identity` tells.
///
/// # Errors
/// `ReadOnly` when `below` cannot be written; as [`super::open_on`]; what `below` says. The commit
/// can be made again then.
pub fn commit(
    below: &Volume,
    path: &Path,
    base: &Base,
    identity: &dyn Fn() -> Option<String>,
    cx: &Cx,
) -> Result<Committed> {
    let (mut kept, map) = Kept::open(path, false, below, base)?;
    let Some(writer) = below.writer() else {
        let what = format!("the layer {} cannot be written to", below.name());
        return Err(Error::new(Kind::ReadOnly, what).hint(format!(
            "make a copy with the changes in it: loopmount --fuse --cow={} IMAGE FILE; cp FILE NEW",
            shell(&path.display().to_string())
        )));
    };
    kept.set_state(FileState::Committing)?;
    let mut done = Committed::default();
    let size = below.size();
    let block = u64::from(kept.header().block).max(1);
    let blocks = kept.header().blocks();
    let mut buf = Vec::new();
    let mut at = 0;
    while at < blocks {
        cx.cancel.check()?;
        let (state, end) = map.run(at, blocks);
        let range = ByteRange::between(
            at.saturating_mul(block),
            end.saturating_mul(block).min(size),
        );
        match state {
            State::Absent => {}
            State::Zero => {
                let opts = ZeroOpts {
                    may_trim: true,
                    ..ZeroOpts::default()
                };
                let _ = writer.zero(range, opts)?;
                done.zeroed = done.zeroed.saturating_add(range.len());
            }
            State::Stored | State::Held => {
                let mut offset = range.start();
                while offset < range.end() {
                    cx.cancel.check()?;
                    let len = PIECE.min(range.end().saturating_sub(offset));
                    buf.resize(usize::try_from(len).unwrap_or(0), 0);
                    kept.read_blocks(offset, &mut buf)?;
                    writer.write_at(&buf, offset, false)?;
                    offset = offset.saturating_add(len);
                    cx.observer.progress("cow: writing back", offset, size);
                }
                done.written = done.written.saturating_add(range.len());
            }
        }
        at = end;
    }
    writer.flush()?;
    let now = Base {
        identity: identity(),
        ..base.clone()
    };
    kept.empty(below, &now)?;
    Ok(done)
}
