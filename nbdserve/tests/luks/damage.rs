//! Images that lie.

use nbdserve::Kind;
use nbdserve::source::Memory;
use sha2::{Digest, Sha256};

use crate::images::{Dir, HEAD, PASS, argon2, cx, kind_of, open, open_with};

const DATA: usize = 64 << 10;
/// Bytes of a header of LUKS2 with its metadata.
const HEADER: usize = 16384;

/// Makes the checksum of the header at `at` match.
fn mend(image: &mut [u8], at: usize) {
    let header = &mut image[at..at + HEADER];
    header[448..512].fill(0);
    let sum = Sha256::digest(&*header);
    header[448..480].copy_from_slice(&sum);
}

/// The image with other metadata in both headers.
fn with_json(image: &[u8], edit: impl Fn(&str) -> String) -> Vec<u8> {
    let mut image = image.to_vec();
    let json = image[4096..HEADER].split(|byte| *byte == 0).next().unwrap();
    let old = String::from_utf8(json.to_vec()).unwrap();
    let new = edit(&old);
    assert!(new != old, "nothing was changed in {old}");
    for at in [0, HEADER] {
        let area = &mut image[at + 4096..at + HEADER];
        area.fill(0);
        area[..new.len()].copy_from_slice(new.as_bytes());
        mend(&mut image, at);
    }
    image
}

fn replaced(image: &[u8], from: &str, to: &str) -> Vec<u8> {
    with_json(image, |json| json.replacen(from, to, 1))
}

#[track_caller]
fn refused(image: &[u8], kind: Kind, text: &str) {
    let (found, message) = kind_of(image);
    assert!(
        found == kind && message.contains(text),
        "{found:?}: {message}"
    );
}

#[test]
fn a_file_that_is_cut_anywhere_in_its_header_is_corrupt() {
    let dir = Dir::new();
    for image in [dir.luks1(DATA, &[]), dir.luks2(DATA, &[])] {
        let steps = (0..600).chain((600..2 * HEADER).step_by(509));
        for len in steps.chain((2 * HEADER..HEAD).step_by(100_003)) {
            let (kind, message) = kind_of(&image[..len]);
            let expected = if len < 6 {
                Kind::NotThisFormat
            } else {
                Kind::Corrupt
            };
            assert_eq!(kind, expected, "{len}: {message}");
        }
        assert_eq!(open(&image[..HEAD], PASS).unwrap().size(), 0);
        let sectors = open(&image[..HEAD + 5000], PASS).unwrap();
        let sector = u64::from(sectors.geometry().min_block);
        assert_eq!(sectors.size(), 5000 / sector * sector);
    }
}

