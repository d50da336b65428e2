//! Keys and passphrases on their way from whoever has them to the server, and where they are not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::helper_link::HelperLink;
use common::images::{HELLO_LOCKED, PASSPHRASE};
use common::pty::Dialog;
use common::run::{Outcome, send_signal};
use common::sandbox::EVERYBODY;
use common::system::{Process, mount_at};
use common::{Sandbox, Who, eventually, require_tool, until};
use rustix::process::Signal;

/// An encrypted ext4 with `hello` in it.
fn locked(who: Who) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new(who);
    let image = sandbox.image_as(&common::images().locked(), "disk.luks");
    (sandbox, image)
}

/// A file that only the one who types can read.
fn key_file(sandbox: &Sandbox, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let file = sandbox.new_file(name, bytes);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

#[track_caller]
fn is_open(sandbox: &Sandbox, point: &Path) {
    assert_eq!(sandbox.read_text(point.join("hello")), HELLO_LOCKED);
}

/// Runs it without a terminal.
fn mount_with(sandbox: &Sandbox, args: &[&str], image: &Path, point: &Path) -> Outcome {
    let cmd = sandbox.session(false).args(args);
    cmd.arg(image).arg(point).run()
}

#[test]
fn a_key_file_opens_what_is_locked() {
    for who in EVERYBODY {
        let (sandbox, image) = locked(who);
        let point = sandbox.new_dir("mnt");
        let key = key_file(&sandbox, "key", PASSPHRASE);
        let key = key.to_str().unwrap();
        let outcome = mount_with(&sandbox, &["--key-file", key], &image, &point).expect(0);
        assert_eq!(
            outcome.stderr, "",
            "a private key file is nothing to warn of"
        );
        is_open(&sandbox, &point);
        sandbox.unmount(&point);
        sandbox.assert_clean();

        let raw = sandbox.join("raw");
        mount_with(&sandbox, &["--key-file", key, "--fuse"], &image, &raw).expect(0);
        let bytes = sandbox.read(&raw);
        assert!(bytes == fs::read(common::images().hello()).unwrap());
        sandbox.unmount(&raw);
    }
}

#[test]
fn a_wrong_key_file_is_one_try_and_has_its_own_message() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    // A key file is taken as it is, with the newline.
    let wrong = key_file(&sandbox, "wrong", format!("{PASSPHRASE}\n"));
    let wrong = wrong.to_str().unwrap();
    mount_with(&sandbox, &["--key-file", wrong], &image, &point)
        .expect(1)
        .says(&["the key file", "wrong", "does not open"]);
    assert!(mount_at(&point).is_none());
    sandbox.assert_clean();

    let right = key_file(&sandbox, "right", PASSPHRASE);
    let right = right.to_str().unwrap();
    let both = ["--key-file", wrong, "--key-file", right];
    mount_with(&sandbox, &both, &image, &point).expect(0);
    is_open(&sandbox, &point);
    sandbox.unmount(&point);
    let neither = ["--key-file", wrong, "--key-file", wrong];
    mount_with(&sandbox, &neither, &image, &point)
        .expect(1)
        .says(&["none of the 2 keys opens"]);

    mount_with(&sandbox, &["--key-file", "/no/such/key"], &image, &point)
        .expect(1)
        .says(&["cannot open the key file /no/such/key"]);
}

