//! What the kernel's dm-crypt encrypts is what we decrypt, and the other way round, for both versions
//! of LUKS and all lengths of sectors. Needs cryptsetup-bin, and runs in user-mode Linux.

#[path = "common/uml.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod uml;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nbdserve::layer::Args;
use nbdserve::layer::luks::LUKS;
use nbdserve::secret::{OneSecret, Secret};
use nbdserve::source::Memory;
use nbdserve::{Cx, Volume};

const DATA: usize = 256 << 10;
const KEY: &[u8] = b"between the kernel and us";

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        // There is no udev to wait for.
        .env("DM_DISABLE_UDEV", "1")
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Bytes without a pattern (xorshift64).
fn noise(mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DATA);
    while bytes.len() < DATA {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes
}

fn open(below: &Volume) -> Volume {
    let mut cx = Cx::new(16 << 20);
    cx.secrets = Arc::new(OneSecret(Secret::new(KEY.to_vec())));
    (LUKS.open)(below, &Args::new(), &cx).expect("open the image")
}

/// The kernel's view of the image, for as long as `work` takes.
fn with_kernel(work: impl FnOnce(&Path)) {
    run(
        "cryptsetup",
        &["open", "--key-file=/tmp/key", "/tmp/image", "plain"],
    );
    work(Path::new("/dev/mapper/plain"));
    run("cryptsetup", &["close", "plain"]);
}

fn exchange(format: &[&str], seed: u64) {
    let head = 2 << 20;
    fs::write("/tmp/image", vec![0; head + DATA]).expect("write the image");
    let usual = ["luksFormat", "--batch-mode", "--key-file=/tmp/key"];
    let cheap = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];
    let arguments = [&usual, &cheap[..], format, &["/tmp/image"]].concat();
    run("cryptsetup", &arguments);

    let theirs = noise(seed);
    with_kernel(|device| fs::write(device, &theirs).expect("write to the device"));
    let below = Memory::volume(fs::read("/tmp/image").expect("read the image"));
    let volume = open(&below);
    assert_eq!(volume.size(), DATA as u64, "{format:?}");
    let found = volume.read_vec(0, DATA).expect("read");
    assert!(found == theirs, "{format:?}: we read something else");

    let ours = noise(seed + 1);
    let writer = volume.writer().expect("it can be written");
    writer.write_at(&ours, 0, true).expect("write");
    let image = below.read_vec(0, head + DATA).expect("read");
    fs::write("/tmp/image", image).expect("write the image");
    with_kernel(|device| {
        let found = fs::read(device).expect("read the device");
        assert!(found == ours, "{format:?}: the kernel reads something else");
    });
}

#[test]
fn the_kernel_and_we_read_what_the_other_writes() {
    let limit = Duration::from_secs(120);
    uml::inside(
        "the_kernel_and_we_read_what_the_other_writes",
        limit,
        || {
            // dm-crypt needs encrypted keys, which need cbc when they are loaded.
            for module in ["cbc", "ecb", "xts", "essiv", "dm-mod", "dm-crypt"] {
                run("modprobe", &["-d", "/run/kmod", module]);
            }
            fs::write("/tmp/key", KEY).expect("write the key");
            let two = [
                "--type=luks2",
                "--luks2-keyslots-size=1048576",
                "--offset=4096",
            ];
            let one = ["--type=luks1", "--align-payload=4096"];
            let mut seed = 1;
            for (version, more) in [
                (&two[..], &["--sector-size=512"][..]),
                (&two, &["--sector-size=1024", "--key-size=256"]),
                (&two, &["--sector-size=4096"]),
                (
                    &two,
                    &[
                        "--sector-size=4096",
                        "--cipher=aes-cbc-essiv:sha256",
                        "--key-size=256",
                    ],
                ),
                (
                    &two,
                    &[
                        "--sector-size=2048",
                        "--cipher=aes-cbc-plain64",
                        "--key-size=192",
                    ],
                ),
                (&two, &["--sector-size=512", "--cipher=aes-xts-plain64be"]),
                (&one, &["--cipher=aes-xts-plain64", "--hash=sha1"]),
                (&one, &["--cipher=aes-cbc-essiv:sha256", "--key-size=128"]),
                (&one, &["--cipher=aes-cbc-plain", "--key-size=192"]),
            ] {
                seed += 2;
                exchange(&[version, more].concat(), seed);
            }
        },
    );
}
