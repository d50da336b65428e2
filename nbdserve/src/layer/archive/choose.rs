//! Which file of an archive is meant.

use super::{Archive, File, NAME, NUMBER, Role, glob, is_side_file, printed};
use crate::error::{escape, quote, quote_if_needed};
use crate::layer::{Args, Sample};
use crate::size::format_size;
use crate::{Cx, Error, Kind, Result};

/// Files that are looked at: the largest ones. Each costs a request, or some decoding.
const MAX_LOOKED_AT: usize = 64;
/// Files that are listed in a message.
const MAX_LISTED: usize = 16;

/// What a file holds by its first bytes, for the user; `None` for nothing that anybody knows.
pub(crate) type Recognise<'a> = &'a dyn Fn(&Sample<'_>) -> Option<String>;

/// The answer.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// [`File::number`].
    pub(crate) number: u64,
    /// What names this file and no other, whatever else is in the archive.
    pub(crate) args: Args,
    /// Why it was taken, if there was a choice.
    pub(crate) note: Option<String>,
}

/// The file that `args` name, or else the one that must be meant: the disk that the archive
/// itself names; the only file; the only one in which `recognise` sees something. `hint` is what
/// the user may type to choose another.
///
/// # Errors
/// `OutOfRange` when no file is named as `args` say; `NotThisFormat` when it cannot be told which
/// one is meant, with a list; what is wrong with an archive's description; failures of the source.
pub(crate) fn choose(
    archive: &dyn Archive,
    args: &Args,
    recognise: Option<Recognise<'_>>,
    hint: &str,
    cx: &Cx,
) -> Result<Chosen> {
    let choice = Choice { archive, hint };
    let (file, note) = match (args.get(NAME), args.get(NUMBER)) {
        (Some(_), Some(_)) => {
            let what = format!("both {NAME} and {NUMBER} are given");
            return Err(Error::new(Kind::OutOfRange, what));
        }
        (Some(name), None) => (choice.named(name)?, None),
        (None, Some(number)) => (choice.numbered(number)?, None),
        (None, None) => choice.found(recognise, cx)?,
    };
    Ok(Chosen {
        number: file.number,
        args: choice.args(&file),
        note,
    })
}

/// A file that was looked at, and what it seems to be.
type Seen<'a> = (File<'a>, Option<String>);

struct Choice<'a> {
    archive: &'a dyn Archive,
    hint: &'a str,
}

impl<'a> Choice<'a> {
    /// What is there when the archive is taken out.
    fn present(&self) -> impl Iterator<Item = File<'a>> + use<'a> {
        let files = self.archive.files();
        files.filter(|file| file.role != Role::Replaced)
    }

    fn candidates(&self) -> impl Iterator<Item = File<'a>> + use<'a> {
        self.present()
            .filter(|file| file.role == Role::Candidate && file.size > 0)
            .filter(|file| !is_side_file(file.name))
    }

