//! What the tests of all disk formats have in common.

use std::fs;
use std::path::{Path, PathBuf};

use nbdserve::layer::{Args, LayerType, Sample, Verdict};
use nbdserve::references::References;
use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{noise, tools};
use nbdserve::{ByteRange, Cx, Error, Kind, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

/// A disk of so many MiB: noise, text, zeroes, a sector here and there.
pub(crate) fn disk(mib: usize) -> Vec<u8> {
    let mut bytes = vec![0; mib * MIB];
    let end = bytes.len();
    bytes[..300_000].copy_from_slice(&noise(300_000, 1));
    for (number, line) in bytes[MIB..MIB + 400_000].chunks_mut(16).enumerate() {
        let text = format!("line {number:010}\n");
        line.copy_from_slice(text.as_bytes());
    }
    for at in (2 * MIB..end).step_by(600_064) {
        let len = 512.min(end - at);
        bytes[at..at + len].copy_from_slice(&noise(len, at as u64));
    }
    bytes[end - 5000..].copy_from_slice(&noise(5000, 9));
    bytes
}

/// A folder with an image that `qemu-img convert` made of some bytes.
pub(crate) struct Made {
    _dir: tempfile::TempDir,
    pub(crate) image: PathBuf,
}

impl Made {
    /// `qemu-img convert -O FORMAT -o OPTIONS`.
    pub(crate) fn new(bytes: &[u8], format: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        fs::write(&raw, bytes).unwrap();
        let image = dir.path().join(format!("disk.{format}"));
        convert(&raw, "raw", &image, format, options);
        fs::remove_file(&raw).unwrap();
        Self { _dir: dir, image }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }
}

/// A file in `dir`.
pub(crate) fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

pub(crate) fn convert(from: &Path, from_format: &str, to: &Path, format: &str, options: &str) {
    let mut command = tools::command("qemu-img");
    command.args(["convert", "-f", from_format, "-O", format]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    tools::run_command(command.arg(from).arg(to));
}

/// What qemu reads.
pub(crate) fn qemu_reads(image: &Path, format: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    convert(image, format, &raw, "raw", "");
    fs::read(raw).unwrap()
}

pub(crate) fn cx() -> Cx {
    Cx::new(16 << 20)
}

/// With files beside `image` that it may refer to.
pub(crate) fn cx_of(image: &Path) -> Cx {
    let mut cx = cx();
    let opened = fs::File::open(image).unwrap();
    cx.references = References::of(image, opened, &[]).unwrap();
    cx
}

/// Opens an image in memory, which may refer to nothing.
pub(crate) fn open_bytes(layer: &LayerType, bytes: &[u8]) -> Result<Volume> {
    (layer.open)(&Memory::volume(bytes.to_vec()), &Args::new(), &cx())
}

/// Opens an image that may refer to files in its folder.
pub(crate) fn open_file(layer: &LayerType, image: &Path) -> Result<Volume> {
    let file = File::open(image, OpenMode::ReadOnly)?;
    (layer.open)(&Volume::new(file), &Args::new(), &cx_of(image))
}

pub(crate) fn read_all(volume: &Volume) -> Result<Vec<u8>> {
    volume.read_vec(0, volume.size() as usize)
}

/// How opening `bytes` and reading all of it fails.
pub(crate) fn error_of(layer: &LayerType, bytes: &[u8]) -> Error {
    let found = open_bytes(layer, bytes).and_then(|volume| read_all(&volume));
    found
        .map(|found| found.len())
        .expect_err("it must not be read")
}

/// As [`error_of`], for a file.
pub(crate) fn error_of_file(layer: &LayerType, image: &Path) -> Error {
    let found = open_file(layer, image).and_then(|volume| read_all(&volume));
    found
        .map(|found| found.len())
        .expect_err("it must not be read")
}

/// `bytes` with others at `at`.
pub(crate) fn with(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Opens and reads without a panic; what is given is right, or it is an error of these kinds.
pub(crate) fn is_right_or_refused(layer: &LayerType, bytes: &[u8], what: &str) {
    match open_bytes(layer, bytes) {
        Ok(volume) => {
            let size = volume.size();
            for at in [0, size / 2, size.saturating_sub(4096)] {
                let len = 4096.min(size - at) as usize;
                if let Err(error) = volume.read_vec(at, len) {
                    may_be(&error, what);
                }
            }
            if let Err(error) = volume.extents(ByteRange::between(0, size)) {
                may_be(&error, what);
            }
            assert!(volume.notes().len() < 9, "{what}");
        }
        Err(error) => may_be(&error, what),
    }
}

fn may_be(error: &Error, what: &str) {
    let kinds = [
        Kind::Corrupt,
        Kind::Unsupported,
        Kind::NotThisFormat,
        Kind::Limit,
    ];
    assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
}

/// Each field of `fields` (offset and width) with 0, 1, the largest but one and the largest value.
pub(crate) fn lie_in_each_field(
    bytes: &[u8],
    fields: &[(usize, usize)],
    mend: impl Fn(&mut Vec<u8>),
    check: impl Fn(&[u8], &str),
) {
    for &(at, width) in fields {
        let mut one = vec![0; width];
        one[0] = 1;
        let mut last = vec![0; width];
        last[width - 1] = 1;
        let mut most_but_one = vec![0xff; width];
        most_but_one[0] = 0xfe;
        let mut most_but_last = vec![0xff; width];
        most_but_last[width - 1] = 0xfe;
        for new in [
            vec![0; width],
            one,
            last,
            most_but_one,
            most_but_last,
            vec![0xff; width],
        ] {
            let mut lying = with(bytes, at, &new);
            mend(&mut lying);
            check(&lying, &format!("{new:02x?} at {at:#x}"));
        }
    }
}

/// Whether the probe of `layer` knows the image by its first and last bytes.
pub(crate) fn is_probed(layer: &LayerType, bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(Sample::HEAD)];
    let tail = &bytes[bytes.len() - bytes.len().min(Sample::TAIL)..];
    let sample = Sample {
        head,
        tail: Some(tail),
        size: bytes.len() as u64,
    };
    match (layer.probe)(&sample) {
        Verdict::Yes { evidence, .. } => Some(evidence),
        Verdict::No => None,
    }
}

/// The parts of the disk that have data, as `qemu-img map` has them: (start, length), neighbours
/// merged.
pub(crate) fn qemu_data(image: &Path, format: &str) -> Vec<(u64, u64)> {
    let mut command = tools::command("qemu-img");
    command
        .args(["map", "--output=json", "-f", format])
        .arg(image);
    let text = tools::run_command(&mut command);
    let number = |line: &str, key: &str| -> u64 {
        let at = line.find(key).unwrap() + key.len();
        let digits = line[at..].trim_start_matches([' ', ':', '"']);
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits[..end.unwrap_or(digits.len())].parse().unwrap()
    };
    let mut found: Vec<(u64, u64)> = Vec::new();
    for line in text.lines().filter(|line| line.contains("\"data\": true")) {
        let (start, len) = (number(line, "\"start\""), number(line, "\"length\""));
        match found.last_mut() {
            Some((before, had)) if *before + *had == start => *had += len,
            _ => found.push((start, len)),
        }
    }
    found
}

/// The same of a volume.
pub(crate) fn our_data(volume: &Volume) -> Vec<(u64, u64)> {
    let extents = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    let runs = extents.runs().iter().filter(|run| !run.flags.zero);
    let mut found: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        let (start, len) = (run.range.start(), run.range.len());
        match found.last_mut() {
            Some((before, had)) if *before + *had == start => *had += len,
            _ => found.push((start, len)),
        }
    }
    found
}

/// An image of `disk` that was cut off after `len` bytes: it is opened, which is said of it, and what is
/// missing is corrupt, never zeroes.
pub(crate) fn a_cut_is_told_of(layer: &LayerType, image: &[u8], len: usize, disk: &[u8]) {
    let told = |volume: &Volume| {
        let notes = volume.notes();
        notes.iter().any(|note| note.contains("was cut off"))
    };
    let whole = open_bytes(layer, image).unwrap();
    assert!(!told(&whole), "{:?}", whole.notes());
    let volume = open_bytes(layer, &image[..len]).unwrap();
    assert!(told(&volume), "{len} of {}", image.len());
    let note = volume.notes().join("; ");
    assert!(note.contains(&format!("the file at {len};")), "{note}");
    let (mut right, mut missing) = (0, 0);
    for (number, expected) in disk.chunks(4096).enumerate() {
        match volume.read_vec(number as u64 * 4096, expected.len()) {
            Ok(found) => {
                assert!(found == expected, "{number} of a file of {len}");
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                let hint = error.report().hint;
                assert!(hint.unwrap().contains("download it again"), "{error}");
                missing += 1;
            }
        }
    }
    assert!(right > 0 && missing > 0, "{right} {missing}");
}
