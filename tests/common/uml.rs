//! Runs a test inside user-mode Linux: a real kernel that boots in two seconds as a process, with
//! the machine's own files, read-only, as its root.
//!
//! A test calls [`inside`] with its own name. Outside, that boots the kernel, in which this very
//! test binary is started with only that test; there the body runs. Nothing is skipped: a missing
//! tool fails the test with the name of its package.
//!
//! Known gaps of this kernel, Debian's 6.1: one CPU, and an nbd client without WRITE_ZEROES.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Set for programs that run inside.
const INSIDE: &str = "LOOPMOUNT_INSIDE_UML";
/// Printed by the init script before the program is started.
const STARTS: &str = "uml-program-starts\n";
/// Printed by the init script before the program's exit status.
const STATUS: &str = "uml-exit-status:";
/// How long a kernel may take to get there.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Modules that are loaded before the program starts. nbd sees partitions, as on most machines.
const MODULES: &[&str] = &[
    "loop",
    "fuse",
    "isofs",
    "vfat",
    "squashfs",
    "erofs",
    "nbd max_part=8",
];

/// Runs `body` inside user-mode Linux. `test` is the path of the calling test as `cargo test`
/// prints it. The kernel, with all in it, is killed when the body takes longer than `limit`.
pub(crate) fn inside(test: &str, limit: Duration, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let this = env::current_exe().expect("find this test binary");
    let command = [
        quote(&this),
        "--exact".to_owned(),
        quote(Path::new(test)),
        "--nocapture".to_owned(),
        "--test-threads=1".to_owned(),
    ]
    .join(" ");
    let outcome = run(&command, limit);
    // The harness inside succeeds as well when it finds no test of that name.
    let ran = outcome.output.contains("1 passed");
    assert!(
        outcome.status == Some(0) && ran,
        "{test} inside user-mode Linux: {}\n{}\n--- kernel ---\n{}",
        match outcome.status {
            Some(status) => format!("exit status {status}"),
            None => format!("killed after {limit:?}, or the kernel died"),
        },
        outcome.output,
        last_lines(&outcome.kernel, 40)
    );
}

/// What a program inside has done.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit status; `None` when it had to be killed or the kernel died.
    pub(crate) status: Option<i32>,
    /// What it has written to standard output and error.
    pub(crate) output: String,
    /// What the kernel has written.
    pub(crate) kernel: String,
}

/// Boots a kernel, runs the shell command line in it and waits for both to end. `limit` counts from
/// the start of the command on.
pub(crate) fn run(command: &str, limit: Duration) -> Outcome {
    let folder = tempfile::Builder::new()
        .prefix("uml-")
        .tempdir()
        .expect("make a temp folder");
    let init = folder.path().join("init");
    fs::write(&init, init_script(command)).expect("write the init script");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("make it executable");

    let mut kernel = Kernel::boot(&init, folder.path());
    let console = collect(kernel.child.stdout.take().expect("stdout is piped"));
    let messages = collect(kernel.child.stderr.take().expect("stderr is piped"));
    let mut shown = Vec::new();
    let mut deadline = Instant::now() + BOOT_LIMIT;
    let mut started = false;
    let ended = kernel.wait(|| {
        shown.extend(console.try_iter().flatten());
        if !started && as_text(&shown).contains(STARTS) {
            started = true;
            deadline = Instant::now() + limit;
        }
        deadline
    });
    if !ended {
        kernel.kill();
    }
    assert!(kernel.is_gone(), "processes of the kernel are left");
    shown.extend(receive(&console));
    let (output, status) = split_status(&as_text(&shown).replacen(STARTS, "", 1));
    Outcome {
        status: status.filter(|_| ended),
        output,
        kernel: as_text(&receive(&messages)),
    }
}

/// The running kernel: a process group of its own, ended when dropped.
struct Kernel {
    child: Child,
}

