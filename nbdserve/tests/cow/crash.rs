//! Power failures and kill -9: what was flushed is there, the rest is old or new, never mixed up.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbdserve::layer::cow::COW;
use nbdserve::source::Memory;
use nbdserve::testing::{Platter, Rng, noise};
use nbdserve::{ByteRange, Kind, Volume, VolumeWriter, ZeroOpts};

use super::{cx, kept, on_platter};

/// Three sectors of the map and a bit, an odd number of bytes.
const DISK: u64 = 3 * 1984 * 4096 + 5 * 4096 + 700;
/// Where something is written: at the start, where a sector of the map ends, at the end.
const PLACES: [u64; 3] = [0, 1984 * 4096 - 24_576, DISK - 49_152];
/// Bytes at each.
const PLACE: u64 = 49_152;

/// What each byte at the places may be.
#[derive(Clone)]
struct Hopes {
    /// After the last flush.
    durable: Vec<u8>,
    /// Later versions.
    since: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Write(ByteRange, u64),
    Zero(ByteRange),
    Trim(ByteRange),
    Flush,
}

impl Change {
    fn random(rng: &mut Rng) -> Self {
        let place = PLACES[rng.below(3) as usize];
        let mut range = rng.range(PLACE, 9000);
        if rng.below(2) == 0 {
            // Whole blocks.
            let start = range.start() / 4096 * 4096;
            range = ByteRange::between(start, range.end().next_multiple_of(4096).min(PLACE));
        }
        let range = ByteRange::between(place + range.start(), place + range.end());
        match rng.below(8) {
            0..=4 => Self::Write(range, rng.next_u64()),
            5 => Self::Zero(range),
            6 => Self::Trim(range),
            _ => Self::Flush,
        }
    }

    fn apply(self, writer: &VolumeWriter<'_>) {
        match self {
            Self::Write(range, seed) => {
                let bytes = noise(range.len() as usize, seed);
                writer.write_at(&bytes, range.start(), false).unwrap();
            }
            Self::Zero(range) => {
                let _ = writer.zero(range, ZeroOpts::default()).unwrap();
            }
            Self::Trim(range) => writer.trim(range, false).unwrap(),
            Self::Flush => writer.flush().unwrap(),
        }
    }
}

/// Where the byte `offset` of the disk is in the copies of the places.
fn index(offset: u64) -> usize {
    let place = PLACES.iter().rposition(|at| *at <= offset).unwrap();
    (place as u64 * PLACE + offset - PLACES[place]) as usize
}

fn read_places(volume: &Volume) -> Vec<u8> {
    let read = |at: &u64| volume.read_vec(*at, PLACE as usize).unwrap();
    PLACES.iter().flat_map(read).collect()
}

impl Hopes {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            durable: bytes,
            since: Vec::new(),
        }
    }

    fn last(&self) -> &[u8] {
        self.since.last().unwrap_or(&self.durable)
    }

    /// A change is begun: it may be there.
    fn begin(&mut self, change: Change, base: &[u8]) {
        let mut next = self.last().to_vec();
        let span =
            |range: ByteRange| index(range.start())..index(range.start()) + range.len() as usize;
        match change {
            Change::Write(range, seed) => {
                next[span(range)].copy_from_slice(&noise(range.len() as usize, seed));
            }
            Change::Zero(range) => next[span(range)].fill(0),
            Change::Trim(range) => {
                // Zeroes, what was there, or what is below.
                let mut below = next.clone();
                below[span(range)].copy_from_slice(&base[span(range)]);
                self.since.push(below);
                let old = next.clone();
                next[span(range)].fill(0);
                self.since.push(next);
                next = old;
            }
            Change::Flush => return,
        }
        self.since.push(next);
    }

    /// A change is done; of a trim it is known by now what it has done.
    fn end(&mut self, change: Change, volume: &Volume) {
        match change {
            Change::Flush => *self = Self::new(read_places(volume)),
            Change::Trim(_) => self.since.push(read_places(volume)),
            Change::Write(..) | Change::Zero(_) => {}
        }
    }

    fn check(&self, volume: &Volume, when: &str) {
        let found = read_places(volume);
        let pairs = found.iter().zip(&self.durable).enumerate();
        let mut odd: Vec<usize> = pairs
            .filter(|(_, (found, old))| found != old)
            .map(|(at, _)| at)
            .collect();
        for version in &self.since {
            odd.retain(|at| version[*at] != found[*at]);
        }
        assert!(odd.is_empty(), "{when}: byte {} is wrong", odd[0]);
    }
}

fn base() -> (Volume, Vec<u8>) {
    let mut bytes = vec![3; DISK as usize];
    for (number, place) in PLACES.iter().enumerate() {
        let place = *place as usize;
        bytes[place..place + PLACE as usize].copy_from_slice(&noise(PLACE as usize, number as u64));
    }
    let volume = Memory::volume(bytes);
    let places = read_places(&volume);
    (volume, places)
}

