//! A mount table of our own, for `loopmount IMAGE -- CMD`.

use std::fs;

use nbdserve::{Error, Kind, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    set_capabilities,
};

/// Gives this thread, and what it starts from now on, a mount table of which nobody else sees what is
/// mounted in it. What others mount and unmount is seen in it wherever mounts are shared, as systemd
/// has them; where they are private it keeps a copy of each, and with that its file system in use, as
/// long as it lives. To be called before other threads are started. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `Denied` without the right to, else what the system says.
pub fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::io("cannot make a private mount table", errno))?;
    only_receive()
}

/// As [`private_mounts`], for an ordinary user: in a user namespace in which the user and the
/// group keep their numbers. The process must have one thread: the kernel refuses others with
/// `EINVAL`.
///
/// # Errors
/// `Denied` where user namespaces are forbidden (`user.max_user_namespaces`, AppArmor, a
/// container's seccomp rules).
pub fn private_mounts_as_user() -> Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| {
        let what = "cannot make a user namespace";
        match errno {
            // The limit on their number, zero where they are switched off, is ENOSPC; one that
            // the root folder forbids is EPERM.
            Errno::ENOSPC | Errno::EUSERS | Errno::EPERM | Errno::EACCES | Errno::ENOSYS => {
                Error::new(Kind::Denied, what)
                    .caused_by(std::io::Error::from(errno))
                    .hint(
                        "this machine forbids user namespaces (user.max_user_namespaces, AppArmor)",
                    )
            }
            errno => Error::io(what, errno),
        }
    })?;
    // The group map of a user without rights may only be written once setgroups is given up.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), &text).map_err(|error| {
            Error::io(
                format!("cannot write '{text}' to {file} of the user namespace"),
                error,
            )
            .hint("this machine restricts user namespaces (AppArmor)")
        })?;
    }
    only_receive()?;
    keep_mount_right()
}

/// A program that is executed by an ordinary user loses its capabilities, those in its own user
/// namespace too, except ambient ones. Supervisor and server need the one to mount.
fn keep_mount_right() -> Result<()> {
    let keep = || -> rustix::io::Result<()> {
        let mut sets = capabilities(None)?;
        sets.inheritable |= CapabilitySet::SYS_ADMIN;
        set_capabilities(None, sets)?;
        configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)
    };
    keep().map_err(|errno| Error::io("cannot keep the right to mount", errno))
}

/// What is executed from now on has no capabilities by [`private_mounts_as_user`].
///
/// # Errors
/// What the system says.
pub fn drop_mount_right() -> Result<()> {
    let give_up = || -> rustix::io::Result<()> {
        clear_ambient_capability_set()?;
        let mut sets = capabilities(None)?;
        sets.inheritable -= CapabilitySet::SYS_ADMIN;
        set_capabilities(None, sets)
    };
    give_up().map_err(|errno| Error::io("cannot give up the right to mount", errno))
}

/// Passes no mounts on, and receives what is unmounted elsewhere: a copy that stayed would keep the
/// device, the server, the stick in use.
fn only_receive() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|errno| Error::io("cannot make the mount table private", errno))
}
