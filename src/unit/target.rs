//! The mount point: looked at before anything starts, made where it is missing, removed again.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nbdserve::error::shell;
use nbdserve::{Error, Kind, Result};

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
/// When its parent is missing or not ours to write to.
pub fn create(request: &Request) -> Result<()> {
    if !request.create_target {
        return Ok(());
    }
    let mode = if request.private { 0o700 } else { 0o755 };
    match request.show {
        Show::Tree => DirBuilder::new().mode(mode).create(&request.target),
        Show::File => File::create_new(&request.target).map(drop),
    }
    .map_err(|error| {
        let shown = request.target.display();
        Error::io(format!("cannot make the mount point {shown}"), error)
            .hint("give one that exists and is yours, or one in a folder that you can write to")
    })
}

/// Removes a target that was made for the unit; one that holds something by now stays.
///
/// # Errors
/// When it is there, empty, and cannot be removed.
pub fn remove(request: &Request) -> Result<()> {
    if !request.create_target {
        return Ok(());
    }
    let target = &request.target;
    let result = match request.show {
        Show::Tree => fs::remove_dir(target),
        Show::File => match fs::symlink_metadata(target) {
            // Only an empty file can be the one that was made as a mount point.
            Ok(meta) if meta.is_file() && meta.len() == 0 => fs::remove_file(target),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        },
    };
    match result {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Error::io(
                format!("cannot remove {}", target.display()),
                error,
            ))
        }
        _ => Ok(()),
    }
}
