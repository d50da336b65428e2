//! The one error of the crate: a kind, one sentence with the values, the trail of layers, a cause.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure this is. Corrupt, unsupported and I/O are never mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The operating system or a peer failed to deliver.
    Io,
    /// No progress within the deadline.
    TimedOut,
    /// The source is no longer the one that was opened.
    Changed,
    /// An offset or length beyond the device.
    OutOfRange,
    /// A write to something that cannot be written.
    ReadOnly,
    /// No room for what had to be stored.
    NoSpace,
    /// Not the format that was asked for or probed.
    NotThisFormat,
    /// A valid image that uses a feature we do not have.
    Unsupported,
    /// The image breaks the rules of its own format.
    Corrupt,
    /// More memory, space or nesting than allowed; an option raises it.
    Limit,
    /// A passphrase or key is missing or wrong.
    Secret,
    /// The system or our own policy forbids it.
    Denied,
}

impl Kind {
    /// The errno that a reader of the device gets.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Io | Self::Corrupt | Self::Changed | Self::NotThisFormat | Self::Secret => {
                libc::EIO
            }
            Self::TimedOut => libc::ETIMEDOUT,
            Self::OutOfRange => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            Self::NoSpace => libc::ENOSPC,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::Limit => libc::ENOMEM,
            Self::Denied => libc::EPERM,
        }
    }
}

type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// A failure. Cheap to clone, so that a poisoned block can report it to every reader.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    what: String,
    hint: Option<String>,
    /// Innermost layer first.
    trail: Vec<String>,
    cause: Option<Cause>,
}

impl Error {
    /// A failure of `kind`; `what` is one sentence with the values, without a full stop.
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            hint: None,
            trail: Vec::new(),
            cause: None,
        }))
    }

    /// An operating system error; `ENOSPC`, `EACCES` and their like get the kind they deserve.
    #[must_use]
    pub fn io(what: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        let cause = cause.into();
        let kind = match cause.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Kind::NoSpace,
            Some(libc::EACCES | libc::EPERM) => Kind::Denied,
            Some(libc::ETIMEDOUT) => Kind::TimedOut,
            Some(libc::EROFS) => Kind::ReadOnly,
            _ => Kind::Io,
        };
        Self::new(kind, what).caused_by(cause)
    }

    /// Adds the cause below this error.
    #[must_use]
    pub fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.cause = Some(Arc::new(cause));
        self
    }

    /// Adds what the user may type or do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the name of the layer in which (or below which) it happened; saying it twice in a row
    /// changes nothing.
    #[must_use]
    pub fn in_layer(mut self, name: &str) -> Self {
        if self.0.trail.last().is_none_or(|last| last != name) {
            self.0.trail.push(name.to_owned());
        }
        self
    }

    /// What sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno that a reader of the device gets.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.0.kind.errno()
    }

    /// The parts of the message, for printing or for sending to another process.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut because = Vec::new();
        let mut hint = self.0.hint.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            because.push(cause.to_string());
            if let (None, Some(inner)) = (&hint, cause.downcast_ref::<Error>()) {
                hint.clone_from(&inner.0.hint);
            }
            next = cause.source();
        }
        Report {
            kind: self.kind(),
            what: self.to_string(),
            because,
            hint,
        }
    }
}

/// An error as printed: what failed, because of what, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What sort of failure.
    pub kind: Kind,
    /// One sentence, the layer first.
    pub what: String,
    /// The chain of causes, outermost first.
    pub because: Vec<String>,
    /// What to do next.
    pub hint: Option<String>,
}

