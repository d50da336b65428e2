//! Starting the supervisor, the server and the janitor: this program again, never a bare fork.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nbdserve::{Error, Result};

use super::channel::Channel;
use crate::sys::process::close_inherited;

/// What our processes call themselves.
pub(super) const NAME: &str = "loopmount";

/// The internal roles of the program: its first argument, the id of the unit is the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Looks after a unit.
    Supervise,
    /// Opens the image and answers the kernel.
    Serve,
    /// Undoes what the record of a dead supervisor lists.
    Undo,
}

impl Role {
    /// The word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Supervise => "__supervise",
            Self::Serve => "__serve",
            Self::Undo => "__undo",
        }
    }

    /// The role that a first argument asks for.
    #[must_use]
    pub fn from_word(word: &std::ffi::OsStr) -> Option<Self> {
        [Self::Supervise, Self::Serve, Self::Undo]
            .into_iter()
            .find(|role| word == role.word())
    }
}

/// Starts this program again in `role` for unit `id`, with one end of a new channel as its standard
/// input. It gets no terminal, `/` as its folder, and no other descriptor: what we were started with
/// it closes in [`inherit`].
///
/// # Errors
/// When the process cannot be started.
pub fn respawn(role: Role, id: &str) -> Result<(Child, Channel)> {
    let (ours, theirs) = Channel::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .arg(role.word())
        .arg(id)
        .current_dir("/")
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            Error::io("cannot start a process of our own", error).hint("is /proc mounted?")
        })?;
    Ok((child, ours))
}

/// In a started process, before anything else is opened: takes the channel that was passed as
/// standard input, which becomes /dev/null, closes all that only the user's shell left open, and
/// leaves the terminal's session. The user's lock (`exec 9>lock; flock 9`) would be held as long as
/// the mount otherwise, and the other end of the user's pipe would see no end.
///
/// # Errors
/// When standard input is not open.
pub fn inherit() -> Result<Channel> {
    close_inherited(3);
    let take = || -> std::io::Result<OwnedFd> {
        let fd = std::io::stdin().as_fd().try_clone_to_owned()?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(fd)
    };
    let fd = take().map_err(|error| Error::io("cannot take over the channel", error))?;
    // Fails only for a session leader, which then has what it wants.
    let _ = rustix::process::setsid();
    Ok(Channel::from_fd(fd))
}
