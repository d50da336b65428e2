//! How the command ends.

/// Exit codes of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// The command line was wrong.
    Usage,
    /// Nothing of ours is mounted there.
    NotOurs,
    /// In use.
    Busy,
    /// Partly torn down; what is left was printed.
    Partly,
    /// The exit code of the command that was run in the image.
    Command(u8),
}

impl Exit {
    /// Before the command of `loopmount IMAGE -- CMD` was reached: as env(1) has it.
    pub const BEFORE_COMMAND: Self = Self::Command(125);
    /// The command could not be executed.
    pub const NOT_EXECUTABLE: Self = Self::Command(126);
    /// The command was not found.
    pub const NOT_FOUND: Self = Self::Command(127);
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotOurs => 3,
            Exit::Busy => 4,
            Exit::Partly => 5,
            Exit::Command(code) => code,
        })
    }
}
