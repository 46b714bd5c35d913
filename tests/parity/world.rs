//! Runs scripts: the group they run in, the processes and descriptors they have made.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{self, Mode, SFlag};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{self, Pid, Whence};

use super::common::{self, Target, TempDir, raw};
use super::step::{Act, Bytes, C, OnFd, OnTask, Outcome, P, Step, T, Task};

/// Why a step gave nothing.
enum No {
    Errno(i32),
    LeftOut(&'static str),
}

impl From<io::Error> for No {
    fn from(e: io::Error) -> No {
        No::Errno(common::errno(&e))
    }
}

impl From<Errno> for No {
    fn from(e: Errno) -> No {
        No::Errno(e as i32)
    }
}

impl From<i32> for No {
    fn from(e: i32) -> No {
        No::Errno(e)
    }
}

type Told = Result<String, No>;

/// Success with nothing to tell.
fn ok() -> Told {
    Ok(String::new())
}

/// Runs `script` in the group `base`.
pub fn run(base: &Path, script: &[Step]) -> Vec<Outcome> {
    let mut world = World::new(base);
    script.iter().map(|step| world.step(step)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Zombie,
    Gone,
}

struct Process {
    target: Target,
    life: Life,
    /// The first one is the leader. An id whose owner has ended keeps its place.
    threads: Vec<(i32, Life)>,
    children: Vec<(i32, Life)>,
}

struct Held {
    fd: OwnedFd,
    path: Bytes,
}

struct World {
    base: PathBuf,
    temp: TempDir,
    processes: HashMap<usize, Process>,
    held: HashMap<usize, Held>,
    /// The group each task was attached to, by inode number; none = where all begin.
    places: HashMap<Task, u64>,
}

impl World {
    fn new(base: &Path) -> World {
        // The children of a target that ended are ours to wait for.
        nix::sys::prctl::set_child_subreaper(true).expect("prctl");
        World { base: base.to_owned(), temp: TempDir::new(), processes: HashMap::new(), held: HashMap::new(), places: HashMap::new() }
    }

    fn step(&mut self, step: &Step) -> Outcome {
        let umask = match &step.act {
            Act::Mkdir { umask, .. } => umask.0,
            _ => 0o022,
        };
        let own_thread = step.uid != 0 || matches!(step.act, Act::Mkdir { .. });
        let told = if own_thread { raw::in_thread(step.uid, umask, || self.act(&step.act)) } else { self.act(&step.act) };
        match told {
            Ok(text) => Outcome::Done(text),
            Err(No::Errno(e)) => Outcome::Failed(e),
            Err(No::LeftOut(why)) => Outcome::LeftOut(why),
        }
    }

    fn act(&mut self, act: &Act) -> Told {
        match act {
            Act::Hold(n, path, flags) => {
                self.held.remove(n);
                let fd = open(&self.at(path), flags.0)?;
                self.held.insert(*n, Held { fd, path: path.clone() });
                ok()
            }
            Act::Fd(n, what) => self.on_fd(*n, what),
            Act::Tasks(what) => self.on_task(what),
            Act::Read(path) => {
                let mut text = Vec::new();
                File::open(self.at(path))?.read_to_end(&mut text)?;
                Ok(self.content(path, &text))
            }
            Act::ReadBy(path, n) => {
                let fd = open(&self.at(path), libc::O_RDONLY)?;
                let mut text = Vec::new();
                let mut piece = vec![0; *n];
                loop {
                    match unistd::read(&fd, &mut piece)? {
                        0 => return Ok(self.content(path, &text)),
                        got => text.extend(&piece[..got]),
                    }
                }
            }
            Act::Write(path, text) => {
                let fd = open(&self.at(path), libc::O_WRONLY)?;
                written(unistd::write(&fd, &text.0), text.0.len())
            }
            act => self.on_tree(act),
        }
    }

    /// The path as given, not tidied up: `a/`, `a/.` and `a//b` are cases of their own.
    fn at(&self, path: &Bytes) -> PathBuf {
        if path.0.is_empty() {
            return self.base.clone();
        }
        let mut full = self.base.as_os_str().as_bytes().to_vec();
        full.push(b'/');
        full.extend(&path.0);
        PathBuf::from(OsString::from_vec(full))
    }

    fn on_tree(&mut self, act: &Act) -> Told {
        match act {
            Act::Mkdir { path, mode, .. } => unistd::mkdir(&self.at(path), Mode::from_bits_truncate(mode.0))?,
            Act::Rmdir(path) => fs::remove_dir(self.at(path))?,
            Act::Rename(from, to) => fs::rename(self.at(from), self.at(to))?,
            Act::Rename2(from, to, flags) => {
                let flags = RenameFlags::from_bits_retain(*flags);
                fcntl::renameat2(AT_FDCWD, &self.at(from), AT_FDCWD, &self.at(to), flags)?;
            }
            Act::RenameOut(from) => fs::rename(self.at(from), self.temp.path().join("out"))?,
            Act::Unlink(path) => unistd::unlink(&self.at(path))?,
            Act::Link(from, to) => unistd::linkat(AT_FDCWD, &self.at(from), AT_FDCWD, &self.at(to), AtFlags::empty())?,
            Act::LinkIn(to) => {
                let file = self.temp.path().join("file");
                File::create(&file).expect("a file");
                unistd::linkat(AT_FDCWD, &file, AT_FDCWD, &self.at(to), AtFlags::empty())?;
            }
            Act::Symlink(target, path) => unistd::symlinkat(OsStr::from_bytes(&target.0), AT_FDCWD, &self.at(path))?,
            Act::Mknod(path, kind) => mknod(&self.at(path), *kind)?,
            Act::Readlink(path) => drop(fs::read_link(self.at(path))?),
            Act::Open(path, flags) => drop(open(&self.at(path), flags.0)?),
            Act::Utime(path, time) => {
                let time = TimeVal::seconds(*time);
                stat::utimes(&self.at(path), &time, &time)?;
            }
            Act::Chmod(path, mode) => fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode.0))?,
            Act::Chown(path, uid, gid) => std::os::unix::fs::chown(self.at(path), Some(*uid), Some(*gid))?,
            Act::Truncate(path, len) => unistd::truncate(&self.at(path), *len)?,
            Act::SetXattr { path, name, value, flags } => raw::setxattr(&self.at(path), &name.0, &value.0, *flags)?,
            Act::RemoveXattr(path, name) => raw::removexattr(&self.at(path), &name.0)?,
            act => return self.look(act),
        }
        ok()
    }