#[test]
fn a_key_may_be_a_part_of_a_file_or_come_from_standard_input_or_a_descriptor() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let check = |outcome: Outcome| {
        outcome.expect(0);
        is_open(&sandbox, &point);
        sandbox.unmount(&point);
    };
    let file = key_file(&sandbox, "key", format!("rubbish{PASSPHRASE}rubbish"));
    let (offset, size) = (
        "--key-file-offset=7",
        format!("--key-file-size={}", PASSPHRASE.len()),
    );
    let part = ["--key-file", file.to_str().unwrap(), offset, size.as_str()];
    check(mount_with(&sandbox, &part, &image, &point));
    let mut too_much = part;
    too_much[3] = "--key-file-size=100";
    mount_with(&sandbox, &too_much, &image, &point)
        .expect(1)
        .says(&["cannot read the key file", "100 bytes"]);

    let piped = sandbox.session(false).args(["--key-file", "-"]);
    check(piped.arg(&image).arg(&point).stdin(PASSPHRASE).run());

    // Programs that print a passphrase end the line.
    let line = format!("printf '%s\\n' {PASSPHRASE} | \"$@\" 3<&0 < /dev/null");
    let shell = sandbox.tool("sh").args(["-c", &line, "sh"]);
    let shell = shell.arg(sandbox.program()).args(["--key-fd", "3"]);
    check(shell.arg(&image).arg(&point).run());
    mount_with(&sandbox, &["--key-fd", "9"], &image, &point)
        .expect(1)
        .says(&["descriptor 9", "not open"]);
}

/// The kernel asks a file for a hole where a file system discards, and a hole reads as zeroes. Those
/// would have to be encrypted and written: all free space of the image, which may be sparse.
#[test]
fn what_a_file_system_discards_in_an_encrypted_file_is_not_filled_with_zeroes() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().locked());
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let args = ["-w", "--via", "loop", "--key-file", key.to_str().unwrap()];
    let point = sandbox.mount(&args, &image, "mnt");
    rustix::fs::sync();
    let written = || {
        let stats = sandbox.loopmount().args(["--stats", "--json"]);
        let stats: serde_json::Value = serde_json::from_str(&stats.arg(&point).ok().out()).unwrap();
        let layers = stats[0]["layers"].as_array().unwrap();
        layers[0]["writes"]["bytes"].as_u64().unwrap()
    };
    let before = written();
    // Whether it says that it was not possible depends on the kernel.
    sandbox.tool_as_root("fstrim").arg(&point).run();
    rustix::fs::sync();
    let wrote = written() - before;
    assert!(wrote < 1 << 20, "{wrote} bytes");
    sandbox.unmount(&point);
}

#[test]
fn a_key_file_that_others_can_read_is_warned_of() {
    let (sandbox, image) = locked(Who::Root);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let key = key.to_str().unwrap();
    mount_with(&sandbox, &["--key-file", key], &image, &point)
        .expect(0)
        .says(&["warning", "key file", "others", "0640", "chmod 600"]);
    is_open(&sandbox, &point);
    sandbox.unmount(&point);
}

#[test]
fn without_a_terminal_and_a_key_the_message_says_what_to_give() {
    for who in EVERYBODY {
        let (sandbox, image) = locked(who);
        let point = sandbox.new_dir("mnt");
        mount_with(&sandbox, &[], &image, &point).expect(1).says(&[
            "is locked",
            "no terminal",
            "--key-file FILE",
        ]);
        sandbox.assert_clean();
    }
}

/// A mount on a terminal that has asked for the passphrase.
fn asked(sandbox: &Sandbox, args: &[&str], image: &Path, point: &Path) -> Dialog {
    let cmd = sandbox.session(true).args(args).arg(image).arg(point);
    let mut dialog = cmd.on_terminal();
    dialog.expect("Passphrase for ");
    until("the echo is off", || !dialog.echoes());
    dialog
}

#[test]
fn a_person_has_three_tries() {
    for who in EVERYBODY {
        let (sandbox, image) = locked(who);
        let point = sandbox.new_dir("mnt");
        let mut dialog = asked(&sandbox, &[], &image, &point);
        for wrong in ["mistyped-0815", ""] {
            dialog.types(&format!("{wrong}\n"));
            dialog.expect("wrong, try again");
            dialog.expect("Passphrase for ");
            until("the echo is off again", || !dialog.echoes());
        }
        dialog.types(&format!("{PASSPHRASE}\n"));
        assert_eq!(dialog.code(), 0, "{}", dialog.shown());
        assert!(dialog.echoes());
        is_open(&sandbox, &point);
        for typed in ["mistyped", PASSPHRASE] {
            assert!(!dialog.shown().contains(typed), "{}", dialog.shown());
        }
        sandbox.unmount(&point);
        sandbox.assert_clean();
    }
}

