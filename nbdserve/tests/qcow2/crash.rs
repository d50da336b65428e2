//! What is left of an image when its writer is killed, or the power fails: never an error, and all
//! that was flushed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{Faulty, Recorder, Rng, conformance, noise};
use nbdserve::{ByteRange, Cx, Kind, Result, Volume, ZeroOpts};

use crate::consistency;
use crate::encrypted::{PASSPHRASE, QUICK_LUKS, cx_with};
use crate::images::{Folder, MIB, cx, open_on};

const SECTOR: usize = 512;

/// What one operation did to the bytes of a disk.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(ByteRange),
    Trim(ByteRange),
    Flush,
}

impl Change {
    /// Whole sectors, depending on `seed` only.
    fn from_seed(seed: u64, size: u64, longest: u64) -> Self {
        let mut rng = Rng::new(seed);
        let sectors = rng.range(size / SECTOR as u64, longest / SECTOR as u64);
        let sector = SECTOR as u64;
        let range = ByteRange::between(sectors.start() * sector, sectors.end() * sector);
        match rng.below(16) {
            0 => Self::Zero(range),
            1 => Self::Trim(range),
            2 | 3 => Self::Flush,
            _ => Self::Write(range.start(), noise(range.len() as usize, seed)),
        }
    }

    fn apply(&self, volume: &Volume, seed: u64) {
        self.try_apply(volume, seed).unwrap();
    }

    fn try_apply(&self, volume: &Volume, seed: u64) -> Result<()> {
        let writer = volume.writer().unwrap();
        match self {
            Self::Write(at, bytes) => writer.write_at(bytes, *at, false),
            Self::Zero(range) => {
                let opts = ZeroOpts {
                    may_trim: seed.is_multiple_of(2),
                    ..ZeroOpts::default()
                };
                writer.zero(*range, opts).map(|_| ())
            }
            Self::Trim(range) => writer.trim(*range, false),
            Self::Flush => writer.flush(),
        }
    }

    fn range(&self) -> std::ops::Range<usize> {
        let range = match self {
            Self::Write(at, bytes) => ByteRange::between(*at, *at + bytes.len() as u64),
            Self::Zero(range) | Self::Trim(range) => *range,
            Self::Flush => ByteRange::between(0, 0),
        };
        range.start() as usize..range.end() as usize
    }

    /// What the sector at `at` may be after this, if it has a say in it. A trimmed one may be anything
    /// that it was, or zero.
    fn sector(&self, at: usize) -> Option<Vec<u8>> {
        let range = self.range();
        if !range.contains(&at) {
            return None;
        }
        match self {
            Self::Write(_, bytes) => Some(bytes[at - range.start..][..SECTOR].to_vec()),
            _ => Some(vec![0; SECTOR]),
        }
    }
}

/// Sector by sector what a disk may hold.
#[derive(Clone, Debug)]
struct Allowed(Vec<Vec<Vec<u8>>>);

impl Allowed {
    fn of(bytes: &[u8]) -> Self {
        Self(
            bytes
                .chunks(SECTOR)
                .map(|sector| vec![sector.to_vec()])
                .collect(),
        )
    }

    /// It may have been carried out, in part.
    fn maybe(&mut self, change: &Change) {
        for at in change.range().step_by(SECTOR) {
            self.0[at / SECTOR].extend(change.sector(at));
        }
    }

    /// It has returned.
    fn done(&mut self, change: &Change) {
        if matches!(change, Change::Trim(_)) {
            return self.maybe(change);
        }
        for at in change.range().step_by(SECTOR) {
            self.0[at / SECTOR] = change.sector(at).into_iter().collect();
        }
    }

    #[track_caller]
    fn judge(&self, found: &[u8], what: &str) {
        for (number, sector) in found.chunks(SECTOR).enumerate() {
            let allowed = &self.0[number];
            let known = allowed.iter().any(|one| one == sector);
            assert!(
                known,
                "{what}: sector {number} is none of {} it may be",
                allowed.len()
            );
        }
    }
}

/// Fails when qemu-img finds more than leaks.
fn check_by_qemu(folder: &Folder, name: &str, what: &str) {
    let mut command = nbdserve::testing::tools::command("qemu-img");
    let path = folder.path(name);
    // It looks for data files in the folder that it is in.
    command.current_dir(folder.path(""));
    if std::fs::read(&path).unwrap()[32..36] == [0, 0, 0, 2] {
        let secret = format!("secret,id=s,data={PASSPHRASE}");
        let image = format!(
            "driver=qcow2,encrypt.key-secret=s,file.filename={}",
            path.display()
        );
        command.args(["check", "--object", &secret, "--image-opts", &image]);
    } else {
        command.arg("check").arg(path);
    }
    let output = command.output().unwrap();
    let code = output.status.code();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        matches!(code, Some(0 | 3)),
        "{what}: {code:?} {text} {errors}"
    );
}