    fn look(&self, act: &Act) -> Told {
        match act {
            Act::Stat(path) => Ok(show_stat(&fs::symlink_metadata(self.at(path))?, path)),
            Act::List(path) => list(Dir::open(&self.at(path), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?, path),
            Act::Statfs(path) => {
                let s = nix::sys::statvfs::statvfs(&self.at(path))?;
                let counts = [s.blocks(), s.blocks_free(), s.blocks_available(), s.files(), s.files_free()];
                Ok(format!("bsize={} frsize={} {counts:?} namelen={}", s.block_size(), s.fragment_size(), s.name_max()))
            }
            Act::Times(path) => Ok(show_times(&fs::symlink_metadata(self.at(path))?)),
            Act::GetXattr(path, name) => {
                let value = raw::getxattr(&self.at(path), &name.0)?;
                Ok(format!("{} bytes, {:?}", value.len(), String::from_utf8_lossy(&value[..value.len().min(20)])))
            }
            Act::ListXattr(path) => Ok(raw::listxattr(&self.at(path))?.join(" ")),
            act => unreachable!("{act:?}"),
        }
    }

    fn on_fd(&mut self, n: usize, what: &OnFd) -> Told {
        let no_fd = No::LeftOut("no such descriptor");
        if *what == OnFd::Close {
            return self.held.remove(&n).map(|_| String::new()).ok_or(no_fd);
        }
        let Some(Held { fd, path }) = self.held.get(&n) else { return Err(no_fd) };
        let fd = fd.as_fd();
        match what {
            OnFd::Read(len) => {
                let mut text = vec![0; *len];
                let got = unistd::read(fd, &mut text)?;
                Ok(self.content(path, &text[..got]))
            }
            OnFd::Pread(len, at) => {
                let mut text = vec![0; *len];
                let got = nix::sys::uio::pread(fd, &mut text, *at)?;
                Ok(self.content(path, &text[..got]))
            }
            OnFd::Readv(a, b) => {
                let (mut a, mut b) = (vec![b'_'; *a], vec![b'_'; *b]);
                let mut pieces = [io::IoSliceMut::new(&mut a), io::IoSliceMut::new(&mut b)];
                let got = nix::sys::uio::readv(fd, &mut pieces)?;
                Ok(format!("{got} {} {}", a.escape_ascii(), b.escape_ascii()))
            }
            OnFd::Attach(template, task) => {
                let text = spell(template, self.id(*task)?);
                let told = written(unistd::write(fd, &text), text.len())?;
                let path = path.clone();
                self.attached(&path, *task);
                Ok(told)
            }
            OnFd::List => list(Dir::from_fd(fd.try_clone_to_owned()?)?, path),
            OnFd::Stat => Ok(show_stat(&File::from(fd.try_clone_to_owned()?).metadata()?, path)),
            what => plain_fd(fd, what),
        }
    }

    /// A text as it stands in a file; ids of tasks become names.
    fn content(&self, path: &Bytes, text: &[u8]) -> String {
        let file = path.0.rsplit(|b| *b == b'/').next();
        let plain = String::from_utf8_lossy(text).into_owned();
        if !matches!(file, Some(b"tasks" | b"cgroup.procs")) || text.is_empty() {
            return plain;
        }
        let ids: Option<Vec<i32>> = plain.strip_suffix('\n').and_then(|t| t.split('\n').map(|l| l.parse().ok()).collect());
        let Some(ids) = ids else { return plain };
        let mut names: Vec<_> = ids.iter().map(|id| self.name(*id)).collect();
        names.sort();
        let order = if ids.is_sorted_by(|a, b| a < b) { "" } else { "not ascending: " };
        format!("{order}{}", names.join(" "))
    }

    fn name(&self, id: i32) -> String {
        for (&p, process) in &self.processes {
            if let Some(t) = process.threads.iter().position(|(tid, _)| *tid == id) {
                return if t == 0 { P(p).to_string() } else { T(p, t).to_string() };
            }
            if let Some(c) = process.children.iter().position(|(pid, _)| *pid == id) {
                return C(p, c + 1).to_string();
            }
        }
        "stranger".to_owned()
    }
}

fn open(path: &Path, flags: i32) -> nix::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
    fcntl::open(path, flags, Mode::from_bits_truncate(0o644))
}

