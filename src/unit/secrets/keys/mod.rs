//! Whoever has the secrets: files, a descriptor, a person.

mod given;

use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use given::Key;
use nbdserve::secret::{Question, Secret, Secrets};
use nbdserve::{Error, Kind, Result};

use crate::sys::process::forbid_dumps;
use crate::sys::terminal::{self, Typed};
use crate::unit::front::Terminal;

/// A person may try so often.
const TRIES: u32 = 3;

/// What the command line says about keys.
#[derive(Clone, Debug, Default)]
pub struct KeyOptions {
    /// Each is tried; `-` is standard input.
    pub files: Vec<PathBuf>,
    /// A passphrase comes from this descriptor.
    pub descriptor: Option<RawFd>,
    /// Bytes of a key file before the key.
    pub offset: u64,
    /// Bytes of the key; else to the end of the file.
    pub size: Option<u64>,
}

/// The keys that the user gave, or the terminal where there are none.
#[derive(Debug)]
pub struct Keys {
    given: Vec<Mutex<Key>>,
    /// What is shown there is out of the way while a question is.
    terminal: Arc<Terminal>,
    typed: Mutex<Answers>,
}

/// What was typed, until a unit is up: where it has to be started twice nobody is asked twice.
#[derive(Debug, Default)]
struct Answers {
    /// The last answer to each question.
    known: Vec<(String, Secret)>,
    /// It is given again, once, and nothing more is remembered.
    repeats: bool,
}

impl Keys {
    /// Opens what was named, with the caller's rights; nothing is read before it is asked for. To be
    /// called before anything else is opened or started: descriptors are taken over.
    ///
    /// # Errors
    /// When a file or descriptor cannot be opened.
    pub fn open(options: &KeyOptions, terminal: &Arc<Terminal>) -> Result<Self> {
        let mut given = Vec::new();
        if let Some(number) = options.descriptor {
            given.push(Key::from_descriptor(number)?);
        }
        for path in &options.files {
            given.push(Key::open(path, options)?);
        }
        Ok(Self {
            given: given.into_iter().map(Mutex::new).collect(),
            terminal: Arc::clone(terminal),
            typed: Mutex::default(),
        })
    }

    /// What was typed is the first answer when it is asked for again: the unit is started once more.
    pub fn repeat(&self) {
        self.typed().repeats = true;
    }

    /// Wipes what was typed; nothing is remembered any more.
    pub fn forget(&self) {
        *self.typed() = Answers {
            known: Vec::new(),
            repeats: true,
        };
    }

    fn typed(&self) -> MutexGuard<'_, Answers> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a question, unless the other end of `asker` hangs up first.
    pub(super) fn answer_to(
        &self,
        question: &Question,
        asker: Option<BorrowedFd<'_>>,
    ) -> Result<Secret> {
        forbid_dumps();
        if self.given.is_empty() {
            return self.prompt(question, asker);
        }
        let at = usize::try_from(question.attempt).unwrap_or(usize::MAX);
        let Some(key) = self.given.get(at) else {
            return Err(self.wrong(&question.what));
        };
        let mut key = key.lock().unwrap_or_else(PoisonError::into_inner);
        key.read(&self.terminal)
    }

    /// None of them fits.
    fn wrong(&self, what: &str) -> Error {
        let text = match &self.given[..] {
            [key] => {
                let key = key.lock().unwrap_or_else(PoisonError::into_inner);
                let text = format!("{} does not open {what}", key.name);
                return match key.hint() {
                    Some(hint) => Error::new(Kind::Secret, text).hint(hint),
                    None => Error::new(Kind::Secret, text),
                };
            }
            all => format!("none of the {} keys opens {what}", all.len()),
        };
        Error::new(Kind::Secret, text)
    }

    fn prompt(&self, question: &Question, asker: Option<BorrowedFd<'_>>) -> Result<Secret> {
        let Question { what, attempt } = question;
        if *attempt >= TRIES {
            let text = format!("wrong passphrase for {what}: {TRIES} tries are over");
            return Err(Error::new(Kind::Secret, text));
        }
        if let (0, Some(secret)) = (*attempt, self.typed().take(what)) {
            return Ok(secret);
        }
        let again = match attempt {
            0 => "",
            _ => "loopmount: that passphrase is wrong, try again\n",
        };
        let prompt = format!("{again}Passphrase for {what}: ");
        let typed = self
            .terminal
            .while_asking(|| terminal::ask_hidden(&prompt, asker))
            .map_err(|error| {
                Error::io(format!("cannot ask for the passphrase of {what}"), error)
            })?;
        let none = |text: String| Err(Error::new(Kind::Secret, text));
        match typed {
            Some(Typed::Line(line)) => {
                let secret = Secret::from(line);
                self.typed().note(what, &secret);
                Ok(secret)
            }
            Some(Typed::End) => none(format!("no passphrase was given for {what}")),
            Some(Typed::Gone | Typed::Interrupted) => none(format!(
                "interrupted while asking for the passphrase of {what}"
            )),
            None => Err(Error::new(
                Kind::Secret,
                format!("{what} is locked, and there is no terminal to ask for its passphrase"),
            )
            .hint("--key-file FILE gives a key; --key-fd N takes a passphrase from descriptor N")),
        }
    }
}

impl Answers {
    /// The known answer to a question, if it is to be given again.
    fn take(&mut self, what: &str) -> Option<Secret> {
        let mut known = self.known.iter();
        let at = known.position(|(asked, _)| asked == what)?;
        self.repeats.then(|| self.known.swap_remove(at).1)
    }

    fn note(&mut self, what: &str, secret: &Secret) {
        if !self.repeats {
            self.known.retain(|(asked, _)| asked != what);
            self.known.push((what.to_owned(), secret.clone()));
        }
    }
}

impl Secrets for Keys {
    fn answer(&self, question: &Question) -> Result<Secret> {
        self.answer_to(question, None)
    }
}

#[cfg(test)]
mod tests;
