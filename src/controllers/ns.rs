//! Controller layer: ns. A group's tasks are in its namespaces, running ones included: they are made to call setns(2) themselves.
//!
//! A kind that no group up to the root has is not managed: tasks keep what they have. A task that comes into a managed kind remembers
//! where it was at home, as its children do, and goes back there when it leaves. A group that has namespaces of its own has a holder: a
//! process that is in all that are effective there, so that one setns(2) into it enters them together.

use super::{CftFlags, Cftype, Checked, Show, Store, Subsys, TaskState};
use crate::cgroup::{Attach, Birth, CgroupId, Change, Locked, ROOT, Tree, Writer, parse};
use crate::controllers::Ids;
use crate::error::{Error, Result};
use crate::inject::{Arg, Descriptor, InjectError, Invocation, Namespace, Plan, Syscall, Target};
use crate::nsproxy::{Answer, Dir, Holder, Ns, Nsproxy, Wanted, flag, identity, ino_of};
use crate::sys::{CAP_SYS_ADMIN, CAP_SYS_CHROOT, Errno, Machine, TaskInfo, Tid};
use nix::sched::CloneFlags;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many generations are born at the most while their ancestor moves.
const GENERATIONS: usize = 16;

/// So old, in clock ticks of /proc, is at the most who may have been born during a move that is remembered.
const YOUNG: u64 = 300;

/// What entering a mount namespace takes.
const CAPS_MNT: u64 = CAP_SYS_ADMIN | CAP_SYS_CHROOT;

/// How long it is tried to bring a target back when injectors are killed, and what lies in between.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(5);

/// A namespace that a group has of its own.
#[derive(Clone, Debug)]
struct Own {
    ns: Ns,
    /// Of a pid namespace that was made for the group: its init.
    _init: Option<Arc<Holder>>,
}

/// A group's namespaces.
#[derive(Clone, Debug, Default)]
pub struct Css {
    own: Vec<Own>,
    /// `ns.root`, if it has one of its own.
    root: Option<Vec<u8>>,
    /// In all namespaces that are effective here; of groups that have some of their own.
    holder: Option<Arc<Holder>>,
    /// Why the last move into the group has failed.
    last_error: Vec<u8>,
    /// Of the root: how many groups have something of their own.
    managing: usize,
}

impl Css {
    fn manages(&self) -> bool {
        !self.own.is_empty() || self.root.is_some()
    }

    fn get(&self, kind: Namespace) -> Option<&Ns> {
        self.own.iter().map(|own| &own.ns).find(|ns| ns.kind() == kind)
    }
}

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
        self.home.iter().find(|ns| ns.kind() == kind)
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
    home: TaskNs,
}

impl Was {
    /// Whether a task is there.
    fn is_of(&self, tid: Tid) -> bool {
        let something = !self.namespaces.is_empty() || self.root.is_some();
        let is_in = |(kind, ino): &(Namespace, u64)| ino_of(tid, *kind) == Ok(*ino);
        let is_below = |(root, _): &(Dir, _)| Dir::of(tid, "root").as_ref() == Ok(root);
        something && self.namespaces.iter().all(is_in) && self.root.as_ref().is_none_or(is_below)
    }

    /// Whether a task descends from its process, or is another thread of it. Others who are where it was are there for their own reasons.
    fn has_made(&self, machine: &dyn Machine, tid: Tid, info: &TaskInfo) -> bool {
        if info.tgid == self.tgid {
            return tid != self.tgid;
        }
        let parent = |pid: &Tid| machine.task(*pid).ok().map(|info| info.ppid).filter(|pid| *pid > 1);
        std::iter::successors(Some(info.ppid), parent).take(GENERATIONS).any(|pid| pid == self.tgid)
    }

    /// Whether who has gone from there to what is effective in his new group, or home, is elsewhere now.
    fn differs(&self, to: &Effective) -> bool {
        let goes = |kind| to.get(kind).or_else(|| self.home.get(kind)).map(Ns::ino);
        self.namespaces.iter().any(|(kind, ino)| goes(*kind).is_some_and(|now| now != *ino))
            || self.root.as_ref().is_some_and(|(_, path)| path.as_deref() != to.root())
    }
}

/// What a group's tasks are to be in.
#[derive(Clone, Debug, Default)]
struct Effective {
    /// With the groups that have them.
    ns: Vec<(Ns, CgroupId)>,
    root: Option<(Vec<u8>, CgroupId)>,
    holder: Option<Arc<Holder>>,
}

impl Effective {
    fn get(&self, kind: Namespace) -> Option<&Ns> {
        self.ns.iter().map(|(ns, _)| ns).find(|ns| ns.kind() == kind)
    }

    fn root(&self) -> Option<&[u8]> {
        self.root.as_ref().map(|(path, _)| path.as_slice())
    }

    fn is_empty(&self) -> bool {
        self.ns.is_empty() && self.root.is_none()
    }
}

