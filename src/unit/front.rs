//! Who hears how a unit starts: the launcher at the other end of a socket, or our own terminal.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nbdserve::error::Report;

use super::channel::Channel;
use super::message::{ToLauncher, Via};
use super::notify::{READY, STOPPING, notify};

/// Hears how a unit starts. Called from several threads.
pub trait Front: Send + Sync {
    /// A pass has reached `done` of `total` bytes.
    fn progress(&self, what: &str, done: u64, total: u64);
    /// The target can be used.
    fn ready(&self, via: Via);
    /// Not started.
    fn failed(&self, report: &Report);
    /// What was ready is being taken down.
    fn ending(&self) {}
}

impl Front for Channel {
    fn progress(&self, what: &str, done: u64, total: u64) {
        // A launcher that is gone needs no progress.
        let _ = self.send(
            &ToLauncher::Progress {
                what: what.to_owned(),
                done,
                total,
            },
            &[],
        );
    }

    fn ready(&self, via: Via) {
        let _ = self.send(&ToLauncher::Ready { via }, &[]);
    }

    fn failed(&self, report: &Report) {
        let _ = self.send(&ToLauncher::Failed(report.clone()), &[]);
    }
}

/// Prints on standard error: a bar on a terminal, now and then a line elsewhere, and nothing for
/// what takes less than a second.
#[derive(Debug)]
pub struct Terminal {
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    since: Instant,
    last_line: Option<Instant>,
    bar: Option<ProgressBar>,
}

/// Nothing is shown for what takes less time.
const PATIENCE: Duration = Duration::from_secs(1);
/// Without a terminal, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Terminal {
    /// A front that has shown nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let shown = Shown {
            since: Instant::now(),
            last_line: None,
            bar: None,
        };
        Self {
            shown: Mutex::new(shown),
        }
    }

    /// Shows how far a pass has got.
    pub fn update(&self, what: &str, done: u64, total: u64) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.since.elapsed() < PATIENCE {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = shown.bar.get_or_insert_with(|| new_bar(what, total));
            bar.set_length(total);
            bar.set_position(done);
        } else if shown.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            shown.last_line = Some(Instant::now());
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
            let _ = writeln!(std::io::stderr(), "loopmount: {what}: {percent} %");
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = shown.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

fn new_bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    // The template is a constant that the test below parses; the fallback is never used.
    let style = ProgressStyle::with_template(TEMPLATE)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar
}

const TEMPLATE: &str = "{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left";

/// In the foreground: the one who looks at the terminal, and the service manager.
impl Front for Terminal {
    fn progress(&self, what: &str, done: u64, total: u64) {
        self.update(what, done, total);
    }

    fn ready(&self, _via: Via) {
        self.clear();
        notify(READY);
    }

    fn failed(&self, report: &Report) {
        self.clear();
        print_report(report);
    }

    fn ending(&self) {
        notify(STOPPING);
    }
}

/// Prints an error the one way the command prints errors.
pub fn print_report(report: &Report) {
    let _ = writeln!(std::io::stderr(), "loopmount: {report}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_the_bar_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
