//! System layer: the machine is this Linux system, by /proc, /sys and system calls.

mod agent;

use self::agent::Agents;
use super::{Caller, Creds, Errno, Machine, PidNs, TaskFlags, TaskInfo, Tid};
use crate::bitmap::Bitmap;
use crate::nsproxy::Nsproxy;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::time::{ClockId, clock_gettime};
use smallvec::{SmallVec, smallvec};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";
/// Files whose last word is the pid allocated last, the cheaper one first; it needs CONFIG_CHECKPOINT_RESTORE.
const LAST_PID: [&str; 2] = ["/proc/sys/kernel/ns_last_pid", "/proc/loadavg"];
/// Clock ticks a second, as /proc counts them.
const USER_HZ: u64 = 100;
/// Large enough for any list of CPUs or nodes in one line.
const MAX_IDS: usize = 1 << 16;

/// This machine. Sizes that cannot change are read once.
#[derive(Debug)]
pub struct Linux {
    nr_cpu_ids: usize,
    config_nr_cpus: usize,
    nr_node_ids: usize,
    /// The server's own CPUs and nodes at its start, those that are offline included.
    own_cpus: Bitmap,
    own_mems: Bitmap,
    /// The file that tells the last pid, held open since it is read for every operation on membership. `None` where neither is
    /// the kernel's own.
    last_pid: Option<File>,
    /// A file that nobody else has, for asking whether a pid is taken.
    owned: File,
    root_is_global: bool,
    relax_domain_level_max: i64,
    /// The inode of the server's user namespace.
    user_ns: Option<u64>,
    nsproxy: Nsproxy,
    agents: Agents,
}

impl Linux {
    /// Looks at the machine.
    ///
    /// # Errors
    /// What reading /proc/self/status says: without /proc there is nothing to manage.
    pub fn new() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let own_cpus = mask(field(&status, "Cpus_allowed:"));
        let mems = field(&status, "Mems_allowed:");
        let is_proc = |file: &File| fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC);
        let last_pid = LAST_PID.iter().find_map(|path| File::open(path).ok().filter(is_proc));
        Ok(Self {
            nr_cpu_ids: list_file(&format!("{CPU}/possible")).and_then(|set| set.iter().last()).map_or(1, |last| last + 1),
            config_nr_cpus: read(&format!("{CPU}/kernel_max"))
                .and_then(|text| text.trim().parse::<usize>().ok())
                .map_or(8192, |max| max + 1),
            nr_node_ids: mems.split(',').map(|group| group.trim().len() * 4).sum::<usize>().max(1),
            own_cpus,
            own_mems: mask(mems),
            last_pid,
            owned: File::open("/dev/null")?,
            root_is_global: read("/proc/self/uid_map").is_none_or(|map| map.split_whitespace().eq(["0", "0", "4294967295"])),
            relax_domain_level_max: relax_domain_level_max(),
            user_ns: user_ns("self"),
            nsproxy: Nsproxy::new("/proc/self/exe"),
            agents: Agents::new()?,
        })
    }
}

/// The scheduler's topology levels, innermost first, as the sets of one CPU's siblings in each.
fn topology(cpu: usize) -> Vec<Bitmap> {
    // Without SMT the kernel leaves its level out.
    let smt = read(&format!("{CPU}/smt/active")).is_some_and(|text| text.trim() == "1").then_some("topology/thread_siblings_list");
    let levels = ["topology/cluster_cpus_list", "cache/index3/shared_cpu_list", "topology/package_cpus_list"];
    smt.into_iter().chain(levels).filter_map(|file| list_file(&format!("{CPU}/cpu{cpu}/{file}"))).collect()
}

/// `sched_domain_level_max`: the innermost level at which all CPUs are siblings. It never shrinks.
fn relax_domain_level_max() -> i64 {
    let online = list_file(&format!("{CPU}/online")).unwrap_or_default();
    let level = |cpu| topology(cpu).iter().take_while(|siblings| !online.is_subset(siblings)).count();
    online.iter().map(level).max().map_or(0, |level| level as i64)
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The inode of a process's user namespace.
fn user_ns(pid: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/user")).ok().map(|meta| meta.ino())
}

fn list_file(path: &str) -> Option<Bitmap> {
    Bitmap::parse_list(read(path)?.as_bytes(), MAX_IDS).ok()
}

/// The rest of the line of /proc/PID/status that starts with `name`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim()
}

