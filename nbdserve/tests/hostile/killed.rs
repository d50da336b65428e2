//! Whoever writes to a LUKS image may be killed, and the power may fail, at any point: the header is
//! as it was, what was flushed is there, and no other sector has changed.

use std::sync::Arc;

use nbdserve::layer::Args;
use nbdserve::layer::luks::LUKS;
use nbdserve::secret::{OneSecret, Secret};
use nbdserve::source::Memory;
use nbdserve::testing::{Recorder, Rng, conformance, disk_like, noise, tools};
use nbdserve::{Cx, Volume};

use crate::images::{Folder, MIB};

const HEAD: usize = 2 * MIB;
const DATA: usize = 96 << 10;
const SECTOR: usize = 512;
const PASS: &str = "correct horse";

fn open(below: &Volume) -> Volume {
    let mut cx = Cx::new(16 << 20);
    cx.secrets = Arc::new(OneSecret(Secret::new(PASS.as_bytes().to_vec())));
    (LUKS.open)(below, &Args::new(), &cx).unwrap()
}

/// A write, or `None`: a flush. Depends on `seed`; the ends are anywhere.
fn change(seed: u64) -> Option<(usize, Vec<u8>)> {
    let mut rng = Rng::new(seed);
    let range = rng.range(DATA as u64, 9000);
    let len = range.len() as usize;
    (rng.below(5) > 0).then(|| (range.start() as usize, noise(len, seed)))
}

/// What each sector may hold.
struct Allowed {
    now: Vec<u8>,
    sectors: Vec<Vec<Vec<u8>>>,
}

impl Allowed {
    fn of(bytes: Vec<u8>) -> Self {
        let sectors = bytes.chunks(SECTOR).map(|sector| vec![sector.to_vec()]);
        let sectors = sectors.collect();
        Self {
            now: bytes,
            sectors,
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8], durable: bool) {
        self.now[at..at + bytes.len()].copy_from_slice(bytes);
        for number in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            let new = self.now[number * SECTOR..][..SECTOR].to_vec();
            let sector = &mut self.sectors[number];
            if durable {
                sector.clear();
            }
            sector.push(new);
        }
    }
}

fn cryptsetup(folder: &Folder, args: &[&str]) {
    let mut command = tools::command("cryptsetup");
    command
        .args(["--batch-mode", "--key-file"])
        .arg(folder.path("key"));
    tools::run_command(command.args(args).arg(folder.path("image")));
}

#[test]
fn an_encrypted_disk_that_is_written_to() {
    let cheap = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];
    let formats: [&[&str]; 3] = [
        &[
            "--type=luks1",
            "--align-payload=4096",
            "--cipher=aes-cbc-essiv:sha256",
            "--key-size=256",
        ],
        &["--type=luks1", "--align-payload=4096"],
        &[
            "--type=luks2",
            "--luks2-keyslots-size=2064384",
            "--offset=4096",
            "--sector-size=4096",
        ],
    ];
    for format in formats {
        let folder = Folder::new();
        folder.write("key", PASS.as_bytes());
        folder.write("image", &vec![0; HEAD + DATA]);
        cryptsetup(&folder, &[&["luksFormat"], &cheap[..], format].concat());
        let (below, recorder) = Recorder::volume(folder.read("image"));
        let volume = open(&below);
        assert_eq!(volume.size(), DATA as u64);
        let writer = volume.writer().unwrap();
        let plain = disk_like(DATA, 4);
        writer.write_at(&plain, 0, false).unwrap();
        writer.flush().unwrap();
        let first = recorder.events();
        let mut changes = Vec::new();
        for seed in 0..60 {
            let begun = recorder.events();
            let change = change(seed);
            match &change {
                Some((at, bytes)) => writer.write_at(bytes, *at as u64, false).unwrap(),
                None => writer.flush().unwrap(),
            }
            changes.push((begun, change, recorder.events()));
        }
        let all = recorder.events();
        let image = conformance::read_all(&below);

        // One that is open, and given other bytes: the key is derived once.
        let other = Memory::volume(image.clone());
        let reader = open(&other);
        let mut rng = Rng::new(5);
        for number in 0..300 {
            let events = first + rng.below((all - first) as u64 + 1) as usize;
            let left = match number % 2 {
                0 => recorder.after(events),
                _ => recorder.after_power_failure(events, number),
            };
            let flushed = changes
                .iter()
                .rposition(|(_, change, ended)| change.is_none() && *ended <= events);
            let mut allowed = Allowed::of(plain.clone());
            for (step, (begun, change, _)) in changes.iter().enumerate() {
                if let Some((at, bytes)) = change
                    && *begun <= events
                {
                    let durable = flushed.is_some_and(|flushed| step < flushed);
                    allowed.write(*at, bytes, durable);
                }
            }
            assert!(left[..HEAD] == image[..HEAD], "the header has changed");
            let bytes = &left[HEAD..];
            let into = other.writer().unwrap();
            into.write_at(bytes, HEAD as u64, false).unwrap();
            let found = conformance::read_all(&reader);
            for (sector, found) in found.chunks(SECTOR).enumerate() {
                let known = allowed.sectors[sector].iter().any(|one| one == found);
                assert!(
                    known,
                    "{format:?}: sector {sector} after {events} of {all}, {number}"
                );
            }
            if number % 60 < 2 {
                folder.write("image", &left);
                cryptsetup(&folder, &["open", "--test-passphrase"]);
                if format[0] == "--type=luks1" {
                    let secret = format!("secret,id=k,data={PASS}");
                    let options = "driver=luks,key-secret=k,file.filename=image";
                    let convert = ["convert", "--object", &secret, "--image-opts", options];
                    folder.img(&[&convert[..], &["-O", "raw", "plain"]].concat());
                    assert!(folder.read("plain") == found, "{format:?}: {number}");
                }
            }
        }
    }
}
