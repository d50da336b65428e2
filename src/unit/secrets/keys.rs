//! Whoever has the secrets: files, a descriptor, a person.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbdserve::error::escape;
use nbdserve::secret::{MOST_BYTES, Question, Secret, Secrets};
use nbdserve::{Error, Kind, Result};
use zeroize::Zeroizing;

use crate::sys::process::{forbid_dumps, take_descriptor};
use crate::sys::terminal::{self, Typed};
use crate::unit::front::Terminal;

/// A person may try so often.
const TRIES: u32 = 3;
/// Permissions of a file that others can read or write.
const FOR_OTHERS: u32 = 0o077;
/// A key of unknown length is read in steps that double, from this many bytes.
const FIRST_STEP: usize = 4096;

/// What the command line says about keys.
#[derive(Clone, Debug, Default)]
pub struct KeyOptions {
    /// Each is tried; `-` is standard input.
    pub files: Vec<PathBuf>,
    /// A passphrase comes from this descriptor.
    pub descriptor: Option<RawFd>,
    /// Bytes of a key file before the key.
    pub offset: u64,
    /// Bytes of the key; else to the end of the file.
    pub size: Option<u64>,
}

/// The keys that the user gave, or the terminal where there are none.
#[derive(Debug)]
pub struct Keys {
    given: Vec<Mutex<Key>>,
    /// What is shown there is out of the way while a question is.
    terminal: Arc<Terminal>,
    typed: Mutex<Answers>,
}

/// What was typed, until a unit is up: where it has to be started twice nobody is asked twice.
#[derive(Debug, Default)]
struct Answers {
    /// The last answer to each question.
    known: Vec<(String, Secret)>,
    /// It is given again, once, and nothing more is remembered.
    repeats: bool,
}

/// A key that the user gave.
#[derive(Debug)]
struct Key {
    /// For messages, escaped: `the key file k`.
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
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

impl Keys {
    /// Opens what was named, with the caller's rights; nothing is read before it is asked for. To be
    /// called before anything else is opened or started: descriptors are taken over.
    ///
    /// # Errors
    /// When a file or descriptor cannot be opened.
    pub fn open(options: &KeyOptions, terminal: &Arc<Terminal>) -> Result<Self> {
        let mut given = Vec::new();
        if let Some(number) = options.descriptor {
            let fd = take_descriptor(number).map_err(|error| {
                let what = format!("descriptor {number}, from which the passphrase is to come");
                Error::io(format!("{what}, is not open"), error)
                    .hint("a shell opens one by 3<FILE behind the command")
            })?;
            given.push(Key {
                name: format!("the passphrase from descriptor {number}"),
                source: Source::Passphrase(File::from(fd)),
            });
        }
        for path in &options.files {
            given.push(Key::open(path, options)?);
        }
        Ok(Self {
            given: given.into_iter().map(Mutex::new).collect(),
            terminal: Arc::clone(terminal),
            typed: Mutex::default(),
        })
    }

    /// What was typed is the first answer when it is asked for again: the unit is started once more.
    pub fn repeat(&self) {
        self.typed().repeats = true;
    }

    /// Wipes what was typed; nothing is remembered any more.
    pub fn forget(&self) {
        *self.typed() = Answers {
            known: Vec::new(),
            repeats: true,
        };
    }

    fn typed(&self) -> MutexGuard<'_, Answers> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a question, unless the other end of `asker` hangs up first.
    pub(super) fn answer_to(
        &self,
        question: &Question,
        asker: Option<BorrowedFd<'_>>,
    ) -> Result<Secret> {
        forbid_dumps();
        if self.given.is_empty() {
            return self.prompt(question, asker);
        }
        let at = usize::try_from(question.attempt).unwrap_or(usize::MAX);
        let Some(key) = self.given.get(at) else {
            return Err(self.wrong(&question.what));
        };
        let mut key = key.lock().unwrap_or_else(PoisonError::into_inner);
        key.read(&self.terminal)
    }

    /// None of them fits.
    fn wrong(&self, what: &str) -> Error {
        let text = match &self.given[..] {
            [key] => {
                let key = key.lock().unwrap_or_else(PoisonError::into_inner);
                format!("{} does not open {what}", key.name)
            }
            all => format!("none of the {} keys opens {what}", all.len()),
        };
        Error::new(Kind::Secret, text)
    }

