//! Who hears how a unit starts: the launcher at the other end of a socket, or our own terminal.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nbdserve::cx::{Observer, Pass};
use nbdserve::error::Report;

use super::channel::Channel;
use super::message::{ToLauncher, Via};
use super::notify::{READY, STOPPING, notify};

/// Hears how a unit starts. Called from several threads.
pub trait Front: Send + Sync {
    /// A pass begins.
    fn begins(&self, pass: &Pass);
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
    fn begins(&self, pass: &Pass) {
        let _ = self.send(&ToLauncher::Pass(pass.clone()), &[]);
    }

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

/// Prints on standard error: what a pass is for and how long it will take, as soon as that is known
/// and if it is more than a second; then a bar on a terminal, now and then a line elsewhere.
#[derive(Debug)]
pub struct Terminal {
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    since: Instant,
    last_line: Option<Instant>,
    bar: Option<ProgressBar>,
    passes: Vec<Seen>,
    /// A question stands there: nothing else is shown.
    asking: bool,
}

/// A pass that was heard of.
#[derive(Debug)]
struct Seen {
    pass: Pass,
    since: Instant,
    /// Where it was when it was heard of first.
    first: u64,
    done: u64,
    total: u64,
    told: bool,
}

/// Nothing is shown for what takes less time.
const PATIENCE: Duration = Duration::from_secs(1);
/// Without a terminal, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// What a pass will take is measured for as long.
const MEASURE: Duration = Duration::from_millis(250);
/// A pass over more bytes than this is told of even if nothing is known of its speed.
const LONG: u64 = 256 << 20;
/// More passes are not told apart.
const MOST_PASSES: usize = 64;

impl Seen {
    fn new(pass: Pass, first: u64) -> Self {
        Self {
            pass,
            since: Instant::now(),
            first,
            done: first,
            total: 0,
            told: false,
        }
    }

    /// How long it will still take if it goes on as it did.
    fn left(&self) -> Option<Duration> {
        let came = self.done.saturating_sub(self.first);
        let took = self.since.elapsed();
        if came == 0 || took < MEASURE {
            return None;
        }
        let left = self.total.saturating_sub(self.done);
        let seconds = took.as_secs_f64() * (left as f64 / came as f64);
        Duration::try_from_secs_f64(seconds).ok()
    }

    fn is_long(&self) -> bool {
        let left = self.left();
        left.is_some_and(|left| self.since.elapsed().saturating_add(left) > PATIENCE)
    }

    /// `xz: decoding once, for block 0 can only be ...: about 12 s, kept in /var/tmp until the end`.
    fn text(&self) -> String {
        let Pass { what, why, kept } = &self.pass;
        let mut text = what.clone();
        if !why.is_empty() {
            text.push_str(&format!(", for {why}"));
        }
        let time = self.left().map(|left| match left.as_secs() {
            0 => "a moment".to_owned(),
            seconds @ 1..100 => format!("about {seconds} s"),
            seconds @ 100..6000 => format!("about {} min", seconds.div_ceil(60)),
            seconds => format!("about {} h", seconds.div_ceil(3600)),
        });
        let kept = Some(kept.clone()).filter(|kept| !kept.is_empty());
        let rest: Vec<_> = time.into_iter().chain(kept).collect();
        if !rest.is_empty() {
            text.push_str(&format!(": {}", rest.join(", ")));
        }
        nbdserve::error::escape(&text)
    }
}

impl Terminal {
    /// A front that has shown nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let shown = Shown {
            since: Instant::now(),
            last_line: None,
            bar: None,
            passes: Vec::new(),
            asking: false,
        };
        Self {
            shown: Mutex::new(shown),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins.
    pub fn begins(&self, pass: Pass) {
        let mut shown = self.lock();
        let passes = &mut shown.passes;
        let known = passes.iter().position(|seen| seen.pass.what == pass.what);
        match known {
            Some(at) => passes[at].pass = pass,
            None if passes.len() < MOST_PASSES => passes.push(Seen::new(pass, 0)),
            None => {}
        }
    }

    /// Shows how far a pass has got.
    pub fn update(&self, what: &str, done: u64, total: u64) {
        let mut shown = self.lock();
        if shown.asking {
            return;
        }
        if let Some(text) = shown.note(what, done, total) {
            shown.say(&text);
        }
        if shown.since.elapsed() < PATIENCE {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = shown.bar.get_or_insert_with(|| new_bar(total));
            bar.set_message(what.to_owned());
            bar.set_length(total);
            bar.set_position(done);
        } else if shown.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            shown.last_line = Some(Instant::now());
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
            let _ = writeln!(std::io::stderr(), "loopmount: {what}: {percent} %");
        }
    }

    /// Shows nothing while `ask` puts a question to whoever looks at it.
    pub fn while_asking<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.clear();
        self.lock().asking = true;
        let answer = ask();
        self.lock().asking = false;
        answer
    }

    /// Says what the user should know, and goes on.
    pub fn warn(&self, text: &str) {
        self.lock().say(&format!("warning: {text}"));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = self.lock().bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Takes the bar away, and tells of passes that go on after the target can be used.
    pub fn finish(&self) {
        self.clear();
        let mut shown = self.lock();
        let goes_on = |seen: &&mut Seen| {
            let unknown = seen.left().is_none() && seen.total >= LONG;
            !seen.told && seen.done < seen.total && (seen.is_long() || unknown)
        };
        let passes = shown.passes.iter_mut().filter(goes_on);
        let texts: Vec<_> = passes
            .map(|seen| {
                seen.told = true;
                format!("{}; what is done already can be read", seen.text())
            })
            .collect();
        for text in texts {
            shown.say(&text);
        }
    }
}

