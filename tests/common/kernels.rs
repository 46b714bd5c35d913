//! The kernels of a distribution, as they are delivered: a test binary runs some of its tests again in a virtual machine.

use super::{compiled, skipped};
use std::path::PathBuf;
use std::process::Command;

/// Set there. Unlike on many a test machine, programs may be called behind the kernel's functions: what members do to their own affinity is told.
pub const THERE: &str = "CGFUSE_ON_A_KERNEL_OF_A_DISTRIBUTION";

/// Tests `on_linux_6_1`, Debian 12's own, and `on_linux_6_12`, its newest: the tests of this binary with these full names, which use a program that
/// is compiled from this source.
#[macro_export]
macro_rules! on_other_kernels {
    ($source:literal, $($test:literal),+ $(,)?) => {
        #[test]
        fn on_linux_6_1() {
            $crate::common::kernels::run_on("linux-image-6.1.", "on_linux_6_1", &[$($test),+], $source);
        }

        #[test]
        fn on_linux_6_12() {
            $crate::common::kernels::run_on("linux-image-6.12.", "on_linux_6_12", &[$($test),+], $source);
        }
    };
}

/// See [`on_other_kernels`]. None may be skipped there.
pub fn run_on(kernel: &str, test: &str, tests: &[&str], source: &str) {
    let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let kernels = project.join("target/kernels").read_dir().into_iter().flatten().flatten();
    let Some(kernel) = kernels.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains(kernel)) else {
        return skipped(test, "no kernel to boot: see tests/kernels/fetch.sh");
    };
    let own = std::env::current_exe().expect("a path");
    let mut boot = Command::new(project.join("tests/kernels/boot.sh"));
    // What sees its source is not compiled again.
    boot.arg(kernel).arg(&own).arg(env!("CARGO_BIN_EXE_cgfuse")).arg(project.join(source)).arg(compiled(source));
    // The emulated machine is some twenty times slower.
    let stress = std::env::var("CGFUSE_STRESS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.34) / 20.0;
    // Otherwise nobody would see what is skipped.
    let run = format!("{THERE}=1 CGFUSE_STRESS={stress} '{}' --nocapture --exact {}", own.display(), tests.join(" "));
    let said = boot.arg("--").arg(run).output().expect("boot.sh");
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{}\n{out}\n{err}", said.status);
    assert!(out.contains(&format!("test result: ok. {} passed", tests.len())) && !out.contains("skipped: "), "{out}");
}
