//! Command line: what `cgfuse mount` and mount.cgfuse share. Checks what can be checked, with advice, before the server tries.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use log::info;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{fstatfs, statfs};
use nix::unistd::{AccessFlags, access, getuid};

use super::daemon::{self, Side};
use super::exit::{Exit, Failure};
use super::umount::{NO_FUSERMOUNT, detach, fusermount, reason};
use super::{logging, mountinfo, serve};
use crate::options::{self, MountOptions, Parsed};
use crate::sys::handover;

const DEVICE: &str = "/dev/fuse";
const FUSE_CONF: &str = "/etc/fuse.conf";
const CAP_SYS_ADMIN: u32 = 21;
/// More dead mounts than this on one directory are somebody's programming error.
const MAX_DEAD: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The source to show in /proc/mounts.
    pub spec: Option<String>,
    /// The directory to mount on.
    pub dir: PathBuf,
    /// The lists of options, as given.
    pub options: Vec<String>,
    /// Whether unknown options are passed over.
    pub sloppy: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// How many `-v`.
    pub verbosity: u8,
    /// A mount namespace to enter first: its path, or the pid of a process in it.
    pub namespace: Option<PathBuf>,
    /// Check, but mount nothing.
    pub fake: bool,
}

/// Mounts, and returns when the mount answers; in the foreground, when it is gone again.
pub fn run(request: &Request) -> Result<(), Failure> {
    // Where the caller ignores it, there is no child to wait for.
    handover::set_ignored(libc::SIGCHLD, false);
    if request.fake {
        let parsed = request.parse()?;
        request.enter_namespace()?;
        let place = check_dir(&request.dir)?;
        return check_means(&place, &parsed.mount);
    }
    if request.foreground {
        let parsed = request.parse()?;
        logging::to_stderr(request.verbosity);
        let dir = request.prepare(&parsed)?;
        return serve::in_foreground(&dir, &parsed.mount);
    }
    match daemon::split()? {
        Side::Starter(waiter) => waiter.wait(),
        Side::Server(reporter) => {
            let prepared = request.parse().and_then(|parsed| {
                logging::in_background(parsed.log_file.as_deref(), request.verbosity)?;
                Ok((request.prepare(&parsed)?, parsed.mount))
            });
            let exit = match prepared {
                Ok((dir, options)) => serve::in_background(&dir, &options, reporter),
                Err(failure) => {
                    reporter.failed(&failure);
                    failure.exit
                }
            };
            std::process::exit(exit.code().into())
        }
    }
}

impl Request {
    fn parse(&self) -> Result<Parsed, Failure> {
        Ok(options::parse(self.spec.as_deref(), &self.options, self.sloppy)?)
    }

    /// Everything before the mount itself. Returns the directory without symbolic links.
    fn prepare(&self, parsed: &Parsed) -> Result<PathBuf, Failure> {
        self.enter_namespace()?;
        heal(&self.dir)?;
        let dir = check_dir(&self.dir)?;
        check_means(&dir, &parsed.mount)?;
        Ok(dir)
    }

    fn enter_namespace(&self) -> Result<(), Failure> {
        let Some(namespace) = &self.namespace else { return Ok(()) };
        let pid = namespace.to_str().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let path = pid.map_or_else(|| namespace.clone(), |pid| PathBuf::from(format!("/proc/{pid}/ns/mnt")));
        let shown = path.display();
        if self.dir.is_relative() {
            return Err(Failure::new(Exit::Usage, "with a namespace, the directory's path must be absolute"));
        }
        let file = File::open(&path).map_err(|error| Failure::new(Exit::Failure, format!("{shown}: {}", reason(&error))))?;
        setns(file, CloneFlags::CLONE_NEWNS).map_err(|errno| {
            let exit = if errno == Errno::EPERM { Exit::Usage } else { Exit::Failure };
            Failure::new(exit, format!("{shown}: cannot enter this mount namespace: {}", errno.desc()))
        })
    }
}

