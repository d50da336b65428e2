//! Writing: against a model, with qemu-img as the judge of what is in the file afterwards.

use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{Model, Op, Rng, conformance, noise};
use nbdserve::{ByteRange, Cx, Kind, Result, Volume, ZeroOpts};

use crate::images::{Folder, MIB, cx, open_on};

/// Longest random request.
const LONGEST: u64 = 300_000;

impl Folder {
    /// Opens an image for writing, which nobody else has open; see [`Self::run`] on who may seem to.
    pub(crate) fn open_rw(&self, name: &str) -> Result<Volume> {
        self.open_rw_with(name, &cx())
    }

    pub(crate) fn open_rw_with(&self, name: &str, cx: &Cx) -> Result<Volume> {
        for _ in 0..200 {
            match self.try_open_rw(name, cx) {
                Err(error) if error.kind() == Kind::Denied => {}
                result => return result,
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        self.try_open_rw(name, cx)
    }

    fn try_open_rw(&self, name: &str, cx: &Cx) -> Result<Volume> {
        let path = self.path(name);
        let below = Volume::new(File::open(&path, OpenMode::Write)?);
        open_on(&below, &path, &[], cx)
    }

    /// Fails unless qemu-img finds nothing wrong with an image, not even a leak.
    pub(crate) fn check(&self, name: &str) {
        self.img(&["check", name]);
    }
}

/// Writes to an image at random, closes and opens it between, and has qemu-img check and read it.
fn exercise(folder: &Folder, name: &str, rounds: u64, ops: u64) {
    let mut model = Model::new(folder.oracle(name, &[]));
    for round in 0..rounds {
        let volume = folder.open_rw(name).unwrap();
        for step in 0..ops {
            let op = Op::from_seed(round * 1000 + step, volume.size(), LONGEST);
            model.apply(&volume, op);
        }
        model.compare_all(&volume);
        volume.close().unwrap();
        drop(volume);
        folder.check(name);
        let all = ByteRange::between(0, model.bytes().len() as u64);
        model.compare(&folder.oracle(name, &[]), all);
        let volume = folder.open(name).unwrap();
        model.compare_all(&volume);
    }
}

/// An image made with these options, that is empty or has these bytes, and written to.
fn made(options: &str, size: usize, full: bool) {
    let folder = Folder::new();
    if full {
        folder.disk(size, 5);
        folder.img(&["convert", "-O", "qcow2", "-o", options, "raw", "image"]);
    } else {
        let size = size.to_string();
        folder.create("image", &size, options);
    }
    exercise(&folder, "image", 3, 120);
}

#[test]
fn an_empty_image_is_filled() {
    made("cluster_size=65536", 4 * MIB, false);
}

#[test]
fn a_full_image_is_overwritten() {
    made("cluster_size=65536", 4 * MIB, true);
}

#[test]
fn a_disk_may_end_within_a_cluster() {
    made("cluster_size=65536", 3 * MIB + 5 * 512, true);
    made("cluster_size=2M", 5 * MIB + 512, false);
    made("extended_l2=on", 2 * MIB + 3 * 512, true);
}

#[test]
fn clusters_of_every_size() {
    made("cluster_size=512", 2 * MIB, false);
    made("cluster_size=4096", 3 * MIB, true);
    made("cluster_size=2M", 9 * MIB, true);
}

#[test]
fn the_second_version_of_the_format() {
    made("compat=0.10", 3 * MIB, false);
    made("compat=0.10,cluster_size=512", 2 * MIB, true);
}

#[test]
fn refcounts_of_every_width() {
    for bits in [1, 2, 4, 8, 32, 64] {
        let options = format!("refcount_bits={bits},cluster_size=512");
        made(&options, MIB, bits == 2);
    }
}

#[test]
fn subclusters() {
    made("extended_l2=on", 4 * MIB, false);
    made("extended_l2=on,cluster_size=16k", 3 * MIB, true);
}

#[test]
fn compressed_clusters_are_replaced() {
    for options in [
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=4k",
        "compat=0.10",
        "extended_l2=on",
    ] {
        let folder = Folder::new();
        folder.disk(4 * MIB, 3);
        folder.img(&[
            "convert", "-c", "-O", "qcow2", "-o", options, "raw", "image",
        ]);
        exercise(&folder, "image", 3, 100);
    }
}

#[test]
fn a_backing_file_shows_through_and_is_not_touched() {
    for options in [
        "cluster_size=65536",
        "compat=0.10",
        "extended_l2=on",
        "cluster_size=512",
    ] {
        let folder = Folder::new();
        folder.disk(2 * MIB + 1536, 7);
        folder.img(&["convert", "-c", "-O", "qcow2", "raw", "base"]);
        let before = folder.read("base");
        let size = (3 * MIB).to_string();
        let create = [
            "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "-o",
        ];
        folder.img(&[&create[..], &[options, "image", &size]].concat());
        exercise(&folder, "image", 3, 100);
        assert!(folder.read("base") == before);
    }
}

#[test]
fn internal_snapshots_keep_what_they_hold() {
    for options in [
        "cluster_size=65536",
        "extended_l2=on",
        "cluster_size=512",
        "compat=0.10",
    ] {
        let folder = Folder::new();
        folder.disk(2 * MIB, 11);
        folder.img(&[
            "convert", "-c", "-O", "qcow2", "-o", options, "raw", "image",
        ]);
        let mut kept = Vec::new();
        for round in 0..3 {
            let snapshot = format!("s{round}");
            folder.img(&["snapshot", "-c", &snapshot, "image"]);
            kept.push((snapshot, folder.oracle("image", &[])));
            exercise(&folder, "image", 1, 80);
        }
        for (snapshot, bytes) in &kept {
            assert!(
                folder.oracle("image", &["-l", snapshot]) == *bytes,
                "{options}"
            );
        }
        // Going back to one, and dropping one, counts every cluster.
        folder.img(&["snapshot", "-d", "s0", "image"]);
        folder.img(&["snapshot", "-a", "s1", "image"]);
        folder.check("image");
        assert!(folder.oracle("image", &[]) == kept[1].1);
        exercise(&folder, "image", 1, 80);
    }
}

#[test]
fn a_data_file_of_its_own() {
    for options in [
        "data_file=data",
        "data_file=data,extended_l2=on",
        "data_file=data,data_file_raw=on",
    ] {
        let folder = Folder::new();
        let size = (3 * MIB + 512).to_string();
        folder.create("image", &size, options);
        exercise(&folder, "image", 3, 100);
        if options.contains("raw") {
            let data = folder.read("data");
            let seen = folder.oracle("image", &[]);
            // qemu-img makes it as long as its clusters.
            assert_eq!(data.len(), seen.len().next_multiple_of(65536));
            let differs = data.iter().zip(&seen).position(|(one, other)| one != other);
            assert_eq!(differs, None);
        }
    }
}

#[test]
fn many_clusters_take_more_blocks_of_refcounts_and_a_longer_table() {
    let folder = Folder::new();
    let options = "cluster_size=512,refcount_bits=64";
    let size = 24 * MIB;
    folder.create("image", &size.to_string(), options);
    let volume = folder.open_rw("image").unwrap();
    let writer = volume.writer().unwrap();
    let bytes = noise(size, 9);
    // A table of one cluster counts 2 MiB.
    for (number, piece) in bytes.chunks(777_777).enumerate() {
        writer
            .write_at(piece, number as u64 * 777_777, number % 5 == 0)
            .unwrap();
    }
    assert!(conformance::read_all(&volume) == bytes);
    volume.close().unwrap();
    drop(volume);
    folder.check("image");
    assert!(folder.oracle("image", &[]) == bytes);
    exercise(&folder, "image", 1, 30);
}

#[test]
fn the_contract_of_devices_is_kept() {
    for options in ["cluster_size=65536", "extended_l2=on", "cluster_size=512"] {
        let folder = Folder::new();
        let disk = folder.disk(MIB + 512, 13);
        // One each: the suite has several open at once.
        let made = std::cell::Cell::new(0);
        let open = || {
            let name = format!("image{}", made.get());
            made.set(made.get() + 1);
            folder.img(&["convert", "-c", "-O", "qcow2", "-o", options, "raw", &name]);
            (folder.open_rw(&name).unwrap(), disk.clone())
        };
        conformance::check(open);
        conformance::check_writer(open);
        assert!(made.get() > 4);
        for number in 0..made.get() {
            folder.check(&format!("image{number}"));
        }
    }
}

#[test]
fn a_trim_gives_space_back() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "16M"]);
    let volume = folder.open_rw("image").unwrap();
    let writer = volume.writer().unwrap();
    writer.write_at(&noise(8 * MIB, 1), 0, true).unwrap();
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(folder.path("image")).unwrap().blocks()
    };
    let full = blocks();
    let range = ByteRange::between(0, 8 * MIB as u64);
    writer.trim(range, false).unwrap();
    assert!(
        blocks() >= full,
        "nothing is given back before that is safe"
    );
    writer.flush().unwrap();
    assert!(blocks() < full / 4, "{} of {full}", blocks());
    assert!(
        volume
            .read_vec(0, 8 * MIB)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    // The space is used again.
    writer
        .write_at(&noise(8 * MIB, 2), 8 * MIB as u64, true)
        .unwrap();
    let len = std::fs::metadata(folder.path("image")).unwrap().len();
    assert!(len < 10 * MIB as u64, "{len}");
    volume.close().unwrap();
    drop(volume);
    folder.check("image");
}