/// What happened to an image, with the moments at which it did.
struct Story {
    /// It is opened with this.
    cx: Cx,
    recorder: Recorder,
    /// A change, and how many events there were before and after it.
    changes: Vec<(usize, Change, usize)>,
    before: Vec<u8>,
}

impl Story {
    /// Writes to `image` at random.
    fn of(folder: &Folder, cx: Cx, changes: u64, longest: u64, seed: u64) -> Self {
        let path = folder.path("image");
        let (below, recorder) = Recorder::volume(std::fs::read(&path).unwrap());
        let volume = open_on(&below, &path, &[], &cx).unwrap();
        let mut story = Self {
            cx,
            before: conformance::read_all(&volume),
            recorder,
            changes: Vec::new(),
        };
        for number in 0..changes {
            let change = Change::from_seed(seed + number, volume.size(), longest);
            let begun = story.recorder.events();
            change.apply(&volume, seed + number);
            let ended = story.recorder.events();
            story.changes.push((begun, change, ended));
        }
        volume.close().unwrap();
        story
    }

    /// What the disk may hold when the first `events` were all, and unflushed ones may be lost.
    fn allowed(&self, events: usize) -> Allowed {
        let flushed = self
            .changes
            .iter()
            .rposition(|(_, change, ended)| matches!(change, Change::Flush) && *ended <= events);
        let mut allowed = Allowed::of(&self.before);
        for (number, (begun, change, _)) in self.changes.iter().enumerate() {
            if flushed.is_some_and(|flushed| number < flushed) {
                allowed.done(change);
            } else if *begun <= events {
                allowed.maybe(change);
            }
        }
        allowed
    }

    fn judge(&self, folder: &Folder, image: Vec<u8>, events: usize, by_qemu: bool, what: &str) {
        let errors = consistency::errors(&image);
        assert!(errors.is_empty(), "{what}: {errors:?}");
        let path = folder.path("image");
        if by_qemu {
            folder.write("cut", &image);
            check_by_qemu(folder, "cut", what);
        }
        let volume = open_on(&Memory::volume(image), &path, &[], &self.cx).unwrap();
        let found = conformance::read_all(&volume);
        self.allowed(events).judge(&found, what);
    }

    /// Cuts the story off at `cuts` places: before and after any event, at random when there are more.
    fn cut(&self, folder: &Folder, cuts: u64) {
        let all = self.recorder.events() as u64;
        let mut rng = Rng::new(99);
        for number in 0..cuts {
            let events = match cuts > all {
                true => number.min(all),
                false => rng.below(all + 1),
            } as usize;
            let by_qemu = number % 16 == 0;
            let killed = self.recorder.after(events);
            let what = format!("killed after {events} of {all}");
            self.judge(folder, killed, events, by_qemu, &what);
            let failed = self.recorder.after_power_failure(events, number);
            let what = format!("power failure {number} after {events} of {all}");
            self.judge(folder, failed, events, by_qemu, &what);
        }
    }
}

/// An image with these options and contents is written to, and cut off.
fn cut(make: impl Fn(&Folder), changes: u64, longest: u64, cuts: u64) {
    let folder = Folder::new();
    make(&folder);
    Story::of(&folder, cx(), changes, longest, 1).cut(&folder, cuts);
}

fn create(folder: &Folder, options: &str, size: usize) {
    let size = size.to_string();
    folder.create("image", &size, options);
}

#[test]
fn an_image_that_grows() {
    cut(
        |folder| create(folder, "cluster_size=4096", MIB),
        100,
        30_000,
        120,
    );
}

#[test]
fn an_image_whose_refcount_table_moves() {
    let make = |folder: &Folder| create(folder, "cluster_size=512,refcount_bits=64", 3 * MIB);
    cut(make, 100, 150_000, 60);
}

#[test]
fn an_image_with_subclusters() {
    let make = |folder: &Folder| create(folder, "extended_l2=on,cluster_size=16k", MIB);
    cut(make, 100, 30_000, 100);
}

#[test]
fn an_image_with_compressed_clusters_and_a_snapshot() {
    let make = |folder: &Folder| {
        folder.disk(MIB, 3);
        let options = "cluster_size=4096";
        folder.img(&[
            "convert", "-c", "-O", "qcow2", "-o", options, "raw", "image",
        ]);
        folder.img(&["snapshot", "-c", "then", "image"]);
    };
    cut(make, 100, 30_000, 120);
}

