//! What a cow file goes with: the image below, and what tells it from others.

use std::fmt;

use twox_hash::XxHash3_64;

use super::header::{Header, State, cut_name, fitted};
use crate::{Access, ByteRange, Error, Kind, Result, Volume};

/// Bytes at both ends that are looked at.
const ENDS: u64 = 64 << 10;
/// Of an image that nothing else tells from others, so many places more are looked at.
const PLACES: u64 = 256;
/// The same where each place costs a request over a network.
const FAR_PLACES: u64 = 16;
/// Bytes at each.
const PLACE_LEN: u64 = 4096;

/// What is below a cow layer.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// What the user calls the image.
    pub name: String,
    /// As [`crate::Device::source_identity`] of the source.
    pub identity: Option<String>,
    /// The layers between the source and the cow layer.
    pub layers: String,
    /// Whether the source is on this machine, so that looking at many places of it costs little.
    pub is_local: bool,
    /// Whether other files have a part in it, of which the identity tells nothing.
    pub has_others: bool,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.name.is_empty() {
            "the image"
        } else {
            &self.name
        })
    }
}

impl Base {
    /// What stays when a file is moved or copied with its times: its size and when its content was
    /// changed, or what a web server says.
    fn content(&self) -> String {
        let text = self.identity.as_deref().unwrap_or_default();
        fitted(&lines(text, |key| !is_place(key) && key != "changed"))
    }

    /// Which file it is, whatever is in it.
    fn place(&self) -> String {
        let text = self.identity.as_deref().unwrap_or_default();
        fitted(&lines(text, |key| is_place(key) || key == "size"))
    }

    /// Of the bytes at both ends of the disk, and of some between where the identity does not tell of
    /// all.
    fn fingerprint(&self, below: &Volume) -> Result<u64> {
        let size = below.size();
        let mut sum = size;
        let mut add = |at: u64, len: u64| -> Result<()> {
            let len = len.min(size.saturating_sub(at));
            let bytes = below.read_vec(at, usize::try_from(len).unwrap_or(usize::MAX))?;
            sum = XxHash3_64::oneshot_with_seed(sum ^ at, &bytes);
            Ok(())
        };
        add(0, ENDS)?;
        // Elsewhere that would cost decoding.
        if below.geometry().access == Access::Random {
            add(size.saturating_sub(ENDS), ENDS)?;
            if self.identity.is_none() || self.has_others {
                let places = self.places(size);
                let parts = places
                    .iter()
                    .filter_map(|at| ByteRange::new(*at, PLACE_LEN));
                below.will_need_parts(&parts.collect::<Vec<_>>());
                for at in places {
                    add(at, PLACE_LEN)?;
                }
            }
        }
        Ok(sum)
    }

    /// The places between the ends of a disk of `size` bytes that are looked at.
    fn places(&self, size: u64) -> Vec<u64> {
        let count = match self.is_local {
            true => PLACES,
            false => FAR_PLACES,
        };
        let place = |number: u64| {
            let at = u128::from(size).saturating_mul(u128::from(number));
            let at = at.checked_div(u128::from(count)).unwrap_or(0);
            u64::try_from(at).unwrap_or(0)
        };
        (1..count).map(place).collect()
    }

    /// Notes in a header that it goes with this.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub(super) fn bind(&self, below: &Volume, header: &mut Header) -> Result<()> {
        header.size = below.size();
        header.name = cut_name(&self.name);
        header.identity = self.content();
        header.place = self.place();
        header.layers = fitted(&self.layers);
        header.fingerprint = self.fingerprint(below)?;
        Ok(())
    }

    /// Whether a file with this header goes with this.
    ///
    /// # Errors
    /// `Changed` when it does not, or that cannot be told, `Denied` while a commit is unfinished.
    pub(super) fn check(&self, below: &Volume, header: &Header) -> Result<()> {
        let made_for = &header.name;
        let differs = |what: String| {
            Err(Error::new(Kind::Changed, what).hint(format!(
                "it was made for {made_for}: name that image as it was; or remove the file, with what is in it"
            )))
        };
        if header.size != below.size() {
            let (then, now) = (header.size, below.size());
            return differs(format!(
                "it goes with a disk of {then} bytes, {self} has {now}"
            ));
        }
        if header.layers != fitted(&self.layers) {
            let shown = |layers: &str| match layers {
                "" => "the bytes of the image as they are".to_owned(),
                layers => format!("the layers {layers}"),
            };
            let (then, now) = (shown(&header.layers), shown(&self.layers));
            return differs(format!("it goes on top of {then}, this is {now}"));
        }
        if header.state == State::Committing {
            return self.check_place(header);
        }
        let content = self.content();
        if !header.identity.is_empty() && content.is_empty() {
            let what = format!(
                "{self} cannot be told from another one: it was changed just now, or its server no longer says which version it has"
            );
            return Err(Error::new(Kind::Changed, what).hint(
                "try again in a few seconds; a server must send ETag or Last-Modified as it did then",
            ));
        }
        if !header.identity.is_empty() && header.identity != content {
            let then = header.identity.replace('\n', ", ");
            let now = content.replace('\n', ", ");
            return differs(format!(
                "{self} is not what it was when the file was made ({then}; now {now})"
            ));
        }
        // An identity that came later changes nothing: what was noted then is looked at.
        let same = Self {
            identity: Some(header.identity.clone()).filter(|text| !text.is_empty()),
            ..self.clone()
        };
        if header.fingerprint != same.fingerprint(below)? {
            return differs(format!(
                "{self} has other bytes than it had when the file was made"
            ));
        }
        Ok(())
    }

    /// While a commit is unfinished the content is neither the old nor the new one.
    fn check_place(&self, header: &Header) -> Result<()> {
        let same = match header.place.is_empty() {
            true => header.name == cut_name(&self.name),
            false => header.place == self.place(),
        };
        if same {
            return Ok(());
        }
        let (then, place) = (&header.name, header.place.replace('\n', ", "));
        let what = format!("a commit of it to {then} was begun and not finished ({place})");
        Err(Error::new(Kind::Changed, what).hint(format!("finish it with that image: {then}")))
    }
}

fn is_place(key: &str) -> bool {
    key == "device" || key == "inode"
}

/// The lines of an identity whose first word is wanted.
fn lines(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let lines = text
        .lines()
        .filter(|line| wanted(line.split(' ').next().unwrap_or_default()));
    lines.collect::<Vec<_>>().join("\n")
}
