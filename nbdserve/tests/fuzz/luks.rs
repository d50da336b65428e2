//! LUKS.

use std::fs;

use nbdserve::testing::fuzz;
use nbdserve::testing::tools;

/// LUKS1 and LUKS2, their headers and keyslots and a little data, with cheap KDFs.
pub(crate) fn luks_files() -> Vec<Vec<u8>> {
    let format = |size: usize, args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let (key, file) = (dir.path().join("key"), dir.path().join("image"));
        fs::write(&key, fuzz::LUKS_PASSPHRASE).unwrap();
        fs::write(&file, vec![0; size]).unwrap();
        let mut command = tools::command("cryptsetup");
        command.args(["luksFormat", "--batch-mode"]).args(args);
        tools::run_command(command.arg("--key-file").arg(&key).arg(&file));
        let image = fs::read(&file).unwrap();
        fuzz::assert_luks_opens(&image);
        image
    };
    let one = ["--type=luks1", "--pbkdf-force-iterations=1000"];
    let two = [
        "--type=luks2",
        "--pbkdf-force-iterations=4",
        "--pbkdf-memory=32",
        "--pbkdf-parallel=1",
        "--luks2-keyslots-size=262144",
        "--key-size=256",
        "--offset=1024",
        "--sector-size=4096",
    ];
    let cbc = [
        "--cipher=aes-cbc-essiv:sha256",
        "--key-size=128",
        "--align-payload=1",
    ];
    vec![
        format(1200 << 10, &[&one[..], &cbc].concat()),
        format(600 << 10, &two),
    ]
}

#[test]
fn luks1_header() {
    fuzz!("luks1_header", || {
        let mut files = luks_files();
        files.truncate(1);
        files[0].truncate(592);
        files
    });
}

#[test]
fn luks2_header() {
    fuzz!("luks2_header", || {
        let json = &luks_files()[1][4096..16384];
        vec![json.split(|byte| *byte == 0).next().unwrap().to_vec()]
    });
}

#[test]
fn luks_open() {
    fuzz!("luks_open", luks_files);
}
