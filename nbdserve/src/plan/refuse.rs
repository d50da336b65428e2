//! What is said of an image that is not what is wanted.

use std::path::Path;

use super::fs::{self, Class};
use super::walk::Walk;
use super::{Content, Purpose};
use crate::error::{escape, quote};
use crate::layer::cow::COW;
use crate::source::split::first_of;
use crate::{Error, Kind, Result};

impl Walk<'_> {
    /// Whether the content serves the purpose.
    pub(super) fn check_content(
        &self,
        content: &Content,
        purpose: Purpose,
        raw: bool,
    ) -> Result<()> {
        let what = self.what();
        let as_bytes = "--layer raw --fuse shows the bytes as they are";
        match (content, purpose) {
            (Content::FileSystem(_), _) => Ok(()),
            (Content::Other(info), _) if info.name == COW.name && !raw => Err(Error::new(
                Kind::Unsupported,
                format!("{what} has writes that were kept apart from an image, and is none"),
            )
            .hint("loopmount --cow=FILE IMAGE TARGET: FILE is this one, IMAGE the one it was made for")),
            (Content::Other(info), _) if info.class == Class::Wrapper && !raw => Err(Error::new(
                Kind::Unsupported,
                format!("{what} is {info}, which this version cannot open yet"),
            )
            .hint(match fs::converter(&info.name) {
                Some(converter) => format!("{converter}; {as_bytes}"),
                None => as_bytes.to_owned(),
            })),
            (_, Purpose::Bytes) => Ok(()),
            (Content::Other(info), _) => Err(Error::new(
                Kind::Unsupported,
                format!("{what} is {info}, which is no file system"),
            )
            .hint("--fuse shows it as a file")),
            (Content::Disk | Content::Bytes | Content::Locked(_), _) => {
                Err(self.nothing_known(as_bytes))
            }
        }
    }

    fn nothing_known(&self, hint: &str) -> Error {
        let what = self.what();
        let size = self.volume.size();
        if size < 512 {
            let what = format!("{what} has {size} bytes, less than one sector");
            return Error::new(Kind::NotThisFormat, what);
        }
        // Probing has just read them.
        let first = self.volume.read_vec(0, 16).unwrap_or_default();
        let first: Vec<_> = first.iter().map(|byte| format!("{byte:02x}")).collect();
        let what = format!(
            "{what} is nothing we know: it begins with {}",
            first.join(" ")
        );
        let error = Error::new(Kind::NotThisFormat, what);
        match first_of(Path::new(self.name)).filter(|_| self.steps.is_empty()) {
            Some(first) => {
                let first = escape(&first.display().to_string());
                error.hint(format!("is it a part of an image? The first is {first}"))
            }
            None => error.hint(hint),
        }
    }

    pub(super) fn no_table(&self, wanted: &str, content: &Content) -> Error {
        let (what, wanted) = (self.what(), quote(wanted));
        let found = match content {
            Content::FileSystem(info) | Content::Other(info) => format!("it is {info}"),
            Content::Disk | Content::Bytes | Content::Locked(_) => {
                "it is nothing we know".to_owned()
            }
        };
        let what = format!("{what} has no partition table to find {wanted} in: {found}");
        Error::new(Kind::NotThisFormat, what)
    }

    /// The innermost volume, for the user.
    pub(super) fn what(&self) -> String {
        match self.steps.last() {
            None => self.name.to_owned(),
            Some(_) => format!("{}: the content of {}", self.name, self.volume.name()),
        }
    }
}
