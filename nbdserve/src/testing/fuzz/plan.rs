//! Finding out what an image is.

use super::{cx, is_printable, may_refuse};
use crate::layer::{LAYERS, Sample};
use crate::plan::{self, Info, LayerSpec, Pick, Plan, Purpose, fs};
use crate::size::parse_size;
use crate::source::Memory;
use crate::{Kind, Volume};

/// Every probe, and the recognition of file systems. The size of the image is a claim of its own.
pub(super) fn probe(data: &[u8]) {
    let head = &data[..data.len().min(Sample::HEAD)];
    let tail = &data[data.len().saturating_sub(Sample::TAIL)..];
    let sizes = [data.len() as u64, 0, 1 << 40, u64::MAX];
    for size in sizes {
        for tail in [None, Some(tail)] {
            let sample = Sample { head, tail, size };
            for layer in LAYERS {
                let _ = (layer.probe)(&sample);
            }
            if let Some((info, _)) = fs::recognise(&sample) {
                assert!(is_printable(&info.to_string()), "{info:?}");
            }
        }
    }
}

/// A whole image: what it is, as each purpose would have it, and the plan followed again.
pub(super) fn resolve(data: &[u8]) {
    let cx = cx();
    let source = || Memory::volume(data.to_vec());
    for (pick, purpose) in [
        (Pick::Auto, Purpose::FileSystem),
        (Pick::Disk, Purpose::Bytes),
        (Pick::Partition("1".to_owned()), Purpose::Bytes),
    ] {
        let layers = Vec::new();
        let request = plan::Request {
            layers,
            pick,
            purpose,
            ..plan::Request::default()
        };
        // Whatever a reader of file systems would say.
        let looks_like_root =
            |volume: &Volume, _: &plan::FsInfo| Some(volume.size().is_multiple_of(3));
        match plan::resolve(source(), "image", &request, &looks_like_root, &cx) {
            Ok(resolved) => {
                let size = resolved.volume.size();
                check_words(&resolved);
                follow(&resolved.plan, source(), size);
            }
            // A partition that is not there is no fault of the image.
            Err(error) if error.kind() == crate::Kind::OutOfRange => {}
            Err(error) => may_refuse(&error),
        }
    }
    match plan::inspect(source(), "image", &[], &cx) {
        Ok(resolved) => check_words(&resolved),
        Err(error) => may_refuse(&error),
    }
}

/// What is printed of an image that was recognised.
fn check_words(resolved: &plan::Resolved) {
    let text = Info::new(resolved).to_string();
    assert!(is_printable(&text), "{text:?}");
    let text = resolved.plan.to_string();
    assert!(is_printable(&text), "{text:?}");
}

/// A plan is written down and followed: it leads to the same bytes.
fn follow(plan: &Plan, source: Volume, size: u64) {
    // A plan holds text, numbers and lists of them; JSON has all of these.
    let json = serde_json::to_string(plan).unwrap_or_default();
    let read: Plan = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert_eq!(&read, plan);
    let opened = match plan::reopen(source, &read, &cx()) {
        Ok(opened) => opened,
        // Bytes may be served before their block is known to be damaged; the second time it is.
        Err(error) if error.kind() == Kind::Corrupt => return,
        Err(error) => panic!("{plan}: {error:?}"),
    };
    assert_eq!(opened.volume.size(), size, "{plan}");
}

/// What a user may write after `--layer` and `--cache-size`.
pub(super) fn layer_spec(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(spec) = text.parse::<LayerSpec>() {
        let written = spec.to_string();
        let read: LayerSpec = written
            .parse()
            .unwrap_or_else(|error| panic!("{text:?} became {written:?}: {error:?}"));
        assert_eq!(read, spec, "{text:?} became {written:?}");
    }
    let _ = parse_size(&text);
}
