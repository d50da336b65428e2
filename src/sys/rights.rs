//! What this process may do.

use std::fs;

/// Bit of `CAP_SYS_ADMIN` in a capability set (capabilities(7)).
const CAP_SYS_ADMIN: u32 = 21;

/// Whether devices can be set up and the kernel's file systems mounted: `CAP_SYS_ADMIN` in the
/// first user namespace. Being root in a container's own user namespace is not enough.
#[must_use]
pub fn may_mount_devices() -> bool {
    has_admin() && in_first_user_namespace()
}

fn has_admin() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    admin_in(&status)
}

fn admin_in(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set >> CAP_SYS_ADMIN & 1 == 1)
}

fn in_first_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(admin_in(
            "CapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n"
        ));
        assert!(!admin_in(
            "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n"
        ));
        assert!(!admin_in("CapEff:\t000001ffffdfffff\n"));
        assert!(!admin_in(""));
    }
}