/// What is effective in a group; `css` are the states of groups that are about to get them.
fn effective(tree: &Tree, id: CgroupId, css: &[(CgroupId, Css)]) -> Effective {
    let mut found = Effective::default();
    let mut next = id;
    while let Ok(group) = tree.get(next) {
        let own = css.iter().find(|(id, _)| *id == next).map_or(&group.css.ns, |(_, css)| css);
        for own in &own.own {
            if found.get(own.ns.kind()).is_none() {
                found.ns.push((own.ns.clone(), next));
            }
        }
        if found.root.is_none() {
            found.root = own.root.clone().map(|path| (path, next));
        }
        found.holder = found.holder.or_else(|| own.holder.clone());
        if next == ROOT {
            break;
        }
        next = group.parent;
    }
    found.ns.sort_by_key(|(ns, _)| ns.kind() as u8);
    found
}

/// A failed move, told in full.
#[derive(Debug)]
struct Failure {
    errno: Errno,
    why: String,
}

impl Failure {
    fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.errno.into()
    }
}

/// A move that can be taken back.
struct Back {
    target: Target,
    plan: Plan,
    /// Holds the namespaces that the target was in.
    _holder: Option<Holder>,
}

/// On whose behalf tasks move.
#[derive(Clone, Copy)]
struct By<'a> {
    writer: Option<&'a Writer<'a>>,
    /// Whether he may do all that the server may. What a task is made to do is done by the server's rights.
    trusted: bool,
}

/// Tasks of one process that move together.
struct Party<'a> {
    tgid: Tid,
    ids: Ids,
    changes: Vec<&'a mut Change>,
}

fn proxy(machine: &dyn Machine) -> std::result::Result<&Nsproxy, Failure> {
    machine.nsproxy().ok_or(Failure::new(Errno::EOPNOTSUPP, "namespaces are not available here"))
}