#[test]
fn three_wrong_passphrases_are_the_end() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let mut dialog = asked(&sandbox, &[], &image, &point);
    for again in ["wrong, try again", "wrong, try again", "3 tries are over"] {
        dialog.types("wrong-one\n");
        dialog.expect(again);
        if again.contains("again") {
            dialog.expect("Passphrase for ");
            until("the echo is off again", || !dialog.echoes());
        }
    }
    assert_eq!(dialog.code(), 1, "{}", dialog.shown());
    assert!(dialog.echoes());
    assert!(mount_at(&point).is_none());
    sandbox.assert_clean();

    let mut dialog = asked(&sandbox, &[], &image, &point);
    dialog.types("\x04");
    dialog.expect("no passphrase was given");
    assert_eq!(dialog.code(), 1, "{}", dialog.shown());
}

#[test]
fn an_interrupt_at_the_prompt_leaves_nothing_behind_and_a_terminal_that_echoes() {
    for who in EVERYBODY {
        let (sandbox, image) = locked(who);
        // It does not exist, and is made.
        let point = sandbox.join("new");
        for foreground in [false, true] {
            let args: &[&str] = if foreground { &["--foreground"] } else { &[] };
            let code = |signal: i32| if foreground { 1 } else { 128 + signal };
            let mut dialog = asked(&sandbox, args, &image, &point);
            dialog.types("half a passph\x03");
            assert_eq!(dialog.code(), code(2), "{}", dialog.shown());
            assert!(dialog.echoes());
            sandbox.assert_clean();
            assert!(!point.exists());

            let mut dialog = asked(&sandbox, args, &image, &point);
            send_signal(launcher(&dialog), Signal::TERM);
            assert_eq!(dialog.code(), code(15), "{}", dialog.shown());
            assert!(dialog.echoes());
            sandbox.assert_clean();
            assert!(!point.exists());
        }
    }
}

/// setsid(1) has become the program that it was given.
fn launcher(dialog: &Dialog) -> u32 {
    let name = fs::read_to_string(format!("/proc/{}/comm", dialog.pid())).unwrap();
    assert_eq!(name.trim(), "loopmount");
    dialog.pid()
}

#[test]
fn a_stopped_prompt_asks_again_when_it_goes_on() {
    require_tool("bash", "bash");
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    // A shell with job control stops the program, and says so.
    let script = "\"$@\"; stty -a | grep -o '[-]*echo '; echo stopped; fg > /dev/null; echo $?";
    let cmd = sandbox.tool("setsid").args(["--ctty", "--wait"]);
    let cmd = cmd.args(["bash", "-mc", script, "bash"]);
    let cmd = cmd.arg(sandbox.program()).arg(&image).arg(&point);
    let mut dialog = cmd.on_terminal();
    dialog.expect("Passphrase for ");
    until("the echo is off", || !dialog.echoes());
    dialog.types("forgotten\x1a");
    dialog.expect("echo");
    dialog.expect("stopped");
    dialog.expect("Passphrase for ");
    until("the echo is off again", || !dialog.echoes());
    dialog.types(&format!("{PASSPHRASE}\n"));
    dialog.expect("0");
    assert_eq!(dialog.code(), 0, "{}", dialog.shown());
    assert!(!dialog.shown().contains("-echo"), "{}", dialog.shown());
    is_open(&sandbox, &point);
    sandbox.unmount(&point);
}

#[test]
fn the_prompt_ends_when_nobody_waits_for_the_answer_any_more() {
    for role in ["__supervise", "__serve"] {
        let (sandbox, image) = locked(Who::User);
        let point = sandbox.new_dir("mnt");
        let mut dialog = asked(&sandbox, &[], &image, &point);
        send_signal(only(&sandbox, role).pid, Signal::KILL);
        assert_eq!(dialog.code(), 1, "{}", dialog.shown());
        assert!(dialog.echoes());
        until("nothing is mounted", || mount_at(&point).is_none());
        // A killed supervisor cannot remove its folder: what is left can be taken away.
        let _ = sandbox.loopmount().arg("-u").arg(&image).run();
        sandbox.assert_clean();
    }
}

