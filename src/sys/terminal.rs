//! A line typed at the terminal that is not shown.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nbdserve::secret::LockedBytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The terminal of this process, whatever its standard input is.
const TERMINAL: &str = "/dev/tty";
/// The kernel gives a line of at most 4095 bytes at once.
const LONGEST: usize = 4096;
/// What ends or stops a process that waits at a terminal. The terminal is put right first.
const SIGNALS: [Signal; 5] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
];

/// How the wait for a line has ended.
#[derive(Debug)]
pub enum Typed {
    /// A line, without its end.
    Line(LockedBytes),
    /// The end of input (^D) and nothing before it.
    End,
    /// Whoever wanted to know is gone.
    Gone,
    /// A signal that did not end this process: whoever handles it knows of it.
    Interrupted,
}

/// Asks at the terminal and waits for a line that is not shown; `None` when this process has no
/// terminal. `gone` is a socket: when its other end says anything or hangs up, nobody waits for the
/// answer any more.
///
/// The terminal is as it was before when this returns, and before a signal ends or stops the process.
///
/// # Errors
/// What the terminal says.
pub fn ask_hidden(prompt: &str, gone: Option<BorrowedFd<'_>>) -> io::Result<Option<Typed>> {
    // One at a time: the handlers are those of the process.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(terminal) = OpenOptions::new().read(true).write(true).open(TERMINAL) else {
        return Ok(None);
    };
    loop {
        let signal = {
            let mut caught = Caught::new()?;
            let _hidden = Hidden::new(&terminal)?;
            (&terminal).write_all(prompt.as_bytes())?;
            let typed = wait(&terminal, caught.seen, gone);
            // The end of the line was not shown either.
            (&terminal).write_all(b"\n")?;
            match typed? {
                Some(typed) => return Ok(Some(typed)),
                None => caught.signal()?,
            }
        };
        let Some(signal) = signal else { continue };
        // The handlers of before are back: this may be the end.
        raise(signal)?;
        if signal != Signal::SIGTSTP {
            return Ok(Some(Typed::Interrupted));
        }
    }
}

/// `None` for a signal.
fn wait(
    terminal: &File,
    signals: &UnixStream,
    gone: Option<BorrowedFd<'_>>,
) -> io::Result<Option<Typed>> {
    let mut line = LockedBytes::new(LONGEST);
    let mut have = 0_usize;
    let mut buf = LockedBytes::new(LONGEST);
    loop {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(terminal.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(gone.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let ready = |at: usize| {
            let events = fds.get(at).and_then(|fd: &PollFd<'_>| fd.revents());
            events.is_some_and(|events| !events.is_empty())
        };
        if ready(0) {
            return Ok(None);
        }
        if ready(2) {
            return Ok(Some(Typed::Gone));
        }
        if !ready(1) {
            continue;
        }
        let len = match (&*terminal).read(&mut buf[..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let (text, ended) = match buf[..len].iter().position(|&byte| byte == b'\n') {
            Some(end) => (&buf[..end], true),
            // ^D: at the beginning it is the end of input, elsewhere that of the line.
            None => (&buf[..len], len < LONGEST),
        };
        let end = have.saturating_add(text.len());
        let Some(room) = line.get_mut(have..end) else {
            return Err(io::Error::other("the line is too long"));
        };
        room.copy_from_slice(text);
        have = end;
        if len == 0 && have == 0 {
            return Ok(Some(Typed::End));
        }
        if ended {
            line.truncate(have);
            return Ok(Some(Typed::Line(line)));
        }
    }
}

/// While it lives, what is typed is not shown.
struct Hidden<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        hidden.local_flags.remove(LocalFlags::ECHONL);
        hidden.local_flags |= LocalFlags::ICANON | LocalFlags::ISIG;
        // What was typed before was meant for others, and was shown.
        tcsetattr(terminal, SetArg::TCSAFLUSH, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// Where the handler writes the number of a signal; -1 before there is a pair.
static NOTE: AtomicI32 = AtomicI32::new(-1);
/// Both ends. Never closed: a handler may still run on another thread.
static NOTES: OnceLock<(UnixStream, UnixStream)> = OnceLock::new();

/// While it lives, [`SIGNALS`] are noted and do nothing else.
struct Caught {
    before: Vec<(Signal, SigAction)>,
    seen: &'static UnixStream,
}

impl Caught {
    fn new() -> io::Result<Self> {
        let (seen, note) = match NOTES.get() {
            Some(pair) => pair,
            None => {
                let (seen, note) = UnixStream::pair()?;
                seen.set_nonblocking(true)?;
                note.set_nonblocking(true)?;
                NOTES.get_or_init(|| (seen, note))
            }
        };
        NOTE.store(note.as_raw_fd(), Ordering::Release);
        let mut caught = Self {
            before: Vec::new(),
            seen,
        };
        while caught.signal()?.is_some() {}
        let handler = SigHandler::Handler(note_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        for signal in SIGNALS {
            // SAFETY: the handler calls nothing but write(2) and keeps errno.
            let before = unsafe { sigaction(signal, &action) }?;
            caught.before.push((signal, before));
            if matches!(before.handler(), SigHandler::SigIgn) {
                // It stays ignored, as under nohup.
                // SAFETY: puts back what was there.
                unsafe { sigaction(signal, &before) }?;
            }
        }
        Ok(caught)
    }

    /// A signal that was seen.
    fn signal(&mut self) -> io::Result<Option<Signal>> {
        let mut number = [0];
        match self.seen.read(&mut number) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(Signal::try_from(i32::from(number[0]))?)),
        }
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, before) in self.before.drain(..) {
            // SAFETY: puts back what was there; a handler of another part of the program was sound
            // before.
            let _ = unsafe { sigaction(signal, &before) };
        }
    }
}

/// The handler.
extern "C" fn note_signal(signal: libc::c_int) {
    let fd = NOTE.load(Ordering::Acquire);
    if fd < 0 {
        return;
    }
    let byte = u8::try_from(signal).unwrap_or(0);
    let errno = nix::errno::Errno::last_raw();
    // SAFETY: write(2) may be called in a handler; the byte lives as long as the call, and the
    // descriptor is never closed.
    unsafe { libc::write(fd, std::ptr::from_ref(&byte).cast(), 1) };
    nix::errno::Errno::set_raw(errno);
}