#[test]
fn an_image_with_a_backing_file() {
    let make = |folder: &Folder| {
        folder.disk(MIB, 3);
        let create = [
            "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "raw", "-o",
        ];
        folder.img(&[&create[..], &["cluster_size=4096", "image"]].concat());
    };
    cut(make, 100, 30_000, 100);
}

#[test]
fn an_image_of_the_second_version() {
    let make = |folder: &Folder| {
        folder.disk(MIB, 3);
        let options = "compat=0.10,cluster_size=1024";
        folder.img(&["convert", "-O", "qcow2", "-o", options, "raw", "image"]);
    };
    cut(make, 100, 20_000, 100);
}

/// The key is derived for each cut, so there are fewer.
#[test]
fn an_image_that_is_encrypted() {
    let folder = Folder::new();
    let size = MIB.to_string();
    let options = format!("{QUICK_LUKS},cluster_size=4096");
    folder.create_encrypted("image", &size, PASSPHRASE, &options);
    let cx = cx_with(PASSPHRASE);
    Story::of(&folder, cx, 60, 30_000, 1).cut(&folder, 20);
}

/// The checker finds what qemu-img finds.
#[test]
fn the_checker_agrees_with_qemu() {
    let folder = Folder::new();
    folder.disk(MIB, 3);
    folder.img(&[
        "convert",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4096",
        "raw",
        "image",
    ]);
    folder.img(&["snapshot", "-c", "then", "image"]);
    let good = folder.read("image");
    assert!(consistency::errors(&good).is_empty());
    let field = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let (l1, table) = (field(40), field(48));
    let block = field(table);
    let l2 = field(l1) & 0x00ff_ffff_ffff_fe00;
    let mut rng = Rng::new(4);
    let mut wrong = 0;
    for number in 0..24 {
        let mut bytes = good.clone();
        let at = match number % 3 {
            0 => block + rng.below(100) as usize * 2 + 1,
            1 => l2 + rng.below(200) as usize * 8,
            _ => l2 + rng.below(200) as usize * 8 + 6,
        };
        bytes[at] ^= if number % 3 == 1 { 0x80 } else { 0x10 };
        folder.write("cut", &bytes);
        let mut command = nbdserve::testing::tools::command("qemu-img");
        let status = command.args(["check"]).arg(folder.path("cut"));
        let code = status.output().unwrap().status.code();
        let errors = consistency::errors(&bytes);
        assert_eq!(
            code == Some(2),
            !errors.is_empty(),
            "{number}: {code:?} {errors:?}"
        );
        wrong += usize::from(code == Some(2));
    }
    assert!(wrong > 4, "{wrong}");
}

/// The size of the disk that is written to by a process which is killed.
const KILLED_DISK: usize = 4 * MIB;
const KILLED_LONGEST: u64 = 200_000;

