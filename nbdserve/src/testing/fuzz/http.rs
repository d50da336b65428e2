//! The http source.

use crate::ByteRange;
use crate::source::http::multipart::{Event, Multipart, boundary};

/// Places and bytes of the parts, how the body ended, whether it was whole.
type Taken = (
    Vec<(ByteRange, Option<u64>, Vec<u8>)>,
    Option<&'static str>,
    bool,
);

/// Any bytes as a body of several parts: taken at once and in pieces, it is the same. And as the
/// field that names the delimiter.
pub(super) fn multipart(data: &[u8]) {
    let step = data.first().map_or(1, |first| usize::from(*first).max(1));
    let whole = take(data, data.len().max(1));
    assert_eq!(take(data, step), whole);
    for (range, total, bytes) in &whole.0 {
        assert!(bytes.len() as u64 <= range.len() && !range.is_empty());
        assert!(total.is_none_or(|total| range.end() <= total));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let found = boundary(&format!("multipart/byteranges;{text}"));
        assert!(found.is_none_or(|found| (1..=70).contains(&found.len())));
    }
}

fn take(body: &[u8], step: usize) -> Taken {
    let mut parser = Multipart::new(b"xyz".to_vec());
    let mut parts: Vec<(ByteRange, Option<u64>, Vec<u8>)> = Vec::new();
    for mut piece in body.chunks(step) {
        loop {
            match parser.next(&mut piece) {
                Ok(Some(Event::Part { range, total })) => parts.push((range, total, Vec::new())),
                Ok(Some(Event::Bytes(bytes))) => {
                    assert!(!bytes.is_empty());
                    let last = parts.last_mut();
                    last.unwrap_or_else(|| panic!("bytes of no part"))
                        .2
                        .extend_from_slice(bytes);
                }
                Ok(Some(Event::End) | None) => break,
                Err(why) => return (parts, Some(why), false),
            }
        }
    }
    (parts, None, parser.is_whole())
}