    fn prompt(&self, question: &Question, asker: Option<BorrowedFd<'_>>) -> Result<Secret> {
        let Question { what, attempt } = question;
        if *attempt >= TRIES {
            let text = format!("wrong passphrase for {what}: {TRIES} tries are over");
            return Err(Error::new(Kind::Secret, text));
        }
        if let (0, Some(secret)) = (*attempt, self.typed().take(what)) {
            return Ok(secret);
        }
        let again = match attempt {
            0 => "",
            _ => "loopmount: that passphrase is wrong, try again\n",
        };
        let prompt = format!("{again}Passphrase for {what}: ");
        let typed = self
            .terminal
            .while_asking(|| terminal::ask_hidden(&prompt, asker))
            .map_err(|error| {
                Error::io(format!("cannot ask for the passphrase of {what}"), error)
            })?;
        let none = |text: String| Err(Error::new(Kind::Secret, text));
        match typed {
            Some(Typed::Line(line)) => {
                let secret = Secret::new(unwrapped(line));
                self.typed().note(what, &secret);
                Ok(secret)
            }
            Some(Typed::End) => none(format!("no passphrase was given for {what}")),
            Some(Typed::Gone | Typed::Interrupted) => none(format!(
                "interrupted while asking for the passphrase of {what}"
            )),
            None => Err(Error::new(
                Kind::Secret,
                format!("{what} is locked, and there is no terminal to ask for its passphrase"),
            )
            .hint("--key-file FILE gives a key; --key-fd N takes a passphrase from descriptor N")),
        }
    }
}

impl Answers {
    /// The known answer to a question, if it is to be given again.
    fn take(&mut self, what: &str) -> Option<Secret> {
        let mut known = self.known.iter();
        let at = known.position(|(asked, _)| asked == what)?;
        self.repeats.then(|| self.known.swap_remove(at).1)
    }