/// Not a test by itself: the process that the next one kills. It writes until then, and tells what
/// it has flushed.
#[test]
#[ignore = "started and killed by a_process_is_killed_at_any_moment"]
fn the_process_that_is_killed() {
    let folder = std::env::var("QCOW2_KILLED_FOLDER").unwrap();
    let first: u64 = std::env::var("QCOW2_KILLED_FIRST")
        .unwrap()
        .parse()
        .unwrap();
    let path = std::path::Path::new(&folder).join("image");
    let below = loop {
        // See `Folder::run` on who may have it open.
        match File::open(&path, OpenMode::Write) {
            Ok(file) => break Volume::new(file),
            Err(error) if error.kind() == Kind::Denied => {}
            Err(error) => panic!("{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let volume = open_on(&below, &path, &[], &cx()).unwrap();
    let mut out = std::io::stderr();
    for number in first.. {
        let change = Change::from_seed(number, volume.size(), KILLED_LONGEST);
        // A line at once: it is there as a whole or not at all.
        out.write_all(format!("begin {number}\n").as_bytes())
            .unwrap();
        change.apply(&volume, number);
        if matches!(change, Change::Flush) {
            let line = format!("durable {number}\n");
            out.write_all(line.as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_process_is_killed_at_any_moment() {
    for options in [
        "cluster_size=65536",
        "cluster_size=4096",
        "cluster_size=16k,extended_l2=on",
        "data_file=data",
        "data_file=data,data_file_raw=on",
    ] {
        let folder = Folder::new();
        folder.disk(KILLED_DISK, 8);
        if options.starts_with("data_file") {
            create(&folder, options, KILLED_DISK);
            folder.img(&["convert", "-n", "-O", "qcow2", "raw", "image"]);
        } else {
            let options = ["-o", options, "raw", "image"];
            folder.img(&[&["convert", "-c", "-O", "qcow2"][..], &options].concat());
        }
        let mut allowed = Allowed::of(&folder.oracle("image", &[]));
        let mut next = 0;
        for kill in 0..12 {
            let me = std::env::current_exe().unwrap();
            let mut command = Command::new(me);
            command
                .args(["--ignored", "--exact", "crash::the_process_that_is_killed"])
                .args(["--nocapture", "--test-threads=1"])
                .env("QCOW2_KILLED_FOLDER", folder.path("."))
                .env("QCOW2_KILLED_FIRST", next.to_string())
                .process_group(0)
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stderr.take().unwrap()).lines();
            // After so many lines, and a moment.
            let mut left = 20 + (kill * 13 % 50) as i64;
            let (mut begun, mut durable) = (next, None);
            for line in lines {
                let line = line.unwrap_or_default();
                let number = line
                    .split_once(' ')
                    .and_then(|(_, number)| number.parse().ok());
                match (line.split_once(' '), number) {
                    (Some(("begin", _)), Some(number)) => begun = number,
                    (Some(("durable", _)), Some(number)) => durable = Some(number),
                    _ => panic!("{line}"),
                }
                left -= 1;
                if left == 0 {
                    std::thread::sleep(Duration::from_micros(kill * 137));
                    child.kill().unwrap();
                }
            }
            child.wait().unwrap();
            for number in next..=begun {
                let change = Change::from_seed(number, KILLED_DISK as u64, KILLED_LONGEST);
                if durable.is_some_and(|durable| number < durable) {
                    allowed.done(&change);
                } else {
                    allowed.maybe(&change);
                }
            }
            let what = format!("kill {kill}, changes {next} to {begun}, durable {durable:?}");
            check_by_qemu(&folder, "image", &what);
            let volume = folder.open("image").unwrap();
            let found = conformance::read_all(&volume);
            allowed.judge(&found, &what);
            allowed = Allowed::of(&found);
            next = begun + 1;
        }
    }
}

/// All of a disk. The fault may have met what was read ahead, and be told to who reads it.
fn read_in_the_end(volume: &Volume) -> Vec<u8> {
    let len = volume.size() as usize;
    let first = volume.read_vec(0, len);
    first.unwrap_or_else(|_| volume.read_vec(0, len).unwrap())
}

/// Each request to the file fails once, in turn: what was written stays readable, what is written
/// again arrives, and the file is clean in the end.
#[test]
fn a_request_that_fails_is_made_up_for() {
    let folder = Folder::new();
    folder.disk(MIB, 3);
    let options = ["-o", "cluster_size=4096", "raw", "image"];
    folder.img(&[&["convert", "-c", "-O", "qcow2"][..], &options].concat());
    folder.img(&["snapshot", "-c", "then", "image"]);
    let path = folder.path("image");
    let image = std::fs::read(&path).unwrap();
    let before = folder.oracle("image", &["-U"]);
    let run = |skip: Option<u64>| {
        let (recorder, handle) = Recorder::volume(image.clone());
        let (below, faults) = Faulty::volume(recorder);
        let volume = open_on(&below, &path, &[], &cx()).unwrap();
        let opened = faults.requests();
        if let Some(skip) = skip {
            faults.fail_nth(skip, Kind::Io);
        }
        let mut allowed = Allowed::of(&before);
        for number in 0..16 {
            let change = Change::from_seed(500 + number, volume.size(), 30_000);
            if change.try_apply(&volume, number).is_err() {
                allowed.maybe(&change);
                let found = read_in_the_end(&volume);
                allowed.judge(&found, &format!("read after fault {skip:?}"));
                change.apply(&volume, number);
            }
            allowed.done(&change);
        }
        let writer = volume.writer().unwrap();
        // The second one writes what the first has given back.
        for _ in 0..2 {
            if writer.flush().is_err() {
                writer.flush().unwrap();
            }
        }
        let requests = faults.requests() - opened;
        let found = read_in_the_end(&volume);
        allowed.judge(&found, &format!("fault {skip:?}"));
        volume.close().unwrap();
        drop(volume);
        let left = handle.after(handle.events());
        let errors = consistency::errors(&left);
        assert!(errors.is_empty(), "fault {skip:?}: {errors:?}");
        if skip.is_none_or(|skip| skip % 20 == 0) {
            folder.write("cut", &left);
            check_by_qemu(&folder, "cut", &format!("fault {skip:?}"));
        }
        let volume = open_on(&Memory::volume(left), &path, &[], &cx()).unwrap();
        allowed.judge(
            &conformance::read_all(&volume),
            &format!("again, fault {skip:?}"),
        );
        requests
    };
    let requests = run(None);
    assert!(requests > 30, "{requests}");
    for skip in 0..requests {
        run(Some(skip));
    }
}
