//! LUKS images by cryptsetup and qemu-img, with passphrases that are quick to check.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nbdserve::layer::Args;
use nbdserve::layer::luks::LUKS;
use nbdserve::secret::{OneSecret, Question, Secret, Secrets};
use nbdserve::source::Memory;
use nbdserve::testing::tools;
use nbdserve::{Cx, Error, Kind, Result, Volume};

/// Where the data begin in images by cryptsetup.
pub(crate) const HEAD: usize = 2 << 20;

/// The passphrase of most.
pub(crate) const PASS: &[u8] = b"correct horse";

pub(crate) fn cx(key: &[u8]) -> Cx {
    let mut cx = Cx::new(16 << 20);
    cx.secrets = Arc::new(OneSecret(Secret::new(key.to_vec())));
    cx
}

pub(crate) fn open_with(below: &Volume, args: &[(&str, &str)], cx: &Cx) -> Result<Volume> {
    let args = args
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    (LUKS.open)(below, &args.collect::<Args>(), cx)
}

pub(crate) fn open(image: &[u8], key: &[u8]) -> Result<Volume> {
    open_with(&Memory::volume(image.to_vec()), &[], &cx(key))
}

pub(crate) fn kind_of(image: &[u8]) -> (Kind, String) {
    let error = open(image, PASS).expect_err("it must not be opened");
    (error.kind(), error.report().to_string())
}

/// A folder with what the tools need.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        dir.write("pass", PASS);
        dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// `qemu-img` encrypts; `options` as in `cipher-mode=cbc,...`.
    pub(crate) fn qemu_encrypts(&self, plain: &[u8], options: &str) -> Vec<u8> {
        let plain = self.write("plain", plain);
        let secret = format!("secret,id=key,file={}", self.arg("pass"));
        let options = format!("key-secret=key,iter-time=10,{options}");
        let mut command = tools::command("qemu-img");
        command.args([
            "convert", "--object", &secret, "-f", "raw", "-O", "luks", "-o", &options,
        ]);
        tools::run_command(command.arg(plain).arg(self.path("image")));
        self.read("image")
    }

    /// `qemu-img` decrypts.
    pub(crate) fn qemu_decrypts(&self, name: &str) -> Vec<u8> {
        let secret = format!("secret,id=key,file={}", self.arg("pass"));
        let image = format!(
            "driver=luks,key-secret=key,file.filename={}",
            self.arg(name)
        );
        let mut command = tools::command("qemu-img");
        command.args([
            "convert",
            "--object",
            &secret,
            "--image-opts",
            &image,
            "-O",
            "raw",
        ]);
        tools::run_command(command.arg(self.path("plain")));
        self.read("plain")
    }

    /// `cryptsetup COMMAND ARGS` on a file of this folder, with the usual passphrase.
    pub(crate) fn cryptsetup(&self, command: &str, args: &[&str], name: &str, more: &[&str]) {
        let mut run = tools::command("cryptsetup");
        run.args([command, "--batch-mode", "--key-file", &self.arg("pass")]);
        run.args(args).arg(self.path(name)).args(more);
        tools::run_command(&mut run);
    }

    /// LUKS1, with a cheap KDF and `data` bytes of data.
    pub(crate) fn luks1(&self, data: usize, args: &[&str]) -> Vec<u8> {
        let usual = [
            "--type=luks1",
            "--pbkdf-force-iterations=1000",
            "--align-payload=4096",
        ];
        self.format(data + HEAD, &[&usual[..], args].concat())
    }

    /// LUKS2, with a cheap KDF and `data` bytes of data.
    pub(crate) fn luks2(&self, data: usize, args: &[&str]) -> Vec<u8> {
        let kdf = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];
        let argon2 = args.iter().any(|arg| arg.starts_with("--pbkdf="));
        let kdf = if argon2 { &[][..] } else { &kdf };
        let usual = [
            "--type=luks2",
            "--luks2-keyslots-size=2064384",
            "--offset=4096",
        ];
        self.format(data + HEAD, &[&usual, kdf, args].concat())
    }

    fn format(&self, len: usize, args: &[&str]) -> Vec<u8> {
        fs::write(self.path("image"), vec![0; len]).unwrap();
        self.cryptsetup("luksFormat", args, "image", &[]);
        self.read("image")
    }

    /// Another keyslot for the image, with this key.
    pub(crate) fn add_key(&self, key: &[u8], args: &[&str]) {
        self.write("more", key);
        let usual = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];
        let argon2 = args.iter().any(|arg| arg.starts_with("--pbkdf="));
        let usual = if argon2 { &[][..] } else { &usual };
        let more = self.arg("more");
        self.cryptsetup("luksAddKey", &[usual, args].concat(), "image", &[&more]);
    }
}

/// Argon2 parameters that cost nothing.
pub(crate) fn argon2(name: &str) -> Vec<String> {
    vec![
        format!("--pbkdf={name}"),
        "--pbkdf-force-iterations=4".to_owned(),
        "--pbkdf-memory=64".to_owned(),
        "--pbkdf-parallel=2".to_owned(),
    ]
}

/// Somebody with several answers, who remembers what was asked.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) answers: Vec<&'static [u8]>,
    pub(crate) asked: Mutex<Vec<Question>>,
}

impl Secrets for Answers {
    fn answer(&self, question: &Question) -> Result<Secret> {
        self.asked.lock().unwrap().push(question.clone());
        let answer = self.answers.get(question.attempt as usize);
        let answer = answer.map(|answer| Secret::new(answer.to_vec()));
        answer.ok_or_else(|| Error::new(Kind::Secret, "nobody knows more"))
    }
}
