//! Our own background processes, recognised by their command lines. A number alone proves nothing:
//! it may have been given to another process since.

use std::fs;
use std::path::Path;

use super::record::is_id;
use super::respawn::Role;

/// The processes of one unit that are alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Who looks after it.
    pub supervisor: Option<u32>,
    /// Who answers the kernel.
    pub server: Option<u32>,
}

/// Looks in /proc for the processes of unit `id` that belong to this user.
#[must_use]
pub fn of_unit(id: &str) -> Processes {
    let mut found = Processes::default();
    let uid = rustix::process::geteuid().as_raw();
    // What others have on their command lines may take them long to tell.
    for pid in all().into_iter().filter(|pid| is_of_user(*pid, uid)) {
        match role_of(pid).filter(|(_, of)| of == id) {
            Some((Role::Supervise, _)) => found.supervisor = Some(pid),
            Some((Role::Serve, _)) => found.server = Some(pid),
            _ => {}
        }
    }
    found
}

/// When a process began, in clock ticks since the machine did: with its number, its identity.
#[must_use]
pub fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have anything in it. proc(5): field 22, of which two are gone.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The numbers of all processes, in order.
#[must_use]
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// What a process does for which unit, if it is one of ours.
#[must_use]
pub fn role_of(pid: u32) -> Option<(Role, String)> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    parse(&line)
}

/// Whether the process with this number is the server of unit `id`.
#[must_use]
pub fn is_server(pid: u32, id: &str) -> bool {
    role_of(pid).is_some_and(|(role, of)| role == Role::Serve && of == id)
}

/// Whether a process has given up its memory already, and its command line with that, but maybe not
/// yet its files.
#[must_use]
pub fn is_ending(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
}

fn parse(line: &str) -> Option<(Role, String)> {
    let mut words = line.split('\0');
    let (name, role, id) = (words.next()?, words.next()?, words.next()?);
    let role = Role::from_word(role.as_ref())?;
    (name == super::respawn::NAME && is_id(id)).then(|| (role, id.to_owned()))
}

/// Whether a process runs as `uid`. The owner of its folder in /proc does not tell: that is root
/// while the process is not dumpable.
fn is_of_user(pid: u32, uid: u32) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let effective = |line: &str| {
        line.strip_prefix("Uid:")?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    status.is_ok_and(|text| text.lines().find_map(effective) == Some(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_words_make_a_process_ours() {
        let server = Some((Role::Serve, "0123abcd".to_owned()));
        let parse = |words: &[&str]| parse(&words.join("\0"));
        assert_eq!(parse(&["loopmount", "__serve", "0123abcd", ""]), server);
        assert_eq!(parse(&["loopmount", "__serve", "0123abcd", "more"]), server);
        for other in [
            &[""][..],
            &["loopmount"],
            &["loopmount", "__serve"],
            &["loopmount", "-u", "0123abcd"],
            &["loopmount", "__serve", "0123abc"],
            &["sh", "__serve", "0123abcd"],
        ] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_process_knows_its_user() {
        let (pid, uid) = (std::process::id(), rustix::process::geteuid().as_raw());
        assert!(is_of_user(pid, uid));
        assert!(!is_of_user(pid, uid ^ 1));
        assert!(all().contains(&pid));
        assert!(!is_ending(pid));
        assert_eq!(of_unit("0123abcd"), Processes::default());
        let earlier = began(1).unwrap();
        assert!(began(pid).is_some_and(|began| began >= earlier));
    }
}
