//! `loopmount --stats WHAT`: what the server of a unit has done so far.
//!
//! The server keeps `stats.json` in the unit's folder and replaces it when it gets SIGUSR1. That the
//! file is there says that the server knows the signal.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbdserve::error::escape;
use nbdserve::prefetch::{Prefetch, Progress};
use nbdserve::size::format_size;
use nbdserve::stats::{RequestStats, VolumeStats};
use nbdserve::{Error, Kind, Result, Volume};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use super::dir::UnitDir;
use super::exit::Exit;
use super::find::{self, Unit};
use super::front::print_report;
use super::list::aligned;
use super::processes::is_server;
use super::record::Stage;
use super::{events, out, stop};

/// The file's name in the unit's folder.
pub(super) const FILE: &str = "stats.json";
/// The one that replaces it.
pub(super) const NEW_FILE: &str = "stats.json.new";
/// A server that does not answer within this time is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// One unit's figures.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    /// The unit's id.
    id: String,
    /// Source first.
    layers: Vec<VolumeStats>,
    /// With --prefetch, how far that is.
    #[serde(default)]
    prefetch: Option<Progress>,
}

/// In the server: writes the figures of `chain` into the unit's folder, now and at each SIGUSR1.
///
/// # Errors
/// When the signal cannot be watched.
pub(super) fn keep(
    dir: UnitDir,
    chain: Vec<Volume>,
    prefetch: Option<Arc<Prefetch>>,
) -> Result<()> {
    let mut signals = Signals::new([SIGUSR1])
        .map_err(|error| Error::io("cannot install a signal handler", error))?;
    let write = move || {
        let figures = Figures {
            id: dir.id().to_owned(),
            layers: chain.iter().map(Volume::stats).collect(),
            prefetch: prefetch.as_ref().map(|prefetch| prefetch.progress()),
        };
        let done = serde_json::to_vec(&figures)
            .map_err(std::io::Error::from)
            .and_then(|text| dir.replace(FILE, NEW_FILE, &text));
        if let Err(error) = done {
            tracing::warn!("cannot write {FILE}: {error}");
        }
    };
    // Whoever sees the unit as mounted finds the file.
    write();
    events::watch("stats", move || {
        for _ in signals.forever() {
            write();
        }
    })
}