#[test]
fn a_trim_makes_holes_in_a_data_file() {
    for options in [
        "data_file=data",
        "data_file=data,extended_l2=on",
        "data_file=data,data_file_raw=on",
        "data_file=data,data_file_raw=on,preallocation=metadata",
    ] {
        for zero in [false, true] {
            let folder = Folder::new();
            folder.create("image", "16M", options);
            let volume = folder.open_rw("image").unwrap();
            let writer = volume.writer().unwrap();
            let mut bytes = noise(8 * MIB, 1);
            writer.write_at(&bytes, 0, true).unwrap();
            let blocks = || {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata(folder.path("data")).unwrap().blocks()
            };
            let full = blocks();
            assert!(full >= 8 * MIB as u64 / 512, "{options}: {full}");
            // Not at the borders of clusters, which the neighbours keep.
            let hole = ByteRange::between(65536 - 512, 7 * MIB as u64 + 512);
            let opts = ZeroOpts {
                may_trim: true,
                fua: false,
                fast_only: false,
            };
            if zero {
                assert_eq!(writer.zero(hole, opts).unwrap(), nbdserve::Done::Yes);
            } else {
                writer.trim(hole, false).unwrap();
            }
            // Written again before the flush: the hole does not swallow it.
            let again = noise(300_000, 2);
            writer.write_at(&again, MIB as u64 + 100, false).unwrap();
            writer.flush().unwrap();
            assert!(blocks() < full / 3, "{options}: {} of {full}", blocks());
            let (start, end) = (65536 - 512, 7 * MIB + 512);
            bytes[start..end].fill(0);
            bytes[MIB + 100..][..again.len()].copy_from_slice(&again);
            let found = volume.read_vec(0, bytes.len()).unwrap();
            // What is no whole cluster of a trim may stay.
            let (from, to) = if zero {
                (start, end)
            } else {
                (start.next_multiple_of(65536), end - 65536)
            };
            assert!(found[..start] == bytes[..start], "{options}");
            assert!(found[from..to] == bytes[from..to], "{options}");
            assert!(found[end..] == bytes[end..], "{options}");
            volume.close().unwrap();
            drop(volume);
            folder.check("image");
            assert!(folder.oracle("image", &[])[..found.len()] == found);
            if options.contains("raw") {
                let data = folder.read("data");
                assert!(data[..found.len()] == found, "{options}");
            }
        }
    }
}