impl Shown {
    /// Notes how far a pass is; what is to be said of it, once.
    fn note(&mut self, what: &str, done: u64, total: u64) -> Option<String> {
        let at = self.passes.iter().position(|seen| seen.pass.what == what);
        let at = match at {
            Some(at) => at,
            None if self.passes.len() < MOST_PASSES => {
                let pass = Pass {
                    what: what.to_owned(),
                    why: String::new(),
                    kept: String::new(),
                };
                self.passes.push(Seen::new(pass, done));
                self.passes.len() - 1
            }
            None => return None,
        };
        let seen = &mut self.passes[at];
        (seen.done, seen.total) = (done, total);
        if seen.told || done >= total || !seen.is_long() {
            return None;
        }
        seen.told = true;
        Some(seen.text())
    }

    fn say(&self, text: &str) {
        let line = || {
            let _ = writeln!(std::io::stderr(), "loopmount: {text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

/// For an image that is looked at in this process.
impl Observer for Terminal {
    fn begins(&self, pass: &Pass) {
        Self::begins(self, pass.clone());
    }

    fn progress(&self, what: &str, done: u64, total: u64) {
        self.update(what, done, total);
    }

    fn poisoned(&self, error: &nbdserve::Error) {
        tracing::error!("{}", error.report());
    }
}

fn new_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    // The template is a constant that the test below parses; the fallback is never used.
    let style = ProgressStyle::with_template(TEMPLATE)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    bar.set_style(style);
    bar
}

const TEMPLATE: &str = "{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left";

/// In the foreground: the one who looks at the terminal, and the service manager.
impl Front for Terminal {
    fn begins(&self, pass: &Pass) {
        Self::begins(self, pass.clone());
    }

    fn progress(&self, what: &str, done: u64, total: u64) {
        self.update(what, done, total);
    }

    fn ready(&self, _via: Via) {
        self.finish();
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

/// Passes all on but a failure to start, which may not be the last word.
pub struct Unreported {
    front: Arc<dyn Front>,
    at_ready: Box<dyn Fn() + Send + Sync>,
    failure: Mutex<Option<Report>>,
}

impl std::fmt::Debug for Unreported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unreported")
    }
}

impl Unreported {
    /// In front of `front`; `at_ready` is called when the target can be used.
    #[must_use]
    pub fn new(front: Arc<dyn Front>, at_ready: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            front,
            at_ready,
            failure: Mutex::new(None),
        }
    }

    /// Why it was not started.
    #[must_use]
    pub fn failure(&self) -> Option<Report> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }
}

impl Front for Unreported {
    fn begins(&self, pass: &Pass) {
        self.front.begins(pass);
    }

    fn progress(&self, what: &str, done: u64, total: u64) {
        self.front.progress(what, done, total);
    }

    fn ready(&self, via: Via) {
        (self.at_ready)();
        self.front.ready(via);
    }

    fn failed(&self, report: &Report) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
    }

    fn ending(&self) {
        self.front.ending();
    }
}

/// Prints an error the one way the command prints errors.
pub fn print_report(report: &Report) {
    let _ = writeln!(std::io::stderr(), "loopmount: {report}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(total: u64, done: u64, took: Duration) -> Seen {
        let pass = Pass {
            what: "xz: decoding once".to_owned(),
            why: "it is one block".to_owned(),
            kept: "kept in /tmp until the end".to_owned(),
        };
        let mut seen = Seen::new(pass, 0);
        seen.since = Instant::now().checked_sub(took).unwrap();
        (seen.done, seen.total) = (done, total);
        seen
    }

    #[test]
    fn a_pass_is_told_of_once_it_is_known_to_take_more_than_a_second() {
        let half = Duration::from_millis(500);
        assert!(!seen(1000, 900, half).is_long());
        assert!(seen(1000, 10, half).is_long());
        // Nothing is known yet.
        assert!(!seen(1000, 10, Duration::ZERO).is_long());
        assert!(!seen(1000, 0, half).is_long());
        let text = seen(100, 1, half).text();
        assert_eq!(
            text,
            "xz: decoding once, for it is one block: about 49 s, kept in /tmp until the end"
        );
        let unknown = seen(1000, 0, half).text();
        assert!(!unknown.contains("about"), "{unknown}");
    }

    #[test]
    fn a_pass_is_told_of_once() {
        let mut shown = Terminal::new();
        let shown = shown.shown.get_mut().unwrap();
        assert_eq!(shown.note("gzip: looking", 0, 100), None);
        shown.passes[0].since = Instant::now().checked_sub(PATIENCE).unwrap();
        let told = shown.note("gzip: looking", 1, 100);
        assert_eq!(told.as_deref(), Some("gzip: looking: about 99 s"));
        assert_eq!(shown.note("gzip: looking", 2, 100), None);
    }

    #[test]
    fn the_template_of_the_bar_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
