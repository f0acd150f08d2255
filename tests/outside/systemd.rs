//! The generated unit, checked by systemd's own reading of it.

use std::fs;
use std::process::Command;

use crate::support::{Checkout, available, run, succeeds};

#[test]
fn systemd_reads_the_generated_unit_without_a_word() {
    let test = "systemd_reads_the_generated_unit_without_a_word";
    if !available(test, "systemd-analyze", succeeds("systemd-analyze", &["--version"])) {
        return;
    }
    let checkout = Checkout::new();
    let line = format!("exec {} gen systemd --user root", crate::support::BINARY);
    let unit = checkout.path().join("shardgate.service");
    fs::write(&unit, run(&mut checkout.shell(&line))).expect("the directory is ours");
    let mut verify = Command::new("systemd-analyze");
    let output = verify.arg("verify").arg(&unit).output().expect("it was found");
    let said = String::from_utf8_lossy(&output.stderr);
    // Messages on other units of this host do not count.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("shardgate.service")).collect();
    assert!(ours.is_empty(), "{said}");
}
