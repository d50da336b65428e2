//! Names of files as programs on Windows write them into images, and where such a file may be here.

/// The names to try for a file that an image calls `name`, best first: as it is written, with the
/// slashes of this system, then its last part alone, since images are moved together with what they
/// belong to. A path with a drive or a server is none of this system: only its last part is tried.
pub(crate) fn candidates(name: &str) -> Vec<String> {
    let slashed = name.replace('\\', "/");
    let mut names = Vec::new();
    let windows = name.starts_with("\\\\") || slashed.get(1..2) == Some(":");
    let last = slashed.rsplit('/').next().unwrap_or(&slashed);
    let last = match (windows, last.split_once(':')) {
        (true, Some((_, file))) => file,
        _ => last,
    };
    for candidate in [slashed.as_str(), last] {
        let whole = candidate.len() == slashed.len();
        if candidate.is_empty() || (whole && windows) {
            continue;
        }
        if !names.iter().any(|known| known == candidate) {
            names.push(candidate.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn paths_of_windows_become_paths_of_this_system() {
        for (name, expected) in [
            ("base.vhd", &["base.vhd"][..]),
            (".\\base.vhd", &["./base.vhd", "base.vhd"]),
            ("..\\deep\\base.vhd", &["../deep/base.vhd", "base.vhd"]),
            ("C:\\disks\\base.vhd", &["base.vhd"]),
            ("C:base.vhd", &["base.vhd"]),
            ("\\\\server\\share\\base.vhd", &["base.vhd"]),
            ("\\\\?\\Volume{1}\\base.vhd", &["base.vhd"]),
            ("/srv/base.vhd", &["/srv/base.vhd", "base.vhd"]),
            ("folder\\", &["folder/"]),
            ("", &[]),
        ] {
            assert_eq!(candidates(name), expected, "{name}");
        }
    }
}
