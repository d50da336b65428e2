//! The command: parse, run, print one error, exit.

use std::process::ExitCode;
use std::sync::Arc;

use loopmount::cli;
use loopmount::unit::exit::Exit;
use loopmount::unit::respawn::Role;
use loopmount::unit::{launch, serve, stop};
use signal_hook::consts::SIGXFSZ;

fn main() -> ExitCode {
    // A file that may not grow (ulimit -f) is an error of the write, as a full disk is, and not the
    // end of the process. A handler, unlike ignoring it, is not passed on to programs.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let mut args = std::env::args_os().skip(1);
    let Some(role) = args.next().as_deref().and_then(Role::from_word) else {
        return cli::main(std::env::args_os()).into();
    };
    let id = args
        .next()
        .and_then(|id| id.into_string().ok())
        .unwrap_or_default();
    let result = match role {
        Role::Supervise => launch::supervisor_main(),
        Role::Serve => serve::main(&id),
        Role::Undo => stop::janitor(&id),
    };
    // Whoever started it has been told why.
    if result.is_ok() {
        Exit::Done.into()
    } else {
        Exit::Failed.into()
    }
}