fn mknod(path: &Path, kind: char) -> nix::Result<()> {
    let kind = match kind {
        'r' => SFlag::S_IFREG,
        'p' => SFlag::S_IFIFO,
        's' => SFlag::S_IFSOCK,
        'c' => SFlag::S_IFCHR,
        _ => SFlag::S_IFBLK,
    };
    stat::mknod(path, kind, Mode::from_bits_truncate(0o644), stat::makedev(1, 3))
}

/// What a write returned: nothing to tell when it took all.
fn written(n: nix::Result<usize>, len: usize) -> Told {
    let n = n?;
    Ok(if n == len { String::new() } else { format!("{n} of {len}") })
}

fn show_stat(m: &fs::Metadata, path: &Bytes) -> String {
    let t = m.file_type();
    let kind = if t.is_dir() {
        "dir"
    } else if t.is_file() {
        "file"
    } else if t.is_symlink() || t.is_fifo() {
        "link or fifo"
    } else {
        "other"
    };
    // The hierarchy's root has the groups of other tests as children.
    let nlink = if path.0 == b".." { 0 } else { m.nlink() };
    let (mode, size, blocks, blksize) = (m.mode() & 0o7777, m.size(), m.blocks(), m.blksize());
    format!("{kind} {mode:04o} {}:{} nlink {nlink} size {size} blocks {blocks} of {blksize}", m.uid(), m.gid())
}

/// Times that were set; those of the clock are all "now".
fn show_times(m: &fs::Metadata) -> String {
    let show = |t: i64| if t < 1_000_000_000 { t.to_string() } else { "now".to_owned() };
    format!("{} {} {}", show(m.atime()), show(m.mtime()), show(m.ctime()))
}

