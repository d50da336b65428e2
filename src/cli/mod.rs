//! The command line: one clap definition, from which help is made, and what each form of it does.

mod args;
mod cache;
mod commit;
mod helper;
mod info;
mod keys;
mod mount;
mod prefetch;

use std::ffi::OsString;

use clap::Parser;
use nbdserve::{Error, Kind, Result};

pub use args::Cli;
pub use keys::KeyArgs;

use crate::unit::exit::Exit;
use crate::unit::front::print_report;
use crate::unit::{list, out, stats, stop};
use nbdfuse::mount::Mode;

/// Parses the arguments, the program's name first, does what they say, prints one error if it
/// fails.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let mut args = args.into_iter().peekable();
    if !args.peek().is_some_and(|name| helper::is_helper(name)) {
        return parse_and_run(args);
    }
    let exit = match helper::translate(args.skip(1)) {
        Ok(helper::Wanted::Run(args)) => parse_and_run(args),
        Ok(helper::Wanted::Nothing) => Exit::Done,
        Err(message) => usage(&message),
    };
    helper::exit(exit)
}

fn parse_and_run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed on standard output and are no errors.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            let _ = error.print();
            return exit;
        }
    };
    crate::log::of_command(cli.verbose);
    let result = match cli.check() {
        Ok(()) => run(&cli),
        Err(message) => return usage(&message),
    };
    match result {
        Ok(exit) => exit,
        Err(error) => {
            print_report(&error.report());
            if cli.command.is_empty() {
                Exit::Failed
            } else {
                Exit::BEFORE_COMMAND
            }
        }
    }
}

fn usage(message: &str) -> Exit {
    out::tell(format_args!(
        "loopmount: {message}\n  hint: loopmount --help"
    ));
    Exit::Usage
}

fn run(cli: &Cli) -> Result<Exit> {
    if cli.list {
        return list::command(cli.json).map(|()| Exit::Done);
    }
    if let Some(action) = cli.cache {
        return cache::command(cli, action).map(|()| Exit::Done);
    }
    let image = cli
        .image
        .as_deref()
        .ok_or_else(|| Error::new(Kind::Io, "no image was given"))?;
    if cli.umount {
        let mode = if cli.lazy { Mode::Lazy } else { Mode::Normal };
        return stop::command(image.as_os_str(), mode);
    }
    if cli.stats {
        return stats::command(image.as_os_str(), cli.json);
    }
    if cli.info {
        return info::command(cli, image).map(|()| Exit::Done);
    }
    if cli.commit {
        return commit::command(cli, image).map(|()| Exit::Done);
    }
    if cli.prefetch && cli.target.is_none() && cli.command.is_empty() {
        return prefetch::command(cli, image);
    }
    mount::command(cli, image)
}
