//! `cgfuse`: see `cgfuse --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgfuse::cli::cgfuse(std::env::args_os()).into()
}