#[test]
fn zeroes_take_no_space_and_no_time() {
    let folder = Folder::new();
    folder.disk(4 * MIB, 2);
    folder.img(&["convert", "-O", "qcow2", "raw", "base"]);
    let create = [
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "image", "64G",
    ];
    folder.img(&create);
    let volume = folder.open_rw("image").unwrap();
    let writer = volume.writer().unwrap();
    let opts = ZeroOpts {
        may_trim: true,
        fua: false,
        fast_only: true,
    };
    let range = ByteRange::between(0, 1 << 30);
    assert_eq!(writer.zero(range, opts).unwrap(), nbdserve::Done::Yes);
    volume.close().unwrap();
    let runs = volume.extents(range).unwrap();
    assert_eq!(runs.runs().len(), 1, "{runs:?}");
    drop(volume);
    folder.check("image");
    assert!(std::fs::metadata(folder.path("image")).unwrap().len() < 4 * MIB as u64);
}

#[test]
fn threads_write_side_by_side() {
    let folder = Folder::new();
    folder.disk(4 * MIB, 21);
    folder.img(&["convert", "-c", "-O", "qcow2", "raw", "image"]);
    let expected = folder.oracle("image", &[]);
    let volume = folder.open_rw("image").unwrap();
    // Each owns every eighth 4 KiB: clusters are shared by all of them.
    let expected = std::sync::Mutex::new(expected);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (volume, expected) = (&volume, &expected);
            scope.spawn(move || {
                let writer = volume.writer().unwrap();
                let mut rng = Rng::new(thread);
                for step in 0..200 {
                    let block = rng.below(4 * MIB as u64 / 32768) * 8 + thread;
                    let at = block * 4096;
                    match rng.below(8) {
                        0 => {
                            let range = ByteRange::between(at, at + 4096);
                            let _ = writer.zero(range, ZeroOpts::default()).unwrap();
                            expected.lock().unwrap()[at as usize..][..4096].fill(0);
                        }
                        1 => writer.flush().unwrap(),
                        _ => {
                            let bytes = noise(4096, thread * 1000 + step);
                            writer.write_at(&bytes, at, false).unwrap();
                            expected.lock().unwrap()[at as usize..][..4096].copy_from_slice(&bytes);
                            assert!(volume.read_vec(at, 4096).unwrap() == bytes);
                        }
                    }
                }
            });
        }
    });
    let expected = expected.into_inner().unwrap();
    assert!(conformance::read_all(&volume) == expected);
    volume.close().unwrap();
    drop(volume);
    folder.check("image");
    assert!(folder.oracle("image", &[]) == expected);
}

