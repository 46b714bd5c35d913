//! Command line: `cgfuse exec`, a command as a member of a group.
//!
//! The process joins the group itself, so that its own credentials decide, and becomes the command. Only where the group has another pid
//! namespace the command must be a child, since a process never changes its own; then this one stands for it: it passes on signals, stops
//! and goes on with it, and ends as it has ended.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FUSE_SUPER_MAGIC, fstatfs};
use nix::unistd::{Pid, execvp};

use super::exit::{self, Exit, Failure};
use super::mountinfo;
use super::umount::reason;
use crate::sys::handover;
use crate::sys::process::{Alone, Fork};

const PROCS: &str = "cgroup.procs";
const LAST_ERROR: &str = "ns.last_error";
const PROC: &str = "/proc";

const DETAILS: &str = "\
The command has this process's pid. Only where the group has another pid namespace it is a child, in that namespace; signals are passed
on to it, and cgfuse stops, goes on and ends as it does.

Examples:
  cgfuse exec /cg/web -- make -j2
  cgfuse exec -p /cg/box -- ps -ef           in a group with ns.pid and ns.mnt";

/// The arguments of `cgfuse exec`.
#[derive(Debug, Args)]
#[command(override_usage = "cgfuse exec [-p] GROUP -- COMMAND [ARG]...")]
#[command(after_help = DETAILS, after_long_help = format!("{DETAILS}\n\n{}", exit::help_of_exec()))]
pub struct ExecArgs {
    /// Mount /proc, unless it shows the command's pid namespace already; the group must have a mount namespace of its own
    #[arg(short = 'p', long)]
    mount_proc: bool,
    /// Directory of the group
    group: PathBuf,
    /// What to run, with its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// `cgfuse exec GROUP -- COMMAND`. Returns only what has gone wrong, be it here or in the child that was to become the command.
pub fn run(args: &ExecArgs) -> Result<Infallible, Failure> {
    // Before the move: afterwards /proc may be another one, or none.
    let namespaces = Namespaces::own().map_err(|error| Failure::system("/proc/self/ns", reason(&error)))?;
    let mut alone = Alone::new().map_err(|error| Failure::system("/proc/self/task", reason(&error)))?;
    let mnt_before = namespaces.id("mnt")?;
    join(&args.group)?;
    let moved = namespaces.id("mnt")? != mnt_before;
    if namespaces.id("pid_for_children")? != namespaces.id("pid")? {
        become_child(&mut alone)?;
    }
    if args.mount_proc {
        mount_proc(&args.group, moved)?;
    }
    Err(execute(&args.command, moved))
}

// ---------------------------------------------------------------------------------------
// The group

/// Makes this process a member.
fn join(group: &Path) -> Result<(), Failure> {
    let failure = |message: String| Failure::new(Exit::Exec, format!("{}: {message}", group.display()));
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(group);
    let dir = dir.map_err(|error| failure(unreachable_because(&error)))?;
    if let Some(other) = other_type(&dir).map_err(|error| failure(unreachable_because(&error)))? {
        return Err(failure(format!("not a group: it is on a file system of type {other}")));
    }
    let procs = openat(&dir, PROCS, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
    let mut procs = procs.map(File::from).map_err(|errno| failure(not_opened(errno)))?;
    // "0" is the writer, by whatever number it is known to the server.
    procs.write_all(b"0").map_err(|error| {
        let told = openat(&dir, LAST_ERROR, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map(told_by).unwrap_or_default();
        failure(format!("cannot join the group: {}{told}", not_joined(&error)))
    })
}

fn unreachable_because(error: &io::Error) -> String {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT => "no such group; make it with mkdir".to_owned(),
        Errno::ENOTDIR => "not a group but a file; name the directory".to_owned(),
        Errno::EACCES => "no permission to reach it".to_owned(),
        Errno::ENOTCONN | Errno::ECONNABORTED => "its server has ended; mount it again with 'cgfuse mount'".to_owned(),
        _ => reason(error),
    }
}

/// The type of the file system, unless it is one that has groups: elsewhere a file `cgroup.procs` would take the "0" and do nothing.
fn other_type(dir: &File) -> io::Result<Option<String>> {
    let magic = fstatfs(dir)?.filesystem_type();
    if magic == CGROUP_SUPER_MAGIC || magic == CGROUP2_SUPER_MAGIC {
        return Ok(None);
    }
    match mountinfo::mount_of(dir)? {
        Some(mount) => Ok((!mount.is_cgfuse()).then_some(mount.fstype)),
        // Of another mount namespace.
        None if magic == FUSE_SUPER_MAGIC => Ok(None),
        None => Ok(Some("unknown".to_owned())),
    }
}

fn not_opened(errno: Errno) -> String {
    let advice = match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ESTALE => return "the group has been removed".to_owned(),
        Errno::EACCES => "; its owner can allow it with chown or chmod",
        Errno::EROFS => "; it is mounted with the option 'ro'",
        _ => "",
    };
    format!("{PROCS}: {}{advice}", errno.desc())
}

fn not_joined(error: &io::Error) -> String {
    let advice = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENODEV => return "it has been removed".to_owned(),
        Errno::ENOSPC => "; cpuset.cpus and cpuset.mems must be written first",
        Errno::ENOTCONN | Errno::ECONNABORTED => "; its server has ended: mount it again with 'cgfuse mount'",
        _ => "",
    };
    format!("{}{advice}", reason(error))
}

