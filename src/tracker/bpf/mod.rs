//! Tracker layer: the table is kept by programs in the kernel.
//!
//! They run when a task is born, exits or executes a program, before anybody can see that it has, so that user space never has to be told
//! and the table is always true. The table, a page of orders and a ring for the css_sets that empty are maps that both sides have in
//! memory. The maps and the programs last as long as somebody has their descriptors: a later server can go on where this one has ended.
//!
//! One more program, where the kernel may patch its functions, tells of members that have been given other CPUs by somebody else.

mod asm;
mod btf;
mod programs;

use super::table::{CHUNK, COUNTS_LEN, CssSetId, MAX_CSS_SETS, NO_SET, ROOT_SET, Slot, Table};
use super::{Stats, Tracker, adopt, adopt_all};
use crate::sys::bpf::{self, MapInfo, Place, Ring};
use crate::sys::shared::Words;
use crate::sys::{Errno, Machine, TaskFlags, TaskInfo, Tid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, gettid, sysconf};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The inode of the initial pid namespace (PROC_PID_INIT_INO).
const INIT_PID_NS: u64 = 0xefff_fffc;
/// What gives a task its CPUs in sched_setaffinity(2).
const SETTER: &str = "__sched_setaffinity";
/// The bytes of the ring: it takes 4,095 css_sets.
const RING: u32 = 64 << 10;

// The page of orders, by word.
/// Where the newborn threads of a process go: its tgid in the upper half, the css_set in the lower; 0 for none.
const REDIRECT: usize = 0;
/// Not 0 if css_sets that empty are to be announced.
const ANNOUNCE: usize = 1;
/// Not 0 if one could not be announced, or a task not be recorded.
const LOST: usize = 2;
/// [`VERSION`].
const LAYOUT: usize = 3;
/// When the programs began to run, in clock ticks since boot.
const ATTACHED: usize = 4;
const CONTROL: usize = 5;
/// Of what the words mean, to whoever takes the maps over.
const VERSION: u64 = 2;

/// The descriptors in the order of [`Bpf::descriptors`].
const SLOTS: usize = 0;
const CHUNKS: usize = 1;
const COUNTS: usize = 2;
const ORDERS: usize = 3;
const EMPTIED: usize = 4;
const MAPS: usize = 5;
/// Of a word.
const BITS: usize = u64::BITS as usize;
/// How many descriptors there are.
pub const DESCRIPTORS: usize = MAPS + 3;

/// How long a fork under way is waited for: its creator may have been preempted.
const PATIENCE: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub struct Bpf {
    table: Arc<Table>,
    control: Words,
    ring: Ring,
    descriptors: [OwnedFd; DESCRIPTORS],
    watch: Option<Watch>,
    /// What the ring has told, until somebody takes it: css_sets that have become empty, and members that have been given other CPUs.
    emptied: Vec<CssSetId>,
    asked: Vec<Tid>,
    stats: Stats,
}

/// Of the program that tells of members that have been given other CPUs.
#[derive(Debug)]
struct Watch {
    /// A bit for each tid that has been told, until somebody has taken note.
    asked: Words,
    _link: OwnedFd,
}

impl Watch {
    /// Starts the program, with this process as the server; `types` is the kernel's description of its own.
    fn new(types: &[u8], layout: programs::Layout, maps: programs::Maps<'_>, slots: usize) -> io::Result<Self> {
        let (id, arguments) = btf::function_on(types, SETTER, "task_struct").map_err(explain)?;
        let bits = slots.div_ceil(BITS);
        let asked = bpf::array("cgfuse_asked", 8, bits)?;
        let setter = programs::Setter { arguments, server: std::process::id() };
        let (place, code) = (Place::Exit(SETTER, id), programs::affinity(maps, asked.as_fd(), layout, setter));
        Ok(Self { _link: bpf::attach(&bpf::load(place, &code)?, place)?, asked: Words::shared(&asked, bits)? })
    }

