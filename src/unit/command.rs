//! `loopmount IMAGE -- CMD`: run a command in the image's root and take all down when it ends.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use nbdserve::error::escape;
use nbdserve::{Error, Kind, Result};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::events;
use super::exit::Exit;

/// Runs `command` with `folder` as its working folder and waits for it. SIGTERM and SIGHUP are
/// passed on; SIGINT and SIGQUIT reach it from the terminal by themselves.
///
/// # Errors
/// [`Exit::NOT_FOUND`] or [`Exit::NOT_EXECUTABLE`] with the reason, when it cannot be started.
pub fn run(command: &[OsString], folder: &Path) -> Result<Exit, (Exit, Error)> {
    let Some((program, arguments)) = command.split_first() else {
        return Err((
            Exit::BEFORE_COMMAND,
            Error::new(Kind::Io, "no command was given after --"),
        ));
    };
    let other = |error: Error| (Exit::BEFORE_COMMAND, error);
    let signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT])
        .map_err(|error| other(Error::io("cannot install signal handlers", error)))?;
    let handle = signals.handle();
    let child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("PWD", folder)
        .spawn()
        .map_err(|error| cannot_start(program, error))?;
    pass_on(signals, &child).map_err(other)?;
    let status = wait(child).map_err(other)?;
    handle.close();
    Ok(Exit::Command(code(status)))
}

fn cannot_start(program: &OsString, error: std::io::Error) -> (Exit, Error) {
    let exit = if error.kind() == ErrorKind::NotFound {
        Exit::NOT_FOUND
    } else {
        Exit::NOT_EXECUTABLE
    };
    let shown = escape(&program.to_string_lossy());
    (exit, Error::io(format!("cannot run {shown}"), error))
}

fn pass_on(mut signals: Signals, child: &Child) -> Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed())
        .ok_or_else(|| Error::new(Kind::Io, "the command has no process id"))?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|errno| Error::io("cannot watch the command", errno))?;
    events::watch("signals", move || {
        for signal in signals.forever() {
            let pass = match signal {
                SIGTERM => Signal::TERM,
                SIGHUP => Signal::HUP,
                _ => continue,
            };
            let _ = rustix::process::pidfd_send_signal(&pidfd, pass);
        }
    })
}

fn wait(mut child: Child) -> Result<ExitStatus> {
    child
        .wait()
        .map_err(|error| Error::io("cannot wait for the command", error))
}

/// The exit code as a shell gives it.
fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
