//! A terminal of its own for a command, and somebody who types at it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::run::Cmd;
use super::{PATIENCE, eventually, must, require_tool};

/// A command that runs on a terminal. All its three streams are that terminal.
#[derive(Debug)]
pub(crate) struct Dialog {
    child: Child,
    master: File,
    /// The command's end; held so that the output can be read after its end.
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    /// What was expected has ended here.
    seen: usize,
}

impl Dialog {
    /// Starts a command that was prepared by [`Cmd::on_terminal`].
    pub(crate) fn new(mut command: Command) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, flags, Mode::empty()).unwrap();
        let stream = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, all) = (master.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut buf) {
                all.lock().unwrap().extend_from_slice(&buf[..len]);
            }
        });
        Self {
            child,
            master,
            slave,
            shown,
            seen: 0,
        }
    }

    /// All that was shown so far.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until `text` is shown behind what was expected before.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.shown.lock().unwrap().clone();
            let rest = &shown[self.seen..];
            let found = rest.windows(text.len()).position(|w| w == text.as_bytes());
            if let Some(at) = found {
                self.seen += at + text.len();
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{text:?} is not shown: {}",
                String::from_utf8_lossy(&shown)
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Types.
    pub(crate) fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether what is typed is shown.
    pub(crate) fn echoes(&self) -> bool {
        require_tool("stty", "coreutils");
        let slave = Stdio::from(self.slave.try_clone().unwrap());
        let settings = must(Command::new("stty").arg("-a").stdin(slave));
        let settings = String::from_utf8(settings).unwrap();
        settings.split_whitespace().any(|word| word == "echo")
    }

    /// Waits for the end of the command; its exit code, 128 and more for a signal.
    #[track_caller]
    pub(crate) fn code(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let child = &mut self.child;
        let status = eventually("the end of a command", || child.try_wait().unwrap());
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cmd {
    /// Starts it with a terminal of its own, in whose foreground it is.
    pub(crate) fn on_terminal(self) -> Dialog {
        Dialog::new(self.into_command())
    }
}
