//! `mount.cgfuse`: the helper that mount(8) calls for the types `cgfuse` and `fuse.cgfuse`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgfuse::cli::mount_helper(std::env::args_os()).into()
}
