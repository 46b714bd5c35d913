//! Controller layer: how tasks get from where they are to where their group is.

use super::steps::{Place, Steps, Took};
use super::{Effective, Failure};
use crate::cgroup::{Change, Writer};
use crate::controllers::Ids;
use crate::inject::{InjectError, Namespace, Plan, Target};
use crate::nsproxy::{Answer, Dir, Holder, Ns, Nsproxy, Wanted, ino_of};
use crate::sys::{CAP_SYS_ADMIN, CAP_SYS_CHROOT, Errno, Machine, TaskInfo, Tid};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many generations are born at the most while their ancestor moves.
const GENERATIONS: usize = 16;

/// What entering a mount namespace takes.
const CAPS_MNT: u64 = CAP_SYS_ADMIN | CAP_SYS_CHROOT;

/// How long it is tried to bring a target back when injectors are killed, and what lies in between.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(5);

/// Where a member is at home, as far as its group has taken it elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskNs {
    /// By kind, in the order of [`Namespace::ALL`].
    home: Vec<Ns>,
    /// Its root directory.
    root: Option<Dir>,
}

impl TaskNs {
    fn get(&self, kind: Namespace) -> Option<&Ns> {
        find(&self.home, kind)
    }

    /// It is at home in what is not managed where it is, as all are.
    pub(super) fn forget(&mut self, there: &Effective) {
        self.home.retain(|ns| there.get(ns.kind()).is_some());
        self.root.take_if(|_| there.get(Namespace::Mnt).is_none() && there.root.is_none());
    }
}

/// Where a task was before a move: its child may still be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Was {
    /// Its process.
    tgid: Tid,
    /// Its namespaces of the kinds that were looked at, by inode number.
    namespaces: Vec<(Namespace, u64)>,
    /// Its root directory, and what `ns.root` said, where that matters.
    root: Option<(Dir, Option<Vec<u8>>)>,
    /// Where it was at home.
    pub(super) home: TaskNs,
}

impl Was {
    /// Whether a task is there.
    pub(super) fn is_of(&self, tid: Tid) -> bool {
        let something = !self.namespaces.is_empty() || self.root.is_some();
        let is_in = |(kind, ino): &(Namespace, u64)| ino_of(tid, *kind) == Ok(*ino);
        let is_below = |(root, _): &(Dir, _)| Dir::of(tid, "root").as_ref() == Ok(root);
        something && self.namespaces.iter().all(is_in) && self.root.as_ref().is_none_or(is_below)
    }

    /// Whether a task descends from its process, or is another thread of it. Others who are where it was are there for their own reasons.
    pub(super) fn has_made(&self, machine: &dyn Machine, tid: Tid, info: &TaskInfo) -> bool {
        if info.tgid == self.tgid {
            return tid != self.tgid;
        }
        let parent = |pid: &Tid| machine.task(*pid).ok().map(|info| info.ppid).filter(|pid| *pid > 1);
        std::iter::successors(Some(info.ppid), parent).take(GENERATIONS).any(|pid| pid == self.tgid)
    }

    /// Whether who has gone from there to what is effective in his new group, or home, is elsewhere now.
    pub(super) fn differs(&self, to: &Effective) -> bool {
        let goes = |kind| to.get(kind).or_else(|| self.home.get(kind)).map(Ns::ino);
        self.namespaces.iter().any(|(kind, ino)| goes(*kind).is_some_and(|now| now != *ino))
            || self.root.as_ref().is_some_and(|(_, path)| path.as_deref() != to.root())
    }

    /// What `ns.root` said.
    pub(super) fn path(&self) -> Option<&[u8]> {
        self.root.as_ref().and_then(|(_, path)| path.as_deref())
    }
}

/// On whose behalf tasks move.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) writer: Option<&'a Writer<'a>>,
    /// Whether he may do all that the server may. What a task is made to do is done by the server's rights.
    pub(super) trusted: bool,
}

