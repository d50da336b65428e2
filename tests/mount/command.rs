//! A command that runs in the mount.

use rustix::process::Signal;

use crate::common;
use crate::common::sandbox::{EVERYBODY, with_small_disk};

#[test]
fn a_command_runs_in_the_root_of_the_image() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let run = |args: &[&str]| sandbox.loopmount().arg(&image).arg("--").args(args);
        let outcome = run(&["cat", "etc/hostname"]).ok();
        assert_eq!(outcome.out(), "two-partitions\n");
        assert_eq!(outcome.stderr, "");
        let text = run(&["ls", "-l"]).ok().out();
        assert!(text.contains("etc") && text.contains("usr"), "{text}");
        // Standard input and output are the command's own.
        let outcome = run(&["cat"]).stdin("in and out").ok();
        assert_eq!(outcome.out(), "in and out");
        sandbox.assert_clean();
    }
}

#[test]
fn a_command_gives_its_exit_code_and_ours_are_those_of_env() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let run = |args: &[&str]| sandbox.loopmount().arg(&image).arg("--").args(args);
        run(&["true"]).ok();
        run(&["sh", "-c", "exit 7"]).fails(7);
        run(&["sh", "-c", "kill -TERM $$"]).fails(143);
        run(&["no-such-command"])
            .fails(127)
            .says(&["no-such-command"]);
        run(&["./etc/hostname"]).fails(126).says(&["etc/hostname"]);
        sandbox
            .loopmount()
            .arg(sandbox.new_file("empty", ""))
            .args(["--", "true"])
            .fails(125)
            .says(&["empty"]);
        sandbox.assert_clean();
    }
}

#[test]
fn a_command_is_ended_with_the_launcher_and_nothing_stays() {
    for who in EVERYBODY {
        for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
            let (sandbox, image) = with_small_disk(who);
            let running = sandbox
                .loopmount()
                .arg(&image)
                .args(["--", "sleep", "1000"])
                .spawn();
            let sleeps = || {
                let all = sandbox.processes();
                all.into_iter().find(|process| process.args[0] == "sleep")
            };
            let sleep = common::eventually("the command runs", sleeps);
            running.signal(signal);
            if signal == Signal::KILL {
                // Nobody is left to pass the signal on; the command lives as long as it likes.
                common::run::send_signal(sleep.pid, Signal::KILL);
            }
            assert_ne!(running.wait().code(), 0);
            sandbox.assert_clean();
        }
    }
}