/// Has the tasks enter what is effective in their new group, and go home where that does not say anything.
fn enter(
    machine: &dyn Machine,
    party: &mut Party<'_>,
    (from, to): (&Effective, &Effective),
    by: By<'_>,
) -> std::result::Result<Option<Back>, Failure> {
    let (tgid, ids) = (party.tgid, party.ids);
    let fail = |tid: Tid, what: &str| {
        let what = what.to_owned();
        move |errno: Errno| Failure::new(errno, format!("{tid}: {what}: {errno}"))
    };
    let first = party.changes.first().map_or(tgid, |change| change.tid);
    let home = party.changes.first().map(|change| change.known.ns.clone()).unwrap_or_default();
    // Where everybody is to be, of all kinds that this or the old group manages.
    let wanted: Vec<Ns> = Namespace::ALL.iter().filter_map(|kind| to.get(*kind).or_else(|| home.get(*kind)).cloned()).collect();
    let mut old: Vec<Ns> = Vec::new();
    let mut differs: Vec<Ns> = Vec::new();
    for ns in &wanted {
        let kind = ns.kind();
        let before = Ns::of(first, kind).map_err(fail(first, "looking at its namespaces"))?;
        let mut differ = before != *ns;
        for change in &party.changes {
            let now = match ino_of(change.tid, kind) {
                Err(Errno::ESRCH) => continue,
                now => now.map_err(fail(change.tid, "looking at its namespaces"))?,
            };
            if now != before.ino() && change.tid != first {
                return Err(Failure::new(
                    Errno::EBUSY,
                    format!("{}: its {kind} namespace is not that of its process's other threads; move them one by one", change.tid),
                ));
            }
            differ |= now != ns.ino();
        }
        if differ {
            differs.push(ns.clone());
        }
        old.push(before);
    }
    let differ = |kind: Namespace| differs.iter().any(|ns| ns.kind() == kind);
    let moves_root = from.root() != to.root() || differ(Namespace::Mnt) && (to.root.is_some() || home.root.is_some());
    // What they have now is what they go home to.
    let mut state = TaskNs { home: Vec::new(), root: None };
    for (ns, _) in &to.ns {
        let known = home.get(ns.kind()).or_else(|| old.iter().find(|old| old.kind() == ns.kind()));
        state.home.extend(known.cloned());
    }
    if to.get(Namespace::Mnt).is_some() || to.root.is_some() {
        state.root = match &home.root {
            Some(root) => Some(root.clone()),
            None => Some(Dir::of(first, "root").map_err(fail(first, "looking at its root directory"))?),
        };
    }
    let root = match moves_root || differ(Namespace::Mnt) {
        true => Some((Dir::of(first, "root").map_err(fail(first, "looking at its root directory"))?, from.root().map(<[u8]>::to_vec))),
        false => None,
    };
    let inos = |list: &[Ns]| list.iter().map(|ns| (ns.kind(), ns.ino())).collect();
    let was = Arc::new(Was { tgid, namespaces: inos(&old), root: root.clone(), home: home.clone() });
    let given = Arc::new(Was { tgid, namespaces: inos(&wanted), root: None, home: state.clone() });
    for change in &mut party.changes {
        change.state.ns = state.clone();
        (change.before.ns, change.given.ns) = (Some(was.clone()), Some(given.clone()));
    }
    if differs.is_empty() && !moves_root {
        return Ok(None);
    }
    if !by.trusted {
        let why = "would have to be in other namespaces, which is for whoever may do all that this server may; mount one of your own";
        return Err(Failure::new(Errno::EPERM, format!("{tgid}: {why}")));
    }

    let multi = machine.thread_count(tgid).map_err(fail(tgid, "counting its threads"))? > 1;
    let leaves = |kind: Namespace| to.get(kind).is_none();
    if differ(Namespace::User) && leaves(Namespace::User) {
        return Err(Failure::new(Errno::EPERM, format!("{tgid}: a user namespace cannot be left; end the process, or start it elsewhere")));
    }
    for (kind, errno, why) in [
        (Namespace::User, Errno::EINVAL, "with several threads cannot change its user namespace"),
        (Namespace::Time, Errno::EUSERS, "with several threads cannot change its time namespace"),
        (Namespace::PidForChildren, Errno::EINVAL, "with several threads could not make any more in another pid namespace"),
    ] {
        if multi && differ(kind) && !(kind == Namespace::PidForChildren && leaves(kind)) {
            return Err(Failure::new(errno, format!("{tgid}: a process {why}; start it in the group (cgfuse exec)")));
        }
    }
    // Descriptors of directories are handed over, and a process that shares its table could use them where this one may not go.
    if (moves_root || differ(Namespace::Mnt)) && !differ(Namespace::User) {
        let mnt = differs.iter().find(|ns| ns.kind() == Namespace::Mnt);
        let within = mnt.map_or(Ok(true), |ns| ns.is_within(first)).map_err(fail(first, "looking at its namespaces"))?;
        let has = machine.creds(first).map_err(fail(first, "looking at its rights"))?.cap_effective;
        if !within || has & CAPS_MNT != CAPS_MNT {
            let why = "another mount namespace or root directory needs CAP_SYS_ADMIN and CAP_SYS_CHROOT in the user namespace that owns it";
            return Err(Failure::new(Errno::EPERM, format!("{first}: {why}")));
        }
    }
    let proxy = proxy(machine)?;
    // Its numbers are ours.
    let same_pids =
        Ns::active(tgid, Namespace::PidForChildren).ok() == Ns::active(std::process::id().cast_signed(), Namespace::PidForChildren).ok();
    let shares_fs = multi && ids == Ids::Processes;
    let tids: Vec<Tid> = party.changes.iter().map(|change| change.tid).collect();
    let mut steps = Steps { plan: Plan::default(), multi, shares_fs, same_pids, tids };
    let cwd = Dir::of(first, "cwd").map_err(fail(first, "looking at its working directory"))?;
    let root = root.map_or_else(|| Dir::of(first, "root"), |(root, _)| Ok(root)).map_err(fail(first, "looking at its root directory"))?;
    let old: Vec<Ns> = old.into_iter().filter(|ns| differ(ns.kind())).collect();
    // Who shares a root directory with others can be brought back only by a process that is where it was.
    let keeper = if steps.multi && differ(Namespace::Mnt) {
        Some(
            proxy
                .hold(&Wanted { enter: old.clone(), ..Wanted::default() })
                .map_err(|error| Failure::new(error.errno, format!("{tgid}: cannot hold its old namespaces: {error}")))?,
        )
    } else {
        None
    };
    if multi && ids == Ids::Threads && (differ(Namespace::Mnt) || moves_root) {
        steps.plan.step(Invocation::new(Syscall::Unshare, [CloneFlags::CLONE_FS.bits().into()]), Vec::new());
    }
    let (there, back): (Vec<Ns>, Vec<Ns>) = differs.iter().cloned().partition(|ns| !leaves(ns.kind()));
    // Home first: what is effective may be owned by a user namespace that it is entered with.
    let guest = match &keeper {
        Some(_) if back.iter().any(|ns| ns.kind() == Namespace::Mnt) => Some(
            proxy
                .hold(&Wanted { enter: back.clone(), ..Wanted::default() })
                .map_err(|error| Failure::new(error.errno, format!("{tgid}: cannot hold its own namespaces: {error}")))?,
        ),
        _ => None,
    };
    let took = Took { old: &old, keeper: keeper.as_ref(), root: &root, cwd: &cwd };
    steps.enter(&back, guest.as_ref(), &took);
    steps.enter(&there, to.holder.as_deref(), &took);
    if moves_root {
        let undo = steps.restore(&root, Some(&cwd));
        let base = home.root.as_ref().filter(|_| !differ(Namespace::Mnt) || leaves(Namespace::Mnt));
        let mut calls = base.map(|dir| steps.restore(dir, None)).unwrap_or_default();
        if let Some(path) = to.root() {
            let path = steps.plan.data([path, b"\0"].concat());
            calls.push(Invocation::new(Syscall::Chroot, [path]));
        }
        let slash = steps.plan.data(&b"/\0"[..]);
        calls.push(Invocation::new(Syscall::Chdir, [slash]));
        for call in calls {
            steps.plan.step(call, undo.clone());
        }
    }
    let Steps { mut plan, tids, .. } = steps;
    plan.expect = differs.iter().map(|ns| (ns.kind(), ns.ino())).collect();
    let target = if ids == Ids::Processes { Target::Process(tgid) } else { Target::Thread(first) };
    let is_ours = |writer: &Writer<'_>| machine.is_thread_of(tgid, writer.tid) && (ids == Ids::Processes || writer.tid == first);
    // Once he is answered, his thread does other things.
    let writer = by.writer.filter(|writer| is_ours(writer) && !writer.answered.get());
    let answer = || _ = writer.map(Writer::answer);
    let answer: Option<Answer<'_>> = writer.map(|writer| (writer.tid, &answer as &dyn Fn()));
    let mut back = Steps { plan: Plan::default(), multi, shares_fs, same_pids, tids };
    back.enter(&old, keeper.as_ref(), &Took { old: &[], keeper: None, root: &root, cwd: &cwd });
    if moves_root || differ(Namespace::Mnt) {
        for call in back.restore(&root, Some(&cwd)) {
            back.plan.step(call, Vec::new());
        }
    }
    let back = Back { target, plan: back.plan, _holder: keeper };
    match proxy.inject(target, &plan, answer) {
        Ok(_) => Ok(Some(back)),
        Err(error) => {
            // Nobody was left to take back what some threads had done.
            if error == (InjectError::Died { modified: true }) {
                back.take(proxy);
            }
            Err(Failure::new(error.errno(), error.to_string()))
        }
    }
}