#[test]
fn a_power_failure_at_any_point_leaves_what_was_flushed_and_nothing_wrong() {
    let (below, bytes) = base();
    let mut crashes = 0;
    for seed in 0..24 {
        let mut rng = Rng::new(seed);
        let platter = Platter::default();
        let volume = on_platter(&below, &platter).unwrap();
        let writer = volume.writer().unwrap();
        let mut hopes = Hopes::new(bytes.clone());
        let mut done = platter.count();
        for _ in 0..30 {
            let change = Change::random(&mut rng);
            let before = hopes.clone();
            hopes.begin(change, &bytes);
            change.apply(&writer);
            let count = platter.count();
            let events = platter.events();
            // In the midst of it, and when it was just done.
            for at in [
                done + (rng.below((count - done) as u64 + 1) as usize),
                count,
            ] {
                let mut hopes = hopes.clone();
                if at == count {
                    hopes.end(change, &volume);
                } else if let Change::Flush = change {
                    hopes = before.clone();
                }
                let left = Platter::after_crash(&events[..at], &mut rng);
                let again = on_platter(&below, &left)
                    .unwrap_or_else(|error| panic!("seed {seed}, {change:?}: {error:?}"));
                hopes.check(
                    &again,
                    &format!("seed {seed}, {change:?} at {at} of {count}"),
                );
                crashes += 1;
            }
            hopes.end(change, &volume);
            done = count;
        }
        assert_eq!(read_places(&volume), hopes.last());
    }
    assert!(crashes > 1000, "{crashes}");
}

#[test]
fn a_power_failure_while_the_file_is_made_leaves_one_that_opens() {
    let (below, bytes) = base();
    let platter = Platter::default();
    drop(on_platter(&below, &platter).unwrap());
    let events = platter.events();
    let mut rng = Rng::new(3);
    for at in [0, events.len()] {
        let left = Platter::after_crash(&events[..at], &mut rng);
        let again = on_platter(&below, &left).unwrap();
        assert!(read_places(&again) == bytes);
    }
}

#[test]
fn a_sync_that_fails_once_fails_every_later_flush() {
    let (below, _) = base();
    let platter = Platter::default();
    let volume = on_platter(&below, &platter).unwrap();
    let writer = volume.writer().unwrap();
    writer.write_at(&[1; 100], 0, false).unwrap();
    platter.fail(true);
    let error = writer.flush().unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("kept"), "{error}");
    platter.fail(false);
    // What the kernel could not store it does not try again.
    writer.flush().unwrap_err();
    volume.close().unwrap_err();
}

/// Set in the process that is killed, to the folder that it works in.
const CHILD: &str = "NBDSERVE_COW_CHILD";

/// The writer that is killed: the same changes for the same seed; it says when one was flushed.
fn write_until_killed(folder: &Path) {
    let seed = fs::read_to_string(folder.join("seed"))
        .unwrap()
        .parse()
        .unwrap();
    let (below, _) = base();
    let volume = (COW.open)(&below, &kept(&folder.join("kept")), &cx()).unwrap();
    let writer = volume.writer().unwrap();
    let mut rng = Rng::new(seed);
    let mut out = std::io::stdout();
    for number in 0_u64.. {
        let change = without_trim(&mut rng);
        change.apply(&writer);
        if let Change::Flush = change {
            writeln!(out, "durable:{number}").unwrap();
            out.flush().unwrap();
        }
    }
}

fn without_trim(rng: &mut Rng) -> Change {
    loop {
        match Change::random(rng) {
            Change::Trim(_) => {}
            other => return other,
        }
    }
}

#[test]
fn kill_9_at_any_point_leaves_what_was_flushed() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&folder));
    }
    let (below, bytes) = base();
    let test = "crash::kill_9_at_any_point_leaves_what_was_flushed";
    let mut rng = Rng::new(11);
    for seed in 0..24_u64 {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("seed"), seed.to_string()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        let wanted = rng.below(40);
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            if let Some((_, number)) = line.split_once("durable:") {
                last = Some(number.parse::<u64>().unwrap());
                seen += 1;
                if seen == wanted.max(1) {
                    std::thread::sleep(Duration::from_micros(rng.below(3000)));
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        // All up to the last flush that was told, and whatever may have come after it.
        let last = last.unwrap();
        let mut model = Rng::new(seed);
        let mut hopes = Hopes::new(bytes.clone());
        let mut later = 0;
        for number in 0.. {
            let change = without_trim(&mut model);
            hopes.begin(change, &bytes);
            if number <= last {
                if let Change::Flush = change {
                    hopes = Hopes::new(hopes.last().to_vec());
                }
            } else if let Change::Flush = change {
                // The one that was under way may have been done and not told.
                later += 1;
                if later == 2 {
                    break;
                }
            }
        }
        let again = (COW.open)(&below, &kept(&dir.path().join("kept")), &cx()).unwrap();
        hopes.check(&again, &format!("seed {seed} after change {last}"));
        again
            .writer()
            .unwrap()
            .write_at(&[1; 5000], 100, true)
            .unwrap();
    }
}