    /// From here on the task is told again.
    fn take_note(&self, tid: Tid) {
        if let Some(word) = self.asked.get(tid as usize / BITS) {
            word.fetch_and(!(1 << (tid as usize % BITS)), SeqCst);
        }
    }
}

impl Bpf {
    /// Loads the programs and records all tasks.
    ///
    /// # Errors
    /// What is not there or not allowed; the text says which.
    pub fn new(machine: &dyn Machine) -> io::Result<Self> {
        let bpf = Self::start(machine, machine.pid_max())?;
        bpf.probe()?;
        // A list of threads is no snapshot. Whoever is missed is in the root group too, and so are his children, but is not listed there.
        for _ in 0..4 {
            adopt_all(machine, &bpf.table);
            if !bpf.misses_somebody(machine) {
                break;
            }
        }
        Ok(bpf)
    }

    /// Loads the programs. From here on the table has everybody who is born, and his children.
    fn start(machine: &dyn Machine, pid_max: Tid) -> io::Result<Self> {
        if std::fs::metadata("/proc/self/ns/pid")?.ino() != INIT_PID_NS {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "bpf: not in the initial pid namespace"));
        }
        let types = std::fs::read(BTF).map_err(explain)?;
        let offset = |member| btf::offset_of(&types, "task_struct", member).map(|offset| offset as i32).map_err(explain);
        let layout =
            programs::Layout { pid: offset("pid")?, cpus_mask: offset("cpus_mask")?, cpus_bytes: machine.nr_cpu_ids().div_ceil(64) * 8 };
        let len = (pid_max as usize).next_multiple_of(CHUNK);
        let maps = [
            bpf::array(NAMES[SLOTS], 8, len)?,
            bpf::array(NAMES[CHUNKS], 8, len / CHUNK)?,
            bpf::array(NAMES[COUNTS], 8, COUNTS_LEN)?,
            bpf::array(NAMES[ORDERS], 8 * CONTROL, 1)?,
            bpf::ring_buffer(NAMES[EMPTIED], RING)?,
        ];
        let control = Words::shared(&maps[ORDERS], CONTROL)?;
        control[LAYOUT].store(VERSION, SeqCst);
        let [slots, chunks, counts, orders, emptied] = maps.each_ref().map(AsFd::as_fd);
        let maps_of = programs::Maps { slots, chunks, counts, control: orders, emptied };
        let start = |tracepoint, code: Vec<_>| {
            let place = Place::Tracepoint(tracepoint);
            bpf::attach(&bpf::load(place, &code)?, place)
        };
        // In this order: whoever is recorded is taken out again.
        let exit = start("sched_process_exit", programs::exit(maps_of))?;
        let exec = start("sched_process_exec", programs::exec(maps_of))?;
        let fork = start("task_newtask", programs::fork(maps_of, layout))?;
        control[ATTACHED].store(now_in_ticks()?, SeqCst);
        let watch = Watch::new(&types, layout, maps_of, len);
        let [slots, chunks, counts, orders, emptied] = maps;
        let bpf = Self::adopt_descriptors([slots, chunks, counts, orders, emptied, exit, exec, fork])?;
        match watch {
            Ok(watch) => Ok(Self { watch: Some(watch), ..bpf }),
            Err(error) => {
                log::debug!("whether members have been given other CPUs is looked for and not told: {error}");
                Ok(bpf)
            }
        }
    }

    /// Goes on where another tracker has ended, with its [`Bpf::descriptors`]. Nobody is redirected then, and nothing announced.
    ///
    /// # Errors
    /// InvalidInput if they are not what such a tracker has.
    pub fn adopt_descriptors(descriptors: [OwnedFd; DESCRIPTORS]) -> io::Result<Self> {
        let infos: Vec<MapInfo> = descriptors[..MAPS].iter().map(bpf::map_info).collect::<io::Result<_>>()?;
        let slots = infos[SLOTS].max_entries;
        let expected = [(8, slots.next_multiple_of(CHUNK)), (8, slots / CHUNK), (8, COUNTS_LEN), (8 * CONTROL, 1), (0, RING as usize)];
        for ((info, name), (value_size, max_entries)) in infos.iter().zip(NAMES).zip(expected) {
            if *info != (MapInfo { name: name.to_owned(), value_size, max_entries }) {
                return Err(not_ours(&format!("{info:?}")));
            }
        }
        let control = Words::shared(&descriptors[ORDERS], CONTROL)?;
        if control[LAYOUT].load(SeqCst) != VERSION {
            return Err(not_ours("another layout"));
        }
        let words = |map: usize| Words::shared(&descriptors[map], infos[map].max_entries);
        let table = Arc::new(Table::new(words(SLOTS)?, words(CHUNKS)?, words(COUNTS)?));
        let ring = Ring::new(descriptors[EMPTIED].try_clone()?)?;
        control[REDIRECT].store(0, SeqCst);
        control[ANNOUNCE].store(0, SeqCst);
        let (watch, emptied, asked, stats) = Default::default();
        Ok(Self { table, control, ring, descriptors, watch, emptied, asked, stats })
    }

    /// Copies of the descriptors of the maps and of the programs' links. While somebody has them, the table is kept true.
    ///
    /// # Errors
    /// EMFILE.
    pub fn descriptors(&self) -> io::Result<[OwnedFd; DESCRIPTORS]> {
        let copies: Vec<OwnedFd> = self.descriptors.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        copies.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Whether the programs see the birth and the death of a thread.
    fn probe(&self) -> io::Result<()> {
        let (tgid, look) = (std::process::id() as Tid, || (gettid().as_raw(), self.table.get(gettid().as_raw())));
        let (tid, seen) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, look)?;
            thread.join().map_err(|_| io::Error::other("bpf: a thread has failed"))
        })?;
        let born = seen.is_some_and(|slot| slot.tgid == tgid);
        // A thread can be joined before it exits.
        let end = Instant::now() + PATIENCE;
        while self.table.get(tid).is_some() && Instant::now() < end {
            std::thread::yield_now();
        }
        if born && self.table.get(tid).is_none() { Ok(()) } else { Err(io::Error::other("bpf: a thread's birth and death are not seen")) }
    }

    fn drain(&mut self) {
        let (emptied, asked) = (&mut self.emptied, &mut self.asked);
        self.ring.drain(|word| match (word as CssSetId, (word >> 32) as Tid) {
            // Somebody has been marked, which counts itself.
            (NO_SET, 0) => {}
            (NO_SET, tid) => asked.push(tid),
            (css_set, _) => emptied.push(css_set),
        });
    }

    fn misses_somebody(&self, machine: &dyn Machine) -> bool {
        let mut tasks = machine.processes().into_iter().flat_map(|tgid| machine.threads(tgid).unwrap_or_default());
        tasks.any(|tid| self.table.get(tid).is_none() && living(machine, tid).is_some())
    }
}

