//! The setuid helper `fusermount3`, which mounts for users and hands the connection back over a
//! socket.

use std::ffi::{OsStr, OsString};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nbdserve::{Error, Kind, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::{Mode, MountOptions, Unmounted};

/// The helper asks nobody anything, so this long means that it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often to look whether the helper has ended, once its work is known to be done.
const EXIT_POLL: Duration = Duration::from_millis(2);
/// Most of the helper's messages that are kept.
const MAX_MESSAGE: u64 = 4096;
/// Where to look beside `PATH`, which may be empty in a service.
const USUAL_PLACES: [&str; 5] = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"];

/// Mounts on `target`, an absolute path.
///
/// # Errors
/// `Unsupported` without the helper, else `Denied` with what the helper says.
pub(super) fn mount(target: &Path, opts: &MountOptions) -> Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|cause| Error::io("cannot make a socket for fusermount3", cause))?;
    rustix::net::sockopt::set_socket_timeout(
        &ours,
        rustix::net::sockopt::Timeout::Recv,
        Some(PATIENCE),
    )
    .map_err(|cause| Error::io("cannot set a deadline for fusermount3", cause))?;
    let mut command = command()?;
    command
        .args(["-o", &option_string(opts), "--"])
        .arg(target)
        // The socket becomes the helper's standard input: no other child can inherit it.
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs));
    let child = spawn(&mut command)?;
    // Drops our copy of the helper's end, so that its death is seen as the end of the stream.
    drop(command);
    let received = receive(&ours);
    let (status, message) = finish(child)?;
    match received {
        Ok(Some(fd)) if status.success() => Ok(fd),
        Ok(_) => Err(refused(target, &message, status)),
        Err(cause) => Err(Error::io(
            "cannot receive the connection from fusermount3",
            cause,
        )),
    }
}

/// Unmounts `target`, an absolute path.
///
/// # Errors
/// `Unsupported` without the helper, else `Denied` with what the helper says.
pub(super) fn unmount(target: &Path, mode: Mode) -> Result<Unmounted> {
    let mut command = command()?;
    command.arg("-u");
    if mode == Mode::Lazy {
        command.arg("-z");
    }
    command.arg("--").arg(target).stdin(Stdio::null());
    let (status, message) = finish(spawn(&mut command)?)?;
    if status.success() {
        return Ok(Unmounted::Done);
    }
    // The helper was started without a locale: these are the C library's English texts.
    if message.contains("Device or resource busy") {
        return Ok(Unmounted::Busy);
    }
    let absent = [
        "not found in",
        "Invalid argument",
        "No such file or directory",
    ];
    if absent.iter().any(|text| message.contains(text)) {
        return Ok(Unmounted::NotMounted);
    }
    let what = format!("fusermount3 cannot unmount {}: {message}", target.display());
    Err(Error::new(Kind::Denied, what))
}

fn option_string(opts: &MountOptions) -> String {
    let mut options = format!(
        "{},nosuid,nodev,fsname={},subtype={}",
        if opts.read_only { "ro" } else { "rw" },
        opts.source,
        opts.subtype
    );
    if opts.allow_other {
        options.push_str(",allow_other,default_permissions");
    }
    if opts.no_exec {
        options.push_str(",noexec");
    }
    options
}

/// The helper with an empty environment: it runs as root and needs none of ours.
fn command() -> Result<Command> {
    let program = find(std::env::var_os("PATH").as_deref()).ok_or_else(|| {
        Error::new(
            Kind::Unsupported,
            "fusermount3 is missing, and only root can mount without it",
        )
        .hint("install it with: apt install fuse3")
    })?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

/// The full path of the helper; version 2 of it will do.
fn find(path: Option<&OsStr>) -> Option<PathBuf> {
    let path = path.map(OsString::from).unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(USUAL_PLACES.iter().map(PathBuf::from))
        .collect();
    let is_program = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    ["fusermount3", "fusermount"].iter().find_map(|name| {
        let mut files = folders.iter().map(|folder| folder.join(name));
        files.find(is_program)
    })
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .map_err(|cause| Error::io("cannot start fusermount3", cause))
}

/// The descriptor sent over `socket`; `None` when the helper ended without sending one.
fn receive(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let mut parts = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            // What a socket deadline looks like.
            Err(rustix::io::Errno::AGAIN) => return Err(rustix::io::Errno::TIMEDOUT),
            Err(errno) => return Err(errno),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// Waits for the helper's end, at most [`PATIENCE`], and gives what it said.
fn finish(mut child: Child) -> Result<(ExitStatus, String)> {
    let failed = |cause| Error::io("cannot wait for fusermount3", cause);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            // It is setuid: we may not be allowed to kill it, and it is no longer our problem.
            let _ = child.kill();
            let what = format!("fusermount3 did not end within {} s", PATIENCE.as_secs());
            return Err(Error::new(Kind::TimedOut, what));
        }
        std::thread::sleep(EXIT_POLL);
    };
    let mut message = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_MESSAGE).read_to_end(&mut message);
    }
    Ok((status, String::from_utf8_lossy(&message).trim().to_owned()))
}

/// The helper's refusal, with the way out where we know it.
fn refused(target: &Path, message: &str, status: ExitStatus) -> Error {
    let shown = target.display();
    let said = if message.is_empty() {
        format!("it ended with {status}")
    } else {
        message.to_owned()
    };
    let error = Error::new(
        Kind::Denied,
        format!("fusermount3 cannot mount on {shown}: {said}"),
    );
    let hints = [
        (
            "user has no write access",
            "name a mount point that is yours",
        ),
        (
            "not owned by current user",
            "name a mount point that is yours",
        ),
        (
            "user_allow_other",
            "an administrator can put user_allow_other into /etc/fuse.conf",
        ),
        (
            "mount_max",
            "unmount something, or raise mount_max in /etc/fuse.conf",
        ),
        ("try installing fuse", "load FUSE with: modprobe fuse"),
        ("device not found", "load FUSE with: modprobe fuse"),
        (
            "Operation not permitted",
            "fusermount3 must be setuid root: chmod u+s its file",
        ),
    ];
    match hints.iter().find(|(text, _)| message.contains(text)) {
        Some((_, hint)) => error.hint(*hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_found_by_path_and_never_in_a_relative_folder() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("fusermount3");
        std::fs::write(&program, "").unwrap();
        assert_ne!(find(Some(dir.path().as_os_str())), Some(program.clone()));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Some(dir.path().as_os_str())), Some(program));
        assert!(find(Some(OsStr::new("."))).is_none_or(|found| found.is_absolute()));
    }
}