#[test]
fn what_must_not_be_written_is_refused_by_name() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "1M"]);
    let good = folder.read("image");
    for (bit, word) in [(0, "check -r all"), (1, "corrupt")] {
        let mut bytes = good.clone();
        bytes[79] = 1 << bit;
        std::fs::write(folder.path("image"), &bytes).unwrap();
        let error = folder.open_rw("image").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(
            error.report().to_string().contains(word),
            "{}",
            error.report()
        );
        // Reading is another matter.
        folder.open("image").unwrap();
    }
}

/// Whoever writes remembers where the tables are. What an image says of them takes no memory for it.
#[test]
fn tables_that_are_said_to_be_huge_take_no_memory() {
    use crate::forge::{extensions, image, put32};
    let folder = Folder::new();
    for entries in [(32 << 20) / 8 + 1, 0x6900_0004, u32::MAX] {
        let mut bytes = image();
        // Its data are elsewhere, or they would be where the table is.
        put32(&mut bytes, 36, entries);
        folder.write("image", &bytes);
        let error = folder.open_rw("image").unwrap_err();
        assert_eq!(error.kind(), Kind::Limit, "{error:?}");
        folder.open("image").unwrap();
    }
    // A LUKS header of an image that is not encrypted.
    let mut bytes = image();
    let place = [4096_u64.to_be_bytes(), (u64::MAX >> 1).to_be_bytes()].concat();
    extensions(&mut bytes, &[(0x0537_be77, place)]);
    folder.write("image", &bytes);
    assert_eq!(folder.open_rw("image").unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_snapshot_that_is_shown_cannot_be_written() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "1M"]);
    folder.img(&["snapshot", "-c", "then", "image"]);
    let path = folder.path("image");
    let below = Volume::new(File::open(&path, OpenMode::Write).unwrap());
    let volume = open_on(&below, &path, &[("snapshot", "then")], &cx()).unwrap();
    assert!(volume.writer().is_none());
}

#[test]
fn features_that_are_not_kept_true_are_cleared_by_the_first_write() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "1M"]);
    folder.img(&["bitmap", "--add", "image", "b"]);
    let autoclear = || folder.read("image")[88..96].to_vec();
    assert_eq!(autoclear()[7], 1);
    let mut bytes = folder.read("image");
    bytes[88] = 0x80;
    std::fs::write(folder.path("image"), bytes).unwrap();
    let volume = folder.open_rw("image").unwrap();
    assert_eq!(autoclear()[0], 0x80, "nothing was written yet");
    volume.writer().unwrap().write_at(&[1], 0, false).unwrap();
    assert_eq!(autoclear(), [0; 8]);
    volume.close().unwrap();
}

