//! A place of its own for each test, and the check that nothing is left when the test ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::run::{Cmd, send_signal};
use super::system::{Process, loops, mounts, processes_with_env};
use super::{images, must, prepare_machine};

/// nobody and nogroup.
const USER: u32 = 65534;
/// Set in the environment of everything a sandbox starts; children of children inherit it.
const TAG: &str = "LOOPMOUNT_TEST";

/// Who types the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    /// nobody, with a HOME and an XDG_RUNTIME_DIR, and no rights but /dev/fuse and fusermount3.
    User,
}

/// Both, for tests that must hold for either.
pub(crate) const EVERYBODY: [Who; 2] = [Who::Root, Who::User];

/// A folder under /tmp with room for images and mount points.
///
/// Dropping it fails the test when a mount, a loop device, a process or a state folder of the test
/// is left; they are removed then, so that the next test starts clean.
#[derive(Debug)]
pub(crate) struct Sandbox {
    who: Who,
    dir: TempDir,
    program: PathBuf,
    next: AtomicU32,
}

impl Sandbox {
    pub(crate) fn new(who: Who) -> Self {
        prepare_machine();
        let dir = tempfile::Builder::new().prefix("lm-").tempdir().unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_loopmount"));
        let mut sandbox = Self {
            who,
            program: built.to_owned(),
            dir,
            next: AtomicU32::new(0),
        };
        sandbox.give(sandbox.path());
        fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for private in ["home", "run", "cache"] {
            let dir = sandbox.new_dir(private);
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        if who == Who::User {
            sandbox.program = sandbox.reachable(built);
        }
        sandbox
    }

    /// The disk in `image`, which is xz.
    pub(crate) fn decoded(&self, image: &Path) -> PathBuf {
        let bytes = must(Command::new("xz").args(["-dc", "--"]).arg(image));
        self.new_file("disk.raw", bytes)
    }

    /// `file`, or a copy of it when it lies in a folder that the ordinary user cannot enter.
    pub(crate) fn reachable(&self, file: &Path) -> PathBuf {
        let open = |path: &Path| {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            mode & 0o005 == 0o005
        };
        if self.who == Who::Root || file.ancestors().all(open) {
            return file.to_owned();
        }
        let copy = self.path().join(file.file_name().unwrap());
        if !copy.exists() {
            // By another process: what a child that another thread forks now holds open for writing
            // cannot be executed.
            must(Command::new("cp").arg(file).arg(&copy));
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    /// The program under test, where the one who types can execute it.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn who(&self) -> Who {
        self.who
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A number that was not given before.
    pub(crate) fn serial(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A path in here; nothing is made.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a folder that belongs to the one who types.
    pub(crate) fn new_dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let dir = self.join(name);
        fs::create_dir(&dir).unwrap();
        self.give(&dir);
        dir
    }

    /// Makes a file that belongs to the one who types.
    pub(crate) fn new_file(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let file = self.join(name);
        fs::write(&file, bytes).unwrap();
        self.give(&file);
        file
    }

    /// A copy of an image under its own name, holes kept, that belongs to the one who types.
    pub(crate) fn image(&self, from: &Path) -> PathBuf {
        self.image_as(from, from.file_name().unwrap())
    }

    /// A copy of an image under another name; see [`Sandbox::image`].
    pub(crate) fn image_as(&self, from: &Path, name: impl AsRef<Path>) -> PathBuf {
        let copy = self.join(name);
        must(
            Command::new("cp")
                .args(["--sparse=always", "--"])
                .arg(from)
                .arg(&copy),
        );
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
        self.give(&copy);
        copy
    }

    fn give(&self, path: &Path) {
        if self.who == Who::User {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
    }

    /// The program under test, typed in this folder.
    pub(crate) fn loopmount(&self) -> Cmd {
        self.tool(&self.program)
    }

    /// The program under test with a limit, as `ulimit` takes it.
    pub(crate) fn limited(&self, limit: &str) -> Cmd {
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        self.tool("sh").args(["-c", &script]).arg(&self.program)
    }

    /// The program under test in a session of its own: with the terminal that is its standard input
    /// ([`Cmd::on_terminal`]), or with none.
    pub(crate) fn session(&self, terminal: bool) -> Cmd {
        let setsid = self.tool("setsid");
        let setsid = if terminal {
            setsid.arg("--ctty")
        } else {
            setsid
        };
        setsid.arg("--wait").arg(&self.program)
    }

    /// Another program, run by the same one in the same place.
    pub(crate) fn tool(&self, program: impl AsRef<OsStr>) -> Cmd {
        let cmd = match self.who {
            Who::Root => Cmd::new(program),
            Who::User => Cmd::new("setpriv")
                .args([
                    format!("--reuid={USER}"),
                    format!("--regid={USER}"),
                    "--clear-groups".to_owned(),
                    "--".to_owned(),
                ])
                .arg(program),
        };
        self.dress(cmd)
    }

    /// Another program, run by root whoever the sandbox belongs to.
    pub(crate) fn tool_as_root(&self, program: impl AsRef<OsStr>) -> Cmd {
        self.dress(Cmd::new(program))
    }

    fn dress(&self, cmd: Cmd) -> Cmd {
        cmd.cwd(self.path())
            .env("HOME", self.join("home"))
            .env("XDG_RUNTIME_DIR", self.join("run"))
            .env("XDG_CACHE_HOME", self.join("cache"))
            .env("LC_ALL", "C")
            // Only folders that everybody may enter: elsewhere a missing program is "denied".
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env(TAG, self.tag())
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .env_remove("TMPDIR")
    }

    /// Where the cache on disk of this sandbox is.
    pub(crate) fn cache(&self) -> PathBuf {
        self.join("cache/loopmount")
    }

    fn tag(&self) -> &OsStr {
        self.path().file_name().unwrap()
    }

    /// Mounts `image` at a new folder `name`, with more arguments, and returns the mount point.
    #[track_caller]
    pub(crate) fn mount(&self, args: &[&str], image: &Path, name: &str) -> PathBuf {
        let point = self.new_dir(name);
        self.loopmount().args(args).arg(image).arg(&point).ok();
        assert!(
            super::system::mount_at(&point).is_some(),
            "{} is not in the mount table after the command has returned",
            point.display()
        );
        point
    }

    /// The bytes of a file as the one who types sees it: root may not look into a user's FUSE mount.
    #[track_caller]
    pub(crate) fn read(&self, file: impl AsRef<Path>) -> Vec<u8> {
        self.tool("cat").arg("--").arg(file.as_ref()).ok().stdout
    }

    /// [`Sandbox::read`] as text.
    #[track_caller]
    pub(crate) fn read_text(&self, file: impl AsRef<Path>) -> String {
        String::from_utf8(self.read(file)).unwrap()
    }

    /// Takes down `what` and expects success.
    #[track_caller]
    pub(crate) fn unmount(&self, what: &Path) {
        self.loopmount().arg("-u").arg(what).ok();
    }

    /// Every process that the test has started, directly or not, and that still lives.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let mut setting = OsString::from(TAG);
        setting.push("=");
        setting.push(self.tag());
        processes_with_env(setting.to_str().unwrap())
    }

    /// Our own background processes of one kind: `__supervise` or `__serve`.
    pub(crate) fn processes_of(&self, role: &str) -> Vec<Process> {
        let mut found = self.processes();
        found.retain(|process| process.role() == role);
        found
    }

    /// The process id of the only one of a kind, as [`Self::processes_of`] has it.
    #[track_caller]
    pub(crate) fn pid_of(&self, role: &str) -> u32 {
        let found = self.processes_of(role);
        assert_eq!(found.len(), 1, "one {role}: {:?}", self.processes());
        found[0].pid
    }

    /// The `sleep` that a command of the test runs, as soon as it does.
    #[track_caller]
    pub(crate) fn until_sleep(&self) -> Process {
        let sleeps = || {
            let all = self.processes();
            all.into_iter().find(|process| process.args[0] == "sleep")
        };
        super::eventually("the command runs", sleeps)
    }

    /// Where units of this one who types leave their records.
    pub(crate) fn state_dir(&self) -> PathBuf {
        match self.who {
            Who::Root => PathBuf::from("/run/loopmount"),
            Who::User => self.join("run/loopmount"),
        }
    }

    /// The state folders of the units of this test.
    pub(crate) fn units(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.state_dir()) else {
            return Vec::new();
        };
        let tag = self.tag().as_bytes();
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|unit| {
                // Root's folder is shared by all tests: a record of ours names our folder.
                self.who == Who::User
                    || fs::read(unit.join("unit.json"))
                        .is_ok_and(|record| record.windows(tag.len()).any(|part| part == tag))
            })
            .collect()
    }

    /// The id of the only unit of this test.
    #[track_caller]
    pub(crate) fn unit_id(&self) -> String {
        let units = self.units();
        assert_eq!(units.len(), 1, "one unit is expected: {units:?}");
        units[0].file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// What is still there of the test, one line each.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let ours = |text: &OsStr| contains(text.as_bytes(), self.path().as_os_str().as_bytes());
        for process in self.processes() {
            found.push(format!("process {} {:?}", process.pid, process.args));
        }
        for mount in mounts() {
            let stale = mount
                .source
                .to_str()
                .and_then(|source| source.strip_prefix("loopmount:"))
                .is_some_and(|id| self.units().iter().any(|unit| unit.ends_with(id)));
            if stale || ours(mount.point.as_os_str()) || ours(&mount.source) {
                found.push(format!("mount {:?} of {:?}", mount.point, mount.source));
            }
        }
        for (device, backing) in loops() {
            if ours(&backing) {
                found.push(format!("loop device {device:?} of {backing:?}"));
            }
        }
        for unit in self.units() {
            found.push(format!("state {unit:?}"));
        }
        found
    }

    /// Waits until nothing is left.
    ///
    /// # Panics
    /// When something still is after a few seconds.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes by force what a failed test has left.
    fn sweep(&self) {
        for unit in self.units() {
            let _ = fs::remove_dir_all(unit);
        }
        for process in self.processes() {
            send_signal(process.pid, Signal::KILL);
        }
        let mut mounts = mounts();
        mounts.retain(|mount| mount.point.starts_with(self.path()));
        for mount in mounts.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(&mount.point).output();
        }
        for (device, backing) in loops() {
            if contains(backing.as_bytes(), self.path().as_os_str().as_bytes()) {
                let _ = Command::new("losetup").arg("-d").arg(device).output();
            }
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for left in self.leftovers() {
                eprintln!("left behind by the failed test: {left}");
            }
            self.sweep();
            return;
        }
        let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.assert_clean()));
        if let Err(panic) = check {
            self.sweep();
            std::panic::resume_unwind(panic);
        }
    }
}

/// Which means there are on the test machine for each of the two; kernel nbd is tested elsewhere.
pub(crate) fn means(who: Who) -> &'static [&'static str] {
    match who {
        Who::Root => &["auto", "loop", "fuse"],
        Who::User => &["auto", "fuse"],
    }
}

/// A sandbox with the carried disk in it.
pub(crate) fn with_small_disk(who: Who) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new(who);
    let image = sandbox.image(&images::carried());
    (sandbox, image)
}

/// A plain image that root mounts without a process of ours, mounted.
pub(crate) fn plain_unit() -> (Sandbox, PathBuf, PathBuf) {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&images::images().ext4());
    let point = sandbox.mount(&[], &image, "mnt");
    (sandbox, image, point)
}

/// Each pair of one who types and a means that keeps processes of ours.
pub(crate) const SERVED: [(Who, &str); 3] = [
    (Who::Root, "loop"),
    (Who::Root, "fuse"),
    (Who::User, "fuse"),
];
