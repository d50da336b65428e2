//! The mount point: looked at before anything starts, made where it is missing, removed again.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nbdfuse::mount::Place;
use nbdserve::error::shell;
use nbdserve::{Error, Kind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, statat, unlinkat};

use super::find::absolute_without_touching;
use super::message::{Request, Show};

/// Looks at the target. Returns its absolute path and whether it has to be made.
///
/// # Errors
/// When it is of the wrong type, not empty, or cannot be looked at.
pub fn check(target: &Path, show: Show) -> Result<(PathBuf, bool)> {
    let shown = target.display();
    match fs::metadata(target) {
        Ok(meta) => {
            check_type(target, show, &meta)?;
            let path = target
                .canonicalize()
                .map_err(|error| Error::io(format!("cannot resolve {shown}"), error))?;
            Ok((path, false))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let path = absolute_without_touching(target)
                .ok_or_else(|| Error::new(Kind::OutOfRange, "an empty path is no mount point"))?;
            Ok((path, true))
        }
        // What a dead FUSE server leaves.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Err(Error::io(
            format!("{shown} is a mount whose server is gone"),
            error,
        )
        .hint(format!("loopmount -u {}", shell(&shown.to_string())))),
        Err(error) => Err(Error::io(format!("cannot look at {shown}"), error)),
    }
}

fn check_type(target: &Path, show: Show, meta: &fs::Metadata) -> Result<()> {
    let shown = target.display();
    let wrong = |what: String, hint: String| Err(Error::new(Kind::Denied, what).hint(hint));
    match show {
        Show::Tree if !meta.is_dir() => wrong(
            format!("the mount point {shown} is not a folder"),
            "give a folder, or --fuse to make the image appear as a file".to_owned(),
        ),
        Show::File if !meta.is_file() => wrong(
            format!("with --fuse the target is a file, and {shown} is none"),
            format!("loopmount --fuse IMAGE {}", target.join("raw").display()),
        ),
        Show::File if meta.len() > 0 => wrong(
            format!("the file {shown} is not empty"),
            "a file that does not exist is made, and removed again at the end".to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Makes the target, after the record says that it will have to be removed.
///
/// # Errors
/// When its parent is missing or not ours to write to, or a symbolic link by now.
pub fn create(request: &Request) -> Result<()> {
    if !request.create_target {
        return Ok(());
    }
    let mode = if request.private { 0o700 } else { 0o755 };
    make(&request.target, request.show, mode).map_err(|error| {
        let shown = request.target.display();
        Error::io(format!("cannot make the mount point {shown}"), error)
            .hint("give one that exists and is yours, or one in a folder that you can write to")
    })
}

/// `mode` is that of a folder.
fn make(target: &Path, show: Show, mode: u32) -> io::Result<()> {
    let place = Place::open(target)?;
    let (folder, name) = (place.folder(), place.name());
    match show {
        Show::Tree => mkdirat(folder, name, Mode::from_raw_mode(mode))?,
        Show::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat(folder, name, flags, Mode::from_raw_mode(0o666))?;
        }
    }
    Ok(())
}

/// Removes a target that was made for the unit; one that holds something by now stays.
///
/// # Errors
/// When it is there, empty, and cannot be removed.
pub fn remove(request: &Request) -> Result<()> {
    if !request.create_target {
        return Ok(());
    }
    clear(&request.target, request.show).map_err(|error| {
        let shown = request.target.display();
        Error::io(format!("cannot remove {shown}"), error)
    })
}

fn clear(target: &Path, show: Show) -> io::Result<()> {
    let result = Place::open(target).and_then(|place| {
        let (folder, name) = (place.folder(), place.name());
        match show {
            Show::Tree => unlinkat(folder, name, AtFlags::REMOVEDIR)?,
            Show::File => {
                let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                // Only an empty file can be the one that was made as a mount point.
                if FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_size == 0 {
                    unlinkat(folder, name, AtFlags::empty())?;
                }
            }
        }
        Ok(())
    });
    let Err(error) = result else { return Ok(()) };
    match error.raw_os_error() {
        // Not there, or in use. A symbolic link on the way was put there since: what was made is
        // elsewhere, and whose folder that is may remove it.
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENOTEMPTY | libc::EEXIST | libc::ELOOP) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn what_was_made_is_removed_and_what_is_in_use_stays() {
        let (_dir, root) = folder();
        for (show, name) in [(Show::Tree, "tree"), (Show::File, "file")] {
            let target = root.join(name);
            make(&target, show, 0o700).unwrap();
            assert!(make(&target, show, 0o700).is_err(), "it is there already");
            clear(&target, show).unwrap();
            assert!(!target.exists());
            clear(&target, show).unwrap();
            clear(&root.join("no/folder"), show).unwrap();
        }
        make(&root.join("tree"), Show::Tree, 0o700).unwrap();
        let mode = fs::metadata(root.join("tree"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        make(&root.join("tree/file"), Show::File, 0).unwrap();
        clear(&root.join("tree"), Show::Tree).unwrap();
        fs::write(root.join("tree/file"), "x").unwrap();
        clear(&root.join("tree/file"), Show::File).unwrap();
        assert!(root.join("tree/file").exists());
    }

    #[test]
    fn nothing_is_made_or_removed_behind_a_link_that_was_put_into_the_path() {
        for (show, name) in [(Show::Tree, "tree"), (Show::File, "file")] {
            let (_dir, root) = folder();
            fs::create_dir(root.join("mine")).unwrap();
            fs::create_dir(root.join("other")).unwrap();
            let target = root.join("mine").join(name);
            make(&target, show, 0o755).unwrap();
            make(&root.join("other").join(name), show, 0o755).unwrap();
            fs::rename(root.join("mine"), root.join("moved")).unwrap();
            symlink("other", root.join("mine")).unwrap();
            clear(&target, show).unwrap();
            assert!(root.join("other").join(name).exists());
            let refused = make(&root.join("mine/new"), show, 0o755).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
            assert!(!root.join("other/new").exists());
        }
    }
}