/// The command: prints the figures of every unit that `what` names.
///
/// # Errors
/// When the mount table cannot be read.
pub fn command(what: &OsStr, json: bool) -> Result<Exit> {
    let units = find::named(what)?;
    if units.is_empty() {
        print_report(&stop::nothing_there(what).report());
        return Ok(Exit::NotOurs);
    }
    let figures = units.iter().map(ask).collect::<Result<Vec<_>>>()?;
    if json {
        let text = serde_json::to_string_pretty(&figures)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode the figures").caused_by(cause))?;
        out::print(text + "\n")?;
    } else {
        for figures in figures {
            out::print(table(&figures.layers))?;
            if let Some(prefetch) = &figures.prefetch {
                out::print(prefetched(prefetch) + "\n")?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Has the server write its figures, and reads them.
fn ask(unit: &Unit) -> Result<Figures> {
    let id = &unit.id;
    let Some(dir) = &unit.dir else {
        let what = format!("unit {id} has its state in another folder");
        return Err(Error::new(Kind::Io, what)
            .hint("set XDG_RUNTIME_DIR to what it was when the unit was mounted"));
    };
    let file = dir.join(FILE);
    // Held open, so that no new file gets its inode.
    let Ok(before) = File::open(&file) else {
        return Err(no_figures(unit));
    };
    let old = inode(before.metadata());
    let pid = unit.server.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let gone = || Error::new(Kind::Io, format!("the server of unit {id} is gone"));
    let pidfd = pid
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .ok_or_else(gone)?;
    // Looked at while the descriptor holds the number: no other process can get the signal.
    if !unit.server.is_some_and(|pid| is_server(pid, id)) {
        return Err(gone());
    }
    pidfd_send_signal(&pidfd, Signal::USR1).map_err(|errno| gone().caused_by(errno))?;
    let deadline = Instant::now() + PATIENCE;
    while inode(fs::metadata(&file)).is_none_or(|now| Some(now) == old) {
        if Instant::now() >= deadline {
            let what = format!("the server of unit {id} has not answered within {PATIENCE:?}");
            return Err(Error::new(Kind::TimedOut, what));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let text = fs::read(&file).map_err(|error| Error::io("cannot read the figures", error))?;
    serde_json::from_slice(&text)
        .map_err(|cause| Error::new(Kind::Corrupt, "these are no figures of ours").caused_by(cause))
}

fn inode(meta: io::Result<fs::Metadata>) -> Option<u64> {
    meta.ok().map(|meta| meta.ino())
}

fn no_figures(unit: &Unit) -> Error {
    let id = &unit.id;
    let record = unit.record.as_ref();
    if record.is_none_or(|record| record.stage == Stage::Starting) {
        let what = format!("unit {id} is still starting");
        return Error::new(Kind::Io, what).hint("it counts as soon as it is mounted");
    }
    let what = format!("unit {id} has no server that counts");
    Error::new(Kind::Unsupported, what).hint("a plain image that root mounts is the kernel's alone")
}

const HEADER: [&str; 10] = [
    "LAYER", "DOES", "REQUESTS", "BYTES", "ERRORS", "P50", "P90", "P99", "HITS", "DECODES",
];

/// A line for the reads of each layer, and one for its writes if there were any.
fn table(layers: &[VolumeStats]) -> String {
    let mut rows = vec![HEADER.map(str::to_owned)];
    for layer in layers {
        let name = escape(&layer.name);
        let blocks = layer
            .blocks
            .map_or(["-".to_owned(), "-".to_owned()], |blocks| {
                [blocks.hits.to_string(), blocks.decodes.to_string()]
            });
        rows.push(row(&name, "read", &layer.reads, blocks));
        if layer.writes.requests > 0 {
            let none = ["-".to_owned(), "-".to_owned()];
            rows.push(row(&name, "write", &layer.writes, none));
        }
    }
    aligned(&rows)
}

/// How far the prefetch is, in words.
fn prefetched(progress: &Progress) -> String {
    let (done, total) = (format_size(progress.done), format_size(progress.total));
    let state = match progress {
        Progress { ended: false, .. } => "under way",
        Progress { done, total, .. } if done == total => "done",
        _ => "ended early, the log says why",
    };
    let damaged = match progress.failed {
        0 => String::new(),
        failed => format!(", {} of it damaged", format_size(failed)),
    };
    format!("prefetch: {done} of {total}{damaged}, {state}")
}

fn row(name: &str, does: &str, requests: &RequestStats, blocks: [String; 2]) -> [String; 10] {
    let [hits, decodes] = blocks;
    [
        name.to_owned(),
        does.to_owned(),
        requests.requests.to_string(),
        format_size(requests.bytes),
        requests.errors.to_string(),
        duration(requests.p50),
        duration(requests.p90),
        duration(requests.p99),
        hits,
        decodes,
    ]
}

/// Nanoseconds for people.
fn duration(nanos: u64) -> String {
    match nanos {
        0 => "-".to_owned(),
        1..10_000 => format!("{nanos}ns"),
        10_000..10_000_000 => format!("{}us", nanos / 1000),
        _ => format!("{}ms", nanos / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_was_never_written_has_one_line() {
        let reads = RequestStats {
            requests: 3,
            bytes: 8192,
            errors: 0,
            p50: 900,
            p90: 20_000,
            p99: 12_000_000,
        };
        let layer = VolumeStats {
            name: "xz".to_owned(),
            reads,
            writes: RequestStats::default(),
            blocks: None,
        };
        assert_eq!(
            table(&[layer]),
            "LAYER  DOES  REQUESTS  BYTES  ERRORS  P50    P90   P99   HITS  DECODES\n\
             xz     read  3         8 KiB  0       900ns  20us  12ms  -     -\n"
        );
    }
}