/// What the group itself says about a move that has failed, as further lines.
fn told_by(file: OwnedFd) -> String {
    let mut text = Vec::new();
    // It only adds to the error.
    let _ = File::from(file).read_to_end(&mut text);
    String::from_utf8_lossy(&text).lines().map(|line| format!("\n  {line}")).collect()
}

// ---------------------------------------------------------------------------------------
// The namespaces

/// The links in /proc/self/ns, which stay in reach.
struct Namespaces(File);

impl Namespaces {
    fn own() -> io::Result<Namespaces> {
        File::open("/proc/self/ns").map(Namespaces)
    }

    /// What tells a namespace from others. `None` for a pid namespace that has no process yet.
    fn id(&self, name: &str) -> Result<Option<(u64, u64)>, Failure> {
        match fstatat(&self.0, name, AtFlags::empty()) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Failure::system(&format!("/proc/self/ns/{name}"), errno.desc())),
        }
    }
}

/// Makes /proc show this process's pid namespace. `moved`: this process has come into another mount namespace with the group.
fn mount_proc(group: &Path, moved: bool) -> Result<(), Failure> {
    if shows_own_pids() {
        return Ok(());
    }
    let failure = |message: String| Failure::new(Exit::Exec, message);
    if !moved {
        let advice = "it would be mounted for everybody in it; write 'new' to the group's ns.mnt, or leave out -p";
        return Err(failure(format!("{}: /proc is not mounted in the caller's own mount namespace: {advice}", group.display())));
    }
    let cannot = |errno: Errno| {
        let advice = match errno {
            Errno::EPERM => "; it needs CAP_SYS_ADMIN in the group's namespaces, and a /proc there that nothing is mounted on",
            Errno::ENOENT => "; the group's root directory has no /proc to mount on",
            Errno::EINVAL => "; the group's root directory must be a mount point: mount --bind DIR DIR",
            _ => "",
        };
        failure(format!("{}: cannot mount /proc: {}{advice}", group.display(), errno.desc()))
    };
    // What is mounted on a shared mount appears in other mount namespaces too. What it goes on is /proc if something is mounted there.
    let private = |on: &str| mount(None::<&str>, on, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>);
    match private(PROC) {
        Err(Errno::EINVAL) => private("/"),
        done => done,
    }
    .map_err(cannot)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), PROC, Some("proc"), flags, None::<&str>).map_err(cannot)
}

/// A process's numbers are listed from the pid namespace that /proc shows to its own: one, if they are the same.
fn shows_own_pids() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() == 1)
}

// ---------------------------------------------------------------------------------------
// The command

/// execvp(3). Returns why not.
fn execute(command: &[OsString], moved: bool) -> Failure {
    let words: Result<Vec<CString>, _> = command.iter().map(|word| CString::new(word.as_bytes())).collect();
    let (Ok(words), [name, ..]) = (words, command) else {
        return Failure::new(Exit::Exec, "the command cannot be passed on");
    };
    handover::undo_start_up();
    let Err(errno) = execvp(&words[0], &words);
    let shown = name.display();
    let place = if moved { " in the group's mount namespace" } else { "" };
    match errno {
        // What is there and yet not found is a program whose interpreter or loader is missing.
        Errno::ENOENT if name.as_bytes().contains(&b'/') && Path::new(name).exists() => {
            Failure::new(Exit::NotFound, format!("{shown}: its interpreter is not found{place}"))
        }
        Errno::ENOENT => Failure::new(Exit::NotFound, format!("{shown}: command not found{place}")),
        _ => Failure::new(Exit::NotExecutable, format!("{shown}: cannot be executed: {}", errno.desc())),
    }
}

