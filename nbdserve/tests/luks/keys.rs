//! Passphrases, key files and keyslots.

use std::sync::Arc;

use nbdserve::secret::NoSecrets;
use nbdserve::source::Memory;
use nbdserve::testing::conformance::read_all;
use nbdserve::{Cx, Kind};

use crate::images::{Answers, Dir, PASS, argon2, cx, open, open_with};

const DATA: usize = 64 << 10;

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// What is encrypted with the right key reads as what was written.
fn mark(dir: &Dir, image: Vec<u8>) {
    let below = Memory::volume(image);
    let volume = open_with(&below, &[], &cx(PASS)).unwrap();
    volume
        .writer()
        .unwrap()
        .write_at(b"marked", 100, true)
        .unwrap();
    dir.write("image", &read_all(&below));
}

fn is_marked(image: &[u8], key: &[u8], args: &[(&str, &str)]) -> bool {
    let volume = open_with(&Memory::volume(image.to_vec()), args, &cx(key));
    volume.unwrap().read_vec(100, 6).unwrap() == b"marked"
}

/// Keys that a line-reading program would change.
const KEYS: [&[u8]; 4] = [b"with\nnewline\n", b"\0", b"\xff\xfe binary \0 \x80", b" "];

#[test]
fn every_kdf_and_every_keyslot_opens() {
    let dir = Dir::new();
    let (id, i) = (argon2("argon2id"), argon2("argon2i"));
    mark(&dir, dir.luks2(DATA, &strs(&id)));
    dir.add_key(KEYS[0], &["--hash=sha1", "--key-slot=5"]);
    dir.add_key(KEYS[1], &["--hash=sha256"]);
    dir.add_key(
        KEYS[2],
        &[
            "--hash=sha512",
            "--keyslot-cipher=aes-cbc-plain64",
            "--keyslot-key-size=192",
        ],
    );
    dir.add_key(KEYS[3], &strs(&i));
    let image = dir.read("image");
    for (slot, key) in [
        ("0", PASS),
        ("5", KEYS[0]),
        ("1", KEYS[1]),
        ("2", KEYS[2]),
        ("3", KEYS[3]),
    ] {
        assert!(is_marked(&image, key, &[]), "{slot}");
        assert!(is_marked(&image, key, &[("keyslot", slot)]), "{slot}");
    }
    let below = Memory::volume(image);
    let wrong = open_with(&below, &[("keyslot", "2")], &cx(KEYS[1])).unwrap_err();
    assert_eq!(wrong.kind(), Kind::Secret);
    assert!(
        wrong.to_string().contains("keyslot 2, the only one"),
        "{wrong}"
    );
    let error = open_with(&below, &[("keyslot", "4")], &cx(PASS)).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    assert_eq!(
        error.to_string(),
        "keyslot 4 is not in use; in use are 0, 1, 2, 3, 5"
    );
    for bad in ["-1", "", "x", "4294967296"] {
        let error = open_with(&below, &[("keyslot", bad)], &cx(PASS)).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange, "{bad}");
    }
}

#[test]
fn every_keyslot_of_luks1_opens_and_a_removed_one_does_not() {
    let dir = Dir::new();
    for hash in ["--hash=sha1", "--hash=sha256", "--hash=sha512"] {
        mark(&dir, dir.luks1(DATA, &[hash]));
        let keys: Vec<_> = (1..8).map(|n| format!("key {n}\n").into_bytes()).collect();
        for key in &keys {
            dir.add_key(key, &[hash]);
        }
        dir.cryptsetup("luksKillSlot", &[], "image", &["3"]);
        let image = dir.read("image");
        for (slot, key) in (1..8).zip(&keys) {
            if slot == 3 {
                assert_eq!(open(&image, key).unwrap_err().kind(), Kind::Secret);
            } else {
                assert!(is_marked(&image, key, &[("keyslot", &slot.to_string())]));
            }
        }
    }
}

#[test]
fn a_long_key_of_any_bytes_opens() {
    let dir = Dir::new();
    let key = nbdserve::testing::noise(4096, 3);
    mark(&dir, dir.luks2(DATA, &[]));
    dir.add_key(&key, &[]);
    let image = dir.read("image");
    assert!(is_marked(&image, &key, &[]));
    assert_eq!(open(&image, &key[..4095]).unwrap_err().kind(), Kind::Secret);
    assert_eq!(open(&image, b"").unwrap_err().kind(), Kind::Secret);
}

