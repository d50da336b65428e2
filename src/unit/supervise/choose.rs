//! By which means an image is to appear.

use nbdserve::error::escape;
use nbdserve::{Error, Kind, Result};

use crate::sys::rights::may_mount_devices;
use crate::target::kernel_mount::parse_options;
use crate::target::kernel_nbd::{self, Availability};
use crate::unit::message::{Opened, Request, Show, Via};

/// What a FUSE mount of ours takes after `-o`, beside what is always so: what it was made for, or
/// what is true of it anyway.
const TAKEN_BY_FUSE: [&str; 12] = [
    "allow_other",
    "default_permissions",
    "noexec",
    "exec",
    "noatime",
    "nodiratime",
    "relatime",
    "norelatime",
    "lazytime",
    "nolazytime",
    "async",
    "sync",
];

/// The means, where the user left it to us.
pub(super) fn choose(request: &Request, opened: &Opened) -> Result<Via> {
    if request.show == Show::File {
        return options_of_fuse(request).map(|()| Via::Fuse);
    }
    let Some(filesystem) = &opened.filesystem else {
        return Err(Error::new(
            Kind::Unsupported,
            "there is no file system that could be mounted",
        )
        .hint("loopmount --info shows what is there; --fuse shows the bytes as a file"));
    };
    let privileged = may_mount_devices();
    match request.via {
        Via::Auto if privileged => {
            // A first pass can outlast the kernel's patience with an NBD device.
            if !opened.first_pass && nbd_is_ready() {
                Ok(Via::Nbd)
            } else {
                Ok(Via::Loop)
            }
        }
        Via::Auto | Via::Fuse => {
            writable_in_user_space(request, filesystem)?;
            options_of_fuse(request).map(|()| Via::Fuse)
        }
        Via::Nbd | Via::Loop if !privileged => Err(Error::new(
            Kind::Denied,
            format!("--via {} needs root", request.via),
        )
        .hint("--via fuse, or --fuse for the bytes as a file, works for everybody")),
        Via::Nbd if !nbd_is_ready() => Err(Error::new(
            Kind::Unsupported,
            "this kernel has no nbd module",
        )
        .hint("--via loop does the same over a FUSE file")),
        via => Ok(via),
    }
}

/// Whether a FUSE mount does what each option after `-o` asks for: passed over, one of the kernel's
/// file system (`noload`, `subvol=`) would show something else than the user wants to see.
fn options_of_fuse(request: &Request) -> Result<()> {
    let options = request.mount_options.as_deref().unwrap_or("");
    let all = parse_options(options);
    let Some((name, _)) = all
        .iter()
        .find(|(name, value)| value.is_some() || !TAKEN_BY_FUSE.contains(&name.as_str()))
    else {
        return Ok(());
    };
    let what = format!(
        "the option {} is for a file system of the kernel, and this mount is served from user space",
        escape(name)
    );
    Err(Error::new(Kind::Unsupported, what).hint("leave it out, or let root mount it: --via loop"))
}

fn writable_in_user_space(request: &Request, filesystem: &str) -> Result<()> {
    if !request.takes_writes() {
        return Ok(());
    }
    let option = if request.cow.is_some() { "--cow" } else { "-w" };
    Err(Error::new(
        Kind::Unsupported,
        format!("{filesystem} can only be read in user space, not written"),
    )
    .hint(format!(
        "as root {option} uses the kernel's file system; --fuse {option} gives a writable file"
    )))
}

fn nbd_is_ready() -> bool {
    kernel_nbd::availability().is_ok_and(|found| found == Availability::Ready)
}
