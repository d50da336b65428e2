//! Commands with a deadline, whose output is kept.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A command to run. It is killed when it takes longer than [`Cmd::limit`].
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            stdin: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command itself, to be started in another way.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end, and until nobody holds its output open any more.
    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs it and expects exit code 0.
    pub(crate) fn ok(self) -> Outcome {
        self.run().expect(0)
    }

    /// Runs it and expects exit code `code`.
    pub(crate) fn fails(self, code: i32) -> Outcome {
        self.run().expect(code)
    }

    /// Starts it.
    pub(crate) fn spawn(mut self) -> Running {
        let line = format!("{:?}", self.command);
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let bytes = self.stdin;
        // A child that does not read all of it is none of our business.
        std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Running {
            line,
            child,
            stdout,
            stderr,
            deadline: Instant::now() + self.limit,
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Running {
    line: String,
    child: Child,
    stdout: mpsc::Receiver<Vec<u8>>,
    stderr: mpsc::Receiver<Vec<u8>>,
    deadline: Instant,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end and for the end of its output.
    ///
    /// # Panics
    /// When the deadline passes, or when something it left behind keeps its output open.
    pub(crate) fn wait(mut self) -> Outcome {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > self.deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let patience = Duration::from_secs(1);
                let stderr = self.stderr.recv_timeout(patience).unwrap_or_default();
                panic!(
                    "{} took too long and was killed; stderr: {}",
                    self.line,
                    String::from_utf8_lossy(&stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let receive = |from: &mpsc::Receiver<Vec<u8>>, name: &str| {
            from.recv_timeout(Duration::from_secs(5))
                .unwrap_or_else(|_| {
                    panic!("{} ended, but something holds its {name} open", self.line)
                })
        };
        Outcome {
            stdout: receive(&self.stdout, "stdout"),
            stderr: String::from_utf8_lossy(&receive(&self.stderr, "stderr")).into_owned(),
            status,
            line: self.line,
        }
    }
}

/// Sends `signal`; a process that has gone meanwhile is no error.
pub(crate) fn send_signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("kill {pid:?}: {error}"),
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) line: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The exit code; a signal gives 128 + its number, as a shell has it.
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap())
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "exit code of {}\nstdout: {}\nstderr: {}",
            self.line,
            self.out(),
            self.stderr
        );
        self
    }

    /// Checks that the message on stderr is for people: it says who speaks and what happened, in a
    /// few lines, without a panic, and holds each of `words` (letters of either case).
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        self.check(&self.stderr, words);
        self
    }

    /// [`Outcome::says`] for the last message of a command that has done its work: on a slow machine
    /// it tells before how far it is.
    #[track_caller]
    pub(crate) fn says_at_last(self, words: &[&str]) -> Self {
        let starts = |at: &usize| *at == 0 || self.stderr[..*at].ends_with('\n');
        let ours = self.stderr.rmatch_indices("loopmount: ");
        let last = ours.map(|(at, _)| at).find(starts);
        self.check(&self.stderr[last.unwrap_or(0)..], words);
        self
    }

    #[track_caller]
    fn check(&self, text: &str, words: &[&str]) {
        assert!(
            text.starts_with("loopmount: "),
            "{}: no message of ours: {text:?}",
            self.line
        );
        let lines = text.lines().count();
        assert!(lines <= 8, "{}: {lines} lines: {text}", self.line);
        assert_eq!(
            text.matches("loopmount: ").count(),
            1,
            "{}: one message, not several: {text}",
            self.line
        );
        for bad in ["panicked", "RUST_BACKTRACE", "Os {", "Err("] {
            assert!(!text.contains(bad), "{}: {text}", self.line);
        }
        let lower = text.to_lowercase();
        for word in words {
            assert!(
                lower.contains(&word.to_lowercase()),
                "{}: {word:?} is not in: {text}",
                self.line
            );
        }
    }
}