/// A mask as the kernel's `%*pb` prints it: groups of 32 bits in hexadecimal, the highest first.
fn mask(text: &str) -> Bitmap {
    let groups = text.split(',').rev().map(|group| u64::from_str_radix(group.trim(), 16).unwrap_or(0));
    let mut words = Vec::new();
    for (i, group) in groups.enumerate() {
        if i % 2 == 0 {
            words.push(group);
        } else {
            words[i / 2] |= group << 32;
        }
    }
    Bitmap::from_words(&words)
}

/// What became of a look at a task in /proc: no such file means no such task, and any other error says nothing about the task.
fn errno(error: io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOENT) | None => Errno::ESRCH,
        Some(errno) => Errno::from_raw(errno),
    }
}

/// The fields of a thread's `stat` behind its name, which may hold any bytes: the first one is field 3, the state.
///
/// Under task/ the file is about the one thread; /proc/TID/stat would sum over all threads of the process.
fn stat(tid: Tid, buf: &mut [u8; 1024]) -> Result<&str, Errno> {
    let file = File::open(format!("/proc/{tid}/task/{tid}/stat")).map_err(errno)?;
    let len = file.read_at(buf, 0).map_err(errno)?;
    let text = &buf[..len];
    let start = text.iter().rposition(|&c| c == b')').map_or(0, |i| i + 1);
    std::str::from_utf8(&text[start..]).map_err(|_| Errno::ESRCH)
}

/// The text of /proc/TID/status without its first line, which holds the task's name.
fn status(tid: Tid, buf: &mut Vec<u8>) -> Result<&str, Errno> {
    // One call, where it suffices: who is in more than a thousand groups has a longer one.
    let path = format!("/proc/{tid}/status");
    buf.resize(8192, 0);
    let len = File::open(&path).and_then(|file| file.read_at(buf, 0)).map_err(errno)?;
    if len < buf.len() {
        buf.truncate(len);
    } else {
        *buf = std::fs::read(&path).map_err(errno)?;
    }
    let text = &buf[..];
    let start = text.iter().position(|&c| c == b'\n').unwrap_or(0);
    std::str::from_utf8(&text[start..]).map_err(|_| Errno::ESRCH)
}

