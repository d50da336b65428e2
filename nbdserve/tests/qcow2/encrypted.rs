//! Images with LUKS inside.

use std::sync::Arc;

use nbdserve::secret::{OneSecret, Secret};
use nbdserve::testing::conformance::read_all;
use nbdserve::testing::{Model, Op, Rng};
use nbdserve::{ByteRange, Cx, Kind};

use crate::images::{Folder, MIB, cx};

/// That of the images here.
pub(crate) const PASSPHRASE: &str = "swordfish";
/// For the tools of QEMU, which call it `s`.
const SECRET: &str = "secret,id=s,data=swordfish";
/// LUKS with a passphrase that is cheap to check.
pub(crate) const QUICK_LUKS: &str = "encrypt.format=luks,encrypt.iter-time=10";

pub(crate) fn cx_with(passphrase: &str) -> Cx {
    let mut cx = cx();
    cx.secrets = Arc::new(OneSecret(Secret::new(passphrase.as_bytes().to_vec())));
    cx
}

/// Makes `image`, with a passphrase, a cheap one to check, and `options`; then runs commands on it.
fn create(folder: &Folder, name: &str, options: &str, commands: &[&str]) {
    let options = format!("{QUICK_LUKS}{options}");
    folder.create_encrypted(name, "3M", PASSPHRASE, &options);
    let image = image_opts(name);
    let mut args = vec!["--object", SECRET, "--image-opts"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(&image);
    folder.run("qemu-io", &args);
}

fn image_opts(name: &str) -> String {
    format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}")
}

fn oracle(folder: &Folder, name: &str) -> Vec<u8> {
    folder.img(&[
        "convert",
        "--object",
        SECRET,
        "--image-opts",
        "-O",
        "raw",
        &image_opts(name),
        "oracle.raw",
    ]);
    folder.read("oracle.raw")
}

const COMMANDS: &[&str] = &[
    "write -P 1 1M 300k",
    "write -P 2 0 9k",
    "write -P 3 2500k 512",
    "write -z 1100k 64k",
];

#[test]
fn encrypted_images_read_as_qemu_reads_them() {
    for options in [
        "",
        ",cluster_size=512",
        ",extended_l2=on",
        ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
    ] {
        let folder = Folder::new();
        create(&folder, "image", options, COMMANDS);
        let expected = oracle(&folder, "image");
        assert_eq!(expected.len(), 3 * MIB);
        assert_eq!(expected[1 << 20], 1);
        let volume = folder
            .open_with("image", &[], &cx_with(PASSPHRASE))
            .unwrap();
        assert!(read_all(&volume) == expected, "{options}");
        assert!(volume.notes().contains(&"encrypted (LUKS)".to_owned()));
        assert!(!volume.may_be_kept());
        let extents = volume
            .extents(ByteRange::between(0, volume.size()))
            .unwrap();
        assert!(extents.runs().iter().any(|run| run.flags.hole));
        let mut rng = Rng::new(3);
        for _ in 0..100 {
            let range = rng.range(volume.size(), 100_000);
            let (start, len) = (range.start() as usize, range.len() as usize);
            let found = volume.read_vec(range.start(), len).unwrap();
            assert!(found == expected[start..start + len], "{range}");
        }
    }
}

#[test]
fn a_wrong_passphrase_and_none() {
    let folder = Folder::new();
    create(&folder, "image", "", COMMANDS);
    let error = folder
        .open_with("image", &[], &cx_with("goldfish"))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Secret, "{error:?}");
    let error = folder.open("image").unwrap_err();
    assert_eq!(error.kind(), Kind::Secret, "{error:?}");
    assert!(error.to_string().contains("qcow2"), "{error}");
}

#[test]
fn an_encrypted_image_on_a_plain_one_and_the_other_way() {
    let folder = Folder::new();
    create(&folder, "base", "", COMMANDS);
    folder.disk(2 * MIB, 5);
    let plain = folder.read("raw");
    create(
        &folder,
        "top",
        ",backing_file=raw,backing_fmt=raw",
        &["write -P 9 1M 70000"],
    );
    let volume = folder.open_with("top", &[], &cx_with(PASSPHRASE)).unwrap();
    let mut expected = plain;
    expected.resize(3 * MIB, 0);
    expected[MIB..MIB + 70_000].fill(9);
    assert!(read_all(&volume) == expected);
    drop(volume);
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", "over", "3M",
    ]);
    let over = "driver=qcow2,file.filename=over,backing.driver=qcow2,backing.encrypt.key-secret=s,\
         backing.file.filename=base"
        .to_string();
    folder.run(
        "qemu-io",
        &[
            "--object",
            SECRET,
            "-c",
            "write -P 7 0 64k",
            "--image-opts",
            &over,
        ],
    );
    let volume = folder.open_with("over", &[], &cx_with(PASSPHRASE)).unwrap();
    let mut expected = oracle(&folder, "base");
    expected[..64 << 10].fill(7);
    assert!(read_all(&volume) == expected);
}