/// All names with their type. The hierarchy's root has groups of others; they are left out.
fn list(mut dir: Dir, path: &Bytes) -> Told {
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let kind = match entry.file_type() {
            Some(Type::Directory) => "/",
            Some(Type::File) => "",
            _ => "?",
        };
        if path.0 != b".." || kind.is_empty() || name.iter().all(|b| *b == b'.') {
            names.push(format!("{}{kind}", name.escape_ascii()));
        }
    }
    // The one file that the kernel does not have.
    names.retain(|name| name != "cgfuse.stat");
    names.sort();
    Ok(names.join(" "))
}

fn plain_fd(fd: BorrowedFd<'_>, what: &OnFd) -> Told {
    match what {
        OnFd::Write(text) => return written(unistd::write(fd, &text.0), text.0.len()),
        OnFd::Pwrite(text, at) => return written(nix::sys::uio::pwrite(fd, &text.0, *at), text.0.len()),
        OnFd::Writev(a, b) => {
            let n = nix::sys::uio::writev(fd, &[io::IoSlice::new(&a.0), io::IoSlice::new(&b.0)]);
            return written(n, a.0.len() + b.0.len());
        }
        OnFd::Seek(to, whence) => return seek(fd, *to, *whence),
        OnFd::Truncate(len) => unistd::ftruncate(fd, *len)?,
        OnFd::Chmod(mode) => stat::fchmod(fd, Mode::from_bits_truncate(mode.0))?,
        OnFd::Mkdirat(name) => stat::mkdirat(fd, OsStr::from_bytes(&name.0), Mode::from_bits_truncate(0o755))?,
        OnFd::Openat(name) => drop(fcntl::openat(fd, OsStr::from_bytes(&name.0), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?),
        OnFd::Fsync => unistd::fsync(fd)?,
        OnFd::Fdatasync => unistd::fdatasync(fd)?,
        OnFd::Ioctl => {
            nix::sys::termios::tcgetattr(fd)?;
        }
        OnFd::MmapShared => raw::mmap(fd, libc::MAP_SHARED)?,
        OnFd::Fallocate => fcntl::fallocate(fd, FallocateFlags::empty(), 0, 10)?,
        OnFd::Flock => {
            let file = File::from(fd.try_clone_to_owned()?);
            file.try_lock().map_err(io::Error::from)?;
            file.unlock()?;
        }
        OnFd::Poll => {
            let mut fds =
                [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN | nix::poll::PollFlags::POLLOUT | nix::poll::PollFlags::POLLPRI)];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO)?;
            return Ok(format!("{:?}", fds[0].revents()));
        }
        what => unreachable!("{what:?}"),
    }
    ok()
}

fn seek(fd: BorrowedFd<'_>, to: i64, whence: i32) -> Told {
    let whence = match whence {
        libc::SEEK_SET => Whence::SeekSet,
        libc::SEEK_CUR => Whence::SeekCur,
        libc::SEEK_END => Whence::SeekEnd,
        libc::SEEK_DATA => Whence::SeekData,
        _ => Whence::SeekHole,
    };
    Ok(unistd::lseek(fd, to, whence)?.to_string())
}

/// The template with the task's id in it.
fn spell(template: &Bytes, id: i32) -> Vec<u8> {
    let mut text = template.0.clone();
    for (sign, number) in [("{d}", format!("{id}")), ("{o}", format!("{id:o}")), ("{x}", format!("{id:x}"))] {
        if let Some(at) = text.windows(3).position(|w| w == sign.as_bytes()) {
            text.splice(at..at + 3, number.into_bytes());
        }
    }
    text
}

// ---------------------------------------------------------------------------------------
// Tasks

impl World {
    fn process(&mut self, p: usize) -> Result<&mut Process, No> {
        let alive = |process: &&mut Process| process.life == Life::Alive;
        self.processes.get_mut(&p).filter(alive).ok_or(No::LeftOut("no such process"))
    }