/// What a step takes back, if it comes to that.
struct Took<'a> {
    old: &'a [Ns],
    keeper: Option<&'a Holder>,
    root: &'a Dir,
    cwd: &'a Dir,
}

/// A plan in the making.
struct Steps {
    plan: Plan,
    multi: bool,
    /// All threads that share a root directory are moved.
    shares_fs: bool,
    same_pids: bool,
    /// Who moves.
    tids: Vec<Tid>,
}

impl Steps {
    fn pidfd(&mut self, holder: &Holder) -> Arg {
        let file = Descriptor::File(holder.pidfd.clone());
        self.plan.fd(if self.same_pids { Descriptor::Pidfd(holder.pid) } else { file })
    }

    /// Into these: together if somebody is there who can be followed, else one by one.
    fn enter(&mut self, to: &[Ns], holder: Option<&Holder>, took: &Took<'_>) {
        if to.is_empty() {
            return;
        }
        let kinds: Vec<Namespace> = to.iter().map(Ns::kind).collect();
        let undo = self.undo(&kinds, took);
        let Some(holder) = holder else {
            for ns in to {
                let fd = self.plan.fd(Descriptor::File(ns.share()));
                let undo = self.undo(&[ns.kind()], took);
                self.plan.step(Invocation::new(Syscall::Setns, [fd, flag(ns.kind()).bits().into()]), undo);
            }
            return;
        };
        let (mask, alone) = self.mask(&kinds, holder);
        if alone {
            self.plan.step(Invocation::new(Syscall::Unshare, [CloneFlags::CLONE_FS.bits().into()]), Vec::new());
        }
        let fd = self.pidfd(holder);
        self.plan.step(Invocation::new(Syscall::Setns, [fd, mask.bits().into()]), undo);
    }

    /// The flags for entering these kinds of a holder's, and whether each thread must have directories of its own for that: threads that share
    /// them cannot enter a mount namespace alone, but with another kind, which is one that they have in common with the holder.
    fn mask(&self, kinds: &[Namespace], holder: &Holder) -> (CloneFlags, bool) {
        let mask: CloneFlags = kinds.iter().map(|kind| flag(*kind)).collect();
        if mask != CloneFlags::CLONE_NEWNS || !self.multi || !self.shares_fs {
            return (mask, false);
        }
        // The dead are nowhere.
        let is_in = |tid: Tid, kind, ino| ino_of(tid, kind).map_or_else(|errno| errno == Errno::ESRCH, |now| now == ino);
        let common = |kind: &Namespace| ino_of(holder.pid, *kind).is_ok_and(|ino| self.tids.iter().all(|tid| is_in(*tid, *kind, ino)));
        match [Namespace::Uts, Namespace::Ipc, Namespace::Net, Namespace::Cgroup].into_iter().find(common) {
            Some(kind) => (mask | flag(kind), false),
            None => (mask, true),
        }
    }

