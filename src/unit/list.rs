//! `loopmount --list`: what is mounted.

use std::fmt::Write as _;
use std::path::PathBuf;

use nbdserve::error::escape;
use nbdserve::{Error, Kind, Result};
use serde::Serialize;

use super::find::{self, Unit};
use super::message::Request;
use super::record::Stage;
use super::{out, path_text};

/// One row of the list, and one object of its JSON form.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The unit's id.
    pub id: String,
    /// The image as it was given, absolute.
    #[serde(serialize_with = "path_text::serialize_option")]
    pub image: Option<PathBuf>,
    /// Where it is.
    #[serde(serialize_with = "path_text::serialize_option")]
    pub target: Option<PathBuf>,
    /// The means: `nbd`, `loop`, `fuse`.
    pub via: Option<String>,
    /// The device under the mount.
    pub device: Option<PathBuf>,
    /// The kernel's name of the file system.
    pub filesystem: Option<String>,
    /// Whether writes go to the image.
    pub writable: Option<bool>,
    /// `mounted`, `starting`, `ending`, or `dead` when nobody looks after it any more.
    pub state: &'static str,
    /// Process id of the server.
    pub server: Option<u32>,
    /// Seconds since 1970.
    pub started: Option<u64>,
}

impl Row {
    fn of(unit: &Unit) -> Self {
        let record = unit.record.as_ref();
        let request = record.map(|record| &record.request);
        Self {
            id: unit.id.clone(),
            image: request.map(|request| request.image.clone()),
            target: unit.target(),
            via: record
                .and_then(|record| record.via)
                .map(|via| via.to_string()),
            device: record
                .and_then(|record| record.device.clone())
                .or_else(|| unit.traces.loops.first().map(|device| device.path.clone())),
            filesystem: record
                .and_then(|record| record.opened.as_ref())
                .and_then(|opened| opened.filesystem.clone()),
            writable: request.map(Request::takes_writes),
            state: state(unit),
            server: unit.server,
            started: record.map(|record| record.started),
        }
    }

    fn cells(&self) -> [String; 7] {
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map_or_else(|| "?".to_owned(), |p| escape(&p.to_string_lossy()))
        };
        let mode = match self.writable {
            Some(true) => "rw",
            Some(false) => "ro",
            None => "?",
        };
        [
            self.id.clone(),
            path(&self.image),
            path(&self.target),
            self.via.clone().unwrap_or_else(|| "?".to_owned()),
            self.filesystem.clone().unwrap_or_else(|| "-".to_owned()),
            mode.to_owned(),
            self.state.to_owned(),
        ]
    }
}

fn state(unit: &Unit) -> &'static str {
    let record = unit.record.as_ref();
    // A plain loop device needs nobody to look after it.
    let unattended = record.is_some_and(|record| record.supervisor.is_none());
    if !unit.alive && !unattended {
        return "dead";
    }
    match record.map(|record| record.stage) {
        Some(Stage::Starting) => "starting",
        Some(Stage::Ending) => "ending",
        Some(Stage::Mounted) | None => "mounted",
    }
}

const HEADER: [&str; 7] = ["ID", "IMAGE", "TARGET", "VIA", "FS", "MODE", "STATE"];

/// The command `--list`: prints all units of this user.
///
/// # Errors
/// When the mount table cannot be read.
pub fn command(json: bool) -> Result<()> {
    let rows: Vec<_> = find::all()?.iter().map(Row::of).collect();
    if json {
        let text = serde_json::to_string_pretty(&rows)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode the list").caused_by(cause))?;
        return out::print(text + "\n");
    }
    if rows.is_empty() {
        out::tell("loopmount: nothing is mounted");
        return Ok(());
    }
    let mut lines = vec![HEADER.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    out::print(aligned(&lines))?;
    if rows.iter().any(|row| row.state == "dead") {
        out::tell("loopmount: nobody looks after a dead unit; loopmount -u ID takes it away");
    }
    Ok(())
}

/// Rows as text with columns that line up.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let rows =
            [["ID", "TARGET"], ["1", "/mnt/ä"], ["22", "/m"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "ID  TARGET\n1   /mnt/ä\n22  /m\n");
    }
}
