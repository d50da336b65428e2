//! The program called as `mount.loopmount`: how mount(8) runs its helpers ("EXTERNAL HELPERS"), for
//! fstab and `mount -t loopmount`.
//!
//! `mount.loopmount IMAGE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` becomes the arguments
//! of the ordinary command line; what is wrong with them is found there.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::unit::exit::Exit;

/// The last part of the name by which mount(8) calls it.
const NAME: &str = "mount.loopmount";

/// Words for mount(8), systemd or whoever reads fstab; `rw` among them, which mount(8) says
/// whenever `ro` was not given.
const NOT_OURS: &[&str] = &[
    "", "ro", "rw", "defaults", "auto", "noauto", "nofail", "user", "nouser", "users", "owner",
    "group", "_netdev", "suid", "nosuid", "dev", "nodev",
];
/// Of these the same holds with anything behind.
const NOT_OURS_WITH_VALUE: &[&str] = &["x-", "X-", "comment=", "user=", "uhelper=", "helper="];

/// What mount(8) wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// This command line, the program's name first.
    Run(Vec<OsString>),
    /// Nothing: a dry run.
    Nothing,
}

/// The exit code that mount(8) expects.
pub(super) fn exit(exit: Exit) -> Exit {
    match exit {
        Exit::Done => Exit::Done,
        Exit::Usage => Exit::Command(1),
        _ => Exit::Command(32),
    }
}

/// Whether the program was called by mount(8).
pub(super) fn is_helper(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// What the arguments after the program's name mean.
///
/// # Errors
/// What is wrong with them, for the user.
pub(super) fn translate(args: impl IntoIterator<Item = OsString>) -> Result<Wanted, String> {
    let mut args = args.into_iter();
    let mut places = Vec::new();
    let mut out = vec![OsString::from("loopmount")];
    let mut dry = false;
    while let Some(arg) = args.next() {
        let Some(flags) = arg.to_str().and_then(|text| text.strip_prefix('-')) else {
            places.push(arg);
            continue;
        };
        for flag in flags.chars() {
            match flag {
                // Sloppy options, no mtab: nothing to do about either.
                's' | 'n' => {}
                'f' => dry = true,
                'v' => out.push("-v".into()),
                'o' => {
                    let list = args.next().ok_or("-o needs options")?;
                    let list = list.to_str().ok_or("options that are not UTF-8")?;
                    out.extend(options(list));
                }
                // mount(8) gives the type when it has a subtype; there is one type only.
                't' => drop(args.next()),
                other => return Err(format!("mount's option -{other} is not supported")),
            }
        }
    }
    let [image, target] = <[OsString; 2]>::try_from(places)
        .map_err(|_| format!("{NAME} is called by mount(8): {NAME} IMAGE DIR -o OPTIONS"))?;
    if dry {
        return Ok(Wanted::Nothing);
    }
    out.extend([image, target]);
    Ok(Wanted::Run(out))
}

/// The command line's options for a list of mount options.
fn options(list: &str) -> Vec<OsString> {
    let mut out = Vec::new();
    let mut rest = Vec::new();
    for option in split(list) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(unquoted(value))),
            None => (option, None),
        };
        match (key, value) {
            ("write", None) => out.push("--write".into()),
            ("verify", None) => out.push("--verify".into()),
            ("download", None) => out.push("--download".into()),
            ("prefetch", None) => out.push("--prefetch".into()),
            ("cow", None) => out.push("--cow".into()),
            (
                "partition" | "via" | "layer" | "cache_size" | "cache_limit" | "temp_dir" | "ca"
                | "cow" | "key_file" | "key_file_offset" | "key_file_size" | "key_fd",
                Some(value),
            ) => {
                let key = key.replace('_', "-");
                out.push(format!("--{key}={value}").into());
            }
            _ if NOT_OURS.contains(&option) => {}
            _ if NOT_OURS_WITH_VALUE
                .iter()
                .any(|start| option.starts_with(start)) => {}
            _ => rest.push(option),
        }
    }
    if !rest.is_empty() {
        out.push("-o".into());
        out.push(rest.join(",").into());
    }
    out
}

/// Splits at commas that are not between double quotes; the quotes stay.
fn split(list: &str) -> Vec<&str> {
    let mut quoted = false;
    list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .collect()
}

fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &str) -> Result<String, String> {
        let args = args.split(' ').map(OsString::from);
        Ok(match translate(args)? {
            Wanted::Nothing => "nothing".to_owned(),
            Wanted::Run(args) => args
                .iter()
                .map(|arg| arg.to_str().unwrap())
                .collect::<Vec<_>>()
                .join(" "),
        })
    }

    #[test]
    fn only_the_name_that_mount_uses_makes_a_helper() {
        assert!(is_helper(OsStr::new("/sbin/mount.loopmount")));
        assert!(is_helper(OsStr::new("mount.loopmount")));
        assert!(!is_helper(OsStr::new("/usr/bin/loopmount")));
        assert!(!is_helper(OsStr::new("/mount.loopmount/loopmount")));
    }

    #[test]
    fn what_mount_says_becomes_the_ordinary_command_line() {
        assert_eq!(line("/img /m -o rw").unwrap(), "loopmount /img /m");
        assert_eq!(
            line("/img /m -n -v -o ro,partition=2,via=fuse").unwrap(),
            "loopmount -v --partition=2 --via=fuse /img /m"
        );
        assert_eq!(
            line("/img /m -sv -o rw,write,noexec,cache_size=64M,ca=/c,data=ordered -t loopmount.x")
                .unwrap(),
            "loopmount -v --write --cache-size=64M --ca=/c -o noexec,data=ordered /img /m"
        );
        assert_eq!(
            line("/img /m -o key_file=/etc/k,key_file_offset=4,key_file_size=32").unwrap(),
            "loopmount --key-file=/etc/k --key-file-offset=4 --key-file-size=32 /img /m"
        );
        assert_eq!(
            line("-img /m").unwrap_err(),
            "mount's option -i is not supported"
        );
        assert_eq!(line("/img /m -f -o rw").unwrap(), "nothing");
    }

    #[test]
    fn a_value_with_commas_stands_in_quotes() {
        assert_eq!(
            line("/img /m -o layer=\"offset:1M,size=2M\",layer=raw,context=\"a,b\"").unwrap(),
            "loopmount --layer=offset:1M,size=2M --layer=raw -o context=\"a,b\" /img /m"
        );
    }

    #[test]
    fn words_for_others_are_passed_over() {
        assert_eq!(
            line("/img /m -o rw,noauto,user=joe,_netdev,x-systemd.automount,nofail,X-a=b").unwrap(),
            "loopmount /img /m"
        );
    }

    #[test]
    fn a_missing_place_or_too_many_are_wrong_usage() {
        for args in ["/img", "/img /m /n", "/img /m -o", "/img /m -N 5"] {
            assert!(line(args).is_err(), "{args}");
        }
    }
}