    /// The calls that bring a thread back from these kinds.
    fn undo(&mut self, kinds: &[Namespace], took: &Took<'_>) -> Vec<Invocation> {
        let old: Vec<&Ns> = took.old.iter().filter(|ns| kinds.contains(&ns.kind())).collect();
        let mut calls = Vec::new();
        match took.keeper {
            Some(keeper) if kinds.contains(&Namespace::Mnt) => {
                let kinds: Vec<Namespace> = old.iter().map(|ns| ns.kind()).collect();
                let (mask, alone) = self.mask(&kinds, keeper);
                if alone {
                    calls.push(Invocation::new(Syscall::Unshare, [CloneFlags::CLONE_FS.bits().into()]));
                }
                let fd = self.plan.fd(Descriptor::File(keeper.pidfd.clone()));
                calls.push(Invocation::new(Syscall::Setns, [fd, mask.bits().into()]));
            }
            _ => {
                for ns in old {
                    let fd = self.plan.fd(Descriptor::File(ns.share()));
                    calls.push(Invocation::new(Syscall::Setns, [fd, flag(ns.kind()).bits().into()]));
                }
            }
        }
        if kinds.contains(&Namespace::Mnt) {
            calls.extend(self.restore(took.root, Some(took.cwd)));
        }
        calls
    }

