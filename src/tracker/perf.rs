//! Tracker layer: forks and exits as perf task events, of the whole machine or of single processes and their descendants.
//!
//! Each CPU has a ring of its own, so what is told is sorted by time. The latest records of one ring may be there before earlier ones of
//! another are: a look takes what is not later than the moment at which it began (`T0`). A record that follows from one that was not there
//! yet is later than that, and what happened before the look is not.
//!
//! An EXIT right after an EXEC of the same task is doubtful: the kernel also writes one when an ordinary user executes a set-user-ID or
//! unreadable program, since nobody may look at the process from then on (`perf_event_exit_task` in `begin_new_exec`).

use super::events::{Event, Source};
use crate::bitmap::Bitmap;
use crate::sys::perf::{Of, Record, Ring, cpus, open, pidfd};
use crate::sys::{Machine, Tid};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{getpid, gettid};
use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// The bytes of a CPU's ring; with less than [`MIN_RING`] there is no point. 2 MiB are 36,000 records.
const RING: usize = 2 << 20;
const MIN_RING: usize = 64 << 10;

/// A thread's exit may be recorded a moment after it has been joined.
const PROBE_TIME: Duration = Duration::from_secs(1);

/// How often the threads of a process are listed until none is new.
const LISTINGS: usize = 10;

/// What is read from the rings of all CPUs.
#[derive(Debug, Default)]
struct Log {
    rings: Vec<Ring>,
    /// Records up to this time have been told by former rings.
    since: u64,
    /// Read from the rings and not told.
    kept: Vec<Event>,
    /// Something is missing in what has been read and not told.
    lost: bool,
    /// The last look has lost something, perhaps the EXEC before an EXIT.
    wary: bool,
    /// Those of whom the last that was read is that they have executed a program.
    executed: FxHashSet<Tid>,
    /// Something is not heard from here on; has been logged.
    deaf: bool,
    batch: Vec<(u64, Record)>,
}

impl Log {
    fn new(rings: Vec<Ring>) -> Self {
        Self { rings, ..Self::default() }
    }

    /// Takes in what has happened up to `t0`.
    fn read(&mut self, t0: u64) {
        let (mut batch, since) = (std::mem::take(&mut self.batch), self.since);
        let mut lost = false;
        for ring in &mut self.rings {
            lost |= ring.read(t0, |time, record| {
                if time > since {
                    batch.push((time, record));
                }
            });
        }
        // Stable: records of one CPU keep their order.
        batch.sort_by_key(|(time, _)| *time);
        lost |= batch.iter().any(|(_, record)| *record == Record::Lost);
        self.lost |= lost;
        let wary = std::mem::replace(&mut self.wary, lost) || lost;
        for (_, record) in batch.drain(..) {
            let event = match record {
                // Somebody outside our pid namespace.
                Record::Fork { child: tid, .. } | Record::Exit { tid } | Record::Exec { tgid: tid } if tid <= 0 => continue,
                Record::Fork { creator, parent, child, tgid } => {
                    // Who forks has survived executing a program.
                    self.executed.remove(&creator);
                    self.executed.remove(&child);
                    Event::Fork { creator, exact: true, parent, child, tgid }
                }
                Record::Exit { tid } => Event::Exit { tid, doubtful: self.executed.remove(&tid) || wary },
                Record::Exec { tgid } => {
                    self.executed.insert(tgid);
                    Event::Exec { tgid }
                }
                Record::Lost => continue,
            };
            self.kept.push(event);
        }
        self.batch = batch;
    }

    /// Tells what has been taken in. Whether something was lost.
    fn tell(&mut self, events: &mut Vec<Event>) -> bool {
        events.append(&mut self.kept);
        std::mem::take(&mut self.lost) || self.deaf
    }