/// Whether a server that should answer is no longer there. Asked by statfs(2): stat(2) may be answered from the kernel's cache.
fn is_dead(dir: &File) -> bool {
    matches!(fstatfs(dir), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Takes away what servers that died without unmounting left on the directory. Others may do so at the same time, and mount.
fn heal(dir: &Path) -> Result<(), Failure> {
    for _ in 0..MAX_DEAD {
        let Ok(root) = mountinfo::open(dir) else { return Ok(()) };
        if !is_dead(&root) {
            return Ok(());
        }
        let mount = match mountinfo::place_of(&root).map_err(|error| on_dir(dir, &error))?.mount {
            Some(mount) if mount.is_cgfuse() => mount,
            Some(_) => return Ok(()),
            None => continue,
        };
        info!("{}: removing the dead mount of a server that was killed", mount.point.display());
        detach(&root, &mount).map_err(|error| {
            Failure::new(Exit::Failure, format!("{}: a dead mount is there that cannot be removed: {error}", dir.display()))
        })?;
    }
    Ok(())
}

/// The directory without symbolic links, if something can be mounted on it.
fn check_dir(dir: &Path) -> Result<PathBuf, Failure> {
    let metadata = statfs(dir).map_err(io::Error::from).and_then(|_| fs::metadata(dir));
    if !metadata.map_err(|error| on_dir(dir, &error))?.is_dir() {
        return Err(on_dir(dir, &Errno::ENOTDIR.into()));
    }
    Ok(mountinfo::locate(dir).map_err(|error| on_dir(dir, &error))?.path)
}

fn on_dir(dir: &Path, error: &io::Error) -> Failure {
    let what = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT => "mount point does not exist",
        Errno::ENOTDIR => "mount point is not a directory",
        Errno::EACCES => "no permission to reach the mount point",
        Errno::ENOTCONN | Errno::ECONNABORTED => "a dead FUSE mount is there; remove it with 'umount -l'",
        _ => &reason(error),
    };
    Failure::new(Exit::Failure, format!("{}: {what}", dir.display()))
}

/// Whether this process has what mounting takes: the device, the privilege or its substitute.
fn check_means(dir: &Path, options: &MountOptions) -> Result<(), Failure> {
    check_device()?;
    if privileged() {
        return Ok(());
    }
    if fusermount().is_none() {
        return Err(Failure::new(Exit::Failure, NO_FUSERMOUNT));
    }
    if options.allow_other == Some(true) && !getuid().is_root() && !users_may_allow_other() {
        let advice = format!("ask root for the line 'user_allow_other' in {FUSE_CONF}, or leave the option out");
        return Err(Failure::new(Exit::Usage, format!("mount option 'allow_other' is not permitted to users: {advice}")));
    }
    if access(dir, AccessFlags::W_OK).is_err() {
        let advice = "fusermount3 mounts only where the user may write";
        return Err(Failure::new(Exit::Usage, format!("{}: no write permission: {advice}", dir.display())));
    }
    Ok(())
}

fn check_device() -> Result<(), Failure> {
    let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE) else { return Ok(()) };
    let (exit, advice) = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
            (Exit::Failure, "; load the module with 'modprobe fuse' (in a container: pass the device in)")
        }
        Errno::EACCES => (Exit::Usage, "; ask root for 'chmod 0666 /dev/fuse'"),
        Errno::EPERM => (Exit::Usage, "; the container must be allowed this device"),
        _ => (Exit::System, ""),
    };
    Err(Failure::new(exit, format!("{DEVICE}: {}{advice}", reason(&error))))
}

/// Whether the effective capabilities allow mount(2), in whatever user namespace.
fn privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    bits >> CAP_SYS_ADMIN & 1 == 1
}

fn users_may_allow_other() -> bool {
    let conf = fs::read_to_string(FUSE_CONF).unwrap_or_default();
    conf.lines().any(|line| line.trim() == "user_allow_other")
}