/// Tasks of one process that move together.
pub(super) struct Party<'a> {
    pub(super) tgid: Tid,
    pub(super) ids: Ids,
    pub(super) changes: Vec<&'a mut Change>,
}

/// A move that can be taken back.
pub(super) struct Back {
    target: Target,
    plan: Plan,
    /// Holds the namespaces that the target was in.
    _keeper: Option<Holder>,
}

impl Back {
    /// Brings the target back to where it was.
    fn take(&self, proxy: &Nsproxy) {
        let end = Instant::now() + PATIENCE;
        loop {
            match proxy.inject(self.target, &self.plan, None) {
                // What an injector leaves behind when it is killed, its threads leave at once.
                Err(InjectError::Died { .. } | InjectError::NoRoom { .. }) if Instant::now() < end => std::thread::sleep(PAUSE),
                Err(InjectError::Gone { .. }) | Ok(_) => break,
                Err(error) => return log::warn!("task {} is not brought back to where it was: {error}", self.target.tid()),
            }
        }
    }
}

/// Brings those who have moved back, the last one first.
pub(super) fn take_back(machine: &dyn Machine, backs: &[Back]) {
    if let Ok(proxy) = proxy(machine) {
        backs.iter().rev().for_each(|back| back.take(proxy));
    }
}

/// What can be done to tasks' namespaces.
pub(super) fn proxy(machine: &dyn Machine) -> Result<&Nsproxy, Failure> {
    machine.nsproxy().ok_or(Failure::new(Errno::EOPNOTSUPP, "namespaces are not available here"))
}

/// Has the tasks enter what is effective in their new group, and go home where that does not say anything.
pub(super) fn enter(
    machine: &dyn Machine,
    party: &mut Party<'_>,
    (from, to): (&Effective, &Effective),
    by: By<'_>,
) -> Result<Option<Back>, Failure> {
    let way = Way::find(party, from, to)?;
    way.note(party)?;
    if way.differs.is_empty() && !way.moves_root {
        return Ok(None);
    }
    if !by.trusted {
        let why = "would have to be in other namespaces, which is for whoever may do all that this server may; mount one of your own";
        return Err(Failure::new(Errno::EPERM, format!("{}: {why}", way.tgid)));
    }
    let count = || machine.thread_count(way.tgid).map_err(at(way.tgid, "counting its threads"));
    let mut multi = count()? > 1;
    loop {
        way.permit(machine, multi)?;
        match way.go(machine, party, by.writer, multi) {
            // It has got another one meanwhile.
            Err(_) if !multi && count()? > 1 => multi = true,
            outcome => return outcome.map(Some),
        }
    }
}

/// The way of a party.
struct Way<'a> {
    tgid: Tid,
    /// Stands for all of them.
    first: Tid,
    from: &'a Effective,
    to: &'a Effective,
    home: TaskNs,
    /// Where it is to be, of all kinds that the new group manages or the old one did.
    wanted: Vec<Ns>,
    /// Where it is, of these.
    old: Vec<Ns>,
    /// Where somebody is not yet.
    differs: Vec<Ns>,
    moves_root: bool,
    /// Its directories, where they change.
    place: Option<Place>,
}

