//! Reading a header from a volume: of two that LUKS2 has, the younger one that is sound.

use super::header::{FIXED, Header, MAGIC};
use super::{header1, header2, metadata};
use crate::bytes::{array, has};
use crate::{Error, Kind, Result, Volume};

/// Reads the header that is at the beginning of `volume`.
///
/// # Errors
/// `NotThisFormat`, `Corrupt`, `Unsupported` by name, and what `volume` says.
pub(super) fn header(volume: &Volume) -> Result<Header> {
    let first = read_up_to(volume, 0, FIXED)?;
    let version = array(&first, MAGIC.len()).map(u16::from_be_bytes);
    if has(&first, 0, MAGIC) && version == Some(1) {
        return header1::parse(&first);
    }
    version2(&first, &|offset, len| read_up_to(volume, offset, len))
}

/// The same, for what is known of a volume: its first bytes.
pub(super) fn header_in(head: &[u8]) -> Result<Header> {
    let version = array(head, MAGIC.len()).map(u16::from_be_bytes);
    if has(head, 0, MAGIC) && version == Some(1) {
        return header1::parse(head);
    }
    let read = |offset: u64, len: usize| {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(head.len());
        let end = start.saturating_add(len).min(head.len());
        Ok(head.get(start..end).unwrap_or_default().to_vec())
    };
    version2(head, &read)
}

/// As many of `len` bytes at `offset` as there are.
fn read_up_to(volume: &Volume, offset: u64, len: usize) -> Result<Vec<u8>> {
    let have = volume.size().saturating_sub(offset);
    volume.read_vec(
        offset.min(volume.size()),
        usize::try_from(have).unwrap_or(usize::MAX).min(len),
    )
}

/// Reads bytes, less of them at the end.
type Read<'a> = &'a dyn Fn(u64, usize) -> Result<Vec<u8>>;

/// One of two headers: how young it is, and what it says.
struct Candidate {
    seqid: u64,
    hdr_size: u64,
    header: Result<Header>,
}

fn version2(head: &[u8], read: Read<'_>) -> Result<Header> {
    let first = candidate(head, 0, read)?;
    // The second one is as far from the first as that is long, if it can be believed.
    let told = first.as_ref().map(|first| first.hdr_size);
    let mut second = None;
    for place in header2::PLACES {
        if told.as_ref().is_ok_and(|told| *told != place) {
            continue;
        }
        match candidate(&read(place, FIXED)?, place, read)? {
            Ok(found) => {
                second = Some(Ok(found));
                break;
            }
            Err(error) => {
                let missing = error.kind() == Kind::NotThisFormat;
                if second.is_none() || !missing {
                    second = Some(Err(error));
                }
            }
        }
    }
    let second = second.unwrap_or_else(|| {
        let what = "there is none";
        Err(Error::new(Kind::NotThisFormat, what))
    });
    match (first, second) {
        (Ok(first), Ok(second)) if second.seqid > first.seqid => {
            let what = format!(
                "the second header is used, which is younger ({} after {})",
                second.seqid, first.seqid
            );
            noted(second.header, what)
        }
        (Ok(first), Ok(_)) => first.header,
        (Ok(first), Err(error)) => noted(
            first.header,
            format!("the second header is damaged: {error}"),
        ),
        (Err(error), Ok(second)) => {
            let what = format!("the second header is used, the first is damaged: {error}");
            noted(second.header, what)
        }
        (Err(first), Err(second)) if second.kind() == Kind::NotThisFormat => Err(first),
        (Err(first), Err(second)) => Err(header2::both_damaged(&first, &second)),
    }
}

/// The header at `offset`, whose first bytes are `fixed`: `Err` inside when it is damaged, `Ok` when
/// its checksum matches, whatever it says.
fn candidate(fixed: &[u8], offset: u64, read: Read<'_>) -> Result<Result<Candidate>> {
    let fixed = match header2::fixed(fixed, offset) {
        Ok(fixed) => fixed,
        Err(error) => return Ok(Err(error)),
    };
    // At most 4 MiB.
    let len = usize::try_from(fixed.hdr_size).unwrap_or(usize::MAX);
    let bytes = read(offset, len)?;
    let json = match header2::metadata(&fixed, &bytes) {
        Ok(json) => json,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(Candidate {
        seqid: fixed.seqid,
        hdr_size: fixed.hdr_size,
        header: metadata::header(fixed, json),
    }))
}

fn noted(header: Result<Header>, note: String) -> Result<Header> {
    header.map(|mut header| {
        header.notes.push(note);
        header
    })
}