    /// The last one with exactly this name, or the only one that it means as a pattern.
    fn named(&self, name: &str) -> Result<File<'a>> {
        if let Some(file) = self.exactly(name) {
            return Ok(file);
        }
        let pattern = String::from_utf8_lossy(glob::trimmed(name.as_bytes()));
        let mut found = self.present().filter(|file| {
            let name = String::from_utf8_lossy(glob::trimmed(file.name));
            glob::matches(&pattern, &name)
        });
        let Some(first) = found.next() else {
            let name = quote(name);
            let what = format!("there is no file {name} in it");
            let seen = self.candidates().map(unseen);
            return Err(self.error(Kind::OutOfRange, &what, seen));
        };
        let Some(second) = found.next() else {
            return Ok(first);
        };
        let all = [first, second].into_iter().chain(found).map(unseen);
        let what = format!("several files match {}", quote(name));
        Err(self.error(Kind::OutOfRange, &what, all))
    }

    fn exactly(&self, name: &str) -> Option<File<'a>> {
        let same = self.present().filter(|file| file.name == name.as_bytes());
        same.last().or_else(|| {
            let wanted = glob::trimmed(name.as_bytes());
            let same = self.present();
            same.filter(|file| glob::trimmed(file.name) == wanted)
                .last()
        })
    }

    fn numbered(&self, number: &str) -> Result<File<'a>> {
        let wanted: Option<u64> = number.parse().ok();
        let found = wanted.and_then(|wanted| {
            let mut files = self.archive.files();
            files.find(|file| file.number == wanted)
        });
        found.ok_or_else(|| {
            let number = quote_if_needed(number);
            let what = format!("entry {number} is no file in it");
            Error::new(Kind::OutOfRange, what)
        })
    }

    /// Without being told.
    fn found(
        &self,
        recognise: Option<Recognise<'_>>,
        cx: &Cx,
    ) -> Result<(File<'a>, Option<String>)> {
        if let Some(described) = self.archive.described()? {
            let is_named = |file: &File<'_>| described.disks.contains(&file.number);
            let disks: Vec<_> = self.archive.files().filter(is_named).collect();
            let by = described.by;
            return match *disks.as_slice() {
                [one] => Ok((one, Some(format!("{by} says that it is the disk")))),
                _ => {
                    let what = format!("{by} names {} disks", disks.len());
                    let disks = disks.into_iter().map(unseen);
                    Err(self.error(Kind::NotThisFormat, &what, disks))
                }
            };
        }
        let mut candidates = self.candidates();
        let Some(first) = candidates.next() else {
            let what = "there is no file in it that could be an image";
            return Err(Error::new(Kind::NotThisFormat, what));
        };
        if candidates.next().is_none() {
            return Ok((first, None));
        }
        let count = self.candidates().count();
        let Some(recognise) = recognise else {
            let what = format!("{count} files in it may be meant");
            let all = self.candidates().map(unseen);
            return Err(self.error(Kind::NotThisFormat, &what, all));
        };
        self.look(count, recognise, cx)
    }

    /// Looks at the first bytes of what may be meant, in the order of the archive.
    fn look(
        &self,
        count: usize,
        recognise: Recognise<'_>,
        cx: &Cx,
    ) -> Result<(File<'a>, Option<String>)> {
        let mut seen = Vec::new();
        for file in self.largest() {
            cx.cancel.check()?;
            match self.archive.head(file.number, Sample::HEAD) {
                Ok(head) => {
                    let sample = Sample {
                        head: &head,
                        tail: None,
                        size: file.size,
                    };
                    seen.push((file, recognise(&sample)));
                }
                // It may be chosen all the same, and then says so.
                Err(error) if is_of_the_image(error.kind()) => {
                    tracing::debug!("{}: {error}", printed(file.name));
                    seen.push((file, None));
                }
                Err(error) => return Err(error),
            }
        }
        let is_known = |(_, what): &&Seen<'_>| what.is_some();
        let known: Vec<_> = seen.iter().filter(is_known).cloned().collect();
        match known.as_slice() {
            [(one, what)] => {
                let what = what.as_deref().unwrap_or_default();
                let note = format!("the only one of {count} files that is an image: {what}");
                Ok((*one, Some(note)))
            }
            [] => {
                let what = format!("none of its {count} files is an image that we know");
                Err(self.error(Kind::NotThisFormat, &what, seen.into_iter()))
            }
            _ => {
                let what = format!("{} files in it may be meant", known.len());
                Err(self.error(Kind::NotThisFormat, &what, known.into_iter()))
            }
        }
    }

    /// The largest candidates, in the order of the archive.
    fn largest(&self) -> Vec<File<'a>> {
        let mut files: Vec<_> = self.candidates().collect();
        if files.len() > MAX_LOOKED_AT {
            files.sort_by_key(|file| std::cmp::Reverse(file.size));
            files.truncate(MAX_LOOKED_AT);
            files.sort_by_key(|file| file.number);
        }
        files
    }

    /// What names this file alone, for people where that is possible.
    fn args(&self, file: &File<'_>) -> Args {
        let name = std::str::from_utf8(glob::trimmed(file.name)).ok();
        let name = name.filter(|name| {
            let found = self.exactly(name);
            found.is_some_and(|found| found.number == file.number)
                && escape(name) == *name
                && !name.is_empty()
        });
        match name {
            Some(name) => Args::from([(NAME.to_owned(), name.to_owned())]),
            None => Args::from([(NUMBER.to_owned(), file.number.to_string())]),
        }
    }

    fn error(&self, kind: Kind, what: &str, files: impl Iterator<Item = Seen<'a>>) -> Error {
        let mut items = Vec::new();
        for (file, seen) in files {
            if items.len() == MAX_LISTED {
                items.push("...".to_owned());
                break;
            }
            let mut facts = vec![format_size(file.size)];
            facts.extend(seen);
            items.push(format!("{} ({})", printed(file.name), facts.join(", ")));
        }
        let items = match items.len() {
            0 => "none".to_owned(),
            _ => items.join(", "),
        };
        Error::new(kind, format!("{what}; there are {items}"))
            .hint(format!("choose one: {}", self.hint))
    }
}

fn unseen(file: File<'_>) -> Seen<'_> {
    (file, None)
}

/// Whether an error is about these bytes, not about getting at them.
fn is_of_the_image(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Corrupt | Kind::Unsupported | Kind::Limit | Kind::NotThisFormat | Kind::Secret
    )
}