/// Goes on in a child, with signals as they are here. This process stands for it and does not return.
fn become_child(alone: &mut Alone) -> Result<(), Failure> {
    let system = |what: &'static str| move |errno: Errno| Failure::system(what, errno.desc());
    let passed = passed_on();
    let signals = SignalFd::with_flags(&passed, SfdFlags::SFD_CLOEXEC).map_err(system("signalfd"))?;
    // Before the fork, so that none ends this process alone.
    let mask = passed.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(system("blocking signals"))?;
    let ignored = handover::is_ignored(libc::SIGCHLD);
    // Otherwise there would be nothing to wait for.
    handover::set_ignored(libc::SIGCHLD, false);
    let death = prctl::get_pdeathsig().map_err(system("PR_GET_PDEATHSIG"))?;
    match alone.fork() {
        Ok(Fork::Parent(child)) => stand_for(child, &signals),
        Ok(Fork::Child) => {
            handover::set_ignored(libc::SIGCHLD, ignored);
            // Whoever wants this process to die with him wants the command to.
            prctl::set_pdeathsig(death).map_err(system("PR_SET_PDEATHSIG"))?;
            mask.thread_set_mask().map_err(system("unblocking signals"))
        }
        Err(error) => {
            let _ = mask.thread_set_mask();
            let advice = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOMEM) => "; the init of the group's pid namespace may have ended: write 'new' to ns.pid",
                _ => "",
            };
            Err(Failure::system("fork", format!("{}{advice}", reason(&error))))
        }
    }
}

/// All signals that can be, but those that tell of a fault of the process itself or of its use of the terminal.
fn passed_on() -> SigSet {
    let own = [
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGABRT,
        Signal::SIGTRAP,
        Signal::SIGSYS,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    let mut passed = SigSet::all();
    own.into_iter().for_each(|signal| passed.remove(signal));
    passed
}

/// Does what happens to the child, and hands on what happens here.
fn stand_for(child: Pid, signals: &SignalFd) -> ! {
    loop {
        match signals.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == libc::SIGCHLD.cast_unsigned() => follow(child),
            Ok(Some(signal)) if is_from_terminal(&signal) => {}
            // It fails if the child has taken on another user's identity, as kill(1) does then.
            Ok(Some(signal)) => drop(handover::send(child, signal.ssi_signo.cast_signed())),
            // EINTR: stopped and continued.
            Ok(None) | Err(_) => {}
        }
    }
}

/// Stops with the child, or ends as it has ended.
fn follow(child: Pid) {
    loop {
        let status = match handover::news_of(child) {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(_) => std::process::exit(Exit::Exec.code().into()),
        };
        if let Some(code) = status.code() {
            std::process::exit(code);
        }
        if let Some(signal) = status.signal() {
            handover::die_of(signal);
        }
        // Whoever continues this process does so by SIGCONT, which is passed on.
        let _ = raise(Signal::SIGSTOP);
    }
}

/// The terminal sends its signals to a whole process group: the child has it already.
fn is_from_terminal(signal: &siginfo) -> bool {
    let terminal = [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGHUP, libc::SIGCONT, libc::SIGWINCH];
    signal.ssi_code == libc::SI_KERNEL && terminal.contains(&signal.ssi_signo.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_not_passed_on() {
        let passed = passed_on();
        let (yes, no) =
            ([Signal::SIGINT, Signal::SIGTERM, Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGCHLD], [Signal::SIGSEGV, Signal::SIGTTOU]);
        assert!(yes.into_iter().all(|signal| passed.contains(signal)) && !no.into_iter().any(|signal| passed.contains(signal)));
    }

    #[test]
    fn only_file_systems_with_groups_have_groups() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PROCS), "").unwrap();
        let failure = join(dir.path()).unwrap_err();
        assert!(failure.message.contains("not a group: it is on a file system of type "), "{failure}");
        assert_eq!(fs::read(dir.path().join(PROCS)).unwrap(), b"");
    }

    #[test]
    fn own_namespaces_are_told_apart() {
        let own = Namespaces::own().unwrap();
        assert_eq!(own.id("pid").unwrap(), own.id("pid_for_children").unwrap());
        assert_ne!(own.id("pid").unwrap(), own.id("mnt").unwrap());
        assert_eq!(own.id("nothing").unwrap(), None);
    }
}