    /// The id of any task that has ever been, dead ones too.
    fn id(&self, task: Task) -> Result<i32, No> {
        let process = self.processes.get(&task.process());
        let (id, _) = match task {
            P(_) => process.and_then(|p| p.threads.first()),
            T(_, t) => process.and_then(|p| p.threads.get(t)),
            C(_, c) => process.and_then(|p| p.children.get(c - 1)),
        }
        .ok_or(No::LeftOut("no such task"))?;
        Ok(*id)
    }

    /// A live thread and its process.
    fn actor(&mut self, task: Task) -> Result<(&mut Process, i32), No> {
        let process = self.process(task.process())?;
        let thread = match task {
            P(_) => process.threads.first(),
            T(_, t) => process.threads.get(t),
            C(..) => None,
        };
        match thread {
            Some(&(tid, Life::Alive)) => Ok((process, tid)),
            _ => Err(No::LeftOut("no such thread")),
        }
    }

    fn on_task(&mut self, what: &OnTask) -> Told {
        match what {
            OnTask::Start(p, uid) => {
                if self.processes.contains_key(p) {
                    return Err(No::LeftOut("started before"));
                }
                let target = if *uid == 0 { Target::new() } else { Target::as_user(*uid) };
                let threads = vec![(target.pid(), Life::Alive)];
                self.processes.insert(*p, Process { target, life: Life::Alive, threads, children: Vec::new() });
            }
            OnTask::Thread(by) => {
                let (process, tid) = self.actor(*by)?;
                let born = process.target.thread_from(tid);
                process.threads.push((born, Life::Alive));
                let name = T(by.process(), process.threads.len() - 1);
                self.inherit(*by, name);
            }
            OnTask::Fork(by) => {
                let (process, tid) = self.actor(*by)?;
                let born = process.target.fork_from(tid);
                process.children.push((born, Life::Alive));
                let name = C(by.process(), process.children.len());
                self.inherit(*by, name);
            }
            OnTask::IfWhole(what) => return if self.is_whole(what) { self.on_task(what) } else { Err(No::LeftOut("a split process")) },
            OnTask::EndThread(t) => self.end_thread(*t)?,
            OnTask::Kill(c) => self.end_child(*c, Life::Zombie)?,
            OnTask::Reap(c) => self.end_child(*c, Life::Gone)?,
            OnTask::Exit(p) => self.end_process(*p, Life::Zombie)?,
            OnTask::Wait(p) => self.end_process(*p, Life::Gone)?,
            OnTask::Exec(t) => {
                let (process, tid) = self.actor(*t)?;
                process.target.exec(tid);
                process.threads.iter_mut().for_each(|(_, life)| *life = Life::Gone);
                process.threads[0].1 = Life::Alive;
                process.children_end();
            }
            what => return self.on_live_task(what),
        }
        ok()
    }

    fn on_live_task(&mut self, what: &OnTask) -> Told {
        match what {
            OnTask::Pin(t, cpus) => {
                let (process, tid) = self.actor(*t)?;
                process.target.setaffinity(tid, cpus)?;
            }
            OnTask::PinBy(t, cpus) => raw::setaffinity(self.id(*t)?, cpus)?,
            OnTask::Narrow(t, cpus) => {
                let (process, tid) = self.actor(*t)?;
                let now = common::try_affinity(tid)?;
                if cpus.len() >= now.len() || !cpus.iter().all(|c| now.contains(c)) {
                    return Err(No::LeftOut("not narrower"));
                }
                process.target.setaffinity(tid, cpus)?;
            }
            OnTask::Affinity(t) => {
                let id = self.id(*t)?;
                if self.is_zombie(*t) {
                    return Err(No::LeftOut("a zombie"));
                }
                return Ok(format!("{:?}", common::try_affinity(id)?));
            }
            OnTask::Attach(path, template, t) => {
                let text = spell(template, self.id(*t)?);
                let fd = open(&self.at(path), libc::O_WRONLY)?;
                let told = written(unistd::write(&fd, &text), text.len())?;
                self.attached(&path.clone(), *t);
                return Ok(told);
            }
            OnTask::Writes(t, path, text) => {
                let full = self.at(path);
                let (process, tid) = self.actor(*t)?;
                let n = process.target.write(tid, &full, &text.0);
                let told = written(n.map_err(Errno::from_raw), text.0.len())?;
                self.attached(path, *t);
                return Ok(told);
            }
            what => unreachable!("{what:?}"),
        }
        ok()
    }

