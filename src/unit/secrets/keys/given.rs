//! A key that the user gave: a file or a descriptor, read when it is asked for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nbdserve::error::escape;
use nbdserve::secret::{LockedBytes, MOST_BYTES, Secret};
use nbdserve::{Error, Kind, Result};

use super::KeyOptions;
use crate::sys::process::take_descriptor;
use crate::unit::front::Terminal;

/// Permissions of a file that others can read or write.
const FOR_OTHERS: u32 = 0o077;
/// A key of unknown length is read in steps that double, from this many bytes.
const FIRST_STEP: usize = 4096;

/// A key that the user gave.
#[derive(Debug)]
pub(super) struct Key {
    /// For messages, escaped: `the key file k`.
    pub(super) name: String,
    pub(super) source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    File {
        file: File,
        offset: u64,
        size: Option<u64>,
        /// What is unsafe about it; said when it is used.
        warning: Option<String>,
    },
    Passphrase(File),
    /// It was read.
    Known(Secret),
    /// It cannot be read again, nor could it before.
    Broken,
}

impl Key {
    /// A passphrase that comes from the descriptor `number`, which is taken over.
    pub(super) fn from_descriptor(number: RawFd) -> Result<Self> {
        let fd = take_descriptor(number).map_err(|error| {
            let what = format!("descriptor {number}, from which the passphrase is to come");
            Error::io(format!("{what}, is not open"), error)
                .hint("a shell opens one by 3<FILE behind the command")
        })?;
        Ok(Self {
            name: format!("the passphrase from descriptor {number}"),
            source: Source::Passphrase(File::from(fd)),
        })
    }

    pub(super) fn open(path: &Path, options: &KeyOptions) -> Result<Self> {
        let shown = escape(&path.to_string_lossy());
        let (file, name) = if path == Path::new("-") {
            let name = "the key from standard input".to_owned();
            (take_descriptor(0).map(File::from), name)
        } else {
            (File::open(path), format!("the key file {shown}"))
        };
        let file = file.map_err(|error| Error::io(format!("cannot open {name}"), error))?;
        let warning = unsafe_for(&file).map(|why| format!("{name} {why}"));
        Ok(Self {
            name,
            source: Source::File {
                file,
                offset: options.offset,
                size: options.size,
                warning,
            },
        })
    }

    /// What may be wrong with it.
    pub(super) fn hint(&self) -> Option<&'static str> {
        let Source::Known(secret) = &self.source else {
            return None;
        };
        match secret.bytes() {
            [] => Some("it is empty"),
            [.., b'\n'] => Some(
                "it ends with a newline, which counts; --key-fd 3 3<FILE takes a passphrase without it",
            ),
            _ => None,
        }
    }

    pub(super) fn read(&mut self, terminal: &Terminal) -> Result<Secret> {
        let read = match std::mem::replace(&mut self.source, Source::Broken) {
            Source::Known(secret) => Ok(secret),
            Source::File {
                file,
                offset,
                size,
                warning,
            } => {
                if let Some(warning) = warning {
                    terminal.warn(&warning);
                }
                read_key(file, offset, size)
            }
            Source::Passphrase(file) => read_key(file, 0, None).map(without_newline),
            Source::Broken => Err(Error::new(Kind::Secret, "it could not be read before")),
        };
        let secret = read.map_err(|error| {
            // What reading it says has the kind; its name is the context.
            let kind = error.kind();
            let named = Error::new(kind, format!("cannot read {}", self.name)).caused_by(error);
            match kind {
                Kind::Limit => named.hint("--key-file-size takes a part of it"),
                _ => named,
            }
        })?;
        self.source = Source::Known(secret.clone());
        Ok(secret)
    }
}

/// Why others can know what is in a file; `None` for what is no file.
pub(super) fn unsafe_for(file: &File) -> Option<String> {
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mode = meta.mode() & 0o7777;
    if mode & FOR_OTHERS != 0 {
        return Some(format!(
            "can be read or written by others (mode {mode:04o}): chmod 600 makes it private"
        ));
    }
    let owner = meta.uid();
    let ours = rustix::process::geteuid().as_raw();
    (owner != ours && owner != 0).then(|| format!("belongs to another user (uid {owner})"))
}

/// Reads a key, as cryptsetup does with --keyfile-offset and --keyfile-size: `size` bytes, which have
/// to be there, or all.
fn read_key(mut file: File, offset: u64, size: Option<u64>) -> Result<Secret> {
    let failed = |error| Error::io("reading failed", error);
    if offset > 0 && file.seek(SeekFrom::Start(offset)).is_err() {
        // A pipe.
        let skipped = std::io::copy(&mut (&mut file).take(offset), &mut Wiped).map_err(failed)?;
        if skipped < offset {
            let text = format!("it has {skipped} bytes, the key begins at {offset}");
            return Err(Error::new(Kind::Secret, text));
        }
    }
    let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
    if size.is_some_and(|size| size > most) {
        let text = format!("a key has at most {MOST_BYTES} bytes");
        return Err(Error::new(Kind::Limit, text));
    }
    // One more than allowed shows that there are more.
    let wanted = size.unwrap_or(most.saturating_add(1));
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut bytes = LockedBytes::new(wanted.min(FIRST_STEP));
    let mut len = 0;
    while len < wanted {
        if len == bytes.len() {
            let mut longer = LockedBytes::new(len.saturating_mul(2).min(wanted));
            longer[..len].copy_from_slice(&bytes);
            bytes = longer;
        }
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if let Some(size) = size
        && len < wanted
    {
        let text = format!("{size} bytes from {offset} on are wanted, and there are {len}");
        return Err(Error::new(Kind::Secret, text));
    }
    if len > MOST_BYTES {
        let text = format!("it has more than {MOST_BYTES} bytes");
        return Err(Error::new(Kind::Limit, text));
    }
    if len == 0 && offset > 0 {
        let text = format!("the key begins at {offset}, and nothing is there");
        return Err(Error::new(Kind::Secret, text));
    }
    bytes.truncate(len);
    Ok(Secret::from(bytes))
}

/// Where skipped bytes go. They may belong to other keys.
struct Wiped;

impl std::io::Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What programs that print a passphrase put behind it.
fn without_newline(secret: Secret) -> Secret {
    match secret.bytes().strip_suffix(b"\n") {
        Some(line) => Secret::from(LockedBytes::copy_of(line)),
        None => secret,
    }
}
