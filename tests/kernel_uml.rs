//! The harness that runs tests inside user-mode Linux does what the other tests rely on.

#[path = "common/uml.rs"]
mod uml;

use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn output_and_exit_status_come_out() {
    let outcome = uml::run(
        "echo to-stdout; echo to-stderr >&2; exit_with() { return $1; }; exit_with 7",
        LIMIT,
    );
    assert_eq!(outcome.status, Some(7), "{outcome:?}");
    assert!(
        outcome.output.contains("to-stdout\nto-stderr\n"),
        "{outcome:?}"
    );
    assert!(!outcome.output.contains("no module"), "{outcome:?}");
    assert!(outcome.kernel.contains("Linux version"), "{outcome:?}");
}

#[test]
fn the_body_of_a_test_runs_in_the_other_kernel() {
    uml::inside("the_body_of_a_test_runs_in_the_other_kernel", LIMIT, || {
        let model = fs::read_to_string("/proc/cpuinfo").unwrap();
        assert!(model.contains("User Mode Linux"), "{model}");
        assert!(fs::metadata("/sys/block/nbd0").is_ok());
    });
}

#[test]
fn a_test_that_fails_inside_fails_outside() {
    let name = "a_test_that_fails_inside_fails_outside";
    let outside = std::panic::catch_unwind(|| uml::inside(name, LIMIT, || panic!("on purpose")));
    let message = *outside.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message.contains("on purpose") && message.contains("exit status 101"),
        "{message}"
    );
}

#[test]
fn a_program_that_hangs_is_killed_with_its_kernel() {
    // run() itself sees to it that no process is left.
    let outcome = uml::run("echo started; sleep 1000", Duration::from_secs(5));
    assert_eq!(outcome.status, None);
    assert!(outcome.output.contains("started"), "{outcome:?}");
}
