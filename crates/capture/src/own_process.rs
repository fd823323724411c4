//! Tests that need a process of their own: for what there is only one of, or for its end.

use std::process::{Command, Output};

/// Runs the calling test, whose path is `name`, once more in a process of its own, and returns what became of
/// that; `None` in that process, which is to do what is tested. What it says is not to be taken for ours: it may
/// end in the middle.
pub(crate) fn in_own_process(name: &str) -> Option<Output> {
    const IS_OWN: &str = "ECAPTURE_TEST_OWN_PROCESS";

    if std::env::var_os(IS_OWN).is_some() {
        return None;
    }
    let mut ourselves = Command::new(std::env::current_exe().unwrap());
    ourselves.args(["--exact", name]).env(IS_OWN, "1");
    let output = ourselves.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("running 1 test\n"), "no test {name}: {said}");
    Some(output)
}
