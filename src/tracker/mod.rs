//! Tracker layer: keeps the [`Table`] of tasks true while they fork, execute programs and exit.

pub mod bpf;
pub mod events;
pub mod netlink;
pub mod perf;
mod scan;
pub mod table;

pub use bpf::Bpf;
use events::{EventLog, Source};
pub use scan::Scan;

use crate::sys::{Machine, TaskFlags, Tid};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use table::{CssSetId, ROOT_SET, Slot, Table};

/// A back end, as `-o tracker=` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel keeps the table itself, by BPF programs. Needs CAP_BPF and CAP_PERFMON, and the initial pid namespace.
    Bpf,
    /// perf's task events: of all tasks with CAP_PERFMON, of the members' processes for an ordinary user.
    Perf,
    /// The proc connector. For an ordinary user from Linux 6.6 on; in the initial user and pid namespaces.
    Netlink,
    /// Looks for new pids whenever something is asked. Works everywhere, and is not exact.
    Scan,
}

impl Kind {
    /// All of them, the best one first.
    pub const ALL: [Self; 4] = [Self::Bpf, Self::Perf, Self::Netlink, Self::Scan];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Perf => "perf",
            Self::Netlink => "netlink",
            Self::Scan => "scan",
        }
    }
}

/// Starts a back end: the one that is asked for, else the best one that works here.
///
/// # Errors
/// Why the one that is asked for does not work.
pub fn open(machine: &dyn Machine, asked: Option<Kind>) -> io::Result<Box<dyn Tracker>> {
    let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
    for (_, start) in STARTS.iter().filter(|(kind, _)| asked.is_none_or(|asked| asked == *kind)) {
        match start(machine) {
            Ok(tracker) => return Ok(tracker),
            Err(error) => {
                log::debug!("{error}");
                refusal = error;
            }
        }
    }
    Err(refusal)
}

type Start = fn(&dyn Machine) -> io::Result<Box<dyn Tracker>>;

/// The back ends, the best one first.
const STARTS: [(Kind, Start); 5] = [
    (Kind::Bpf, |machine| Ok(Box::new(Bpf::new(machine)?))),
    (Kind::Perf, |machine| listener(machine, perf::SystemWide::new()?)),
    (Kind::Netlink, |machine| listener(machine, netlink::Netlink::default())),
    (Kind::Perf, |machine| listener(machine, perf::Members::default())),
    (Kind::Scan, |machine| Ok(Box::new(Scan::new(machine.pid_max())?))),
];

/// A tracker that listens to a source, if that works.
fn listener(machine: &dyn Machine, source: impl Source + 'static) -> io::Result<Box<dyn Tracker>> {
    let mut log = EventLog::new(source, machine.pid_max())?;
    log.activate(machine, true)?;
    log.activate(machine, false)?;
    Ok(Box::new(log))
}

/// What a back end has seen since the mount, for `cgfuse.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forks, exits and executed programs that were learned of.
    pub events: u64,
    /// How often some of them were lost.
    pub lost: u64,
    /// How often /proc was read to make up for a loss.
    pub rescans: u64,
    /// Children whose creator was not told exactly, and had to be guessed.
    pub guessed: u64,
    /// How often a member's CPUs have been set by another process than this one, be they others or not, where that is told.
    pub asked: u64,
}

/// [`Tracker::pause`] where nothing else is known.
const PAUSE: Duration = Duration::from_millis(2);

/// A source of forks and exits, and its table. A child is inserted into its creator's css_set; whoever has exited is not in the table.
pub trait Tracker: Send {
    /// The name that `-o tracker=` knows it by.
    fn name(&self) -> &'static str;

    /// The table. While the tracker is not active it holds nobody, unless it costs nothing to keep.
    fn table(&self) -> &Arc<Table>;

    /// Some task is about to leave the root group, or none is outside any more. Asked for what it is already doing, it does nothing.
    ///
    /// # Errors
    /// What the event source says; the tracker is not active then.
    fn activate(&mut self, machine: &dyn Machine, on: bool) -> io::Result<()>;

    /// Whether it follows forks and exits only because it was told to, and could stop.
    fn is_active(&self) -> bool;

