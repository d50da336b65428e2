//! The cache on disk: where it is, and `loopmount --cache`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nbdserve::error::escape;
use nbdserve::size::format_size;
use nbdserve::store::{Kept, Store, Usage};
use nbdserve::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::list::aligned;
use super::{out, path_text};

/// The cache of root.
const OF_ROOT: &str = "/var/cache/loopmount";
/// The name of a user's cache among others.
const NAME: &str = "loopmount";

/// Where the cache is and how much it may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCache {
    /// Empty when there is none.
    #[serde(with = "path_text")]
    pub folder: PathBuf,
    /// Most bytes; 0 when nothing is kept.
    pub limit: u64,
}

impl DiskCache {
    /// That of the user who runs this process, as the environment has it.
    #[must_use]
    pub fn of_user(limit: u64) -> Self {
        let absolute = |name: &str| {
            let value = std::env::var_os(name).map(PathBuf::from);
            value.filter(|path| path.is_absolute())
        };
        let named = absolute("XDG_CACHE_HOME");
        let folder = if rustix::process::geteuid().is_root() {
            // What sudo has left of another user's environment does not count: a folder of root's
            // in there would lock that user out.
            let own = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.uid() == 0);
            let named = named.filter(own).map(|path| path.join(NAME));
            named.unwrap_or_else(|| PathBuf::from(OF_ROOT))
        } else {
            let home = || absolute("HOME").map(|home| home.join(".cache"));
            let caches = named.or_else(home);
            caches.map_or_else(PathBuf::new, |path| path.join(NAME))
        };
        Self { folder, limit }
    }

    /// Opens it. `None` when nothing is kept; the log says why.
    #[must_use]
    pub fn open(&self) -> Option<Arc<Store>> {
        if self.limit == 0 || self.folder.as_os_str().is_empty() {
            return None;
        }
        match Store::with_limit(&self.folder, self.limit) {
            Ok(store) => Some(store),
            Err(error) => {
                tracing::warn!("nothing is kept on disk: {}", error.report());
                None
            }
        }
    }
}

/// What `--cache` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Show what there is.
    Show,
    /// Remove it.
    Clear,
}

/// The image that is meant; no name means all.
#[derive(Debug, Default)]
pub struct Which {
    /// What it is called in the cache.
    pub name: Option<String>,
    /// What tells it from others, where that is known.
    pub identity: Option<String>,
}

impl Which {
    fn is(&self, kept: &Kept) -> bool {
        let same = |identity: &String| Store::is_about(kept, identity);
        self.name.as_ref().is_none_or(|name| *name == kept.name)
            || self.identity.as_ref().is_some_and(same)
    }
}

/// The command: shows or clears what the cache holds of the images that are meant.
///
/// # Errors
/// When there can be no cache, or something cannot be removed.
pub fn command(cache: &DiskCache, action: Action, which: &Which, json: bool) -> Result<()> {
    if cache.folder.as_os_str().is_empty() {
        let what = "there is no cache: neither XDG_CACHE_HOME nor HOME is set";
        return Err(Error::new(Kind::Io, what));
    }
    // Looking makes nothing.
    let store = match cache.folder.exists() {
        true => Some(Store::with_limit(&cache.folder, cache.limit)?),
        false => None,
    };
    if action == Action::Clear {
        let bytes = store.map_or(Ok(0), |store| store.clear(|kept| which.is(kept)))?;
        return out::print(format_size(bytes) + " removed\n");
    }
    let mut usage = store.map_or_else(|| nothing(cache), |store| store.usage());
    usage.images.retain(|kept| which.is(kept));
    if json {
        let text = serde_json::to_string_pretty(&usage)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode it").caused_by(cause))?;
        out::print(text + "\n")
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        out::print(table(&usage, now.map_or(0, |now| now.as_secs())))
    }
}

fn nothing(cache: &DiskCache) -> Usage {
    Usage {
        folder: cache.folder.clone(),
        limit: cache.limit,
        used: 0,
        images: Vec::new(),
    }
}

const HEADER: [&str; 7] = [
    "IMAGE", "SIZE", "INDEXES", "DECODED", "FETCHED", "LAST USE", "STATE",
];

/// The folder, and a line for each image.
fn table(usage: &Usage, now: u64) -> String {
    let shown = shown(&usage.folder);
    let (used, limit) = (format_size(usage.used), format_size(usage.limit));
    let mut text = format!("{shown}: {used} of {limit}\n");
    if usage.images.is_empty() {
        return text;
    }
    let mut rows = vec![HEADER.map(str::to_owned)];
    for kept in &usage.images {
        rows.push([
            escape(&kept.name).to_string(),
            format_size(kept.bytes),
            format_size(kept.indexes),
            format_size(kept.decoded),
            format_size(kept.fetched),
            ago(now.saturating_sub(kept.last_use)),
            if kept.in_use { "in use" } else { "-" }.to_owned(),
        ]);
    }
    text.push_str(&aligned(&rows));
    text
}

fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy()).to_string()
}

/// A number of seconds for people.
fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded_down_to_a_unit() {
        for (seconds, text) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 min ago"),
            (7199, "1 h ago"),
            (86400 * 3 + 5, "3 d ago"),
        ] {
            assert_eq!(ago(seconds), text);
        }
    }

    #[test]
    fn an_empty_cache_is_one_line() {
        let cache = DiskCache {
            folder: "/nowhere".into(),
            limit: 10 << 30,
        };
        assert_eq!(table(&nothing(&cache), 0), "/nowhere: 0 B of 10 GiB\n");
    }
}