#[track_caller]
fn only(sandbox: &Sandbox, role: &str) -> Process {
    let found = sandbox.processes_of(role);
    assert_eq!(found.len(), 1, "one {role}: {found:?}");
    found[0].clone()
}

/// Whether `needle` is in what a process can write to.
fn is_in_memory(pid: u32, needle: &str) -> bool {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    // Threads end and stacks go while this reads: then it starts again, with what is there now.
    eventually("all of a process's memory can be read", || {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        for line in maps.lines() {
            let mut fields = line.split(' ');
            let (start, end) = fields.next().unwrap().split_once('-').unwrap();
            if !fields.next().unwrap().starts_with("rw") {
                continue;
            }
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = (number(start), number(end));
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            memory.read_exact_at(&mut bytes, start).ok()?;
            if bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
                return Some(true);
            }
        }
        Some(false)
    })
}

#[test]
fn a_passphrase_is_in_no_argument_environment_record_log_or_memory() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let args = ["-vvv", "--via", "fuse", "--key-file", key.to_str().unwrap()];
    let outcome = mount_with(&sandbox, &args, &image, &point).expect(0);
    assert!(!outcome.stderr.contains(PASSPHRASE) && !outcome.out().contains(PASSPHRASE));
    is_open(&sandbox, &point);

    let files: Vec<_> = fs::read_dir(&sandbox.units()[0])
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for name in ["unit.json", "log"] {
        assert!(files.iter().any(|file| file.ends_with(name)), "{files:?}");
    }
    let (supervisor, server) = (only(&sandbox, "__supervise"), only(&sandbox, "__serve"));
    let of_processes = [&supervisor, &server].map(|process| {
        let proc = PathBuf::from(format!("/proc/{}", process.pid));
        [proc.join("cmdline"), proc.join("environ")]
    });
    for file in files.iter().chain(of_processes.as_flattened()) {
        let bytes = fs::read(file).unwrap();
        assert!(!bytes.is_empty() || file.ends_with("lock"), "{file:?}");
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(PASSPHRASE), "it is in {file:?}: {text}");
    }
    for process in [&supervisor, &server] {
        let pid = process.pid;
        assert!(is_in_memory(pid, "disk.luks"), "this finds what is there");
        assert!(!is_in_memory(pid, PASSPHRASE), "it is in {process:?}");
    }
    sandbox.unmount(&point);
}

#[test]
fn a_server_with_keys_cannot_be_dumped() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let args = ["--via", "fuse", "--key-file", key.to_str().unwrap()];
    mount_with(&sandbox, &args, &image, &point).expect(0);
    let server = only(&sandbox, "__serve").pid;
    let limits = fs::read_to_string(format!("/proc/{server}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    // Not by the same user either, who may look into what belongs to the user otherwise.
    let look = |pid: u32| {
        let proc = format!("/proc/{pid}/environ");
        sandbox.tool("cat").arg(proc).run().code()
    };
    assert_eq!(look(server), 1);
    assert_eq!(look(only(&sandbox, "__supervise").pid), 0);

    // What it does itself goes on.
    is_open(&sandbox, &point);
    sandbox.loopmount().arg("--stats").arg(&point).ok();
    sandbox.unmount(&point);
}

/// The volume key, as cryptsetup finds it.
fn volume_key(image: &Path) -> Vec<u8> {
    require_tool("cryptsetup", "cryptsetup-bin");
    let folder = tempfile::tempdir().unwrap();
    let (passphrase, key) = (folder.path().join("passphrase"), folder.path().join("key"));
    fs::write(&passphrase, PASSPHRASE).unwrap();
    let dump = std::process::Command::new("cryptsetup")
        .args([
            "luksDump",
            "--batch-mode",
            "--dump-volume-key",
            "--key-file",
        ])
        .arg(&passphrase)
        .arg("--volume-key-file")
        .arg(&key)
        .arg(image)
        .output()
        .unwrap();
    assert!(dump.status.success(), "{dump:?}");
    fs::read(&key).unwrap()
}

/// The flags of each piece of a process's memory that `needle` is in.
fn flags_of_memory_with(pid: u32, needle: &[u8]) -> Vec<String> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut found, mut range, mut what) = (Vec::new(), (0, 0), "");
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let (start, end) = range;
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            if what.contains(" rw")
                && memory.read_exact_at(&mut bytes, start).is_ok()
                && bytes.windows(needle.len()).any(|bytes| bytes == needle)
            {
                found.push(format!("{what}:{flags} "));
            }
            continue;
        }
        let first = line.split(' ').next().unwrap();
        let Some((start, end)) = first.split_once('-') else {
            continue;
        };
        let number = |text| u64::from_str_radix(text, 16);
        if let (Ok(start), Ok(end)) = (number(start), number(end)) {
            (range, what) = ((start, end), line);
        }
    }
    found
}

