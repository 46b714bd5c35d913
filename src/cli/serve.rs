//! Command line: the server's life from mount to unmount, and the signals that end it.
//!
//! SIGTERM and SIGINT unmount; a second one ends the server at once. SIGHUP does the same in the foreground, where it means that
//! the terminal is gone, and nothing in the background. SIGPIPE is ignored since Rust's start-up.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use log::{debug, error, info, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statfs::statfs;

use super::daemon::Reporter;
use super::exit::{Exit, Failure};
use super::mountinfo::{self, Mount};
use super::umount::{UnmountError, Urgency, reason, unmount};
use crate::fuse::Server;
use crate::options::MountOptions;
use crate::sys::handover;

/// How long a fresh mount may take to answer. A loaded machine takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long after unmounting the server keeps quiet about still being needed.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait before the mounts are looked at again after that has failed, for want of memory or descriptors.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a signal has the server look for its mount.
const ATTEMPTS: u32 = 5;
/// A file of every root group, with or without `noprefix`.
const PROBE: &str = "notify_on_release";

/// Serves until unmounted.
pub fn in_foreground(dir: &Path, options: &MountOptions) -> Result<(), Failure> {
    let hangup = if hangup_is_ignored() { Hangup::Ignored } else { Hangup::Unmounts };
    let (server, mount) = start(dir, options, hangup)?;
    finish(server, mount, dir)
}

/// Serves until unmounted; the starter hears of it when the mount answers.
pub fn in_background(dir: &Path, options: &MountOptions, reporter: Reporter) -> Exit {
    let (server, mount) = match start(dir, options, Hangup::Ignored) {
        Ok(server) => server,
        Err(failure) => {
            reporter.failed(&failure);
            return failure.exit;
        }
    };
    let outcome = match reporter.ready() {
        Ok(()) => finish(server, mount, dir),
        Err(failure) => {
            server.give_up();
            Err(failure)
        }
    };
    if let Err(failure) = outcome {
        error!("{failure}");
        return failure.exit;
    }
    Exit::Success
}

/// What SIGHUP does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    Unmounts,
    Ignored,
}

/// Whether the program was started by nohup(1) or the like.
fn hangup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let bits = ignored.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    bits >> (Signal::SIGHUP as i32 - 1) & 1 == 1
}

/// Mounts and makes sure that the mount answers.
fn start(dir: &Path, options: &MountOptions, hangup: Hangup) -> Result<(Server, Mount), Failure> {
    let failure = |message: String| Failure::new(Exit::Failure, message);
    let shown = dir.display();
    // In the background nobody sees what goes to standard error.
    std::panic::set_hook(Box::new(|panic| error!("this is a bug in cgfuse: {panic}")));
    // Up to here a signal just ends the program. From here on there is something to undo, and threads that inherit the mask.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(|errno| Failure::system("blocking signals", errno.desc()))?;
    // Namespaces, clients' pid namespaces and agents take descriptors, and 1,024 are soon used up.
    if let Err(errno) = handover::raise_descriptor_limit() {
        warn!("the limit of descriptors cannot be raised: {}", errno.desc());
    }
    let server = Server::mount(dir, options).map_err(|error| {
        let error = error.to_string();
        failure(format!("{shown}: mount failed: {}{}", error.trim(), advice(&error)))
    })?;
    let place = mountinfo::locate(dir).map_err(|error| {
        server.give_up();
        failure(format!("{shown}: looking for the mount: {}", reason(&error)))
    })?;
    let mount = place.mount.ok_or_else(|| failure(format!("{shown}: unmounted again at once")))?;
    let stopper = Stopper { mount: mount.clone(), hangup };
    let probed = probe(dir.to_owned());
    if probed.is_err() {
        stopper.stop();
    }
    probed?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || stopper.watch(&signals)).map_err(|error| {
        server.give_up();
        Failure::system("starting a thread", error)
    })?;
    info!("mounted on {shown}");
    Ok((server, mount))
}

/// What can be done about a failure of mount(2) or fusermount3 that nobody could foresee.
fn advice(error: &str) -> &'static str {
    let known = [
        ("could not determine username", "; fusermount3 wants an entry in /etc/passwd for this user id"),
        ("ermission denied", "; is the directory the user's own, and nothing mounted on it?"),
        ("not permitted", "; it takes CAP_SYS_ADMIN, and in a user namespace a mount namespace of its own: unshare -Urm"),
    ];
    known.into_iter().find(|(text, _)| error.contains(text)).map_or("", |(_, advice)| advice)
}

