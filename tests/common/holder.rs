//! A process that keeps a mount busy until it is told to go on.

use std::path::{Path, PathBuf};

use super::run::{Outcome, Running};
use super::{Sandbox, until};

/// A shell that stands in a folder, or has a file open.
#[derive(Debug)]
pub(crate) struct Holder {
    running: Running,
    go: PathBuf,
}

impl Holder {
    /// A process named `sleep` whose working directory is `dir`.
    pub(crate) fn stand_in(sandbox: &Sandbox, dir: &Path) -> Self {
        // `exec` keeps the process id, so that `pid` is the one of sleep.
        let script = "cd -- \"$1\" && : > \"$2\" && exec sleep 1000";
        Self::start(sandbox, script, dir)
    }

    /// A process that has opened `file`, and reads it to the end when released.
    pub(crate) fn open(sandbox: &Sandbox, file: &Path) -> Self {
        let script = "exec 3< \"$1\" && : > \"$2\" && while [ ! -e \"$3\" ]; do sleep 0.02; done; \
                      exec cat <&3 > /dev/null";
        Self::start(sandbox, script, file)
    }

    fn start(sandbox: &Sandbox, script: &str, what: &Path) -> Self {
        let serial = sandbox.serial();
        let ready = sandbox.join(format!("ready-{serial}"));
        let go = sandbox.join(format!("go-{serial}"));
        let mut running = sandbox
            .tool("sh")
            .args(["-c", script, "sh"])
            .args([what, &ready, &go])
            .spawn();
        until("the holder holds", || {
            assert!(running.is_running(), "the holder of {what:?} failed");
            ready.exists()
        });
        Self { running, go }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Lets it go on, and waits for its end.
    pub(crate) fn release(self) -> Outcome {
        std::fs::write(&self.go, "").unwrap();
        self.running.wait()
    }

    /// Kills it.
    pub(crate) fn kill(self) {
        self.running.signal(rustix::process::Signal::KILL);
        self.running.wait();
    }
}