fn numbers<'a, T: std::str::FromStr + 'a>(line: &'a str) -> impl Iterator<Item = T> + 'a {
    line.split_whitespace().filter_map(|word| word.parse().ok())
}

fn creds(status: &str) -> Option<Creds> {
    let mut uids = numbers(field(status, "Uid:"));
    let caps = |name| u64::from_str_radix(field(status, name), 16).ok();
    Some(Creds { uid: uids.next()?, suid: uids.nth(1)?, cap_permitted: caps("CapPrm:")?, cap_effective: caps("CapEff:")? })
}

/// The numeric names in a directory of /proc.
fn tids_in(dir: &str) -> io::Result<Vec<Tid>> {
    Ok(std::fs::read_dir(dir)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

mod ioctls {
    //! <linux/nsfs.h>
    use nix::{ioctl_none, ioctl_read_bad, ioctl_write_int_bad, request_code_none, request_code_read};
    ioctl_none!(get_parent, 0xb7, 0x2);
    ioctl_read_bad!(get_owner_uid, request_code_none!(0xb7, 0x4), libc::uid_t);
    ioctl_write_int_bad!(pid_from, request_code_read!(0xb7, 0x6, size_of::<i32>()));
    ioctl_write_int_bad!(pid_in, request_code_read!(0xb7, 0x8, size_of::<i32>()));
}

/// A task's name in the namespace `ns`, found without NS_GET_PID_IN_PIDNS (before Linux 6.11): NSpid lists the
/// task's pids from the server's namespace inwards, and as many steps outwards from the task's own one is `ns`.
fn scan_tid_in(ns: &PidNs, tid: Tid) -> Result<Tid, Errno> {
    let ino = |fd: &File| fd.metadata().map(|m| m.ino()).map_err(errno);
    let wanted = ino(&File::from(ns.0.try_clone().map_err(errno)?))?;
    let mut buf = Vec::new();
    let pids: Vec<Tid> = numbers(field(status(tid, &mut buf)?, "NSpid:")).collect();
    let mut current = File::open(format!("/proc/{tid}/ns/pid")).map_err(errno)?;
    for pid in pids.iter().skip(1).rev() {
        if ino(&current)? == wanted {
            return Ok(*pid);
        }
        // SAFETY: the descriptor is open for the whole call; the request takes no argument and gives a new descriptor.
        let parent = unsafe { ioctls::get_parent(current.as_raw_fd()) }?;
        // SAFETY: the descriptor is new and nobody else has it.
        current = File::from(unsafe { OwnedFd::from_raw_fd(parent) });
    }
    Err(Errno::ESRCH)
}

impl Machine for Linux {
    fn nr_cpu_ids(&self) -> usize {
        self.nr_cpu_ids
    }

    fn config_nr_cpus(&self) -> usize {
        self.config_nr_cpus
    }

    fn nr_node_ids(&self) -> usize {
        self.nr_node_ids
    }

    fn online_cpus(&self) -> Bitmap {
        list_file(&format!("{CPU}/online")).unwrap_or_else(|| Bitmap::first(self.nr_cpu_ids))
    }

    fn own_cpus(&self) -> Bitmap {
        self.own_cpus.clone()
    }

    fn allowed_mems(&self) -> Bitmap {
        // A kernel without NUMA has node 0 and no such file.
        list_file(&format!("{NODE}/has_memory")).map_or_else(|| Bitmap::first(1), |nodes| self.own_mems.and(&nodes))
    }

    fn relax_domain_level_max(&self) -> i64 {
        self.relax_domain_level_max
    }

    fn task(&self, tid: Tid) -> Result<TaskInfo, Errno> {
        let mut buf = [0; 1024];
        let mut fields = stat(tid, &mut buf)?.split_ascii_whitespace();
        let mut next = |skip| fields.nth(skip).ok_or(Errno::ESRCH);
        let zombie = matches!(next(0)?, "Z" | "X" | "x");
        let ppid = next(0)?.parse().map_err(|_| Errno::ESRCH)?;
        let flags = TaskFlags::from_bits_truncate(next(4)?.parse().map_err(|_| Errno::ESRCH)?);
        let start_time = next(12)?.parse().map_err(|_| Errno::ESRCH)?;
        let tgid = if self.is_thread_of(tid, tid) {
            tid
        } else {
            let mut buf = Vec::new();
            field(status(tid, &mut buf)?, "Tgid:").parse().map_err(|_| Errno::ESRCH)?
        };
        Ok(TaskInfo { tgid, ppid, zombie, flags, start_time })
    }

    fn creds(&self, tid: Tid) -> Result<Creds, Errno> {
        let mut buf = Vec::new();
        creds(status(tid, &mut buf)?).ok_or(Errno::ESRCH)
    }

    fn is_thread_of(&self, tgid: Tid, tid: Tid) -> bool {
        // SAFETY: signal 0 is never delivered; the call only looks the thread up.
        let found = unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, 0) };
        found == 0 || Errno::last() == Errno::EPERM
    }

    fn threads(&self, tgid: Tid) -> Result<Vec<Tid>, Errno> {
        tids_in(&format!("/proc/{tgid}/task")).map_err(errno)
    }

    fn thread_count(&self, tgid: Tid) -> Result<usize, Errno> {
        // nlink counts `.`, `..` and the threads (proc_task_getattr).
        let meta = std::fs::metadata(format!("/proc/{tgid}/task")).map_err(errno)?;
        Ok((meta.nlink() as usize).saturating_sub(2))
    }

    fn children(&self, tid: Tid) -> Result<Vec<Tid>, Errno> {
        let text = std::fs::read_to_string(format!("/proc/{tid}/task/{tid}/children")).map_err(errno)?;
        Ok(numbers(&text).collect())
    }

    fn processes(&self) -> Vec<Tid> {
        tids_in("/proc").unwrap_or_default()
    }

    fn last_pid(&self) -> Option<Tid> {
        let mut buf = [0; 128];
        let len = self.last_pid.as_ref()?.read_at(&mut buf, 0).ok()?;
        // "3827" or "0.08 0.02 0.01 2/87 3827"
        std::str::from_utf8(&buf[..len]).ok()?.trim_end().rsplit(' ').next()?.parse().ok()
    }

    fn is_taken(&self, pid: Tid) -> bool {
        // F_SETOWN looks the pid up, not the task, and without O_ASYNC has no other effect.
        // SAFETY: the descriptor is open, and the request takes a number.
        unsafe { libc::fcntl(self.owned.as_raw_fd(), libc::F_SETOWN, pid) == 0 }
    }

    fn pid_max(&self) -> Tid {
        read("/proc/sys/kernel/pid_max").and_then(|text| text.trim().parse().ok()).unwrap_or(1 << 22)
    }

    fn affinity(&self, tid: Tid) -> Result<Bitmap, Errno> {
        let mut words: SmallVec<[u64; 16]> = smallvec![0; self.nr_cpu_ids.div_ceil(64)];
        // SAFETY: the kernel writes at most the given number of bytes, which the buffer has.
        let n = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&*words), words.as_mut_ptr()) };
        let bytes = Errno::result(n)? as usize;
        Ok(Bitmap::from_words(&words[..bytes / 8]))
    }

    fn set_affinity(&self, tid: Tid, cpus: &Bitmap) -> Result<(), Errno> {
        let words = if cpus.is_empty() { &[0] } else { cpus.words() };
        // SAFETY: the kernel reads the given number of bytes, which the slice has.
        let res = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(words), words.as_ptr()) };
        Errno::result(res).map(drop)
    }

    fn migrate_pages(&self, tgid: Tid, from: &Bitmap, to: &Bitmap) -> Result<(), Errno> {
        let words = from.words().len().max(to.words().len()).max(1);
        let padded = |set: &Bitmap| -> Vec<u64> { (0..words).map(|i| set.words().get(i).copied().unwrap_or(0)).collect() };
        let (from, to) = (padded(from), padded(to));
        // SAFETY: both masks have `words` words, and the kernel reads one bit less than it is told.
        let res = unsafe { libc::syscall(libc::SYS_migrate_pages, tgid, words * 64 + 1, from.as_ptr(), to.as_ptr()) };
        Errno::result(res).map(drop)
    }

    fn parallelism(&self) -> usize {
        self.affinity(0).map_or(1, |cpus| cpus.len().max(1))
    }

    fn caller(&self, tid: Tid) -> Result<Caller, Errno> {
        let mut buf = Vec::new();
        let status = status(tid, &mut buf)?;
        let mut creds = creds(status).ok_or(Errno::ESRCH)?;
        // Whoever makes a user namespace has all capabilities there, and none here.
        if creds.cap_effective != 0 && user_ns(&tid.to_string()) != self.user_ns {
            creds.cap_effective = 0;
        }
        let pid_ns = if numbers::<Tid>(field(status, "NSpid:")).nth(1).is_some() {
            let ns = File::open(format!("/proc/{tid}/ns/pid")).map_err(errno)?;
            Some(PidNs(std::sync::Arc::new(ns.into())))
        } else {
            None
        };
        Ok(Caller { creds, pid_ns })
    }

    fn tid_from(&self, ns: &PidNs, nr: Tid) -> Result<Tid, Errno> {
        // SAFETY: the descriptor is open for the whole call; the request takes a number.
        match unsafe { ioctls::pid_from(ns.0.as_raw_fd(), nr) } {
            Err(Errno::ENOTTY) => {
                let threads = self.processes().into_iter().flat_map(|tgid| self.threads(tgid).unwrap_or_default());
                threads.into_iter().find(|&tid| scan_tid_in(ns, tid) == Ok(nr)).ok_or(Errno::ESRCH)
            }
            other => other,
        }
    }

    fn tid_in(&self, ns: &PidNs, tid: Tid) -> Result<Tid, Errno> {
        // SAFETY: the descriptor is open for the whole call; the request takes a number.
        match unsafe { ioctls::pid_in(ns.0.as_raw_fd(), tid) } {
            Err(Errno::ENOTTY) => scan_tid_in(ns, tid),
            other => other,
        }
    }

    fn owns_user_ns(&self, uid: u32, tid: Tid) -> bool {
        let Ok(ns) = File::open(format!("/proc/{tid}/ns/user")) else { return false };
        let mut owner = libc::uid_t::MAX;
        // SAFETY: the descriptor is open for the whole call; the request writes one uid.
        if unsafe { ioctls::get_owner_uid(ns.as_raw_fd(), &mut owner) }.is_err() || owner != uid {
            return false;
        }
        // SAFETY: the descriptor is open for the whole call; the request takes no argument and gives a new descriptor.
        let Ok(parent) = (unsafe { ioctls::get_parent(ns.as_raw_fd()) }) else { return false };
        // SAFETY: the descriptor is new and nobody else has it.
        let parent = File::from(unsafe { OwnedFd::from_raw_fd(parent) });
        parent.metadata().is_ok_and(|meta| Some(meta.ino()) == self.user_ns)
    }

    fn root_is_global(&self) -> bool {
        self.root_is_global
    }

    fn nsproxy(&self) -> Option<&Nsproxy> {
        Some(&self.nsproxy)
    }

    fn run_release_agent(&self, agent: &OsStr, path: &OsStr) {
        self.agents.run(agent, path);
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn uptime(&self) -> Option<u64> {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
        Some(time.tv_sec().cast_unsigned() * USER_HZ + time.tv_nsec().cast_unsigned() * USER_HZ / 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_status() {
        assert_eq!(mask("3"), Bitmap::first(2));
        assert_eq!(mask("00000001,00000000,80000000").to_string(), "31,64");
        assert_eq!(field("Name:\tx\nTgid:\t7\n", "Tgid:"), "7");
    }

    #[test]
    fn only_a_missing_file_is_a_missing_task() {
        let told = |code| errno(io::Error::from_raw_os_error(code));
        assert_eq!([libc::ENOENT, libc::ESRCH].map(told), [Errno::ESRCH; 2]);
        assert_eq!([libc::EMFILE, libc::ENOMEM, libc::EACCES].map(told), [Errno::EMFILE, Errno::ENOMEM, Errno::EACCES]);
    }

    #[test]
    fn this_process_is_a_task() {
        let machine = Linux::new().expect("/proc");
        let me = std::process::id() as Tid;
        let info = machine.task(me).expect("own process");
        assert_eq!((info.tgid, info.zombie), (me, false));
        let tid = nix::unistd::gettid().as_raw();
        assert_eq!(machine.task(tid).expect("own thread").tgid, me);
        assert!(machine.is_thread_of(me, tid) && !machine.is_thread_of(tid, me));
        assert!(machine.threads(me).expect("threads").contains(&tid));
        assert_eq!(machine.caller(tid).expect("caller").creds.uid, nix::unistd::getuid().as_raw());
        assert_eq!(machine.task(i32::MAX), Err(Errno::ESRCH));
    }

    #[test]
    fn masks_of_any_size() {
        let machine = Linux { nr_cpu_ids: 8192, ..Linux::new().expect("/proc") };
        let tid = nix::unistd::gettid().as_raw();
        let before = machine.affinity(tid).expect("get");
        let wide: Bitmap = before.iter().chain([8191]).collect();
        machine.set_affinity(tid, &wide).expect("ids that do not exist are ignored");
        assert_eq!(machine.affinity(tid), Ok(before));
        assert_eq!(machine.set_affinity(tid, &Bitmap::new()), Err(Errno::EINVAL));
    }
}