#[test]
fn a_luks_header_that_is_elsewhere() {
    let folder = Folder::new();
    create(&folder, "image", "", &[]);
    let good = folder.read("image");
    let kind = [0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16];
    let at = good.windows(8).position(|eight| eight == kind).unwrap();
    let open = |bytes: &[u8]| {
        folder.write("image", bytes);
        folder.open_with("image", &[], &cx_with(PASSPHRASE))
    };
    for (field, value) in [
        (8, 0_u64),
        (8, 1),
        (8, u64::MAX),
        (8, 1 << 40),
        (16, u64::MAX),
        (16, 1 << 40),
        (16, 0),
    ] {
        let mut bytes = good.clone();
        bytes[at + field..at + field + 8].copy_from_slice(&value.to_be_bytes());
        let error = open(&bytes).unwrap_err();
        assert!(
            matches!(error.kind(), Kind::Corrupt | Kind::NotThisFormat),
            "{value:#x} at {field}: {error:?}"
        );
    }
    let mut bytes = good.clone();
    bytes[at] = 0x77;
    let error = open(&bytes).unwrap_err();
    assert!(error.to_string().contains("does not say where"), "{error}");
    // Never taken for an image that is not encrypted.
    let mut bytes = good.clone();
    bytes[35] = 1;
    assert_eq!(open(&bytes).unwrap_err().kind(), Kind::Unsupported);
    bytes[35] = 0;
    let error = open(&bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("is not encrypted"), "{error}");
    let volume = open(&good).unwrap();
    let extents = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    assert!(extents.runs().iter().all(|run| run.flags.hole));
    assert!(read_all(&volume).iter().all(|byte| *byte == 0));
}

/// Remembers what it was asked for.
#[derive(Debug)]
struct Asked(std::sync::Mutex<Vec<String>>);

impl nbdserve::secret::Secrets for Asked {
    fn answer(&self, question: &nbdserve::secret::Question) -> nbdserve::Result<Secret> {
        let mut asked = self.0.lock().unwrap();
        asked.push(question.what.clone());
        let answers = ["swordfish", "wrong", "goldfish"];
        let answer = answers.get(asked.len() - 1);
        let none = || nbdserve::Error::new(Kind::Secret, "no more of them");
        let answer = answer.ok_or_else(none)?;
        Ok(Secret::new(answer.as_bytes().to_vec()))
    }
}

#[test]
fn each_file_of_a_chain_is_asked_for_by_its_name() {
    let folder = Folder::new();
    let options = format!("encrypt.key-secret=s,{QUICK_LUKS}");
    for (name, secret, backing) in [
        ("base", "goldfish", ""),
        ("top", "swordfish", ",backing_file=base,backing_fmt=qcow2"),
    ] {
        let object = format!("secret,id=s,data={secret}");
        let options = format!("{options}{backing}");
        let create = ["create", "-q", "-u", "-f", "qcow2", "--object", &object];
        folder.img(&[&create[..], &["-o", &options, name, "1M"]].concat());
    }
    let asked = Arc::new(Asked(std::sync::Mutex::default()));
    let mut cx = cx();
    cx.secrets = asked.clone();
    let volume = folder.open_with("top", &[], &cx).unwrap();
    assert!(read_all(&volume).iter().all(|byte| *byte == 0));
    let top = "the qcow2 image \"top\" (LUKS)";
    let base = "the qcow2 image \"base\" (LUKS)";
    assert_eq!(*asked.0.lock().unwrap(), [top, base, base]);
}

/// Written by us, read by qemu, and the other way round.
#[test]
fn encrypted_images_are_written_as_qemu_would() {
    for options in ["", ",cluster_size=512", ",extended_l2=on"] {
        let folder = Folder::new();
        create(&folder, "image", options, COMMANDS);
        let mut model = Model::new(oracle(&folder, "image"));
        for round in 0..2 {
            let volume = folder.open_rw_with("image", &cx_with(PASSPHRASE)).unwrap();
            for step in 0..60 {
                let op = Op::from_seed(round * 100 + step, volume.size(), 200_000);
                model.apply(&volume, op);
            }
            model.compare_all(&volume);
            volume.close().unwrap();
            drop(volume);
            folder.img(&[
                "check",
                "--object",
                SECRET,
                "--image-opts",
                &image_opts("image"),
            ]);
            let all = ByteRange::between(0, 3 * MIB as u64);
            model.compare(&oracle(&folder, "image"), all);
        }
        let found = folder.read("image");
        let plain = model
            .bytes()
            .chunks(512)
            .find(|sector| sector[0] != sector[1]);
        let plain = plain.unwrap();
        assert!(
            !found
                .windows(512)
                .step_by(512)
                .any(|sector| sector == plain),
            "in the clear"
        );
    }
}