impl<'a> Way<'a> {
    /// # Errors
    /// EBUSY if they are not in the same namespaces; what looking at them says.
    fn find(party: &Party<'_>, from: &'a Effective, to: &'a Effective) -> Result<Self, Failure> {
        let first = party.changes.first().map_or(party.tgid, |change| change.tid);
        let home = party.changes.first().map(|change| change.known.ns.clone()).unwrap_or_default();
        let wanted: Vec<Ns> = Namespace::ALL.iter().filter_map(|kind| to.get(*kind).or_else(|| home.get(*kind)).cloned()).collect();
        let (mut old, mut differs) = (Vec::new(), Vec::new());
        for ns in &wanted {
            let kind = ns.kind();
            let before = Ns::of(first, kind).map_err(at(first, "looking at its namespaces"))?;
            let mut differ = before != *ns;
            for change in &party.changes {
                let now = match ino_of(change.tid, kind) {
                    Err(Errno::ESRCH) => continue,
                    now => now.map_err(at(change.tid, "looking at its namespaces"))?,
                };
                if now != before.ino() && change.tid != first {
                    let why = format!("its {kind} namespace is not that of its process's other threads; move them one by one");
                    return Err(Failure::new(Errno::EBUSY, format!("{}: {why}", change.tid)));
                }
                differ |= now != ns.ino();
            }
            differs.extend(differ.then(|| ns.clone()));
            old.push(before);
        }
        let mounts = find(&differs, Namespace::Mnt).is_some();
        let moves_root = from.root() != to.root() || mounts && (to.root.is_some() || home.root.is_some());
        let dir = |link, what| Dir::of(first, link).map_err(at(first, what));
        let place = match moves_root || mounts {
            true => {
                Some(Place { root: dir("root", "looking at its root directory")?, cwd: dir("cwd", "looking at its working directory")? })
            }
            false => None,
        };
        Ok(Self { tgid: party.tgid, first, from, to, home, wanted, old, differs, moves_root, place })
    }

    fn differ(&self, kind: Namespace) -> bool {
        find(&self.differs, kind).is_some()
    }

    /// Whether it goes home in this kind.
    fn leaves(&self, kind: Namespace) -> bool {
        self.to.get(kind).is_none()
    }

    /// Notes where they are, where they will be, and where they are at home then: where they are now, if they come from there.
    fn note(&self, party: &mut Party<'_>) -> Result<(), Failure> {
        let mut state = TaskNs::default();
        for (ns, _) in &self.to.ns {
            state.home.extend(self.home.get(ns.kind()).or_else(|| find(&self.old, ns.kind())).cloned());
        }
        if self.to.get(Namespace::Mnt).is_some() || self.to.root.is_some() {
            let known = self.home.root.as_ref().or(self.place.as_ref().map(|place| &place.root)).cloned();
            let root = known.map_or_else(|| Dir::of(self.first, "root"), Ok).map_err(at(self.first, "looking at its root directory"))?;
            state.root = Some(root);
        }
        let inos = |list: &[Ns]| list.iter().map(|ns| (ns.kind(), ns.ino())).collect();
        let root = self.place.as_ref().map(|place| (place.root.clone(), self.from.root().map(<[u8]>::to_vec)));
        let was = Arc::new(Was { tgid: self.tgid, namespaces: inos(&self.old), root, home: self.home.clone() });
        let given = Arc::new(Was { tgid: self.tgid, namespaces: inos(&self.wanted), root: None, home: state.clone() });
        for change in &mut party.changes {
            change.state.ns = state.clone();
            (change.before.ns, change.given.ns) = (Some(was.clone()), Some(given.clone()));
        }
        Ok(())
    }

    /// Refuses beforehand what the kernel would, or what could not be undone.
    ///
    /// # Errors
    /// EPERM for leaving a user namespace, and for another mount namespace or root directory without the rights; EINVAL and EUSERS for what a
    /// process with several threads cannot do.
    fn permit(&self, machine: &dyn Machine, multi: bool) -> Result<(), Failure> {
        let tgid = self.tgid;
        if self.differ(Namespace::User) && self.leaves(Namespace::User) {
            return Err(Failure::new(
                Errno::EPERM,
                format!("{tgid}: a user namespace cannot be left; end the process, or start it elsewhere"),
            ));
        }
        for (kind, errno, why) in [
            (Namespace::User, Errno::EINVAL, "with several threads cannot change its user namespace"),
            (Namespace::Time, Errno::EUSERS, "with several threads cannot change its time namespace"),
            (Namespace::PidForChildren, Errno::EINVAL, "with several threads could not make any more in another pid namespace"),
        ] {
            if multi && self.differ(kind) && !(kind == Namespace::PidForChildren && self.leaves(kind)) {
                return Err(Failure::new(errno, format!("{tgid}: a process {why}; start it in the group (cgfuse exec)")));
            }
        }
        // Descriptors of directories are handed over, and a process that shares its table could use them where this one may not go.
        if self.place.is_some() && !self.differ(Namespace::User) {
            let (first, mnt) = (self.first, find(&self.differs, Namespace::Mnt));
            let within = mnt.map_or(Ok(true), |ns| ns.is_within(first)).map_err(at(first, "looking at its namespaces"))?;
            let has = machine.creds(first).map_err(at(first, "looking at its rights"))?.cap_effective;
            if !within || has & CAPS_MNT != CAPS_MNT {
                let why =
                    "another mount namespace or root directory needs CAP_SYS_ADMIN and CAP_SYS_CHROOT in the user namespace that owns it";
                return Err(Failure::new(Errno::EPERM, format!("{first}: {why}")));
            }
        }
        Ok(())
    }