/// Every number of the header, at its extremes.
#[test]
fn a_number_of_luks1_that_lies_is_refused_or_opens_nothing() {
    let dir = Dir::new();
    let good = dir.luks1(DATA, &["--key-size=256"]);
    let fields = [
        (6, 2, "version"),
        (104, 4, "payload-offset"),
        (108, 4, "key-bytes"),
        (112, 4, "mk-digest"),
        (132, 4, "mk-digest-salt"),
        (164, 4, "mk-digest-iter"),
        (208, 4, "active"),
        (212, 4, "iterations"),
        (216, 4, "salt"),
        (248, 4, "key-material-offset"),
        (252, 4, "stripes"),
        (256, 4, "active of a free one"),
    ];
    for (at, len, name) in fields {
        let now = good[at..at + len].iter();
        let now = now.fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        let most = u64::MAX >> (64 - 8 * len);
        for value in [
            0,
            1,
            now.wrapping_sub(1) & most,
            (now + 1) & most,
            most - 1,
            most,
        ] {
            if value == now {
                continue;
            }
            let mut bad = good.clone();
            bad[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            let opened = open(&bad, PASS);
            if name == "payload-offset" && value.abs_diff(now) == 1 {
                // Other bytes, but no others than the header says.
                assert_eq!(opened.unwrap().size(), (good.len() as u64) - 512 * value);
                continue;
            }
            let error = opened.expect_err(name);
            let expected: &[Kind] = match (name, value) {
                ("version", _) => &[Kind::Unsupported, Kind::Corrupt],
                ("mk-digest-iter" | "iterations", 0) => &[Kind::Corrupt],
                ("mk-digest-iter" | "iterations", v) if v > 1 << 30 => &[Kind::Limit],
                ("mk-digest-iter" | "iterations" | "mk-digest" | "mk-digest-salt" | "salt", _) => {
                    &[Kind::Secret]
                }
                ("stripes", v) if v > 8192 => &[Kind::Limit],
                ("stripes", v) if v > 0 => &[Kind::Secret],
                ("key-material-offset", v) if v > 1 && v < 100 => &[Kind::Secret],
                _ => &[Kind::Corrupt],
            };
            assert!(
                expected.contains(&error.kind()),
                "{name} {value}: {error:?}"
            );
        }
    }
    for (at, text, what) in [
        (8, "serpent", "the cipher \"serpent-xts-plain64\" is none"),
        (
            8,
            "aes\x1b[2J",
            "the cipher \"aes\\u{1b}[2J-xts-plain64\" is none",
        ),
        (40, "ecb", "the cipher \"aes-ecb\" is none"),
        (40, "xts-benbi", "the cipher \"aes-xts-benbi\" is none"),
        (
            40,
            "cbc-essiv:sha1",
            "the cipher \"aes-cbc-essiv:sha1\" is none",
        ),
        (72, "whirlpool", "the hash \"whirlpool\" is none"),
    ] {
        let mut bad = good.clone();
        bad[at..at + 32].fill(0);
        bad[at..at + text.len()].copy_from_slice(text.as_bytes());
        refused(&bad, Kind::Unsupported, what);
    }
    // No zero ends the name.
    let mut bad = good.clone();
    bad[8..40].fill(b'x');
    refused(&bad, Kind::Unsupported, &"x".repeat(32));
    // A free keyslot may hold anything, a bad one keeps no other from being opened.
    let mut bad = good.clone();
    bad[260..304].fill(0xff);
    open(&bad, PASS).unwrap();
    bad[256..260].copy_from_slice(&[0, 0xac, 0x71, 0xf3]);
    open(&bad, PASS).unwrap();
}

#[test]
fn the_second_header_is_used_when_the_first_is_damaged_or_older() {
    let dir = Dir::new();
    let argon2 = argon2("argon2id");
    let argon2: Vec<_> = argon2.iter().map(String::as_str).collect();
    for args in [
        &argon2[..],
        &["--luks2-metadata-size=64k", "--luks2-keyslots-size=1048576"],
    ] {
        let good = dir.luks2(DATA, args);
        let len = u64::from_be_bytes(good[8..16].try_into().unwrap()) as usize;
        for at in [0, 6, 9, 20, 72, 257, 450, 4096, 5000, len - 1] {
            let mut first = good.clone();
            first[at] ^= 0x55;
            open(&first, PASS).unwrap_or_else(|error| panic!("{at}: {error:?}"));
            let mut second = good.clone();
            second[len + at] ^= 0x55;
            open(&second, PASS).unwrap_or_else(|error| panic!("{at}: {error:?}"));
            first[len + at] ^= 0x55;
            let (kind, message) = kind_of(&first);
            if at == 0 || at == 6 {
                // Without a magic or a version of ours it is somebody else's.
                assert!(kind != Kind::Secret, "{kind:?}: {message}");
            } else {
                assert_eq!(kind, Kind::Corrupt, "{at}: {message}");
                assert!(message.contains("both headers are damaged"), "{message}");
            }
        }
    }

    // A younger second header: only that has the new keyslot.
    let old = dir.luks2(DATA, &[]);
    dir.add_key(b"new", &[]);
    let new = dir.read("image");
    let mut mixed = new.clone();
    mixed[..HEADER].copy_from_slice(&old[..HEADER]);
    assert_eq!(open(&old, b"new").unwrap_err().kind(), Kind::Secret);
    open(&mixed, b"new").unwrap();
    // An older second one is not used.
    let mut mixed = new;
    mixed[HEADER..2 * HEADER].copy_from_slice(&old[HEADER..2 * HEADER]);
    open(&mixed, b"new").unwrap();
}

#[test]
fn numbers_of_the_fixed_part_of_luks2_that_lie_are_refused() {
    let dir = Dir::new();
    let good = dir.luks2(DATA, &[]);
    for (at, len, name) in [
        (6, 2, "version"),
        (8, 8, "hdr_size"),
        (256, 8, "hdr_offset"),
    ] {
        let now = good[at..at + len].iter();
        let now = now.fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        let most = u64::MAX >> (64 - 8 * len);
        for value in [
            0,
            1,
            now.wrapping_sub(1) & most,
            now + 1,
            now * 2,
            most - 1,
            most,
        ] {
            if value == now || value == now * 2 && now == 0 {
                continue;
            }
            // In the first header alone: the second is taken. In both: nothing is.
            let mut bad = good.clone();
            bad[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            mend(&mut bad, 0);
            if name != "version" || value != 1 {
                open(&bad, PASS).unwrap_or_else(|error| panic!("{name} {value}: {error:?}"));
            }
            let second = HEADER + at;
            bad[second..second + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            mend(&mut bad, HEADER);
            let (kind, message) = kind_of(&bad);
            let known = matches!(kind, Kind::Corrupt | Kind::Unsupported);
            // Taken for LUKS1, its fields are those of another cipher.
            assert!(known, "{name} {value}: {kind:?}: {message}");
        }
    }
    let mut bad = good.clone();
    for at in [72, HEADER + 72] {
        bad[at..at + 32].fill(0);
        bad[at..at + 7].copy_from_slice(b"blake2b");
    }
    refused(&bad, Kind::Corrupt, "\"blake2b\"");
}

/// What there is beside LUKS2 as everybody has it, by name.
#[test]
fn what_cannot_be_opened_is_refused_by_name() {
    let dir = Dir::new();
    let good = dir.luks2(DATA, &[]);
    let unsupported = |from: &str, to: &str, text: &str| {
        refused(&replaced(&good, from, to), Kind::Unsupported, text);
    };
    let cipher = "\"encryption\":\"aes-xts-plain64\",\"sector_size\"";
    for other in [
        "serpent-xts-plain64",
        "twofish-cbc-essiv:sha256",
        "xchacha12,aes-adiantum-plain64",
        "capi:xts(aes)-plain64",
        "cipher_null-ecb",
        "aes-xts-random",
        "aes",
        "",
    ] {
        let to = format!("\"encryption\":\"{other}\",\"sector_size\"");
        unsupported(cipher, &to, &format!("the cipher \"{other}\" is none"));
    }
    let segment = "\"type\":\"crypt\"";
    unsupported(
        segment,
        "\"type\":\"linear\"",
        "a segment of type \"linear\"",
    );
    unsupported(
        segment,
        "\"type\":\"hw-opal\"",
        "a segment of type \"hw-opal\"",
    );
    let integrity = "\"type\":\"crypt\",\"integrity\":{\"type\":\"hmac(sha256)\",\
                     \"journal_encryption\":\"none\",\"journal_integrity\":\"none\"}";
    unsupported(segment, integrity, "integrity \"hmac(sha256)\"");
    let error = open(&replaced(&good, segment, integrity), PASS).unwrap_err();
    let hint = error.report().hint.unwrap();
    assert!(hint.contains("cryptsetup open"), "{hint}");
    let moving = "\"type\":\"crypt\",\"flags\":[\"backup-previous\"]";
    unsupported(segment, moving, "reencryption is in progress");
    let config = "\"config\":{";
    for (name, text) in [
        ("online-reencrypt", "reencryption is in progress"),
        ("online-reencrypt-v2", "reencryption is in progress"),
        ("opal", "it requires \"opal\""),
        ("x\\u001by", "it requires \"x\\u{1b}y\""),
    ] {
        let to = format!("{config}\"requirements\":{{\"mandatory\":[\"{name}\"]}},");
        unsupported(config, &to, text);
    }
    let two = "\"segments\":{\"1\":{\"type\":\"linear\",\"offset\":\"0\",\"size\":\"512\"},";
    unsupported("\"segments\":{", two, "2 segments (linear, crypt)");
    for (from, to, text) in [
        (
            "\"type\":\"pbkdf2\"",
            "\"type\":\"scrypt\"",
            "the kdf \"scrypt\"",
        ),
        (
            "\"type\":\"luks2\"",
            "\"type\":\"reencrypt\"",
            "a keyslot of type \"reencrypt\"",
        ),
        (
            "\"type\":\"raw\"",
            "\"type\":\"file\"",
            "an area of type \"file\"",
        ),
        (
            "\"hash\":\"sha256\"",
            "\"hash\":\"md5\"",
            "the hash \"md5\"",
        ),
        (
            "\"digests\":{\"0\":{\"type\":\"pbkdf2\"",
            "\"digests\":{\"0\":{\"type\":\"x\"",
            "a digest of type \"x\"",
        ),
    ] {
        unsupported(from, to, text);
    }
    // A requirement that is none, tokens, and things that nobody knows do no harm.
    for (from, to) in [
        (config, "\"config\":{\"requirements\":{\"mandatory\":[]},"),
        (
            config,
            "\"config\":{\"flags\":[\"allow-discards\"],\"more\":{\"a\":[1,2.5,null]},",
        ),
        (
            "\"tokens\":{",
            "\"tokens\":{\"0\":{\"type\":\"systemd-tpm2\",\"keyslots\":[\"0\"]}",
        ),
    ] {
        open(&replaced(&good, from, to), PASS).unwrap();
    }
}

/// A reencryption that cryptsetup itself has begun.
#[test]
fn a_reencryption_that_was_begun_is_refused() {
    let dir = Dir::new();
    dir.luks2(DATA, &[]);
    dir.cryptsetup(
        "reencrypt",
        &["--init-only", "--resilience=none"],
        "image",
        &[],
    );
    refused(
        &dir.read("image"),
        Kind::Unsupported,
        "reencryption is in progress",
    );
}

#[test]
fn a_number_of_the_metadata_that_lies_is_refused() {
    let dir = Dir::new();
    let good = dir.luks2(DATA, &["--sector-size=4096"]);
    let corrupt = |from: &str, to: &str, text: &str| {
        refused(&replaced(&good, from, to), Kind::Corrupt, text);
    };
    let most = u64::MAX.to_string();
    let almost = (u64::MAX - 4095).to_string();
    for (from, values) in [
        // The segment.
        (
            "\"offset\":\"2097152\"",
            &["0", "1", "2097151", "2097153", "4096", &almost, &most][..],
        ),
        (
            "\"size\":\"dynamic\"",
            &["1", "69632", "65537", &almost, &most],
        ),
        // The keyslot.
        (
            "\"offset\":\"32768\"",
            &["0", "1", "32767", "2097152", &almost, &most],
        ),
        (
            "\"size\":\"258048\"",
            &["0", "1", "2097152", &almost, &most],
        ),
        (
            "\"json_size\":\"12288\"",
            &["0", "1", "12287", "12289", &most],
        ),
        (
            "\"keyslots_size\":\"2064384\"",
            &["0", "1", "2064383", "2064385", "4096", &almost, &most],
        ),
    ] {
        let (name, _) = from.rsplit_once(":\"").unwrap();
        for value in values {
            corrupt(from, &format!("{name}:\"{value}\""), "");
        }
        for value in ["-1", "", "0x10", "18446744073709551616", "dynamic "] {
            corrupt(
                from,
                &format!("{name}:\"{value}\""),
                "the metadata are not as they must be",
            );
        }
        corrupt(
            from,
            &format!("{name}:7"),
            "the metadata are not as they must be",
        );
    }
    for (from, values) in [
        (
            "\"sector_size\":4096",
            &[
                "0",
                "1",
                "511",
                "256",
                "8192",
                "-1",
                "4294967295",
                "4294967296",
                "4096.0",
            ][..],
        ),
        (
            "\"key_size\":64",
            &["0", "1", "63", "65", "-1", "18446744073709551615"],
        ),
        ("\"stripes\":4000", &["0", "-1", "4294967296"]),
        (
            "\"iterations\":1000",
            &["0", "-1", "4294967296", "\"1000\""],
        ),
        ("\"salt\":\"", &["\"=\"", "\"A\"", "7"]),
        ("\"keyslots\":{", &["[]", "7", "null"]),
    ] {
        let (name, _) = from.split_once(':').unwrap();
        for value in values {
            let to = match from.ends_with(['"', '{']) {
                true => format!("{name}:{value},\"was\":{}", &from[from.len() - 1..]),
                false => format!("{name}:{value}"),
            };
            corrupt(from, &to, "");
        }
    }
    for (from, to, kind) in [
        ("\"stripes\":4000", "\"stripes\":4294967295", Kind::Limit),
        ("\"stripes\":4000", "\"stripes\":3999", Kind::Secret),
        ("\"stripes\":4000", "\"stripes\":1", Kind::Secret),
        (
            "\"iterations\":1000",
            "\"iterations\":4294967295",
            Kind::Limit,
        ),
        ("\"iterations\":1000", "\"iterations\":1", Kind::Secret),
        ("\"offset\":\"32768\"", "\"offset\":\"36864\"", Kind::Secret),
        (
            "\"digest\":\"",
            "\"digest\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\",\"was\":\"",
            Kind::Secret,
        ),
        // An empty digest is that of every key.
        ("\"digest\":\"", "\"digest\":\"\",\"was\":\"", Kind::Corrupt),
        (
            "\"digest\":\"",
            "\"digest\":\"AAAA\",\"was\":\"",
            Kind::Corrupt,
        ),
    ] {
        refused(&replaced(&good, from, to), kind, "");
    }
    for name in [
        "keyslots",
        "segments",
        "digests",
        "config",
        "area",
        "kdf",
        "af",
        "encryption",
        "sector_size",
        "size",
        "offset",
        "salt",
        "hash",
        "stripes",
        "iterations",
        "digest",
        "key_size",
    ] {
        corrupt(&format!("\"{name}\":"), &format!("\"other {name}\":"), "");
    }
    // A fixed size, and vectors that do not begin at zero.
    let fixed = open(
        &replaced(&good, "\"size\":\"dynamic\"", "\"size\":\"8192\""),
        PASS,
    );
    assert_eq!(fixed.unwrap().size(), 8192);
    let tweaked = replaced(
        &good,
        "\"iv_tweak\":\"0\"",
        &format!("\"iv_tweak\":\"{most}\""),
    );
    assert_eq!(
        open(&tweaked, PASS)
            .unwrap()
            .read_vec(0, 9000)
            .unwrap()
            .len(),
        9000
    );
}

#[test]
fn memory_and_time_that_an_image_asks_for_are_bounded() {
    let dir = Dir::new();
    let argon2 = argon2("argon2id");
    let argon2: Vec<_> = argon2.iter().map(String::as_str).collect();
    let good = dir.luks2(DATA, &argon2);
    open(&good, PASS).unwrap();
    for (from, to, kind, text) in [
        (
            "\"memory\":64",
            "\"memory\":4194305",
            Kind::Limit,
            "4194305 KiB of memory, more than 4194304 KiB",
        ),
        (
            "\"memory\":64",
            "\"memory\":4294967295",
            Kind::Limit,
            "4294967295 KiB of memory, more than",
        ),
        ("\"memory\":64", "\"memory\":0", Kind::Corrupt, "memory"),
        ("\"memory\":64", "\"memory\":1", Kind::Corrupt, "memory"),
        ("\"time\":4", "\"time\":0", Kind::Corrupt, ""),
        (
            "\"time\":4",
            "\"time\":4294967295",
            Kind::Limit,
            "together more than 1 TiB",
        ),
        ("\"cpus\":2", "\"cpus\":0", Kind::Corrupt, ""),
        ("\"cpus\":2", "\"cpus\":65", Kind::Limit, "in 65 lanes"),
        ("\"cpus\":2", "\"cpus\":4294967295", Kind::Limit, "lanes"),
        (
            "\"salt\":\"",
            "\"salt\":\"AAAA\",\"was\":\"",
            Kind::Corrupt,
            "salt",
        ),
    ] {
        refused(&replaced(&good, from, to), kind, text);
    }
    // Another keyslot that can be tried is.
    dir.write("image", &good);
    dir.add_key(b"second", &[]);
    let two = replaced(&dir.read("image"), "\"memory\":64", "\"memory\":4294967295");
    open(&two, b"second").unwrap();
    assert_eq!(open(&two, PASS).unwrap_err().kind(), Kind::Secret);
}

#[test]
fn metadata_that_are_bombs_are_refused() {
    let dir = Dir::new();
    let good = dir.luks2(
        DATA,
        &[
            "--luks2-metadata-size=4m",
            "--luks2-keyslots-size=1048576",
            "--offset=20480",
        ],
    );
    let len = u64::from_be_bytes(good[8..16].try_into().unwrap()) as usize;
    let with = |json: &[u8]| {
        let mut image = good.clone();
        for at in [0, len] {
            let area = &mut image[at + 4096..at + len];
            area.fill(0);
            area[..json.len()].copy_from_slice(json);
            image[at + 448..at + 512].fill(0);
            let sum = Sha256::digest(&image[at..at + len]);
            image[at + 448..at + 480].copy_from_slice(&sum);
        }
        kind_of(&image)
    };
    let most = len - 4096;
    let fill = |start: &str, piece: &str| {
        let mut json = start.as_bytes().to_vec();
        while json.len() + piece.len() <= most {
            json.extend(piece.as_bytes());
        }
        json
    };
    for (start, piece) in [
        ("", "["),
        ("{\"tokens\":", "["),
        ("{\"tokens\":", "{\"a\":"),
        ("{\"keyslots\":{", "\"a\":{\"type\":\"luks2\"},"),
        (
            "{\"config\":{\"json_size\":\"1\",\"keyslots_size\":\"1\",\"requirements\":{\"mandatory\":[",
            "\"\",",
        ),
        ("{\"keyslots\":{\"0\":{\"type\":\"", "x"),
        ("{\"tokens\":[", "1,"),
        ("", "\u{1f}"),
    ] {
        let (kind, message) = with(&fill(start, piece));
        assert_eq!(kind, Kind::Corrupt, "{start}{piece}: {message}");
        assert!(message.len() < 2000, "{} bytes", message.len());
    }
    assert_eq!(with(b"").0, Kind::Corrupt);
    assert_eq!(with(b"{}").0, Kind::Corrupt);
    assert_eq!(with(b"\xff\xfe").0, Kind::Corrupt);
}

#[test]
fn being_taken_down_ends_the_wait_for_a_key() {
    let dir = Dir::new();
    let good = dir.luks2(DATA, &[]);
    // Some seconds: nobody ends the thread that counts them.
    let slow = replaced(&good, "\"iterations\":1000", "\"iterations\":16777216");
    let cx = cx(PASS);
    let cancel = cx.cancel.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            cancel.cancel();
        });
        let error = open_with(&Memory::volume(slow), &[], &cx).unwrap_err();
        assert!(error.to_string().contains("taken down"), "{error}");
    });
}
