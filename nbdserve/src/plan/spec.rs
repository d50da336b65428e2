//! The plan and its parts, as written by people and in records.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::FsInfo;
use crate::error::{escape, quote};
use crate::layer::cow::{self, COW};
use crate::layer::cut::cut_off;
use crate::layer::{Args, LAYERS, LayerType};
use crate::{Error, Kind, Result};

/// The pseudo-layer that stops the probing: `--layer raw`.
pub const RAW: &str = "raw";

/// How to open an image, without questions left. Holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The source as the user wrote it.
    pub source: String,
    /// What it is wrapped in, outermost first; a chosen partition is one of them.
    pub layers: Vec<LayerSpec>,
    /// The number of the partition that was chosen last, if any.
    pub partition: Option<u32>,
    /// What is inside.
    pub content: Content,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.source))?;
        for layer in &self.layers {
            write!(f, " -> {}", escape(&layer.to_string()))?;
        }
        write!(f, " -> {}", self.content)
    }
}

/// What the innermost volume of a plan holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A file system.
    FileSystem(FsInfo),
    /// Something that is known and is no file system.
    Other(FsInfo),
    /// A disk with a partition table, which is not entered.
    Disk,
    /// Bytes that nobody was asked to understand, or nobody does.
    Bytes,
    /// What is inside of a layer whose key is missing.
    Locked(Locked),
}

/// A layer that [`super::inspect`] could not open without its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// The layer's name.
    pub layer: String,
    /// Why it was taken.
    pub evidence: String,
    /// Why it could not be opened.
    pub why: String,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSystem(info) | Self::Other(info) => write!(f, "{info}"),
            Self::Disk => f.write_str("whole disk"),
            Self::Bytes => f.write_str("bytes"),
            Self::Locked(locked) => {
                let Locked {
                    layer,
                    evidence,
                    why,
                } = locked;
                write!(f, "{layer}, locked: {why} ({})", escape(evidence))
            }
        }
    }
}

impl Content {
    /// The file system, if it is one.
    #[must_use]
    pub fn file_system(&self) -> Option<&FsInfo> {
        match self {
            Self::FileSystem(info) => Some(info),
            Self::Other(_) | Self::Disk | Self::Bytes | Self::Locked(_) => None,
        }
    }

    /// `error`, for which it could not be mounted, with what is known to be wrong with it.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        let Some(info) = self.file_system() else {
            return error;
        };
        match &info.problem {
            Some(problem) if matches!(error.kind(), Kind::Corrupt | Kind::Io) => {
                cut_off(format!("the {} file system {problem}", info.name)).caused_by(error)
            }
            _ => error,
        }
    }
}

/// A layer and its parameters: `partition:2`, `offset:offset=1M,size=4G`. The first parameter may
/// stand without its key; a comma in a value is written twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerSpec {
    name: String,
    args: Args,
}

impl LayerSpec {
    /// The layer `name` with its first parameter, as in `partition:2`.
    ///
    /// # Errors
    /// As [`LayerSpec::from_str`].
    pub fn with_value(name: &str, value: &str) -> Result<Self> {
        let mut spec: Self = name.parse()?;
        let first = spec.param(0)?;
        spec.args.insert(first, value.to_owned());
        Ok(spec)
    }

    /// The layer `name` with these parameters.
    ///
    /// # Errors
    /// As [`LayerSpec::from_str`].
    pub fn with_args(name: &str, args: Args) -> Result<Self> {
        let mut spec: Self = name.parse()?;
        for key in args.keys() {
            spec.check_key(key)?;
        }
        spec.args = args;
        Ok(spec)
    }

    /// The layer that keeps writes apart from the image, in `file` or until the end.
    #[must_use]
    pub fn cow(file: Option<&Path>) -> Self {
        Self {
            name: COW.name.to_owned(),
            args: file.map(cow::args_for).into_iter().collect(),
        }
    }

    /// The layer's name, or [`RAW`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Parameters by name.
    #[must_use]
    pub fn args(&self) -> &Args {
        &self.args
    }

    /// With absolute paths in the place of relative ones, for a server that runs in another folder.
    #[must_use]
    pub fn with_absolute_paths(mut self) -> Self {
        for (name, value) in &mut self.args {
            if is_path(&self.name, name)
                && let Ok(path) = std::path::absolute(&*value)
                && let Ok(text) = path.into_os_string().into_string()
            {
                *value = text;
            }
        }
        self
    }

