//! Images whose clusters are encrypted. The LUKS header, with its keyslots, lies in clusters of its
//! own; each cluster of the guest is encrypted as it lies in its file: sectors are numbered from the
//! start of that file.

use std::sync::Arc;

use super::file::HostFile;
use super::header::{Encryption, Header, corrupt};
use crate::error::escape;
use crate::layer::luks::{self, SectorCipher};
use crate::layer::scan::wide;
use crate::layer::window::Window;
use crate::{Cx, Error, Kind, Result};

/// Most bytes of a LUKS header with its keyslots.
const MOST: u64 = 256 << 20;

/// The cipher of the clusters, unlocked; `None` when they are not encrypted.
///
/// # Errors
/// `Unsupported` for a method without one, by its name; `Corrupt` when its header is not there, or
/// there without a method;
/// `Secret` when it cannot be unlocked; what the file and the header say.
pub(super) fn cipher(
    header: &Header,
    file: &HostFile,
    cx: &Cx,
) -> Result<Option<Arc<SectorCipher>>> {
    match header.encryption {
        Encryption::None if header.extensions.luks.is_some() => {
            let what = "it has a LUKS header, and says that it is not encrypted";
            return Err(corrupt(what.to_owned()));
        }
        Encryption::None => return Ok(None),
        Encryption::Aes => {
            let what = "it is encrypted in QEMU's old way (AES, method 1), which is not supported";
            return Err(Error::new(Kind::Unsupported, what).hint(
                "qemu-img convert can make an image without encryption of it, or with LUKS",
            ));
        }
        Encryption::Luks => {}
    }
    let Some(range) = header.extensions.luks else {
        let what = "it is encrypted (LUKS), but does not say where the LUKS header lies";
        return Err(corrupt(what.to_owned()));
    };
    let (at, len, size) = (range.start(), range.len(), file.size());
    if !at.is_multiple_of(header.cluster_size()) || at == 0 || range.end() > size {
        let what = format!("a LUKS header of {len} bytes at {at}, in a file of {size}");
        return Err(corrupt(what));
    }
    if len > MOST {
        let what = format!("a LUKS header of {len} bytes, {MOST} are the most");
        return Err(Error::new(Kind::Limit, what));
    }
    let luks = Window::read_only("luks".to_owned(), file.volume(), range)?;
    // Each file of a chain may have a passphrase of its own.
    let title = match cx.references.name() {
        Some(name) => format!("the qcow2 image \"{}\" (LUKS)", escape(name)),
        None => "the qcow2 image (LUKS)".to_owned(),
    };
    let cipher = luks::embedded(&luks, &title, cx).map_err(|error| error.in_layer("luks"))?;
    if wide(cipher.sector()) > header.shape().subcluster_size() {
        let sector = cipher.sector();
        let what = format!("encrypted sectors of {sector} bytes, in clusters that are shorter");
        return Err(corrupt(what));
    }
    Ok(Some(cipher))
}

/// Fills `buf` with the bytes at `at` of `file`, decrypted. `at` is that of a sector; where `buf` ends
/// within one, so does the disk.
///
/// # Errors
/// What the file says.
pub(super) fn read(cipher: &SectorCipher, file: &HostFile, buf: &mut [u8], at: u64) -> Result<()> {
    let sector = cipher.sector();
    let whole = buf
        .len()
        .saturating_sub(buf.len().checked_rem(sector).unwrap_or(0));
    let (body, rest) = buf.split_at_mut(whole);
    if !body.is_empty() {
        file.read_at(body, at)?;
        cipher.decrypt(body, number(at));
    }
    if !rest.is_empty() {
        let mut last = vec![0; sector];
        let at = at.saturating_add(wide(whole));
        file.read_at(&mut last, at)?;
        cipher.decrypt(&mut last, number(at));
        rest.copy_from_slice(last.get(..rest.len()).unwrap_or(&[]));
    }
    Ok(())
}

/// The number of the sector at `at` of a file.
pub(super) fn number(at: u64) -> u64 {
    at >> 9
}

/// The bytes that are written to `at` of a file for `plain`. `at` is that of a sector; where `plain`
/// ends within one, the disk ends, and the rest of the sector is zero.
pub(super) fn encrypted(cipher: &SectorCipher, plain: &[u8], at: u64) -> Vec<u8> {
    let mut bytes = plain.to_vec();
    let len = bytes.len().checked_next_multiple_of(cipher.sector());
    bytes.resize(len.unwrap_or(bytes.len()), 0);
    cipher.encrypt(&mut bytes, number(at));
    bytes
}
