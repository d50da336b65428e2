use super::given::{Source, unsafe_for};
use super::*;
use nbdserve::secret::MOST_BYTES;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    for behind in [10, 11] {
        assert_eq!(read(behind, None).unwrap_err(), Kind::Secret);
    }
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

#[test]
fn a_key_that_ends_with_a_newline_or_is_empty_is_told_so() {
    for (bytes, says) in [
        (&b"word\n"[..], Some("newline")),
        (b"", Some("empty")),
        (b"word", None),
    ] {
        let file = file_of(bytes);
        let keys = keys(&options(file.path(), 0, None));
        keys.answer(&question(0)).unwrap();
        let hint = keys.answer(&question(1)).unwrap_err().report().hint;
        assert_eq!(hint.is_some(), says.is_some(), "{hint:?}");
        assert!(hint.unwrap_or_default().contains(says.unwrap_or("")));
    }
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