    /// The calls that bring root and working directory back.
    fn restore(&mut self, root: &Dir, cwd: Option<&Dir>) -> Vec<Invocation> {
        let fd = self.plan.fd(Descriptor::File(root.share()));
        let here = self.plan.data(&b".\0"[..]);
        let mut calls = vec![Invocation::new(Syscall::Fchdir, [fd]), Invocation::new(Syscall::Chroot, [here])];
        if let Some(cwd) = cwd {
            let fd = self.plan.fd(Descriptor::File(cwd.share()));
            calls.push(Invocation::new(Syscall::Fchdir, [fd]));
        }
        calls
    }
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

/// Makes the reason known: in the log, and in `ns.last_error`.
fn tell(locked: &Locked<'_>, id: CgroupId, failure: &Failure) {
    let path = locked.tree().path(id);
    log::warn!("group {}: {}", path.escape_ascii(), failure.why);
    locked.change(|tree| {
        if let Ok(group) = tree.get_mut(id) {
            group.css.ns.last_error = failure.why.clone().into_bytes();
        }
    });
}

fn forget_error(locked: &Locked<'_>, id: CgroupId) {
    if locked.tree().get(id).is_ok_and(|group| !group.css.ns.last_error.is_empty()) {
        locked.change(|tree| tree.get_mut(id).map(|group| group.css.ns.last_error.clear())).unwrap_or_default();
    }
}

/// The controller.
pub static SUBSYS: Subsys = Subsys {
    name: "ns",
    files: FILES,
    css_online: |_, _| (),
    css_offline,
    is_slow: |tree, _| !manages_none(tree),
    can_attach: |_, _, _, _| Ok(()),
    prepare_attach,
    // The last controller: what it has done is done, and it takes back itself what fails in the middle.
    cancel_attach: |_, _| (),
    attach: |_, _, _| (),
    check,
    hotplug: |_| (),
};

/// Whether no group has anything of its own, so that nobody is anywhere for its sake.
fn manages_none(tree: &Tree) -> bool {
    tree.get(ROOT).is_ok_and(|root| root.css.ns.managing == 0)
}

/// Forgets all namespaces; members stay where they are.
pub fn unpin(tree: &mut Tree) {
    for id in tree.ids() {
        if let Ok(group) = tree.get_mut(id) {
            group.css.ns = Css::default();
        }
    }
}

fn css_offline(tree: &mut Tree, id: CgroupId) {
    let manages = tree.get(id).is_ok_and(|group| group.css.ns.manages());
    if let Ok(root) = tree.get_mut(ROOT) {
        root.css.ns.managing -= usize::from(manages);
    }
}

fn prepare_attach(locked: &Locked<'_>, attach: &Attach<'_>, changes: &mut [Change]) -> Result<()> {
    let machine = locked.machine();
    let from = |id: CgroupId| effective(&locked.tree(), id, &[]);
    let is_managed = |id: CgroupId| !from(id).is_empty();
    let mut origins: Vec<CgroupId> = Vec::new();
    if manages_none(&locked.tree()) {
        return Ok(());
    }
    changes.iter().for_each(|change| {
        if !origins.contains(&change.from) {
            origins.push(change.from)
        }
    });
    if !is_managed(attach.to) && !origins.into_iter().any(is_managed) {
        return Ok(());
    }
    if let Err(failure) = revive(locked, attach.to) {
        tell(locked, attach.to, &failure);
        return Err(failure.into());
    }
    let to = effective(&locked.tree(), attach.to, &[]);
    let by = By { writer: attach.writer, trusted: attach.writer.is_none_or(|writer| writer.opener_uid == locked.owner()) };
    let mut backs = Vec::new();
    let is_whole = |tgid, tasks| attach.whole || all_threads(machine, tgid, tasks);
    let moved = parties(machine, changes, attach.writer.map_or(0, |writer| writer.tid), is_whole).into_iter().try_for_each(|mut party| {
        let from = from(party.changes.first().map_or(attach.to, |change| change.from));
        enter(machine, &mut party, (&from, &to), by).map(|back| backs.extend(back))
    });
    if let Err(failure) = moved {
        if let Ok(proxy) = proxy(machine) {
            backs.iter().rev().for_each(|back: &Back| back.take(proxy));
        }
        tell(locked, attach.to, &failure);
        return Err(failure.into());
    }
    forget_error(locked, attach.to);
    Ok(())
}

/// A child that was born before its creator's move reached it, and has what he had then, goes after him.
fn check(
    machine: &dyn Machine,
    tree: &Tree,
    id: CgroupId,
    tid: Tid,
    state: &mut TaskState,
    birth: &Birth,
) -> std::result::Result<Checked, Errno> {
    let mut places = birth.previous.iter().filter_map(|before| before.ns.as_ref()).peekable();
    if places.peek().is_none() {
        return Ok(Checked::True);
    }
    let info = machine.task(tid)?;
    // Who is older has been moved himself.
    if machine.uptime().is_some_and(|now| now.saturating_sub(info.start_time) > YOUNG) {
        return Ok(Checked::True);
    }
    let to = effective(tree, id, &[]);
    let Some(was) = places.find(|was| was.has_made(machine, tid, &info) && was.is_of(tid) && was.differs(&to)) else {
        return Ok(Checked::True);
    };
    let root = was.root.as_ref().and_then(|(_, path)| path.clone()).map(|path| (path, ROOT));
    let from = Effective { root, ..Effective::default() };
    let ids = if info.tgid == tid { Ids::Processes } else { Ids::Threads };
    let known = TaskState { ns: was.home.clone(), ..state.clone() };
    let mut change = Change::of_child(tid, info.tgid, id, known);
    let mut party = Party { tgid: info.tgid, ids, changes: vec![&mut change] };
    match enter(machine, &mut party, (&from, &to), By { writer: None, trusted: true }) {
        Ok(_) => {
            state.ns = change.state.ns;
            Ok(Checked::True)
        }
        Err(Failure { errno: Errno::ESRCH, .. }) => Err(Errno::ESRCH),
        Err(failure) => {
            log::warn!("a child is not in its group's namespaces: {}", failure.why);
            Err(failure.errno)
        }
    }
}

/// What is written to a file of a kind.
enum Request {
    Inherit,
    New,
    Adopt(Ns),
}

/// A number of a process or a path, `new` or `inherit`.
fn request(locked: &Locked<'_>, writer: &Writer<'_>, kind: Namespace, text: &[u8]) -> Result<Request> {
    match text {
        b"inherit" => Ok(Request::Inherit),
        b"new" => Ok(Request::New),
        [b'/', ..] => {
            let path = std::str::from_utf8(text).map_err(|_| Error::Invalid)?;
            Ok(Request::Adopt(Ns::open(Path::new(path), kind)?))
        }
        _ => match Ns::active(locked.target(writer, parse::pid(text)?)?, kind) {
            Ok(ns) => Ok(Request::Adopt(ns)),
            Err(Errno::EACCES) => Err(Error::Perm),
            Err(errno) => Err(errno.into()),
        },
    }
}

fn store(locked: &Locked<'_>, writer: &Writer<'_>, id: CgroupId, kind: Namespace, text: &[u8]) -> Result<()> {
    // We look, make and move with our rights, so whoever has fewer does not do it through us.
    if !locked.is_trusted(writer) {
        return Err(Error::Perm);
    }
    let request = request(locked, writer, kind, text)?;
    let mut css = locked.tree().get(id)?.css.ns.clone();
    match (&request, css.get(kind)) {
        (Request::Inherit, None) => return Ok(()),
        (Request::Adopt(ns), Some(own)) if ns == own => return Ok(()),
        _ => {}
    }
    css.own.retain(|own| own.ns.kind() != kind);
    css.holder = None;
    let mut wanted = Wanted::default();
    let made = match request {
        // Whoever owns it, or one above it, has power over a holder there, which must not be able to do more than he.
        Request::Adopt(ns) if kind == Namespace::User && !ns.is_safe(locked.owner()) => Err(Failure::new(
            Errno::EPERM,
            "the user namespace is not one of this server's user, made where the server is; his processes there are for a server of his own",
        )),
        request => {
            match request {
                Request::Inherit => {}
                Request::Adopt(ns) => css.own.push(Own { ns, _init: None }),
                Request::New => wanted.new.push(kind),
            }
            change(locked, writer, id, css, Some(wanted))
        }
    };
    if let Err(failure) = &made {
        tell(locked, id, failure);
    }
    Ok(made?)
}

/// Gives a group another state: makes holders for it and those below that share it if it has other namespaces, and moves all members, or changes
/// nothing.
fn change(locked: &Locked<'_>, writer: &Writer<'_>, id: CgroupId, css: Css, wanted: Option<Wanted>) -> std::result::Result<(), Failure> {
    let mut subtree = locked.tree().subtree(id);
    let states = match wanted {
        Some(wanted) => held(locked, &subtree, (id, css), wanted)?,
        None => vec![(id, css)],
    };
    let old = swap(locked, states);
    // Whoever is let go before the end sees the new state, and what fails behind him would not be told: the writer comes last.
    let home = locked.cgroup_of(writer.tid);
    subtree.sort_by_key(|group| *group == home);
    let backs: Mutex<Vec<Back>> = Mutex::default();
    for (n, group) in subtree.iter().enumerate() {
        let Err(failure) = move_members(locked, writer, *group, &old, &backs) else { continue };
        if let Ok(proxy) = proxy(locked.machine()) {
            backs.into_inner().iter().rev().for_each(|back| back.take(proxy));
        }
        swap(locked, old);
        for group in &subtree[..n] {
            let there = effective(&locked.tree(), *group, &[]);
            let forget = |changes: &mut [Change]| {
                for change in changes {
                    change.state.ns.home.retain(|ns| there.get(ns.kind()).is_some());
                    change.state.ns.root.take_if(|_| there.get(Namespace::Mnt).is_none() && there.root.is_none());
                }
                Ok(())
            };
            let _ = locked.update_tasks(*group, forget, || ());
        }
        return Err(failure);
    }
    Ok(())
}

/// The new states of a group and of those below it that have something of their own, with their holders.
fn held(
    locked: &Locked<'_>,
    subtree: &[CgroupId],
    (id, css): (CgroupId, Css),
    mut wanted: Wanted,
) -> std::result::Result<Vec<(CgroupId, Css)>, Failure> {
    let proxy = proxy(locked.machine())?;
    let mut states = vec![(id, css)];
    for group in subtree.iter().copied() {
        let (there, mut css) = {
            let tree = locked.tree();
            let css = if group == id { Ok(states[0].1.clone()) } else { tree.get(group).map(|group| group.css.ns.clone()) };
            let Ok(css) = css else { continue };
            (effective(&tree, group, &states), css)
        };
        let mut wanted = if group == id { std::mem::take(&mut wanted) } else { Wanted::default() };
        if css.own.is_empty() && wanted.new.is_empty() {
            continue;
        }
        wanted.enter = there.ns.into_iter().map(|(ns, _)| ns).collect();
        let held = proxy.hold(&wanted).map(Arc::new);
        let holder = held.map_err(|error| Failure::new(error.errno, format!("the group's namespaces cannot be made or held: {error}")))?;
        for kind in wanted.new {
            let new = Ns::active(holder.pid, kind);
            let ns = new.map_err(|errno| Failure::new(errno, format!("looking at the new {kind} namespace: {errno}")))?;
            css.own.push(Own { ns, _init: (kind == Namespace::PidForChildren).then(|| holder.clone()) });
        }
        css.holder = Some(holder);
        states.retain(|(other, _)| *other != group);
        states.push((group, css));
    }
    Ok(states)
}

/// Makes a new holder for what is effective in a group, if the one that it has has died.
fn revive(locked: &Locked<'_>, id: CgroupId) -> std::result::Result<(), Failure> {
    let found = {
        let tree = locked.tree();
        let way = std::iter::successors(Some(id), |id| tree.get(*id).ok().map(|group| group.parent).filter(|_| *id != ROOT));
        let mut groups = way.filter_map(|id| Some((id, tree.get(id).ok()?.css.ns.clone())));
        groups.find(|(_, css)| css.holder.is_some())
    };
    let Some((id, css)) = found.filter(|(_, css)| css.holder.as_ref().is_some_and(|holder| !holder.is_alive())) else { return Ok(()) };
    let states = held(locked, &[id], (id, css), Wanted::default())?;
    swap(locked, states);
    Ok(())
}

/// Puts these states in place; those that were there.
fn swap(locked: &Locked<'_>, states: Vec<(CgroupId, Css)>) -> Vec<(CgroupId, Css)> {
    locked.change(|tree| {
        let mut old = Vec::new();
        let mut managing = 0;
        for (group, css) in states {
            let Ok(found) = tree.get_mut(group) else { continue };
            managing += isize::from(css.manages()) - isize::from(found.css.ns.manages());
            old.push((group, std::mem::replace(&mut found.css.ns, Css { last_error: Vec::new(), ..css })));
        }
        if let Ok(root) = tree.get_mut(ROOT) {
            root.css.ns.managing = root.css.ns.managing.saturating_add_signed(managing);
        }
        old
    })
}

/// Has the members of a group, which were where `old` says, go where the group is now.
fn move_members(
    locked: &Locked<'_>,
    writer: &Writer<'_>,
    group: CgroupId,
    old: &[(CgroupId, Css)],
    backs: &Mutex<Vec<Back>>,
) -> std::result::Result<(), Failure> {
    let machine = locked.machine();
    revive(locked, group)?;
    let by = By { writer: Some(writer), trusted: locked.is_trusted(writer) };
    let (from, to) = {
        let tree = locked.tree();
        (effective(&tree, group, old), effective(&tree, group, &[]))
    };
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    let apply = |changes: &mut [Change]| {
        parties(machine, changes, writer.tid, |tgid, tasks| all_threads(machine, tgid, tasks)).into_iter().try_for_each(|mut party| {
            match enter(machine, &mut party, (&from, &to), by) {
                Ok(back) => backs.lock().extend(back),
                Err(Failure { errno: Errno::ESRCH, .. }) => {
                    party.changes.iter_mut().for_each(|change| change.gone = machine.affinity(change.tid).is_err());
                }
                Err(error) => {
                    let errno = error.errno;
                    *failure.lock() = Some(error);
                    return Err(Error::Sys(errno));
                }
            }
            Ok(())
        })
    };
    let moved = locked.update_tasks(group, apply, || ());
    moved.map_err(|error| failure.into_inner().unwrap_or(Failure::new(error.errno(), error.to_string())))
}

/// Whether a process has no more threads than these. A dead main thread is in no group.
fn all_threads(machine: &dyn Machine, tgid: Tid, tasks: usize) -> bool {
    let is_dead = || machine.task(tgid).is_ok_and(|main| main.zombie);
    machine.thread_count(tgid).is_ok_and(|count| count <= tasks || count == tasks + 1 && is_dead())
}

/// Tasks by process, those of one together if they are all its threads, come from one place and are at home in one; this one's last.
fn parties<'a>(machine: &dyn Machine, changes: &'a mut [Change], last: Tid, is_whole: impl Fn(Tid, usize) -> bool) -> Vec<Party<'a>> {
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