    /// Whether a thread that is created and joined here is told.
    fn probe(&mut self) -> io::Result<()> {
        let thread = thread::Builder::new().name("perf-probe".into()).spawn(gettid)?;
        let probe = thread.join().map_err(|_| io::Error::other("the probing thread has panicked"))?.as_raw();
        let end = Instant::now() + PROBE_TIME;
        loop {
            self.read(now()?);
            let fork = self.kept.iter().any(|event| matches!(event, Event::Fork { child, .. } if *child == probe));
            let exit = self.kept.iter().any(|event| matches!(event, Event::Exit { tid, .. } if *tid == probe));
            match (fork, exit) {
                (true, true) => return Ok(()),
                _ if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                _ => return Err(io::Error::other("events are not delivered")),
            }
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// A ring of such an event for each CPU that has not just gone offline, as large as is allowed but not more than `size` bytes.
fn rings(of: Of, cpus: &Bitmap, size: usize) -> io::Result<Vec<Ring>> {
    let gone = |ring: &io::Result<Ring>| matches!(ring, Err(error) if error.raw_os_error() == Some(libc::ENODEV));
    let mut size = size;
    loop {
        let rings = cpus.iter().map(|cpu| Ring::new(open(of, cpu)?, size)).filter(|ring| !gone(ring)).collect();
        match &rings {
            Err(error) if size > MIN_RING && matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOMEM)) => size /= 2,
            _ => {
                log::debug!("perf: {} KiB a CPU to buffer events", size >> 10);
                return rings;
            }
        }
    }
}

/// The error of a source that could not start: says what perf_event_open(2) depends on.
fn explained(error: &io::Error) -> io::Error {
    let reason = match std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid") {
        Ok(level) if error.kind() == io::ErrorKind::PermissionDenied => format!("perf_event_paranoid is {}: ", level.trim()),
        Err(_) => "this kernel has no perf events: ".into(),
        Ok(_) => String::new(),
    };
    io::Error::new(error.kind(), format!("perf: {reason}{error}"))
}

/// The tasks of the whole machine. Needs CAP_PERFMON, or `kernel.perf_event_paranoid` below 1.
///
/// Only online CPUs can be listened to. After [`Source::cpus_changed`] a CPU that has come online is, too; what happened there before
/// counts as lost.
#[derive(Debug)]
pub struct SystemWide {
    log: Log,
    epoll: Epoll,
    size: usize,
}