#[test]
fn wrong_answers_are_asked_again_until_there_are_no_more() {
    let dir = Dir::new();
    let image = Memory::volume(dir.luks2(DATA, &["--label=the \x1b[31m \"label\""]));
    let with = |answers: &[&'static [u8]]| {
        let answers = Arc::new(Answers {
            answers: answers.to_vec(),
            ..Answers::default()
        });
        let mut cx = Cx::new(1 << 20);
        cx.secrets = answers.clone();
        let result = open_with(&image, &[], &cx);
        let asked = answers.asked.lock().unwrap().clone();
        (result, asked)
    };
    let (result, asked) = with(&[b"wrong", b"", PASS, b"never"]);
    result.unwrap();
    assert_eq!(
        asked.iter().map(|asked| asked.attempt).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    let what = &asked[0].what;
    let uuid = what
        .strip_prefix("LUKS2 \"the \\u{1b}[31m \\\"label\\\"\" (")
        .unwrap();
    assert_eq!(uuid.len(), 37, "{what}");
    let (result, asked) = with(&[b"wrong", b"wronger"]);
    let error = result.unwrap_err();
    assert_eq!((error.kind(), asked.len()), (Kind::Secret, 3));
    assert_eq!(error.to_string(), "nobody knows more");
}

#[test]
fn without_a_key_it_says_what_is_locked() {
    let dir = Dir::new();
    let image = Memory::volume(dir.luks2(DATA, &["--label=backup"]));
    let mut cx = Cx::new(1 << 20);
    cx.secrets = Arc::new(NoSecrets);
    let error = open_with(&image, &[], &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Secret);
    assert!(
        error.to_string().starts_with("LUKS2 \"backup\" ("),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .ends_with("is locked, and no key was given"),
        "{error}"
    );
}

#[test]
fn priorities_are_heeded_and_keyslots_of_other_keys_are_not_tried() {
    let dir = Dir::new();
    mark(&dir, dir.luks2(DATA, &[]));
    dir.add_key(b"preferred", &[]);
    dir.add_key(b"ignored", &[]);
    dir.add_key(
        b"unbound",
        &["--unbound", "--key-size=512", "--new-key-slot=7"],
    );
    dir.cryptsetup(
        "config",
        &["--priority=prefer", "--key-slot=1"],
        "image",
        &[],
    );
    dir.cryptsetup(
        "config",
        &["--priority=ignore", "--key-slot=2"],
        "image",
        &[],
    );
    let image = dir.read("image");
    for key in [PASS, b"preferred"] {
        assert!(is_marked(&image, key, &[]));
    }
    assert_eq!(open(&image, b"ignored").unwrap_err().kind(), Kind::Secret);
    assert!(is_marked(&image, b"ignored", &[("keyslot", "2")]));
    assert_eq!(open(&image, b"unbound").unwrap_err().kind(), Kind::Secret);
    let below = Memory::volume(image);
    let error = open_with(&below, &[("keyslot", "7")], &cx(b"unbound")).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
}

#[test]
fn erased_keyslots_are_told() {
    let dir = Dir::new();
    for image in [dir.luks1(DATA, &[]), dir.luks2(DATA, &[])] {
        dir.write("image", &image);
        dir.cryptsetup("luksErase", &[], "image", &[]);
        let error = open(&dir.read("image"), PASS).unwrap_err();
        assert_eq!(error.kind(), Kind::Secret);
        assert!(
            error.to_string().contains("no keyslot is in use"),
            "{error}"
        );
    }
}

#[test]
fn a_detached_header_is_read_from_its_file() {
    let dir = Dir::new();
    for kind in ["--type=luks1", "--type=luks2"] {
        dir.write("header", &vec![0; 4 << 20]);
        dir.write("data", &[0; DATA]);
        let header = dir.arg("header");
        let to = format!("--header={header}");
        let cheap = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];
        dir.cryptsetup(
            "luksFormat",
            &[&[kind, &to], &cheap[..]].concat(),
            "data",
            &[],
        );
        let data = Memory::volume(vec![0; DATA]);
        let args = [("header", header.as_str())];
        let volume = open_with(&data, &args, &cx(PASS)).unwrap();
        assert_eq!(volume.size(), DATA as u64);
        volume
            .writer()
            .unwrap()
            .write_at(b"marked", 100, true)
            .unwrap();
        assert!(is_marked(&read_all(&data), PASS, &args), "{kind}");

        // The file of the header alone, opened as an image.
        let error = open(&dir.read("header"), PASS).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("detached header"), "{error}");
        let error = open(&dir.read("data"), PASS).unwrap_err();
        assert_eq!(error.kind(), Kind::NotThisFormat);
    }
    let missing = dir.arg("missing");
    let error = open_with(
        &Memory::volume(vec![0; DATA]),
        &[("header", &missing)],
        &cx(PASS),
    );
    assert!(error.unwrap_err().to_string().contains("cannot open"));
}
