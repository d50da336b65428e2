//! Asking for passphrases until one opens a keyslot.

use super::header::{Header, Slot};
use super::kdf::{Bounds, STACK};
use super::keyslot::{self, Key};
use crate::secret::{Question, Secret, with_wiped_stack};
use crate::{Cx, Error, Kind, Result, Volume};

/// More wrong answers than any person gives.
const MOST_ATTEMPTS: u32 = 1000;

/// The volume key. The keyslots are in `below`; `title` says to a person what is locked, `only` which
/// keyslot is meant.
///
/// # Errors
/// `Secret` when no answer opens a keyslot, `OutOfRange` when there is no keyslot `only`; when none
/// can be tried, why; and what `below` says.
pub(super) fn unlock(
    below: &Volume,
    header: &Header,
    only: Option<u32>,
    title: &str,
    bounds: &Bounds,
    cx: &Cx,
) -> Result<Key> {
    let slots = chosen(header, only)?;
    let mut attempt = 0;
    loop {
        let question = Question {
            what: title.to_owned(),
            attempt,
        };
        let secret = match cx.secrets.answer(&question) {
            Ok(secret) => secret,
            // The sentence says that there is none, or that none fits.
            Err(error) => return Err(about(only, attempt, error)),
        };
        let attempt_all = || try_all(below, header, &slots, &secret, bounds, cx);
        let opened = with_wiped_stack::<STACK, _>(attempt_all);
        if let Some(key) = opened? {
            return Ok(key);
        }
        attempt = attempt.saturating_add(1);
        if attempt >= MOST_ATTEMPTS {
            let what = format!("{title} is opened by none of {attempt} passphrases");
            return Err(about(only, attempt, Error::new(Kind::Secret, what)));
        }
    }
}

/// Says which keyslot was tried, if the user has named one.
fn about(only: Option<u32>, attempts: u32, error: Error) -> Error {
    match only {
        Some(number) if attempts > 0 => {
            let what = format!("keyslot {number}, the only one that was tried, is not opened");
            Error::new(error.kind(), what).caused_by(error)
        }
        _ => error,
    }
}

/// The keyslots that are tried, in order.
fn chosen(header: &Header, only: Option<u32>) -> Result<Vec<&Slot>> {
    let slots = header.slots.iter();
    let chosen: Vec<_> = match only {
        Some(number) => slots.filter(|slot| slot.number == number).collect(),
        None => slots.filter(|slot| !slot.on_demand).collect(),
    };
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let mut used: Vec<_> = header.slots.iter().map(|slot| slot.number).collect();
    used.sort_unstable();
    let used: Vec<_> = used.iter().map(u32::to_string).collect();
    Err(match (only, used.is_empty()) {
        (_, true) => {
            let what = "no keyslot is in use: nothing can open it any more";
            Error::new(Kind::Secret, what)
        }
        (Some(number), false) => {
            let what = format!(
                "keyslot {number} is not in use; in use are {}",
                used.join(", ")
            );
            Error::new(Kind::OutOfRange, what)
        }
        (None, false) => {
            let what = "all keyslots are such that are only tried when they are named";
            Error::new(Kind::Secret, what).hint(format!(
                "--layer luks:keyslot=N names one of {}",
                used.join(", ")
            ))
        }
    })
}

/// The volume key, if the secret opens one of the keyslots.
///
/// # Errors
/// When none of them can be tried, why not the first.
fn try_all(
    below: &Volume,
    header: &Header,
    slots: &[&Slot],
    secret: &Secret,
    bounds: &Bounds,
    cx: &Cx,
) -> Result<Option<Key>> {
    let mut problem = None;
    let mut tried = false;
    for slot in slots {
        let number = slot.number;
        let opened = slot
            .content
            .clone()
            .and_then(|keyslot| keyslot::open(below, &keyslot, &header.digest, secret, bounds, cx));
        match opened {
            Ok(Some(key)) => {
                tracing::debug!("luks: keyslot {number} was opened");
                return Ok(Some(key));
            }
            Ok(None) => tried = true,
            Err(error) if is_of_the_slot(&error) => {
                tracing::warn!("luks: keyslot {number} cannot be tried: {error}");
                problem.get_or_insert((number, error));
            }
            Err(error) => return Err(error),
        }
    }
    match problem {
        Some((number, error)) if !tried => {
            let what = format!("keyslot {number} cannot be tried: {error}");
            let hint = error.report().hint;
            let error = Error::new(error.kind(), what);
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        _ => Ok(None),
    }
}

/// Whether another keyslot may do better.
fn is_of_the_slot(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Corrupt | Kind::Unsupported | Kind::Limit
    )
}
