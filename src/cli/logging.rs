//! Command line: where log records go.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use env_logger::{Builder, Target};
use log::{LevelFilter, Log, Metadata, Record};
use syslog::{BasicLogger, Facility, Formatter3164, LoggerBackend};

use super::exit::Failure;

const SYSLOG_SOCKET: &str = "/dev/log";

/// `verbosity` is the number of `-v`.
fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

/// fuser reports each mount as news and each request as debugging; both are ours to report.
fn fuser_level(verbosity: u8) -> LevelFilter {
    if verbosity < 2 { LevelFilter::Warn } else { LevelFilter::Debug }
}

fn builder(verbosity: u8) -> Builder {
    let mut builder = Builder::new();
    builder.filter_level(level(verbosity)).filter_module("fuser", fuser_level(verbosity));
    builder.parse_default_env();
    builder
}

/// For the foreground: standard error. RUST_LOG has precedence over `-v`.
pub fn to_stderr(verbosity: u8) {
    // A second logger in one process is refused; the first one serves as well.
    let _ = builder(verbosity).try_init();
}

/// For the background: the file asked for, else syslog where there is one. Without either, standard error until it is let
/// go, that is until the mount is ready; no news is good news there.
pub fn in_background(file: Option<&Path>, verbosity: u8) -> Result<(), Failure> {
    match file {
        Some(path) => to_file(path, verbosity),
        None => {
            if !to_syslog(verbosity) {
                let quiet = if verbosity == 0 { LevelFilter::Warn } else { level(verbosity) };
                let _ = builder(verbosity).filter_level(quiet).parse_default_env().try_init();
            }
            Ok(())
        }
    }
}

fn to_file(path: &Path, verbosity: u8) -> Result<(), Failure> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    let file = file.map_err(|error| Failure::system(&format!("log file {}", path.display()), error))?;
    let _ = builder(verbosity).target(Target::Pipe(Box::new(file))).try_init();
    Ok(())
}

fn to_syslog(verbosity: u8) -> bool {
    if !Path::new(SYSLOG_SOCKET).exists() {
        return false;
    }
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: env!("CARGO_PKG_NAME").to_owned(),
        pid: std::process::id(),
    };
    let Ok(logger) = syslog::unix(formatter) else { return false };
    // Records that a stuck reader has no room for are lost: nobody may wait for the log.
    let unblocked = match &logger.backend {
        LoggerBackend::Unix(socket) => socket.set_nonblocking(true),
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_nonblocking(true),
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => Ok(()),
    };
    if unblocked.is_err() {
        return false;
    }
    let records = Syslog { inner: BasicLogger::new(logger), fuser: fuser_level(verbosity) };
    let set = log::set_boxed_logger(Box::new(records)).is_ok();
    if set {
        log::set_max_level(level(verbosity));
    }
    set
}

struct Syslog {
    inner: BasicLogger,
    fuser: LevelFilter,
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let fuser = metadata.target().starts_with("fuser");
        self.inner.enabled(metadata) && !(fuser && metadata.level() > self.fuser)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.inner.log(record);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}