    fn inherit(&mut self, from: Task, to: Task) {
        if let Some(&place) = self.places.get(&from) {
            self.places.insert(to, place);
        }
    }

    /// Notes that a write to `path` has moved `task`, or its process. A descriptor's path may have
    /// been renamed meanwhile; then a process counts as split that is not, which does no harm.
    fn attached(&mut self, path: &Bytes, task: Task) {
        let file = self.at(path);
        let place = file.parent().and_then(|dir| fs::metadata(dir).ok()).map_or(0, |m| m.ino());
        self.places.insert(task, place);
        if let (true, P(p) | T(p, _)) = (path.0.ends_with(b"procs"), task) {
            let count = self.processes.get(&p).map_or(0, |process| process.threads.len());
            self.places.insert(P(p), place);
            self.places.extend((1..count).map(|t| (T(p, t), place)));
        }
    }

    fn is_whole(&self, what: &OnTask) -> bool {
        let (OnTask::Thread(t) | OnTask::Fork(t)) = what else { return true };
        let p = t.process();
        let count = self.processes.get(&p).map_or(0, |process| process.threads.len());
        let mut places = (0..count).map(|t| self.places.get(&if t == 0 { P(p) } else { T(p, t) }));
        let first = places.next();
        places.all(|place| Some(place) == first)
    }

    fn is_zombie(&self, task: Task) -> bool {
        let Some(process) = self.processes.get(&task.process()) else { return false };
        match task {
            P(_) => process.threads[0].1 == Life::Zombie,
            T(..) => false,
            C(_, c) => process.children.get(c - 1).is_some_and(|(_, life)| *life == Life::Zombie),
        }
    }

    fn end_thread(&mut self, t: Task) -> Result<(), No> {
        let (process, tid) = self.actor(t)?;
        if process.threads.iter().filter(|(_, life)| *life == Life::Alive).count() == 1 {
            return Err(No::LeftOut("the last thread"));
        }
        process.target.end_thread(tid);
        let leader = tid == process.target.pid();
        let thread = process.threads.iter_mut().find(|(id, _)| *id == tid);
        thread.expect("a thread of it").1 = if leader { Life::Zombie } else { Life::Gone };
        Ok(())
    }

    fn end_child(&mut self, child: Task, to: Life) -> Result<(), No> {
        let C(p, c) = child else { return Err(No::LeftOut("not a child")) };
        let process = self.process(p)?;
        let entry = process.children.get_mut(c - 1).filter(|(_, life)| *life != Life::Gone);
        let (pid, life) = entry.ok_or(No::LeftOut("no such child"))?;
        match to {
            Life::Zombie => process.target.kill_child(*pid),
            _ => process.target.reap(*pid),
        }
        *life = to;
        Ok(())
    }

    fn end_process(&mut self, p: usize, to: Life) -> Result<(), No> {
        let gone = No::LeftOut("no such process");
        let process = self.processes.get_mut(&p).filter(|process| process.life != Life::Gone).ok_or(gone)?;
        process.end(to);
        Ok(())
    }
}

impl Process {
    fn end(&mut self, to: Life) {
        self.target.exit();
        self.threads.iter_mut().for_each(|(_, life)| *life = Life::Gone);
        self.threads[0].1 = to;
        self.life = to;
        for (pid, life) in self.children.iter_mut().filter(|(_, life)| *life != Life::Gone) {
            let _ = waitid(Id::Pid(Pid::from_raw(*pid)), WaitPidFlag::WEXITED);
            *life = Life::Gone;
        }
        if to == Life::Gone {
            self.target.wait();
        }
    }

    /// Waits until the children have noticed an execve(2); they stay as zombies.
    fn children_end(&mut self) {
        for (pid, life) in self.children.iter_mut().filter(|(_, life)| *life == Life::Alive) {
            common::wait_until("a child has ended", || common::state(*pid, *pid) == Some('Z'));
            *life = Life::Zombie;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in self.processes.values_mut().filter(|process| process.life != Life::Gone) {
            process.end(Life::Gone);
        }
    }
}