/// Serves. The starter has been told, and may unmount: nobody may look at the mount point from here on, which would be busy.
fn finish(server: Server, mount: Mount, dir: &Path) -> Result<(), Failure> {
    let shown = dir.display();
    let unpin = server.unpin();
    let watch = move || {
        if wait_until_gone(&mount).is_ok() {
            unpin();
        }
    };
    thread::Builder::new().name("mounts".to_owned()).spawn(watch).map_err(|error| {
        server.give_up();
        Failure::system("starting a thread", error)
    })?;
    server.join().map_err(|error| Failure::system(&format!("{shown}: serving ended"), error))?;
    info!("unmounted from {shown}");
    Ok(())
}

/// Sleeps until a mount is not in this mount namespace any more, as a list that has been read tells.
fn wait_until_gone(mount: &Mount) -> io::Result<()> {
    // Readable with POLLPRI when mounts have changed since it was opened or last polled.
    let changes = persist(u32::MAX, || File::open("/proc/self/mountinfo"))?;
    while persist(u32::MAX, mountinfo::list)?.iter().any(|other| other.is(mount)) {
        persist(u32::MAX, || match poll(&mut [PollFd::new(changes.as_fd(), PollFlags::POLLPRI)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        })?;
    }
    Ok(())
}

/// Tries so many times at the most: an error says nothing about the mount.
fn persist<T>(attempts: u32, look: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..attempts {
        match look() {
            Err(error) => debug!("the mounts cannot be looked at, trying again: {}", reason(&error)),
            done => return done,
        }
        thread::sleep(PAUSE);
    }
    look()
}

/// Reads a file through the mount, in a thread of its own: if the server is stuck, so is the reader.
fn probe(dir: PathBuf) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel();
    let shown = dir.display().to_string();
    let reader = thread::Builder::new().name("probe".to_owned()).spawn(move || sender.send(answer(&dir)));
    reader.map_err(|error| Failure::system("starting a thread", error))?;
    let what = match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => reason(&error),
        Err(RecvTimeoutError::Timeout) => format!("no answer within {} s", PATIENCE.as_secs()),
        Err(RecvTimeoutError::Disconnected) => "the reading thread died".to_owned(),
    };
    Err(Failure::new(Exit::Failure, format!("{shown}: mounted, but reading from it fails: {what}")))
}

fn answer(dir: &Path) -> io::Result<()> {
    statfs(dir)?;
    match fs::read(dir.join(PROBE)) {
        // The options may give the root group to somebody else; the server has answered.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Ends the mount on a signal.
struct Stopper {
    mount: Mount,
    hangup: Hangup,
}

impl Stopper {
    fn watch(self, signals: &SigSet) {
        let mut stopping = false;
        loop {
            let Ok(signal) = signals.wait() else { continue };
            if signal == Signal::SIGHUP && self.hangup == Hangup::Ignored {
                debug!("SIGHUP ignored");
                continue;
            }
            if stopping {
                warn!("{signal} again: ending without waiting for users of the mount");
                std::process::exit(Exit::Interrupted.code().into());
            }
            info!("{signal}: unmounting {}", self.mount.point.display());
            self.stop();
            stopping = true;
            // The program normally ends in this pause.
            thread::sleep(GRACE);
            warn!("still in use, by open files or in other mount namespaces; a second signal ends the server at once");
        }
    }

    /// Unmounts, wherever the mount has been moved to; the session then ends by itself, when the last user of the mount is gone.
    fn stop(&self) {
        let shown = self.mount.point.display();
        match persist(ATTEMPTS, || self.find()) {
            Ok(Found::At(path)) => self.unmount(&path),
            Ok(Found::Nowhere) => info!("{shown}: unmounted already"),
            Ok(Found::Covered(path)) => {
                error!("{}: covered by another mount; ending, ours stays there dead", path.display());
                std::process::exit(Exit::Failure.code().into());
            }
            Err(error) => {
                error!("{shown}: cannot be found, ending: {}", reason(&error));
                std::process::exit(Exit::Failure.code().into());
            }
        }
    }

    fn find(&self) -> io::Result<Found> {
        let Some(now) = mountinfo::list()?.into_iter().find(|mount| mount.is(&self.mount)) else { return Ok(Found::Nowhere) };
        let top = mountinfo::locate(&now.point)?.mount;
        let covered = top.is_none_or(|top| !top.is(&self.mount));
        Ok(if covered { Found::Covered(now.point) } else { Found::At(now.point) })
    }

    fn unmount(&self, path: &Path) {
        let shown = path.display();
        let outcome = match unmount(path, Urgency::Wait) {
            Err(UnmountError::Busy) => {
                warn!("{shown} is in use: detached; the server ends with its last user");
                unmount(path, Urgency::Lazy)
            }
            outcome => outcome,
        };
        if let Err(error) = outcome {
            error!("{shown}: cannot be unmounted, ending: {error}");
            std::process::exit(Exit::Failure.code().into());
        }
    }
}

/// Where the server's mount is.
enum Found {
    /// Not in this mount namespace any more.
    Nowhere,
    /// Here, uppermost.
    At(PathBuf),
    /// Here, below another one.
    Covered(PathBuf),
}