impl Kernel {
    fn boot(init: &Path, folder: &Path) -> Self {
        let init = init.to_str().expect("temp paths are text");
        let folder = folder.to_str().expect("temp paths are text");
        let child = Command::new("linux.uml")
            .args(["mem=512M", "rootfstype=hostfs", "rootflags=/", "ro"])
            .arg(format!("init={init}"))
            .arg(format!("uml_dir={folder}/"))
            .args(["con=null", "con0=null,fd:2", "con1=fd:0,fd:1"])
            // A pipe: the console must be pollable, and has nothing to read.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        match child {
            Ok(child) => Self { child },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("linux.uml is missing: apt-get install user-mode-linux")
            }
            Err(error) => panic!("cannot start linux.uml: {error}"),
        }
    }

    /// Waits for the kernel to halt; false when it has not until `deadline`, which may move.
    fn wait(&mut self, mut deadline: impl FnMut() -> Instant) -> bool {
        while Instant::now() < deadline() {
            if self.child.try_wait().expect("wait for linux.uml").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process numbers are small"))
    }

    /// Waits for the last process of the group; false when it does not go.
    fn is_gone(&self) -> bool {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            killpg(self.group(), None) == Err(Errno::ESRCH)
        })
    }

    fn kill(&mut self) {
        // The processes inside are traced children in the same group. All may be gone already.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads `stream` to its end in the background.
fn collect(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer[..len].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Everything else that has been read.
fn receive(receiver: &Receiver<Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    // The kernel is gone, so the end of its pipes is near; a helper of it that lives on must not
    // keep us.
    while let Ok(part) = receiver.recv_timeout(Duration::from_secs(5)) {
        all.extend(part);
    }
    all
}

/// With plain line ends.
fn as_text(shown: &[u8]) -> String {
    String::from_utf8_lossy(shown).replace('\r', "")
}

fn split_status(console: &str) -> (String, Option<i32>) {
    match console.rsplit_once(STATUS) {
        Some((output, rest)) => {
            let status = rest.split_whitespace().next();
            (
                output.to_owned(),
                status.and_then(|status| status.parse().ok()),
            )
        }
        None => (console.to_owned(), None),
    }
}

/// The first process inside.
fn init_script(command: &str) -> String {
    let modules = module_folder();
    let release = modules
        .file_name()
        .expect("the folder is named after the release");
    let load: String = MODULES
        .iter()
        .map(|module| format!("modprobe -d /run/kmod {module} || echo 'no module {module}'\n"))
        .collect();
    let show: String = hidden_folders()
        .iter()
        .map(|folder| {
            let folder = quote(folder);
            format!("mkdir -p {folder}\nmount -t hostfs -o ro,{folder} none {folder}\n")
        })
        .collect();
    let cwd = env::current_dir().expect("find the current folder");
    format!(
        "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run XDG_RUNTIME_DIR= {INSIDE}=1
export RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
{show}mkdir -p /run/kmod/lib/modules
ln -s {modules} /run/kmod/lib/modules/{release}
exec </dev/tty1 >/dev/tty1 2>&1
{load}cd {cwd}
echo {starts}
{command}
echo \"{STATUS} $?\"
# Powers off, without a halt(8) that minimal systems lack.
echo o > /proc/sysrq-trigger
sleep 60
",
        starts = STARTS.trim_end(),
        modules = quote(&modules),
        release = quote(Path::new(release)),
        cwd = quote(&cwd),
    )
}

/// The folders of the project that the fresh /tmp would hide, where it was cloned or built there.
fn hidden_folders() -> Vec<PathBuf> {
    let this = env::current_exe().expect("find this test binary");
    let builds = this.parent().and_then(Path::parent);
    [env!("CARGO_MANIFEST_DIR"), env!("CARGO_TARGET_TMPDIR")]
        .into_iter()
        .map(Path::new)
        .chain(builds)
        .filter(|folder| folder.starts_with("/tmp") || folder.starts_with("/run"))
        .map(Path::to_owned)
        .collect()
}

/// `/usr/lib/uml/modules/RELEASE`
fn module_folder() -> PathBuf {
    let folder = fs::read_dir("/usr/lib/uml/modules")
        .ok()
        .and_then(|mut entries| entries.next())
        .expect("the modules of linux.uml are missing: apt-get install user-mode-linux");
    assert!(
        Path::new("/sbin/modprobe").exists() || Path::new("/usr/sbin/modprobe").exists(),
        "modprobe is missing: apt-get install kmod"
    );
    folder.expect("read the module folder").path()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A path as one word of a shell command.
fn quote(path: &Path) -> String {
    let text = path.to_str().expect("paths of tests are text");
    format!("'{}'", text.replace('\'', "'\\''"))
}