impl From<Report> for Error {
    /// An error that another process has reported; its causes all get its kind.
    fn from(report: Report) -> Self {
        let Report {
            kind,
            what,
            because,
            hint,
        } = report;
        let cause = because
            .into_iter()
            .rev()
            .fold(None, |below: Option<Self>, text| {
                let error = Self::new(kind, text);
                Some(match below {
                    Some(below) => error.caused_by(below),
                    None => error,
                })
            });
        let mut error = Self::new(kind, what);
        error.0.hint = hint;
        match cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.what))?;
        for cause in &self.because {
            write!(f, "\n  because: {}", escape(cause))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", escape(hint))?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in self.0.trail.iter().rev() {
            write!(f, "{name}: ")?;
        }
        f.write_str(&self.0.what)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}] {self}", self.0.kind)?;
        if let Some(cause) = &self.0.cause {
            write!(f, " <- {cause:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .cause
            .as_ref()
            .map(|cause| &**cause as &(dyn std::error::Error + 'static))
    }
}

/// Makes text that came from an image or a path safe for a terminal: control characters become
/// `\u{..}` escapes, everything else stays. Done to what [`quote`] has made it changes nothing.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if misleads(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A label or a name that came from an image or a path, in quotes, so that it can only be read in one
/// way: as [`escape`], and quotes and backslashes in it get a backslash.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len().saturating_add(2));
    out.push('"');
    for c in text.chars() {
        if misleads(c) {
            out.extend(c.escape_default());
            continue;
        }
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// As [`quote`] for a column or another place where a name stands alone: one that can be read in one
/// way only has no quotes.
#[must_use]
pub fn quote_if_needed(text: &str) -> String {
    let at_an_end = text.trim().len() < text.len();
    let is_plain = |c: char| !misleads(c) && !matches!(c, '"' | '\\');
    match !at_an_end && !text.contains("  ") && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => quote(text),
    }
}

/// Whether a character is not what it looks like, or makes those around it look otherwise: control
/// characters, ends of lines, marks and overrides of the direction of writing.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` as one word of a shell's command, for a hint that is typed as it stands: in quotes where it
/// has more than what names usually have. What an image calls itself or others must not become a
/// command of its own.
#[must_use]
pub fn shell(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_layer_is_printed_first_and_the_cause_once() {
        let below = Error::new(Kind::Corrupt, "check mismatch")
            .in_layer("xz")
            .in_layer("xz")
            .in_layer("partition:1");
        let report = Error::new(Kind::Io, "cannot read")
            .caused_by(below)
            .hint("try again")
            .report();
        assert_eq!(
            report.to_string(),
            "cannot read\n  because: partition:1: xz: check mismatch\n  hint: try again"
        );
    }

    #[test]
    fn a_report_becomes_an_error_with_the_same_report() {
        let inner = Error::new(Kind::Corrupt, "inner").caused_by(Error::new(Kind::Corrupt, "most"));
        let report = Error::new(Kind::Corrupt, "outer")
            .caused_by(inner)
            .hint("try")
            .report();
        assert_eq!(report.because.len(), 2);
        assert_eq!(Error::from(report.clone()).report(), report);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            escape("a\u{1b}[31m\nb\u{202e}é"),
            "a\\u{1b}[31m\\nb\\u{202e}é"
        );
    }

    #[test]
    fn what_is_quoted_can_be_read_in_one_way() {
        for (text, quoted) in [
            ("", r#""""#),
            ("EFI System", r#""EFI System""#),
            ("my \"label\"\nx", r#""my \"label\"\nx""#),
            ("my \"label\"\\nx", r#""my \"label\"\\nx""#),
            ("C:\\a\u{202e}\u{2028}é", r#""C:\\a\u{202e}\u{2028}é""#),
        ] {
            assert_eq!(quote(text), quoted);
            // It is made safe again where it is printed.
            assert_eq!(escape(quoted), quoted);
        }
    }

    #[test]
    fn quotes_stand_where_they_are_needed() {
        for plain in ["", "EFI System", "vg/root", "größe", "it's"] {
            assert_eq!(quote_if_needed(plain), plain);
        }
        for not in [" a", "a ", "a  b", "a\"", "a\\", "a\tb", "\u{200f}a"] {
            assert_eq!(quote_if_needed(not), quote(not));
        }
    }

    #[test]
    fn a_name_is_one_word_of_a_command() {
        assert_eq!(shell("/srv/disk-1.qcow2"), "/srv/disk-1.qcow2");
        for name in [
            "", "it's", "a b", "'; id; '", "$(id)", "`id`", "~", "*", "\\", "#", "a\tb",
        ] {
            let script = format!("printf %s {}", shell(name));
            let mut sh = std::process::Command::new("sh");
            let output = sh.arg("-c").arg(&script).output().unwrap();
            assert_eq!(output.stdout, name.as_bytes(), "{script}");
        }
    }

    #[test]
    fn no_space_keeps_its_kind() {
        let error = Error::io(
            "cannot write",
            std::io::Error::from_raw_os_error(libc::ENOSPC),
        );
        assert_eq!((error.kind(), error.errno()), (Kind::NoSpace, libc::ENOSPC));
    }
}