    /// The layer's type; `None` for [`RAW`].
    #[must_use]
    pub fn layer(&self) -> Option<&'static LayerType> {
        LAYERS.iter().copied().find(|layer| layer.name == self.name)
    }

    /// The name of the parameter at `index`.
    fn param(&self, index: usize) -> Result<String> {
        let params = self.layer().map_or(&[][..], |layer| layer.params);
        let name = &self.name;
        params.get(index).map_or_else(
            || {
                let what = format!("the layer {name} takes no parameters");
                Err(Error::new(Kind::OutOfRange, what))
            },
            |param| Ok(param.name.to_owned()),
        )
    }

    fn check_key(&self, key: &str) -> Result<()> {
        let params = self.layer().map_or(&[][..], |layer| layer.params);
        if params.iter().any(|param| param.name == key) {
            return Ok(());
        }
        let (name, key) = (&self.name, quote(key));
        let known: Vec<_> = params.iter().map(|param| param.name).collect();
        let what = format!("the layer {name} has no parameter {key}");
        let hint = match known.len() {
            0 => "it takes none".to_owned(),
            _ => format!("it takes {}", known.join(", ")),
        };
        Err(Error::new(Kind::OutOfRange, what).hint(hint))
    }
}

impl FromStr for LayerSpec {
    type Err = Error;

    /// # Errors
    /// `Unsupported` for a layer that does not exist, `OutOfRange` for parameters that it does not
    /// take.
    fn from_str(text: &str) -> Result<Self> {
        let (name, args) = match text.split_once(':') {
            Some((name, args)) => (name, Some(args)),
            None => (text, None),
        };
        let mut spec = Self {
            name: name.to_owned(),
            args: Args::new(),
        };
        if name != RAW && spec.layer().is_none() {
            let known: Vec<_> = LAYERS.iter().map(|layer| layer.name).collect();
            let what = format!("there is no layer {}", quote(name));
            return Err(Error::new(Kind::Unsupported, what)
                .hint(format!("there are {}, {RAW}", known.join(", "))));
        }
        for (index, part) in args.map(split_args).unwrap_or_default().iter().enumerate() {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.to_owned(), value),
                // Only the first may leave out its key.
                None if index == 0 && !part.is_empty() => (spec.param(0)?, part.as_str()),
                None => {
                    let what = format!("{} is not of the form key=value", quote(part));
                    return Err(Error::new(Kind::OutOfRange, what));
                }
            };
            spec.check_key(&key)?;
            if spec.args.insert(key.clone(), value.to_owned()).is_some() {
                let what = format!("the parameter {key} is given twice");
                return Err(Error::new(Kind::OutOfRange, what));
            }
        }
        Ok(spec)
    }
}

/// Splits at single commas; two commas are one in a value.
fn split_args(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let first = self.param(0).ok();
        // In the order of the layer's own list.
        let params = self.layer().map_or(&[][..], |layer| layer.params);
        let mut separator = ':';
        for param in params {
            let Some(value) = self.args.get(param.name) else {
                continue;
            };
            f.write_str(separator.encode_utf8(&mut [0; 4]))?;
            let bare = separator == ':'
                && first.as_deref() == Some(param.name)
                && !value.is_empty()
                && !value.contains('=');
            if !bare {
                write!(f, "{}=", param.name)?;
            }
            f.write_str(&value.replace(',', ",,"))?;
            separator = ',';
        }
        Ok(())
    }
}

/// Whether the value of this parameter is the path of a file.
fn is_path(layer: &str, param: &str) -> bool {
    matches!((layer, param), ("luks", "header"))
}

impl TryFrom<String> for LayerSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LayerSpec> for String {
    fn from(spec: LayerSpec) -> Self {
        spec.to_string()
    }
}

/// Which part of a disk is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The one that holds the root file system, or the only one there is.
    #[default]
    Auto,
    /// The disk as a whole: its partition table is reported, not entered.
    Disk,
    /// As the user named it: number, label, UUID, `/dev/sda1`, `PARTUUID=...`.
    Partition(String),
}

/// What the volume is wanted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// To be mounted: anything but a file system is an error.
    #[default]
    FileSystem,
    /// As bytes: whatever is in there.
    Bytes,
}
