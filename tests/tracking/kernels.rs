//! Membership on the kernels of a distribution, as they are delivered: this binary runs some of its tests again in a virtual machine. There, unlike
//! on many a test machine, programs may be called behind the kernel's functions, so that drift is told.

use super::side::test_name;
use crate::common::{compiled, skipped};
use std::path::PathBuf;
use std::process::Command;

/// What is run there.
const TESTS: [&str; 3] = ["drift_bpf", "traces_bpf", "the_best_one_is_chosen"];

/// Set there: whether what members do to their own affinity is told is not a question any more.
pub(super) const IS_TOLD: &str = "CGFUSE_DRIFT_IS_TOLD";

fn kernel(named: &str) {
    let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let kernels = project.join("target/kernels").read_dir().into_iter().flatten().flatten();
    let Some(kernel) = kernels.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains(named)) else {
        return skipped(&test_name(), "no kernel: see tests/kernels/fetch.sh");
    };
    let own = std::env::current_exe().expect("a path");
    let files = [own.clone(), env!("CARGO_BIN_EXE_cgfuse").into(), compiled("tests/tracking/family.c")];
    // A program that sees its sources, as it does here.
    let sources = ["tests/tracking/family.c"].map(|source| project.join(source));
    let runs = TESTS.map(|test| format!("{IS_TOLD}=1 {} {test}", own.display())).join(" && ");
    let said = Command::new(project.join("tests/kernels/boot.sh")).arg(kernel).args(files).args(sources).arg("--").arg(runs).output();
    let said = said.expect("boot.sh");
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{}\n{out}\n{err}", said.status);
    assert_eq!(out.matches("test result: ok. 1 passed").count(), TESTS.len(), "{out}");
    assert!(!out.contains("skipped: "), "{out}");
}

#[test]
fn on_linux_6_1() {
    kernel("linux-image-6.1.");
}

#[test]
fn on_linux_6_12() {
    kernel("linux-image-6.12.");
}