fn store_root(locked: &Locked<'_>, writer: &Writer<'_>, id: CgroupId, text: &[u8]) -> Result<()> {
    // A root directory that somebody has made up deceives programs that have more rights than he.
    if !locked.is_trusted(writer) {
        return Err(Error::Perm);
    }
    let mut css = locked.tree().get(id)?.css.ns.clone();
    css.root = match text {
        b"inherit" => None,
        [b'/', ..] => Some(text.to_vec()),
        _ => return Err(Error::Invalid),
    };
    let made = change(locked, writer, id, css, None);
    if let Err(failure) = &made {
        tell(locked, id, failure);
    }
    Ok(made?)
}

fn show(tree: &Tree, id: CgroupId, kind: Namespace) -> Vec<u8> {
    let own = tree.get(id).ok().and_then(|group| group.css.ns.get(kind));
    own.map_or_else(|| b"inherit\n".to_vec(), |ns| format!("{}\n", identity(kind, ns.ino())).into_bytes())
}

fn show_root(tree: &Tree, id: CgroupId) -> Vec<u8> {
    let own = tree.get(id).ok().and_then(|group| group.css.ns.root.clone());
    [&own.unwrap_or_else(|| b"inherit".to_vec())[..], b"\n"].concat()
}

/// A line for each managed kind: its name, the namespace, a path to it, the group that has it.
fn show_effective(tree: &Tree, id: CgroupId) -> Vec<u8> {
    let Effective { ns, root, holder, .. } = effective(tree, id, &[]);
    let mut text = Vec::new();
    for (ns, owner) in ns {
        let identity = identity(ns.kind(), ns.ino());
        let name = identity.split(':').next().unwrap_or_default();
        let pid = holder.as_ref().map_or(0, |holder| holder.pid);
        text.extend(format!("{name} {identity} /proc/{pid}/ns/{name} ").into_bytes());
        text.extend(tree.path(owner));
        text.push(b'\n');
    }
    if let Some((path, owner)) = root {
        text.extend([&b"root "[..], &path, b" - ", &tree.path(owner), b"\n"].concat());
    }
    text
}