#[test]
fn the_keys_of_a_server_are_locked_into_memory_and_nowhere_else() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let args = ["--via", "fuse", "--key-file", key.to_str().unwrap()];
    mount_with(&sandbox, &args, &image, &point).expect(0);
    is_open(&sandbox, &point);
    let server = only(&sandbox, "__serve").pid;

    let locked = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let locked = locked.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kib: u64 = locked
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    // A page for each key of AES-XTS; what was needed to find them was given back.
    assert!((1..=64).contains(&kib), "{kib} KiB are locked");

    // An expanded key begins with the key itself. XTS has two of them.
    let key = volume_key(&image);
    assert_eq!(key.len(), 64);
    for half in key.chunks(32) {
        let found = flags_of_memory_with(server, half);
        assert!(!found.is_empty(), "this finds what is there");
        for place in found {
            // Locked, and in no core dump whoever makes it.
            assert!(place.contains(" lo ") && place.contains(" dd "), "{place}");
        }
    }
    let supervisor = only(&sandbox, "__supervise").pid;
    for half in key.chunks(32) {
        assert_eq!(flags_of_memory_with(supervisor, half), [""; 0]);
    }
    sandbox.unmount(&point);
}

#[test]
fn where_nothing_may_be_locked_a_key_opens_all_the_same() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let outcome = sandbox
        .tool("prlimit")
        .arg("--memlock=0:0")
        .arg(sandbox.program())
        .arg("--key-file")
        .args([&key, &image, &point])
        .run()
        .expect(0);
    assert_eq!(outcome.stderr, "");
    is_open(&sandbox, &point);
    sandbox.unmount(&point);
}

#[test]
fn an_orphaned_server_with_keys_takes_its_unit_down() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let args = ["--via", "fuse", "--key-file", key.to_str().unwrap()];
    mount_with(&sandbox, &args, &image, &point).expect(0);
    send_signal(only(&sandbox, "__supervise").pid, Signal::KILL);
    until("it unmounts", || mount_at(&point).is_none());
    sandbox.assert_clean();
}

#[test]
fn every_form_of_the_command_can_be_given_a_key() {
    for who in EVERYBODY {
        let (sandbox, image) = locked(who);
        let key = key_file(&sandbox, "key", PASSPHRASE);
        let run = |args: &[&str]| {
            let cmd = sandbox.session(false).args(["--key-file"]).arg(&key);
            cmd.args(args)
        };
        let info = run(&["--info"]).arg(&image).ok();
        assert!(info.out().contains("ext4"), "{}", info.out());
        run(&["--prefetch"]).arg(&image).ok();
        let command = run(&[]).arg(&image).args(["--", "cat", "hello"]).ok();
        assert_eq!(command.out(), HELLO_LOCKED);
        sandbox.assert_clean();

        let point = sandbox.new_dir("mnt");
        let foreground = run(&["--foreground"]).arg(&image).arg(&point).spawn();
        until("it is mounted", || mount_at(&point).is_some());
        is_open(&sandbox, &point);
        sandbox.unmount(&point);
        foreground.wait().expect(0);
    }
}