    /// Whether the table holds all tasks of the machine, not only members and their processes' threads.
    fn knows_all(&self) -> bool;

    /// Whether whoever has exited is out of the table after [`Tracker::sync`], so that [`Tracker::reap`] has nothing to do, and whoever has got a
    /// main thread's tid is marked as to be looked at.
    fn tells_exits(&self) -> bool;

    /// Whether its descriptor becomes readable soon after the last task of a css_set has exited.
    fn is_prompt(&self) -> bool;

    /// How long its descriptor may be left alone after it has been looked after: events that come one by one are taken together.
    fn pause(&self) -> Duration {
        PAUSE
    }

    /// Brings the table up to date: afterwards it is that of some moment during the call.
    fn sync(&mut self, machine: &dyn Machine);

    /// Makes sure that all threads of a process are in the table, those that were not as tasks of the root group.
    fn know(&mut self, machine: &dyn Machine, tgid: Tid);

    /// Takes those of these members out of the table that have exited, where [`Tracker::sync`] may have missed it. Whether there were any.
    fn reap(&mut self, _machine: &dyn Machine, _members: &[(Tid, Slot)]) -> bool {
        false
    }

    /// A task turned out to have exited.
    fn exited(&mut self, _tid: Tid) {}

    /// Whether a task that is in the table has gone without a word: a thread that takes over its process's pid to execute a program, and dies of a
    /// fault of that program before it has begun.
    fn is_ghost(&self, _machine: &dyn Machine, _tid: Tid, _slot: Slot) -> bool {
        false
    }

    /// While the threads of a process are moved one after the other, a thread that is born there goes to this css_set.
    fn redirect(&mut self, _process: Option<(Tid, CssSetId)>) {}

    /// Whether somebody wants to know at once that a css_set is empty: the descriptor becomes readable then.
    fn announce(&mut self, _on: bool) {}

    /// CPUs have come online or gone, perhaps to come back.
    fn cpus_changed(&mut self) {}

    /// The css_sets that have become empty since the last call by deaths; where nobody wants to know at once, perhaps not all.
    fn take_emptied(&mut self) -> Vec<CssSetId>;

    /// The members whose CPUs have been set by another process than this one since the last call, where that is told.
    fn take_asked(&mut self) -> Vec<Tid> {
        Vec::new()
    }

    /// Whether [`Tracker::take_asked`] has something that nobody will be woken for.
    fn has_asked(&self) -> bool {
        false
    }

    /// Readable when `sync` has something to do before the next regular look.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What has been seen.
    fn stats(&self) -> Stats;
}

/// The slot of a child that has just been found, with its creator and his css_set. It is to be looked at if it has other CPUs than he, or he
/// is to be looked at himself.
pub fn born(machine: &dyn Machine, table: &Table, (child, tgid): (Tid, Tid), (creator, css_set): (Tid, CssSetId)) -> Slot {
    let differs = || table.get(creator).is_none_or(|slot| slot.fresh) || machine.affinity(child) != machine.affinity(creator);
    Slot { fresh: css_set != ROOT_SET && differs(), ..Slot::new(tgid, css_set) }
}

/// Records a task that is there without anybody having told, as one of the root group, unless it is about to be gone.
pub fn adopt(machine: &dyn Machine, table: &Table, tid: Tid, tgid: Tid) {
    let slot = Slot::new(tgid, ROOT_SET);
    // In this order: whoever is not exiting after the insertion is taken out when he exits.
    if table.insert(tid, slot) && !machine.task(tid).is_ok_and(|info| !info.zombie && !info.flags.contains(TaskFlags::EXITING)) {
        // Somebody else may have done it, or the pid may be in use again.
        let _ = table.remove_if(tid, slot);
    }
}

/// Records all tasks that there are.
pub fn adopt_all(machine: &dyn Machine, table: &Table) {
    for tgid in machine.processes() {
        machine.threads(tgid).unwrap_or_default().into_iter().for_each(|tid| adopt(machine, table, tid, tgid));
    }
}

/// Says that a test could not run, and why; the test harness would keep what eprintln! says.
#[cfg(test)]
fn skipped(test: &str, why: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(io::stderr(), "skipped: {test}: {why}");
}