impl SystemWide {
    /// A source that does not listen yet.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        Self::with_rings(RING)
    }

    fn with_rings(size: usize) -> io::Result<Self> {
        Ok(Self { log: Log::default(), epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, size })
    }

    fn rings(&self) -> io::Result<Vec<Ring>> {
        let rings = rings(Of::Everybody, &cpus("online")?, self.size)?;
        for ring in &rings {
            self.epoll.add(ring, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(rings)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let rings = self.rings()?;
        // Both have heard what happened up to here.
        let since = now()?;
        self.log.read(since);
        (self.log.rings, self.log.since, self.log.deaf) = (rings, since, false);
        Ok(())
    }
}

impl Source for SystemWide {
    fn name(&self) -> &'static str {
        "perf"
    }

    fn start(&mut self) -> io::Result<()> {
        let mut log = Log::new(self.rings().map_err(|error| explained(&error))?);
        log.probe().map_err(|error| explained(&error))?;
        self.log = log;
        Ok(())
    }

    fn stop(&mut self) {
        self.log = Log::default();
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> bool {
        // Without a clock nothing can be told.
        let failed = now().map(|t0| self.log.read(t0)).is_err();
        self.log.tell(events) || failed
    }

    /// Listens on the CPUs that are online now. The events of a CPU that has been offline are dead even if it is back, so all are new.
    fn cpus_changed(&mut self) {
        if self.log.rings.is_empty() {
            return;
        }
        if let Err(error) = self.reopen() {
            log::error!("{}: forks on CPUs that have come online are not told", explained(&error));
            self.log.deaf = true;
        }
        (self.log.lost, self.log.wary) = (true, true);
    }

    fn is_deaf(&self) -> bool {
        self.log.deaf
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}

/// The processes that have been asked for, and their descendants. Needs no privilege but the right to read their memory, where
/// `kernel.perf_event_paranoid` is 2 or less.
///
/// It is racy where a process that makes and ends threads incessantly is asked for: if there are new ones after several looks, one loss is reported.
/// A process that cannot be listened to, because it has executed a set-user-ID program or belongs to somebody else, counts as a loss at
/// each look while it lives; what descends from it is not told even later. So does everything from the moment on when half of RLIMIT_NOFILE is
/// used up: a thread that has been asked for takes a descriptor for each CPU until its last descendant is dead, since closing them ends
/// what these have inherited.
#[derive(Debug, Default)]
pub struct Members {
    log: Log,
    /// Those of the rings: all that can be online, since a CPU that comes online cannot be added for those who have inherited.
    cpus: Bitmap,
    families: Slab<Family>,
    /// Those that are known to be told of.
    followed: FxHashMap<Tid, Followed>,
    /// Processes that are not told of, and have to be.
    unheard: Vec<OwnedFd>,
    /// Descriptors that may still be opened.
    room: usize,
}

/// The events of a thread that has been asked for, and how many tasks have or have inherited them.
#[derive(Debug)]
struct Family {
    events: Vec<OwnedFd>,
    alive: usize,
}

#[derive(Clone, Copy, Debug)]
struct Followed {
    tgid: Tid,
    family: usize,
}

impl Members {
    /// Opens events of a thread and its descendants that write to the rings.
    fn open(&self, tid: Tid, events: &mut Vec<OwnedFd>) -> io::Result<()> {
        for (ring, cpu) in self.log.rings.iter().zip(self.cpus.iter()) {
            let event = open(Of::Family(tid), cpu)?;
            ring.take(&event)?;
            events.push(event);
        }
        Ok(())
    }

    /// Takes in what has happened, and who is followed now.
    fn read(&mut self) -> io::Result<()> {
        let told = self.log.kept.len();
        self.log.read(now()?);
        if self.log.wary {
            // Who has been born or died is not known. To attach to somebody twice does no harm.
            self.followed.clear();
        }
        for i in told..self.log.kept.len() {
            match self.log.kept[i] {
                Event::Fork { creator, child, tgid, .. } => {
                    if let Some(Followed { family, .. }) = self.followed.get(&creator).copied() {
                        self.follow(child, Followed { tgid, family });
                    }
                }
                Event::Exit { tid, doubtful } => {
                    let known = self.followed.remove(&tid).map(|old| self.release(old.family)).is_some();
                    // Of somebody attached to twice two exits are told.
                    self.log.kept[i] = Event::Exit { tid, doubtful: doubtful || !known };
                }
                Event::Exec { tgid } if !self.followed.contains_key(&tgid) => {
                    let survivor = self.followed.iter().find(|(_, task)| task.tgid == tgid).map(|(tid, _)| *tid);
                    if let Some(task) = survivor.and_then(|tid| self.followed.remove(&tid)) {
                        self.followed.insert(tgid, task);
                    }
                }
                Event::Exec { .. } => {}
            }
        }
        Ok(())
    }

    fn follow(&mut self, tid: Tid, task: Followed) {
        self.families[task.family].alive += 1;
        if let Some(old) = self.followed.insert(tid, task) {
            self.release(old.family);
        }
    }

    /// One less has these events.
    fn release(&mut self, family: usize) {
        self.families[family].alive -= 1;
        if self.families[family].alive == 0 {
            self.room += self.families.remove(family).events.len();
        }
    }

    /// Begins to listen to a thread. Whether there is any point in going on with others.
    fn attach(&mut self, tid: Tid, tgid: Tid) -> bool {
        if self.room < self.log.rings.len() {
            self.deafen("half of the file descriptors that are allowed (RLIMIT_NOFILE) are in use");
            return false;
        }
        let mut events = Vec::with_capacity(self.log.rings.len());
        match self.open(tid, &mut events) {
            Ok(()) => {
                self.room -= events.len();
                let family = self.families.insert(Family { events, alive: 0 });
                self.follow(tid, Followed { tgid, family });
                true
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                // It has begun to exit in between: whether that is told depends on the CPU.
                self.log.lost |= !events.is_empty();
                true
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                log::debug!("{}: process {tgid} is not listened to", explained(&error));
                self.unheard(tgid);
                false
            }
            Err(error) => {
                self.deafen(&error.to_string());
                false
            }
        }
    }

    /// From here on every look reports a loss.
    fn deafen(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.log.deaf, true) {
            log::error!("perf: {reason}: from here on /proc is read instead");
        }
    }
}

impl Source for Members {
    fn name(&self) -> &'static str {
        "perf"
    }

    fn start(&mut self) -> io::Result<()> {
        let begin = || {
            let cpus = cpus("present")?;
            let log = Log::new(rings(Of::Nobody(getpid().as_raw()), &cpus, RING)?);
            let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let mut members = Self { log, cpus, room: usize::try_from(limit / 2).unwrap_or(usize::MAX), ..Self::default() };
            let mut own = Vec::new();
            members.open(gettid().as_raw(), &mut own)?;
            members.log.probe()?;
            Ok(members)
        };
        *self = begin().map_err(|error| explained(&error))?;
        Ok(())
    }

    fn stop(&mut self) {
        *self = Self::default();
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> bool {
        let failed = self.read().is_err();
        let unheard = !self.unheard.is_empty();
        self.unheard.retain(|process| !has_exited(process));
        self.log.tell(events) || unheard || failed
    }

    fn hears_all(&self) -> bool {
        false
    }

    fn exits_late(&self) -> bool {
        // Those who had begun to exit when they were asked for are never told of.
        true
    }

    fn listen_to(&mut self, machine: &dyn Machine, tgid: Tid) -> bool {
        let mut begun = false;
        // Those who were too close to their end.
        let mut tried = FxHashSet::default();
        for _ in 0..LISTINGS {
            if self.log.rings.is_empty() || self.read().is_err() {
                return begun;
            }
            let Ok(tids) = machine.threads(tgid) else { return begun };
            let new: Vec<Tid> = tids.iter().copied().filter(|tid| !self.followed.contains_key(tid) && tried.insert(*tid)).collect();
            if new.is_empty() && machine.thread_count(tgid).is_ok_and(|count| count <= tids.len()) {
                return begun;
            }
            begun |= !new.is_empty();
            if !new.into_iter().all(|tid| self.attach(tid, tgid)) {
                return begun;
            }
        }
        self.log.lost = true;
        begun
    }

    fn unheard(&mut self, tgid: Tid) {
        // Whoever is gone by now need not be heard.
        self.unheard.extend(pidfd(tgid));
    }

    fn is_deaf(&self) -> bool {
        self.log.deaf || !self.unheard.is_empty()
    }

    fn cpus_changed(&mut self) {
        if !self.log.rings.is_empty() && cpus("present").is_ok_and(|now| !now.is_subset(&self.cpus)) {
            self.deafen("a CPU has been added");
        }
    }

    /// None: each exit would wake up whoever waits for an inherited event.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn has_exited(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::linux::Linux;
    use std::process::{Child, Command};

    fn wait_until(mut holds: impl FnMut() -> bool) -> bool {
        (0..2_000).any(|_| holds() || (thread::sleep(Duration::from_millis(1)), false).1)
    }

    #[test]
    fn a_ring_that_was_too_small_is_noticed_at_once() {
        let mut source = SystemWide::with_rings(16 << 10).expect("epoll");
        if let Err(error) = source.start() {
            return crate::tracker::skipped("too small a ring", error);
        }
        let mut events = Vec::new();
        source.drain(&mut events);
        events.clear();
        (0..1_000).for_each(|_| thread::spawn(|| ()).join().expect("it ends"));
        assert!(source.drain(&mut events));
        let doubtful = |event: &Event| matches!(event, Event::Exit { doubtful: true, .. });
        let exits = events.iter().filter(|event| matches!(event, Event::Exit { .. }));
        assert!(exits.clone().count() > 0 && exits.clone().all(doubtful), "what told of executed programs may be lost");
        let fd = source.fd().expect("open");
        assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1), "half full");
        // The kernel tells once more when it can write again; then there is an end to it.
        assert!(wait_until(|| !source.drain(&mut events)));
        source.stop();
        assert!(!source.drain(&mut events));
    }

    /// Sleeps; dead when it is dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().expect("sleep"))
        }

        fn tgid(&self) -> Tid {
            self.0.id() as Tid
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn descriptors_come_back_with_the_last_descendant_and_are_bounded() {
        let mut source = Members::default();
        if let Err(error) = source.start() {
            return crate::tracker::skipped("descriptors", error);
        }
        let machine = Linux::new().expect("a machine");
        let mut events = Vec::new();
        source.room = 2 * source.log.rings.len();
        let sleepers = [Sleeper::new(), Sleeper::new()];
        for _ in 0..2 {
            sleepers.iter().for_each(|sleeper| {
                source.listen_to(&machine, sleeper.tgid());
            });
            assert!(source.room == 0 && !source.is_deaf(), "asked for twice, attached to once");
        }
        drop(sleepers);
        assert!(!source.drain(&mut events) && source.families.is_empty() && source.room == 2 * source.log.rings.len());
        let sleepers = [Sleeper::new(), Sleeper::new(), Sleeper::new()];
        sleepers.iter().for_each(|sleeper| {
            source.listen_to(&machine, sleeper.tgid());
        });
        assert!(source.is_deaf() && source.drain(&mut events) && source.drain(&mut events));
        source.stop();
        assert!(!source.is_deaf() && !source.drain(&mut events));
    }

    #[test]
    fn a_refusal_says_what_it_depends_on() {
        let refused = explained(&io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(refused.starts_with("perf: ") && refused.ends_with(": Operation not permitted (os error 1)"), "{refused}");
        assert_eq!(explained(&io::Error::from_raw_os_error(libc::EMFILE)).to_string(), "perf: Too many open files (os error 24)");
    }
}
