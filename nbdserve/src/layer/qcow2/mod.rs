//! qcow2 images, the disks of QEMU: versions 2 and 3.
//!
//! The header and the L1 table are read at open, L2 tables as they are wanted (`tables.rs`, parsers in
//! `header.rs`, `extension.rs` and `entry.rs`). A read goes to where its clusters lie (`map.rs`),
//! neighbours in one request; compressed clusters are decoded on all cores (`compressed.rs`); what
//! is not allocated comes from the backing file (`chain.rs`).

mod alloc;
mod chain;
mod changes;
mod claims;
mod compressed;
mod crypto;
mod cut;
mod device;
mod entry;
mod extension;
mod file;
mod grid;
mod header;
mod map;
mod plan;
mod refcount;
mod sectors;
mod side;
mod snapshot;
mod sync;
mod tables;
mod write;
mod zero;

use device::{Parts, Qcow2};
use file::HostFile;
use header::{Compression, Encryption, Header, incompatible};
use side::WriteSide;
use tables::{Root, Tables};

use super::scan::narrow;
use super::{Args, Confidence, INDEX_PART, LayerType, Param, Sample, Verdict};
use crate::error::quote;
use crate::{Cx, Result, Volume};

const NAME: &str = "qcow2";
/// The header's extensions, and the name of the backing file, are within so many bytes.
const HEAD: u64 = 64 << 10;

/// The layer `qcow2`.
pub static QCOW2: LayerType = LayerType {
    name: NAME,
    summary: "QEMU disk image, with its backing files",
    params: &[Param {
        name: "snapshot",
        summary: "the name or the number of an internal snapshot",
    }],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    if !sample.head.starts_with(&header::MAGIC) {
        return Verdict::No;
    }
    let magic = "magic 51 46 49 fb at 0";
    let evidence = match Header::parse(sample.head, sample.size) {
        Ok(header) => {
            let (version, cluster) = (header.version, header.cluster_size());
            format!("{magic}, version {version}, clusters of {cluster}")
        }
        // The first version has another layout altogether.
        Err(error) if sample.head.get(4..8) == Some(&[0, 0, 0, 1]) => {
            tracing::debug!("qcow of version 1: {error}");
            return Verdict::No;
        }
        Err(error) => format!("{magic}, but {error}"),
    };
    Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence,
    }
}

fn open(below: &Volume, args: &Args, cx: &Cx) -> Result<Volume> {
    let head = below.read_vec(0, narrow(below.size().min(HEAD)))?;
    let header = Header::parse(&head, below.size())?;
    let mut notes = notes(&header);
    let file = HostFile::new(below);
    let cipher = crypto::cipher(&header, &file, cx)?;
    let root = match args.get("snapshot") {
        Some(wanted) => snapshot::root(&header, &file, wanted)?,
        None => Root::active(&header),
    };
    notes.extend(snapshot::note(&header, &file));
    let writable = below.writer().is_some() && args.get("snapshot").is_none();
    let data = chain::data_file(&header, &file, writable, cx)?;
    let backing = chain::backing(&header, &head, cx, &mut notes)?;
    let memory = chain::memory(cx, INDEX_PART);
    let tables = Tables::load(&header, root, file, data, memory)?;
    let side = match writable {
        true => {
            let (cipher, below) = (cipher.clone(), backing.is_some());
            Some(WriteSide::open(&header, &tables, cipher, below)?)
        }
        false => None,
    };
    let parts = Parts {
        header,
        tables,
        backing,
        cipher,
        notes,
        side,
    };
    Ok(Volume::new(Qcow2::new(parts, cx)?))
}

/// What is unusual about it, but does not keep anybody from reading it.
fn notes(header: &Header) -> Vec<String> {
    let mut notes = Vec::new();
    if header.compression != Compression::Zlib {
        let name = header.compression.name();
        notes.push(format!("clusters are compressed by {name}"));
    }
    if header.encryption == Encryption::Luks {
        notes.push("encrypted (LUKS)".to_owned());
    }
    if let Some(name) = header.extensions.data_file.as_deref()
        && header.shape().external
    {
        let name = quote(&String::from_utf8_lossy(name));
        notes.push(format!("clusters are in the data file {name}"));
    }
    if header.has(incompatible::CORRUPT) {
        notes.push("it is marked as corrupt: qemu-img check tells more".to_owned());
    }
    if header.has(incompatible::DIRTY) {
        notes.push("it was not closed: its reference counts may be wrong".to_owned());
    }
    notes
}
