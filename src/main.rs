//! `cgfuse`: see `cgfuse --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The server's own processes.
    match std::env::args_os().nth(1) {
        Some(arg) if arg == cgfuse::inject::HELPER_ARG => return cgfuse::inject::helper_main(),
        Some(arg) if arg == cgfuse::nsproxy::holder::HOLDER_ARG => return cgfuse::nsproxy::holder::main(),
        Some(arg) if arg == cgfuse::nsproxy::PROBE_ARG => return cgfuse::nsproxy::probe_main(),
        _ => {}
    }
    cgfuse::cli::cgfuse(std::env::args_os()).into()
}