    /// Has them make the calls.
    fn go(&self, machine: &dyn Machine, party: &Party<'_>, writer: Option<&Writer<'_>>, multi: bool) -> Result<Back, Failure> {
        let (tgid, ids, proxy) = (self.tgid, party.ids, proxy(machine)?);
        let whole = ids == Ids::Processes;
        let own = std::process::id().cast_signed();
        let same_pids = Ns::active(tgid, Namespace::PidForChildren).ok() == Ns::active(own, Namespace::PidForChildren).ok();
        let tids = party.changes.iter().map(|change| change.tid).collect();
        let mounts = self.differ(Namespace::Mnt);
        let together = !whole || !mounts || proxy.enters_together();
        // There may be another thread by now.
        let shares_fs = whole && (multi || !together);
        let steps = Steps { plan: Plan::default(), shares_fs, together, same_pids, tids };

        let old: Vec<Ns> = self.old.iter().filter(|ns| self.differ(ns.kind())).cloned().collect();
        // Who shares a root directory with others can be brought back only by a process that is where it was.
        let keeper = (multi && mounts).then(|| self.hold(proxy, &old, "old")).transpose()?;
        let took = Took { old: &old, keeper: keeper.as_ref(), place: self.place.as_ref() };
        // As for the way back.
        let home: Vec<Ns> = self.differs.iter().filter(|ns| self.leaves(ns.kind())).cloned().collect();
        let shared = keeper.is_some() && find(&home, Namespace::Mnt).is_some();
        let guest = shared.then(|| self.hold(proxy, &home, "own")).transpose()?;
        // Others may share its directories: those of its threads that stay, or a process (CLONE_FS).
        let alone = (!whole || !multi) && (self.place.is_some() || self.differ(Namespace::User));
        let mut plan = self.there(steps.clone(), (&home, guest.as_ref()), took, alone);
        // Several threads would be separated from each other.
        plan.single = alone && whole;
        let target = if whole { Target::Process(tgid) } else { Target::Thread(self.first) };
        let back = Back { target, plan: self.back(steps, took, alone), _keeper: keeper };

        let is_ours = |writer: &Writer<'_>| machine.is_thread_of(tgid, writer.tid) && (whole || writer.tid == self.first);
        // Once he is answered, his thread does other things.
        let writer = writer.filter(|writer| is_ours(writer) && !writer.answered.get());
        let answer = || _ = writer.map(Writer::answer);
        let answer: Option<Answer<'_>> = writer.map(|writer| (writer.tid, &answer as &dyn Fn()));
        match proxy.inject(target, &plan, answer) {
            Ok(_) => Ok(back),
            Err(error) => {
                // Nobody was left to take back what some threads had done.
                if error == (InjectError::Died { modified: true }) {
                    back.take(proxy);
                }
                let whose = if matches!(error, InjectError::Died { .. }) { format!("{tgid}: ") } else { String::new() };
                Err(Failure::new(error.errno(), format!("{whose}{error}")))
            }
        }
    }

