//! Files that are damaged.

use nbdserve::Kind;
use nbdserve::testing::conformance::read_all;

use crate::tools::{bzip2, image, open, roomy, text};

/// Two streams with something between them, in some hundred bytes.
fn small() -> (Vec<u8>, Vec<u8>) {
    let parts = [text(300), Vec::new(), b"and a second stream".to_vec()];
    let mut file = Vec::new();
    for part in &parts {
        file.extend(bzip2(part, &["-1"]));
    }
    (parts.concat(), file)
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, file) = small();
    let cx = roomy();
    let mut whole = 0;
    for len in 0..file.len() {
        match open(file[..len].to_vec(), &cx) {
            Err(error) => {
                let expected = match len {
                    0..4 => Kind::NotThisFormat,
                    _ => Kind::Corrupt,
                };
                assert_eq!(error.kind(), expected, "cut at {len}: {error}");
                let text = error.to_string();
                let named = text.contains("cut short") || text.contains("trailing garbage");
                assert!(len < 4 || named, "cut at {len}: {text}");
            }
            // Cut between streams.
            Ok(volume) => {
                whole += 1;
                assert!(bytes.starts_with(&read_all(&volume)), "cut at {len}");
            }
        }
    }
    assert_eq!(whole, 2);
}

#[test]
fn a_large_file_that_is_cut_is_refused() {
    let file = bzip2(&image(2_000_000), &["-2"]);
    for part in 1..8 {
        let error = open(file[..file.len() * part / 8].to_vec(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_right_bytes() {
    let (bytes, file) = small();
    let cx = roomy();
    let mut survived = 0;
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match open(bad, &cx) {
            Ok(volume) => {
                assert!(read_all(&volume) == bytes, "bit {bit}");
                survived += 1;
            }
            Err(error) => {
                let kind = error.kind();
                assert!(
                    matches!(kind, Kind::Corrupt | Kind::NotThisFormat),
                    "bit {bit}: {error}"
                );
            }
        }
    }
    // Another level, the bits behind the end of a stream, tables for symbols that do not occur.
    assert!(survived < 60, "{survived} flips were not noticed");
    assert_eq!(cx.cache.used(), 0, "what is gone takes no memory");
}

#[test]
fn trailing_garbage_is_refused_by_name() {
    let file = bzip2(b"some bytes", &[]);
    for garbage in [&b"\0"[..], b"garbage", b"BZh", b"BZh0", &[0; 1000]] {
        let error = open([&file, garbage].concat(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        let expected = format!(
            "trailing garbage: {} bytes at {}",
            garbage.len(),
            file.len()
        );
        assert!(text.contains(&expected), "{text}");
    }
    // A header without a stream, and one with something else behind it.
    let error = open([&file[..], b"BZh9"].concat(), &roomy()).unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");
    let error = open([&file[..], b"BZh9 and no block"].concat(), &roomy()).unwrap_err();
    assert!(
        error.to_string().contains("neither a block nor the end"),
        "{error}"
    );
}
