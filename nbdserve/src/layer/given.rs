//! An image that was decoded as a whole at opening.

use std::collections::HashMap;
use std::sync::Arc;

use super::decoded::{Decoded, Layout};
use crate::cache::{Decode, Job, Stored};
use crate::{Cx, Error, Kind, Result, Volume};

/// One block, of which all bytes are there from the beginning.
#[derive(Debug)]
struct Given {
    below: Volume,
    len: u64,
}

/// The image that `stored` is, decoded from all of `below`, as a volume called `name`.
///
/// # Errors
/// As [`Decoded::volume_with`].
pub(super) fn volume(
    name: &'static str,
    below: &Volume,
    stored: Stored,
    cx: &Cx,
) -> Result<Volume> {
    let layout = Given {
        below: below.clone(),
        len: stored.len(),
    };
    let stored = HashMap::from([(0, stored)]);
    Decoded::volume_with(name, Arc::new(layout), stored, cx)
}

impl Decode for Given {
    fn len(&self, _number: u64) -> u64 {
        self.len
    }

    fn offset(&self, _number: u64) -> u64 {
        0
    }

    fn describe(&self, _number: u64) -> String {
        "the image".to_owned()
    }

    fn decode(&self, _number: u64, _job: &mut Job<'_>) -> Result<()> {
        // What is stored is never asked for.
        Err(Error::new(Kind::Io, "it was decoded at opening"))
    }
}

impl Layout for Given {
    fn below(&self) -> &Volume {
        &self.below
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn count(&self) -> u64 {
        1
    }

    fn find(&self, _offset: u64) -> u64 {
        0
    }

    fn encoded(&self, _number: u64) -> u64 {
        self.below.size()
    }
}
