//! The end by a failed assertion, in a process of its own.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;

use super::abort_on_panic;

/// Set for the process that is to fail: this test, run alone.
const FAILS: &str = "SHARDGATE_TEST_FAILS";
const THIS: &str = "boot::tests::a_failed_assertion_on_any_thread_is_told_and_ends_the_process";

#[test]
fn a_failed_assertion_on_any_thread_is_told_and_ends_the_process() {
    if std::env::var_os(FAILS).is_some() {
        abort_on_panic();
        let failed = thread::spawn(|| panic!("two and two are five")).join();
        unreachable!("a thread failed and the process went on: {failed:?}");
    }
    let program = std::env::current_exe().expect("a path");
    let mut test = Command::new(program);
    test.args(["--exact", THIS, "--nocapture"]).env(FAILS, "1");
    let ended = test.output().expect("runs");
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(told.contains("two and two are five") && !told.contains("went on"), "{told}");
}