#[test]
fn a_command_in_the_image_gets_the_terminal_and_not_the_key() {
    let (sandbox, image) = locked(Who::User);
    let cmd = sandbox.session(true).arg(&image);
    let script = "read -r line; echo \"got $line\"; cat hello";
    let mut dialog = cmd.args(["--", "sh", "-c", script]).on_terminal();
    dialog.expect("Passphrase for ");
    until("the echo is off", || !dialog.echoes());
    dialog.types(&format!("{PASSPHRASE}\n"));
    until("the echo is on", || dialog.echoes());
    dialog.types("a line\n");
    dialog.expect("got a line");
    dialog.expect(HELLO_LOCKED.trim());
    assert_eq!(dialog.code(), 0);

    let script = format!("printf {PASSPHRASE} | \"$@\" 3<&0");
    let shell = sandbox.tool("sh").args(["-c", &script, "sh"]);
    let shell = shell.arg(sandbox.program()).args(["--key-fd", "3"]);
    let inner = "ls -l /proc/self/fd/3 2> /dev/null || echo closed";
    let outcome = shell.arg(&image).args(["--", "sh", "-c", inner]).ok();
    // ls has a descriptor of its own for the folder; this one is no pipe.
    assert!(!outcome.out().contains("pipe:"), "{}", outcome.out());
}

#[test]
fn the_info_of_a_locked_image_says_that_it_is() {
    let (sandbox, image) = locked(Who::User);
    let info = |args: &[&str]| {
        let cmd = sandbox.session(false).arg("--info").args(args);
        cmd.arg(&image).run()
    };
    let outcome = info(&[]).expect(0);
    let text = outcome.out();
    assert!(text.contains("content: luks, locked: "), "{text}");
    assert!(text.contains("no terminal"), "{text}");
    let json = info(&["--json"]).expect(0).out();
    assert!(json.contains("\"locked\""), "{json}");

    let wrong = key_file(&sandbox, "wrong", "wrong");
    let outcome = info(&["--key-file", wrong.to_str().unwrap()]).expect(1);
    assert!(outcome.out().contains("locked"), "{}", outcome.out());
    let outcome = outcome.says(&["does not open"]);
    assert!(!outcome.stderr.contains("luks: luks"), "{}", outcome.stderr);
}

#[test]
fn a_detached_header_is_found_where_the_one_who_types_is() {
    let (sandbox, image) = locked(Who::User);
    let point = sandbox.new_dir("mnt");
    let header = sandbox.image_as(&image, "header");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    // Nothing can be opened by what is left.
    let broken = fs::OpenOptions::new().write(true).open(&image).unwrap();
    broken.write_all_at(&[0; 4096], 0).unwrap();
    let args = ["--layer", "luks:header=header", "--key-file"];
    let args = [&args[..], &[key.to_str().unwrap()]].concat();
    mount_with(&sandbox, &args, &image, &point).expect(0);
    is_open(&sandbox, &point);
    sandbox.unmount(&point);
    fs::remove_file(header).unwrap();
    mount_with(&sandbox, &args, &image, &point)
        .expect(1)
        .says(&["header"]);
}

#[test]
fn mount_8_can_be_given_a_key_file() {
    let _link = HelperLink::new();
    let (sandbox, image) = locked(Who::Root);
    let point = sandbox.new_dir("mnt");
    let key = key_file(&sandbox, "key", PASSPHRASE);
    let options = format!(
        "key_file={},key_file_size={}",
        key.display(),
        PASSPHRASE.len()
    );
    let mount = sandbox.tool("mount").args(["-t", "loopmount"]);
    let mount = mount.arg("-o").arg(options).arg(&image).arg(&point);
    mount.ok();
    is_open(&sandbox, &point);
    sandbox.unmount(&point);
}
