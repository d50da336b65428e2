//! `loopmount --prefetch IMAGE`: reads all of the image once, so that it is in the cache.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nbdserve::cx::{Cancel, Pass};
use nbdserve::plan::Resolved;
use nbdserve::prefetch::{Prefetch, Progress};
use nbdserve::size::format_size;
use nbdserve::{Cost, Cx, Error, Index, Keeping, Result, Volume};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Cli, info};
use crate::unit::events;
use crate::unit::exit::Exit;
use crate::unit::front::Terminal;
use crate::unit::out;

/// What is said of the reading.
const WHAT: &str = "reading all of it";
/// Between the code of a process that a signal has ended and the number of the signal.
const BY_SIGNAL: u8 = 128;

/// Reads the image, or with -P the partition. A signal stops it at once, and what was read is kept.
pub(super) fn command(cli: &Cli, image: &Path) -> Result<Exit> {
    let terminal = Arc::new(Terminal::new());
    let cx = cli.cx(&terminal)?;
    let signal = watch_signals(&cx.cancel)?;
    let resolved = info::open(cli, image, cx.clone());
    let kept = resolved.as_ref().map(|resolved| kept(resolved, &cx));
    let kept = kept.unwrap_or_default();
    let result = resolved.and_then(|resolved| read(&resolved, &cx, &terminal));
    terminal.clear();
    let stopped = u8::try_from(signal.load(Ordering::Acquire)).unwrap_or(0);
    match result {
        Ok(text) => out::tell(format_args!("loopmount: {text}")),
        Err(_) if stopped > 0 && kept.is_empty() => out::tell("loopmount: stopped"),
        Err(_) if stopped > 0 => out::tell(format_args!("loopmount: stopped; {kept}")),
        Err(error) => return Err(error),
    }
    Ok(match stopped {
        0 => Exit::Done,
        signal => Exit::Command(BY_SIGNAL.saturating_add(signal)),
    })
}

/// Reads it, and says what has come of that.
fn read(resolved: &Resolved, cx: &Cx, terminal: &Terminal) -> Result<String> {
    let volume = &resolved.volume;
    terminal.begins(Pass {
        what: WHAT.to_owned(),
        why: String::new(),
        kept: kept(resolved, cx),
    });
    let prefetch = Prefetch::new(volume);
    let result = prefetch.run(volume, &cx.cancel, |now| {
        terminal.update(WHAT, now.done, now.total);
    });
    let closed = volume.close();
    result.and(closed)?;
    Ok(summary(&prefetch.progress(), &kept(resolved, cx)))
}

fn summary(progress: &Progress, kept: &str) -> String {
    let total = format_size(progress.total);
    match progress.failed {
        0 => format!("read {total}, {kept}"),
        failed => format!(
            "read {total}, of which {} are damaged, {kept}",
            format_size(failed)
        ),
    }
}

/// Where what was read stays. A layer that decodes keeps it where it says, or only where to enter the
/// image; what is only read is in the kernel's memory, as after any read.
fn kept(resolved: &Resolved, cx: &Cx) -> String {
    let layers = || resolved.chain.iter().filter_map(Volume::cost);
    let is_fetched = resolved
        .chain
        .first()
        .is_some_and(|source| source.name() == "http");
    let folder = cx.store.as_ref().map(|store| store.folder().display());
    match folder {
        Some(folder) if is_fetched || layers().any(|cost| cost.kept == Keeping::Disk) => {
            format!("kept in {folder}")
        }
        Some(folder) if layers().any(has_index) => {
            format!("its index is kept in {folder}")
        }
        _ => "nothing of it is kept but by the kernel, as after any read".to_owned(),
    }
}

/// Whether the layer has found out where its blocks lie, and keeps that.
fn has_index(cost: Cost) -> bool {
    cost.index != Index::InImage && cost.index_kept == Keeping::Disk
}

/// The number of the signal that has come, once one has; it stops all reading.
fn watch_signals(cancel: &Cancel) -> Result<Arc<AtomicI32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Error::io("cannot install signal handlers", error))?;
    let (cancel, seen) = (cancel.clone(), Arc::new(AtomicI32::new(0)));
    let note = Arc::clone(&seen);
    events::watch("signals", move || {
        for signal in signals.forever() {
            note.store(signal, Ordering::Release);
            cancel.cancel();
        }
    })?;
    Ok(seen)
}
