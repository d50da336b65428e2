//! Every path, mode, owner, size, link count, device number, time, link target, extended attribute
//! and SHA-256 through our mount equals the kernel's own loop mount of the raw image.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::diff_walk::{Xattrs, assert_same, is_child, walk, walk_as};
use common::images::with_mounted;
use common::sandbox::means;
use common::{Sandbox, Who, images};

/// Mounts a copy of `image` with each means of `who`, and compares with what the kernel sees in
/// `raw`. `test` is the name of the calling test.
fn compare(who: Who, image: &Path, raw: &Path, test: &str) {
    let xattrs = match who {
        Who::Root => Xattrs::All,
        Who::User => Xattrs::Untrusted,
    };
    let expected = with_mounted(raw, &["-r"], |dir| walk(dir, xattrs));
    assert!(expected.len() > 700, "the tree is rich: {}", expected.len());
    let sandbox = Sandbox::new(who);
    let image = sandbox.image(image);
    for via in means(who) {
        let point = sandbox.mount(&["--via", via], &image, via);
        assert_same(&walk_as(&sandbox, &point, test), &expected);
        sandbox.unmount(&point);
    }
}

/// Two tests per image, named `NAME::as_root` and `NAME::as_user`.
macro_rules! same_as_the_kernel {
    ($($name:ident: $image:ident holds $raw:ident;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn as_root() {
                if is_child() {
                    return;
                }
                let test = concat!(stringify!($name), "::as_root");
                compare(Who::Root, &images().$image(), &images().$raw(), test);
            }

            #[test]
            fn as_user() {
                if is_child() {
                    return;
                }
                let test = concat!(stringify!($name), "::as_user");
                compare(Who::User, &images().$image(), &images().$raw(), test);
            }
        }
    )*};
}

same_as_the_kernel! {
    packed_disk: disk_xz holds ext4;
    disk_in_one_xz_block: disk_single_block holds ext4;
    disk_in_several_xz_streams: disk_streams holds ext4;
    raw_disk: disk holds ext4;
    raw_file_system: ext4 holds ext4;
    old_ext2: ext2 holds ext2;
    newer_ext4: ext4_modern holds ext4_modern;
}
