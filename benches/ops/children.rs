//! What the benchmark runs against: mounted servers, a kernel group, processes full of threads.
//! Each one is undone on drop, and the processes die with the benchmark.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::nullfs::{self, Serving};
use crate::raw;

/// First argument of a re-executed benchmark that serves the null file system.
pub(crate) const SERVE_NULL: &str = "--serve-null";
/// First argument of a re-executed benchmark that is a process full of parked threads.
pub(crate) const PARK: &str = "--park";

/// The least stack pthread accepts; ten thousand threads cost 160 MB of address space.
const SMALL_STACK: usize = 16 * 1024;

/// Takes a mount namespace of our own where we may, so that no mount outlives us.
pub(crate) fn hide_mounts() {
    if unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
    }
}

/// Runs the role a child was started for, if this process is one.
pub(crate) fn play_role(args: &[String]) -> Option<io::Result<()>> {
    match args.first().map(String::as_str) {
        Some(SERVE_NULL) => Some(match args {
            [_, dir, threads, clone_fd, atomic, xattr] => nullfs::serve(
                Path::new(dir),
                Serving {
                    threads: threads.parse().unwrap_or(1),
                    clone_fd: clone_fd == "true",
                    atomic_o_trunc: atomic == "true",
                    xattr: xattr == "true",
                },
            ),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }),
        Some(PARK) => Some(park_threads(args.get(1).and_then(|n| n.parse().ok()).unwrap_or(1))),
        _ => None,
    }
}

fn park_threads(count: usize) -> io::Result<()> {
    for _ in 1..count {
        thread::Builder::new().stack_size(SMALL_STACK).spawn(|| {
            loop {
                thread::park();
            }
        })?;
    }
    println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// A child process, killed and reaped on drop.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    /// Starts one that dies with us; the calling thread must live as long as we do.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        raw::die_with_parent(command).spawn().map(Killed)
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

/// Another copy of this program.
pub(crate) fn myself() -> io::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

/// The threads of a process.
pub(crate) fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    raw::numbers(&File::open(format!("/proc/{pid}/task"))?, &mut Vec::new(), |tid| tids.push(tid))?;
    Ok(tids)
}

/// The servers that run.
static SERVERS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends all servers, so that whoever waits for one of them that is stuck gets an error.
pub(crate) fn end_servers() {
    for server in SERVERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // It is a child that has not been reaped, so the pid is still its own.
        let _ = kill(*server, Signal::SIGKILL);
    }
}

/// A FUSE file system served by a child process.
pub(crate) struct Served {
    server: Killed,
    dir: TempDir,
}

impl Served {
    /// The null file system, served by another copy of this program.
    pub(crate) fn null(serving: Serving) -> io::Result<Self> {
        Self::start("null", |dir| {
            let mut command = myself()?;
            command.arg(SERVE_NULL).arg(dir);
            command.args([
                serving.threads.to_string(),
                serving.clone_fd.to_string(),
                serving.atomic_o_trunc.to_string(),
                serving.xattr.to_string(),
            ]);
            Ok(command)
        })
    }

    /// The real server, with mount options.
    pub(crate) fn ours(options: &str) -> io::Result<Self> {
        Self::start("cgfuse", |dir| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cgfuse"));
            command.arg("mount").arg(dir).args(["-o", options, "-f"]).env("RUST_LOG", "warn");
            Ok(command)
        })
    }

    /// A server of a kind, which `command` starts for the directory it is given.
    pub(crate) fn start(name: &str, command: impl FnOnce(&Path) -> io::Result<Command>) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("bench-{name}-")).tempdir()?;
        let server = Killed::start(command(dir.path())?.stdin(Stdio::null()))?;
        SERVERS.lock().unwrap_or_else(PoisonError::into_inner).push(Pid::from_raw(server.pid()));
        let mut served = Self { server, dir };
        let end = Instant::now() + Duration::from_secs(10);
        while !served.dir().join("tasks").exists() {
            if let Some(status) = served.server.0.try_wait()? {
                return Err(io::Error::other(format!("{name}: the server ended: {status}")));
            }
            if Instant::now() > end {
                return Err(io::Error::other(format!("{name}: the mount does not answer")));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(served)
    }

    /// The mount point.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The server's pid.
    pub(crate) fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Confines all threads of the server to the CPUs of `mask`.
    pub(crate) fn confine(&self, mask: u64) -> io::Result<()> {
        for tid in threads(self.pid())? {
            raw::set_mask(tid, mask)?;
        }
        Ok(())
    }

    /// Resident bytes of the server.
    pub(crate) fn resident(&self) -> io::Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let kib = rollup
            .lines()
            .find_map(|l| l.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .ok_or_else(|| io::Error::other("no Rss in smaps_rollup"))?;
        Ok(kib * 1024)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
        SERVERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| pid.as_raw() != self.pid());
    }
}

/// A directory of the kernel's own cpuset hierarchy with its sub groups, removed on drop.
pub(crate) struct KernelGroup(PathBuf);

const KERNEL_ROOT: &str = "/sys/fs/cgroup/cpuset";
/// Our groups there are called so, with our pid behind it.
const KERNEL_PREFIX: &str = "cgfuse-bench-";

impl KernelGroup {
    /// A fresh group with the root's CPUs and nodes, or why there is none.
    pub(crate) fn new() -> Result<Self, String> {
        // Nothing to remove where there is no such hierarchy.
        let _ = remove_stale_groups();
        let dir = Path::new(KERNEL_ROOT).join(format!("{KERNEL_PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).map_err(|e| format!("no cpuset v1 hierarchy to compare with: {e}"))?;
        let group = Self(dir);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::read(Path::new(KERNEL_ROOT).join(file))
                .and_then(|text| fs::write(group.0.join(file), text))
                .map_err(|e| format!("{file}: {e}"))?;
        }
        Ok(group)
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for KernelGroup {
    fn drop(&mut self) {
        if let Err(e) = remove_group(&self.0) {
            eprintln!("{} is left behind: {e}", self.0.display());
        }
    }
}

/// Removes a kernel group and those below it; their processes go to the root.
fn remove_group(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs"))?.lines() {
        // A process that exits meanwhile is gone from the group as well.
        let _ = fs::write(Path::new(KERNEL_ROOT).join("cgroup.procs"), pid);
    }
    fs::remove_dir(dir)
}

/// Removes what a benchmark that was killed has left behind.
fn remove_stale_groups() -> io::Result<()> {
    for entry in fs::read_dir(KERNEL_ROOT)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(KERNEL_PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove_group(&entry.path())?;
        }
    }
    Ok(())
}

/// A process with many parked threads.
pub(crate) struct Target {
    process: Killed,
    /// Its threads, the leader among them.
    pub(crate) tids: Vec<i32>,
}

impl Target {
    /// Starts one with `count` threads.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let mut command = myself()?;
        command.arg(PARK).arg(count.to_string());
        let mut process = Killed::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let mut line = String::new();
        if let Some(out) = process.0.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        if line != "ready\n" {
            return Err(io::Error::other(format!("{count} threads cannot be had here")));
        }
        let tids = threads(process.pid())?;
        Ok(Self { process, tids })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }
}