fn explain(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("bpf: {BTF}: {error}"))
}

/// The maps' names, by descriptor.
const NAMES: [&str; MAPS] = ["cgfuse_slots", "cgfuse_chunks", "cgfuse_counts", "cgfuse_control", "cgfuse_emptied"];

fn not_ours(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("bpf: not the maps of a tracker: {what}"))
}

/// The time as the start of a task is told (field 22 of /proc/PID/stat).
fn now_in_ticks() -> io::Result<u64> {
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as u64;
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok((now.as_nanos() * u128::from(ticks_per_second) / 1_000_000_000) as u64)
}

/// What a task is that has not begun to exit.
fn living(machine: &dyn Machine, tid: Tid) -> Option<TaskInfo> {
    machine.task(tid).ok().filter(|info| !info.zombie && !info.flags.contains(TaskFlags::EXITING))
}

impl Tracker for Bpf {
    fn name(&self) -> &'static str {
        "bpf"
    }

    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn activate(&mut self, _machine: &dyn Machine, _on: bool) -> io::Result<()> {
        Ok(())
    }

    fn is_active(&self) -> bool {
        false
    }

    fn knows_all(&self) -> bool {
        true
    }

    fn tells_exits(&self) -> bool {
        true
    }

    fn is_prompt(&self) -> bool {
        true
    }

    fn sync(&mut self, _machine: &dyn Machine) {}

    /// A thread that is not in the table was overlooked when the programs began to run, or it is younger, and its creator or it itself is
    /// about to be in the table: a fork or the execution of a program is under way. Those are waited for, since where they
    /// belong is the programs' to say; after 20 ms they are left to them.
    fn know(&mut self, machine: &dyn Machine, tgid: Tid) {
        let end = Instant::now() + PATIENCE;
        for tid in machine.threads(tgid).unwrap_or_default() {
            while self.table.get(tid).is_none()
                && let Some(info) = living(machine, tid)
            {
                // Of lists of processes nobody is missing, so this is no main thread.
                if tid != tgid && info.start_time <= self.control[ATTACHED].load(SeqCst) {
                    adopt(machine, &self.table, tid, tgid);
                    break;
                }
                if Instant::now() >= end {
                    break;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Between taking over the pid and executing the program, a thread is not found by its tid either; but then its process lives, and has no
    /// main thread in the table.
    fn is_ghost(&self, machine: &dyn Machine, tid: Tid, slot: Slot) -> bool {
        let is_over = || match machine.task(slot.tgid) {
            Ok(main) => main.zombie || tid != slot.tgid && self.table.get(slot.tgid).is_some(),
            Err(errno) => errno == Errno::ESRCH,
        };
        !machine.is_thread_of(slot.tgid, tid) && is_over()
    }

    fn redirect(&mut self, process: Option<(Tid, CssSetId)>) {
        let word = process.map_or(0, |(tgid, css_set)| (tgid as u64) << 32 | u64::from(css_set));
        self.control[REDIRECT].store(word, SeqCst);
        fence(SeqCst);
    }

    fn announce(&mut self, on: bool) {
        self.control[ANNOUNCE].store(on.into(), SeqCst);
    }

    /// A css_set may be told twice when its last task is moved while it creates another, and it may have tasks again. If something could
    /// not be told, these are all numbers without a task, be they in use or not.
    fn take_emptied(&mut self) -> Vec<CssSetId> {
        // First the flag: what cannot be told from here on sets it again.
        let lost = self.control[LOST].swap(0, SeqCst) != 0;
        self.drain();
        let mut emptied = std::mem::take(&mut self.emptied);
        self.stats.events += emptied.len() as u64;
        if lost {
            self.stats.lost += 1;
            emptied = (ROOT_SET + 1..MAX_CSS_SETS as CssSetId).filter(|css_set| self.table.count(*css_set) == 0).collect();
        }
        emptied
    }

    fn take_asked(&mut self) -> Vec<Tid> {
        self.drain();
        let asked = std::mem::take(&mut self.asked);
        if let Some(watch) = &self.watch {
            asked.iter().for_each(|tid| watch.take_note(*tid));
        }
        self.stats.asked += asked.len() as u64;
        asked
    }

    fn has_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Readable while the ring has something; to be asked anew each time, not for changes (EPOLLET).
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.as_fd())
    }

    fn stats(&self) -> Stats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where bpf(2) is forbidden, says so.
    fn start(pid_max: Tid) -> Option<Bpf> {
        match Bpf::start(&crate::sys::linux::Linux::new().expect("/proc"), pid_max) {
            Ok(bpf) => Some(bpf),
            Err(error) if !nix::unistd::geteuid().is_root() => {
                crate::tracker::skipped("bpf", error);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn four_million_pids() {
        let begun = Instant::now();
        let Some(bpf) = start(1 << 22) else { return };
        let started = begun.elapsed();
        for tid in [32768, (1 << 22) - 1] {
            assert!(bpf.table.insert(tid, Slot::new(tid, 7)));
            assert_eq!(bpf.table.get(tid), Some(Slot::new(tid, 7)));
        }
        let begun = Instant::now();
        assert_eq!(bpf.table.iter().filter(|(_, slot)| slot.css_set == 7).count(), 2);
        eprintln!("4,194,304 slots: started in {started:?}, listed in {:?}", begun.elapsed());
    }

    #[test]
    fn a_tid_without_a_slot_is_told() {
        let Some(mut bpf) = start((CHUNK * 2) as Tid) else { return };
        std::thread::spawn(|| ()).join().expect("a thread");
        assert!(bpf.take_emptied().len() > 100_000, "any css_set may be empty");
        assert_eq!(bpf.stats().lost, 1);
    }

    #[test]
    fn only_maps_of_a_tracker_are_adopted() {
        let Some(bpf) = start(32768) else { return };
        let mut descriptors = bpf.descriptors().expect("copies");
        descriptors.swap(SLOTS, COUNTS);
        let error = Bpf::adopt_descriptors(descriptors).expect_err("the wrong way round");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        bpf.control[LAYOUT].store(VERSION + 1, SeqCst);
        let error = Bpf::adopt_descriptors(bpf.descriptors().expect("copies")).expect_err("another layout");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }

    #[test]
    fn what_cannot_be_announced_is_told() {
        let Some(mut bpf) = start(32768) else { return };
        bpf.announce(true);
        // Each is the set of a thread that exits.
        for css_set in 2..4_400 {
            let place = || {
                let tid = gettid().as_raw();
                let slot = bpf.table.get(tid).expect("known");
                assert!(bpf.table.replace(tid, slot, Slot { css_set, ..slot }).is_ok());
            };
            std::thread::scope(|scope| scope.spawn(place).join().expect("a thread"));
            while bpf.table.count(css_set) != 0 {
                std::thread::yield_now();
            }
        }
        let told = bpf.take_emptied();
        assert!(told.contains(&4_399) && told.len() == MAX_CSS_SETS - 2, "{}", told.len());
        assert_eq!((bpf.stats().events, bpf.stats().lost), (4_095, 1));
        // But for the root's, which this table has too few tasks of.
        assert_eq!(bpf.take_emptied().into_iter().find(|css_set| *css_set > ROOT_SET), None);
    }

    #[test]
    fn refusals_say_what_and_why() {
        let error = bpf::load(Place::Tracepoint("nonsense"), &[]).expect_err("no instructions");
        assert!(error.to_string().starts_with("bpf: BPF_PROG_LOAD of nonsense: "), "{error}");
        if let Some(bpf) = start(32768) {
            let [slots, chunks, counts, control, emptied] =
                [SLOTS, CHUNKS, COUNTS, ORDERS, EMPTIED].map(|map| bpf.descriptors[map].as_fd());
            let maps = programs::Maps { slots, chunks, counts, control, emptied };
            let error = bpf::load(Place::Tracepoint("wrong"), &programs::exit(programs::Maps { emptied: control, ..maps }))
                .expect_err("an array is no ring");
            assert!(error.to_string().contains(": Invalid argument; "), "{error}");
            let program = bpf::load(Place::Tracepoint("right"), &programs::exit(maps)).expect("loaded");
            let error = bpf::attach(&program, Place::Tracepoint("no_such_tracepoint")).expect_err("no such");
            assert_eq!(error.to_string(), "bpf: BPF_RAW_TRACEPOINT_OPEN of no_such_tracepoint: No such file or directory");
        }
    }
}