/// A row for a kind.
macro_rules! kind {
    ($name:literal, $kind:ident) => {
        Cftype::new(
            $name,
            Show::Text(|tree, id| show(tree, id, Namespace::$kind)),
            Store::Text(|locked, writer, id, text| store(locked, writer, id, Namespace::$kind, text)),
        )
        .on(CONFIG)
    };
}

/// Members move when these are written.
const CONFIG: CftFlags = CftFlags::NOT_ON_ROOT.union(CftFlags::OPENER_CAPABLE).union(CftFlags::SLOW);

static FILES: &[Cftype] = &[
    kind!("mnt", Mnt),
    kind!("uts", Uts),
    kind!("ipc", Ipc),
    kind!("pid", PidForChildren),
    kind!("net", Net),
    kind!("user", User),
    kind!("cgroup", Cgroup),
    kind!("time", Time),
    Cftype::new("root", Show::Text(show_root), Store::Text(store_root)).on(CONFIG),
    Cftype::new("effective", Show::Text(show_effective), Store::None).on(CftFlags::NOT_ON_ROOT),
    Cftype::new(
        "last_error",
        Show::Text(|tree, id| [tree.get(id).map_or(&[][..], |group| &group.css.ns.last_error), b"\n"].concat()),
        Store::None,
    ),
];