    fn note(&mut self, what: &str, secret: &Secret) {
        if !self.repeats {
            self.known.retain(|(asked, _)| asked != what);
            self.known.push((what.to_owned(), secret.clone()));
        }
    }
}

impl Secrets for Keys {
    fn answer(&self, question: &Question) -> Result<Secret> {
        self.answer_to(question, None)
    }
}

impl Key {
    fn open(path: &Path, options: &KeyOptions) -> Result<Self> {
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

    fn read(&mut self, terminal: &Terminal) -> Result<Secret> {
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
fn unsafe_for(file: &File) -> Option<String> {
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
    let mut bytes = Zeroizing::new(vec![0; wanted.min(FIRST_STEP)]);
    let mut len = 0;
    while len < wanted {
        if len == bytes.len() {
            // By hand: a Vec that grows leaves a copy behind.
            let mut longer = Zeroizing::new(vec![0; len.saturating_mul(2).min(wanted)]);
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
    bytes.truncate(len);
    Ok(Secret::new(unwrapped(bytes)))
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

/// The bytes themselves, not a copy.
fn unwrapped(mut bytes: Zeroizing<Vec<u8>>) -> Vec<u8> {
    std::mem::take(&mut *bytes)
}

/// What programs that print a passphrase put behind it.
fn without_newline(secret: Secret) -> Secret {
    match secret.bytes().strip_suffix(b"\n") {
        Some(line) => Secret::new(line.to_vec()),
        None => secret,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::PermissionsExt;

    fn question(attempt: u32) -> Question {
        Question {
            what: "luks: disk".to_owned(),
            attempt,
        }
    }

    fn keys(options: &KeyOptions) -> Keys {
        Keys::open(options, &Arc::new(Terminal::new())).unwrap()
    }

    /// A file of which others know nothing.
    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn options(file: &Path, offset: u64, size: Option<u64>) -> KeyOptions {
        KeyOptions {
            files: vec![file.to_owned()],
            offset,
            size,
            ..KeyOptions::default()
        }
    }

    #[test]
    fn a_key_file_is_a_key_as_it_is_and_is_tried_once() {
        let file = file_of(b"two\nlines\n");
        let keys = keys(&options(file.path(), 0, None));
        for _ in 0..2 {
            // Two things that are locked ask for it.
            assert_eq!(keys.answer(&question(0)).unwrap().bytes(), b"two\nlines\n");
        }
        let error = keys.answer(&question(1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Secret);
        let text = error.to_string();
        assert!(
            text.contains("key file") && text.contains("luks: disk"),
            "{text}"
        );
    }

    #[test]
    fn what_was_typed_is_given_again_once() {
        let mut answers = Answers::default();
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        answers.note("luks: disk", &secret("wrong"));
        answers.note("luks: disk", &secret("right"));
        assert!(answers.take("luks: disk").is_none(), "the first time");
        answers.repeats = true;
        answers.note("luks: other", &secret("other"));
        assert!(answers.take("luks: other").is_none());
        assert_eq!(answers.take("luks: disk").unwrap().bytes(), b"right");
        assert!(answers.take("luks: disk").is_none());
        let keys = keys(&KeyOptions::default());
        keys.typed().note("luks: disk", &secret("right"));
        keys.forget();
        assert!(keys.typed().known.is_empty());
        assert!(keys.typed().take("luks: disk").is_none());
    }

    #[test]
    fn each_key_file_is_tried() {
        let (one, two) = (file_of(b"one"), file_of(b"two"));
        let keys = keys(&KeyOptions {
            files: vec![one.path().to_owned(), two.path().to_owned()],
            ..KeyOptions::default()
        });
        assert_eq!(keys.answer(&question(0)).unwrap().bytes(), b"one");
        assert_eq!(keys.answer(&question(1)).unwrap().bytes(), b"two");
        let text = keys.answer(&question(2)).unwrap_err().to_string();
        assert!(text.contains("none of the 2 keys"), "{text}");
    }

    #[test]
    fn a_part_of_a_key_file_has_to_be_there() {
        let file = file_of(b"0123456789");
        let read = |offset, size| {
            let keys = keys(&options(file.path(), offset, size));
            keys.answer(&question(0))
                .map(|secret| String::from_utf8(secret.bytes().to_vec()).unwrap())
                .map_err(|error| error.kind())
        };
        assert_eq!(read(3, None).unwrap(), "3456789");
        assert_eq!(read(0, Some(4)).unwrap(), "0123");
        assert_eq!(read(8, Some(2)).unwrap(), "89");
        assert_eq!(read(10, None).unwrap(), "");
        assert_eq!(read(8, Some(3)).unwrap_err(), Kind::Secret);
        let too_long = u64::try_from(MOST_BYTES).unwrap() + 1;
        assert_eq!(read(0, Some(too_long)).unwrap_err(), Kind::Limit);
    }

    #[test]
    fn a_long_key_is_read_whole_and_a_longer_one_refused() {
        let bytes: Vec<u8> = (0..MOST_BYTES + 1).map(|i| (i % 251) as u8).collect();
        let file = file_of(&bytes[..MOST_BYTES]);
        let secret = keys(&options(file.path(), 0, None)).answer(&question(0));
        assert!(secret.unwrap().bytes() == &bytes[..MOST_BYTES]);
        let file = file_of(&bytes);
        let secret = keys(&options(file.path(), 0, None)).answer(&question(0));
        assert_eq!(secret.unwrap_err().kind(), Kind::Limit);
    }

    /// A descriptor from which these bytes come, as a shell passes it.
    fn pipe_with(bytes: &[u8]) -> OwnedFd {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        reader.into()
    }

    #[test]
    fn a_passphrase_from_a_descriptor_loses_one_newline() {
        for (given, passphrase) in [("word\n", "word"), ("word", "word"), ("w\n\n", "w\n")] {
            let fd = pipe_with(given.as_bytes());
            let keys = keys(&KeyOptions {
                descriptor: Some(fd.as_raw_fd()),
                ..KeyOptions::default()
            });
            // It was taken over, and closed.
            std::mem::forget(fd);
            let secret = keys.answer(&question(0)).unwrap();
            assert_eq!(secret.bytes(), passphrase.as_bytes());
            // The pipe is empty by now.
            let secret = keys.answer(&question(0)).unwrap();
            assert_eq!(secret.bytes(), passphrase.as_bytes());
        }
    }

    #[test]
    fn a_pipe_can_begin_with_something_else() {
        let key = Key {
            name: "the key".to_owned(),
            source: Source::File {
                file: File::from(pipe_with(b"skipped,key,rest")),
                offset: 8,
                size: Some(3),
                warning: None,
            },
        };
        let keys = Keys {
            given: vec![Mutex::new(key)],
            terminal: Arc::new(Terminal::new()),
            typed: Mutex::default(),
        };
        assert_eq!(keys.answer(&question(0)).unwrap().bytes(), b"key");
    }

    #[test]
    fn what_cannot_be_opened_is_said_at_once() {
        let options = options(Path::new("/no/such/key"), 0, None);
        let error = Keys::open(&options, &Arc::new(Terminal::new())).unwrap_err();
        assert!(error.to_string().contains("/no/such/key"), "{error}");
        let options = KeyOptions {
            descriptor: Some(1_000_000),
            ..KeyOptions::default()
        };
        let error = Keys::open(&options, &Arc::new(Terminal::new())).unwrap_err();
        assert!(error.to_string().contains("1000000"), "{error}");
    }

    #[test]
    fn a_file_that_others_can_read_is_warned_of() {
        let file = file_of(b"key");
        assert_eq!(unsafe_for(file.as_file()), None);
        for mode in [0o640, 0o604, 0o620] {
            let permissions = std::fs::Permissions::from_mode(mode);
            file.as_file().set_permissions(permissions).unwrap();
            let why = unsafe_for(file.as_file()).unwrap();
            assert!(why.contains(&format!("{mode:04o}")), "{why}");
        }
        assert_eq!(unsafe_for(&File::from(pipe_with(b"key"))), None);
    }
}