    fn hold(&self, proxy: &Nsproxy, namespaces: &[Ns], whose: &str) -> Result<Holder, Failure> {
        let held = proxy.hold(&Wanted { enter: namespaces.to_vec(), ..Wanted::default() });
        held.map_err(|error| Failure::new(error.errno, format!("{}: cannot hold its {whose} namespaces: {error}", self.tgid)))
    }

    /// The plan for going there, and home where that does not say anything, perhaps with somebody who is there. `alone`, others that share its
    /// directories stay behind.
    fn there(&self, mut steps: Steps, (home, guest): (&[Ns], Option<&Holder>), took: Took<'_>, alone: bool) -> Plan {
        if alone {
            steps.unshare_fs();
        }
        let there: Vec<Ns> = self.differs.iter().filter(|ns| !self.leaves(ns.kind())).cloned().collect();
        // Home first: what is effective may be owned by a user namespace that it is entered with.
        steps.enter(home, guest, took);
        steps.enter(&there, self.to.holder.as_deref(), took);
        if let Some(place) = self.place.as_ref().filter(|_| self.moves_root) {
            let is_there = |_: &&Dir| !self.differ(Namespace::Mnt) || self.leaves(Namespace::Mnt);
            steps.change_root(self.home.root.as_ref().filter(is_there), self.to.root(), place);
        }
        steps.plan.expect = self.differs.iter().map(|ns| (ns.kind(), ns.ino())).collect();
        steps.plan
    }

    /// The plan for coming back.
    fn back(&self, mut steps: Steps, took: Took<'_>, alone: bool) -> Plan {
        if alone {
            steps.unshare_fs();
        }
        steps.enter(took.old, took.keeper, Took { old: &[], keeper: None, place: took.place });
        if let Some(place) = &self.place {
            steps.go_back(place);
        }
        steps.plan
    }
}

fn find(namespaces: &[Ns], kind: Namespace) -> Option<&Ns> {
    namespaces.iter().find(|ns| ns.kind() == kind)
}

/// What a failed look at a task is told as.
fn at(tid: Tid, what: &str) -> impl FnOnce(Errno) -> Failure + use<'_> {
    move |errno| Failure::new(errno, format!("{tid}: {what}: {errno}"))
}

/// Whether a process has no more threads than these. A dead main thread is in no group.
pub(super) fn all_threads(machine: &dyn Machine, tgid: Tid, tasks: usize) -> bool {
    let is_dead = || machine.task(tgid).is_ok_and(|main| main.zombie);
    machine.thread_count(tgid).is_ok_and(|count| count <= tasks || count == tasks + 1 && is_dead())
}

/// Tasks by process, those of one together if they are all its threads, come from one place and are at home in one; this one's last.
pub(super) fn parties<'a>(
    machine: &dyn Machine,
    changes: &'a mut [Change],
    last: Tid,
    is_whole: impl Fn(Tid, usize) -> bool,
) -> Vec<Party<'a>> {
    let mut all: Vec<&'a mut Change> = changes.iter_mut().collect();
    all.sort_by_key(|change| (change.tgid, change.tid));
    let mut parties: Vec<Party<'a>> = Vec::new();
    for change in all {
        match parties.last_mut() {
            Some(party) if party.tgid == change.tgid => party.changes.push(change),
            _ => parties.push(Party { tgid: change.tgid, ids: Ids::Processes, changes: vec![change] }),
        }
    }
    let mut split = Vec::new();
    for party in parties {
        let tgid = party.tgid;
        let alike = party.changes.windows(2).all(|two| two[0].from == two[1].from && two[0].known.ns == two[1].known.ns);
        if alike && is_whole(tgid, party.changes.len()) {
            split.push(party);
        } else {
            split.extend(party.changes.into_iter().map(|change| Party { tgid, ids: Ids::Threads, changes: vec![change] }));
        }
    }
    split.sort_by_key(|party| machine.is_thread_of(party.tgid, last) && (party.ids == Ids::Processes || party.changes[0].tid == last));
    split
}