#[test]
fn qemu_sees_that_an_image_is_being_written() {
    let folder = Folder::new();
    folder.disk(MIB, 1);
    folder.img(&["convert", "-O", "qcow2", "raw", "base"]);
    let create = [
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "image", "1M",
    ];
    folder.img(&create);
    let volume = folder.open_rw("image").unwrap();
    volume
        .writer()
        .unwrap()
        .write_at(&noise(MIB, 1), 0, true)
        .unwrap();
    let qemu_io = |args: &[&str]| {
        let mut command = nbdserve::testing::tools::command("qemu-io");
        let command = command.current_dir(folder.path("."));
        command.args(args).output().unwrap()
    };
    for args in [
        ["-c", "read 0 512", "image"],
        ["-c", "write 0 512", "image"],
    ] {
        let output = qemu_io(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("lock"),
            "{args:?}: {text}"
        );
    }
    // The backing file may be read by others, and not written.
    assert!(
        qemu_io(&["-r", "-c", "read 0 512", "base"])
            .status
            .success()
    );
    assert!(!qemu_io(&["-c", "write 0 512", "base"]).status.success());
    assert_eq!(
        folder.try_open_rw("image", &cx()).unwrap_err().kind(),
        Kind::Denied
    );
    volume.close().unwrap();
    drop(volume);
    folder.run("qemu-io", &["-c", "write 0 512", "image"]);
}

#[test]
fn a_part_of_a_disk_does_not_grow() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "8M"]);
    // A partition of 1 MiB with the image in it.
    let mut bytes = folder.read("image");
    bytes.resize(MIB, 0);
    let mut disk = vec![0; MIB];
    disk.extend(bytes);
    disk.extend(noise(MIB, 5));
    folder.write("disk", &disk);
    let path = folder.path("disk");
    let below = Volume::new(File::open(&path, OpenMode::Write).unwrap());
    let args = [("offset", "1M"), ("size", "1M")];
    let args = args.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let args = nbdserve::layer::Args::from(args);
    let part = (nbdserve::layer::offset::OFFSET.open)(&below, &args, &cx()).unwrap();
    let volume = open_on(&part, &path, &[], &cx()).unwrap();
    let writer = volume.writer().unwrap();
    let piece = noise(65536, 1);
    let mut written = 0;
    let error = loop {
        match writer.write_at(&piece, written * 65536, true) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!((8..15).contains(&written), "{written}");
    volume.close().unwrap();
    let all = conformance::read_all(&volume);
    assert!(
        all[..written as usize * 65536]
            .chunks(65536)
            .all(|found| found == piece)
    );
    drop((volume, part, below));
    let after = std::fs::read(&path).unwrap();
    assert!(after[2 * MIB..] == disk[2 * MIB..] && after.len() == disk.len());
    std::fs::write(folder.path("image"), &after[MIB..2 * MIB]).unwrap();
    folder.check("image");
}

/// The refcount of a table is zero, though nothing says that the image is damaged: its place is not
/// taken for new data. And an L2 entry may point at a table: nothing is written there either.
#[test]
fn tables_that_look_free_or_like_data_are_not_overwritten() {
    use crate::forge::{CLUSTER, COPIED, DATA, L1, L2, image, put64};
    let folder = Folder::new();
    let names = ["header", "refcount table", "refcounts", "L1", "L2"];
    for (cluster, name) in names.into_iter().enumerate() {
        let good = image();
        let at = cluster * CLUSTER;
        for lie in ["free", "data"] {
            let mut bytes = good.clone();
            match lie {
                "free" => bytes[2 * CLUSTER + 2 * cluster + 1] = 0,
                _ => put64(&mut bytes, L2 + 8, at as u64 | COPIED),
            }
            folder.write("image", &bytes);
            let volume = folder.open_rw("image").unwrap();
            let writer = volume.writer().unwrap();
            // One that is there, or is said to be, and new ones.
            let mut refused = 0;
            for at in [CLUSTER, 5 * CLUSTER, 9 * CLUSTER] {
                match writer.write_at(&noise(CLUSTER, at as u64), at as u64, false) {
                    Err(error) => {
                        assert_eq!(error.kind(), Kind::Corrupt, "{name} {lie}: {error:?}");
                        refused += 1;
                    }
                    Ok(()) => assert!(lie == "free" || at != CLUSTER || cluster == 0, "{name}"),
                }
            }
            // The first cluster is never looked at, and nothing points there.
            assert!(refused > 0 || name == "header", "{name} {lie}");
            let _ = volume.close();
            drop(volume);
            let found = folder.read("image");
            let whole = match name {
                // Entries of its own change; the others are as they were.
                "refcounts" => 0,
                "L2" => 8,
                _ => CLUSTER,
            };
            assert!(
                found[at..at + whole] == bytes[at..at + whole],
                "{name} {lie}"
            );
            assert_eq!(found[L1..L1 + 8], bytes[L1..L1 + 8], "{name} {lie}");
            assert!(
                found[DATA + 2 * CLUSTER..][..2 * CLUSTER]
                    == bytes[DATA + 2 * CLUSTER..][..2 * CLUSTER]
            );
        }
    }
}
