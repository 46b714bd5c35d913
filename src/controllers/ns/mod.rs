//! Controller layer: ns. A group's tasks are in its namespaces, running ones included: they are made to call setns(2) themselves.
//!
//! A kind that no group up to the root has is not managed: tasks keep what they have. A task that comes into a managed kind remembers
//! where it was at home, as its children do, and goes back there when it leaves. A group that has namespaces of its own has a holder: a
//! process that is in all that are effective there, so that one setns(2) into it enters them together.
//!
//! Here is what a group has; `moves` says how tasks get there, `steps` what each of their threads has to call for it.

mod moves;
mod steps;

pub use moves::{TaskNs, Was};

use super::{CftFlags, Cftype, Checked, Show, Store, Subsys, TaskState};
use crate::cgroup::{Attach, Birth, CgroupId, Change, Locked, ROOT, Tree, Writer, parse};
use crate::controllers::Ids;
use crate::error::{Error, Result};
use crate::inject::Namespace;
use crate::nsproxy::{Holder, Ns, Wanted, identity};
use crate::sys::{Errno, Machine, Tid};
use moves::{Back, By, Party, all_threads, enter, parties, proxy, take_back};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a path may take to be looked up, and how many of those that do not get an answer are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_STUCK: usize = 4;

/// So old, in clock ticks of /proc, is at the most who may have been born during a move that is remembered.
const YOUNG: u64 = 300;

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

/// The same for what is written and makes no sense.
fn refuse(locked: &Locked<'_>, id: CgroupId, text: &[u8], error: &Error) {
    let advice = match error.errno() {
        Errno::EIO => "; the file system that it is on does not answer",
        Errno::EAGAIN => "; paths that were written before have not been found yet, on file systems that do not answer",
        Errno::EINVAL => "; it must be 'new', 'inherit', the id of a process or the absolute path of a namespace of this kind",
        _ => "",
    };
    tell(locked, id, &Failure::new(error.errno(), format!("{}: {error}{advice}", text.escape_ascii())));
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
    begin_attach: forget_error,
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
        take_back(machine, &backs);
        tell(locked, attach.to, &failure);
        return Err(failure.into());
    }
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
    let root = was.path().map(|path| (path.to_vec(), ROOT));
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
            let path = Path::new(std::str::from_utf8(text).map_err(|_| Error::Invalid)?);
            // We look it up, and "self" is not us.
            let of_self = ["/proc/self", "/proc/thread-self"].iter().find_map(|own| path.strip_prefix(own).ok());
            let path = of_self.map_or_else(|| path.into(), |rest| Path::new("/proc").join(writer.tid.to_string()).join(rest));
            Ok(Request::Adopt(if is_of_a_process(&path) { Ns::open(&path, kind)? } else { look_up(path, kind)? }))
        }
        _ => match Ns::active(locked.target(writer, parse::pid(text)?)?, kind) {
            Ok(ns) => Ok(Request::Adopt(ns)),
            Err(Errno::EACCES) => Err(Error::Perm),
            Err(errno) => Err(errno.into()),
        },
    }
}

/// `/proc/PID/ns/NAME`, which leads nowhere else.
fn is_of_a_process(path: &Path) -> bool {
    let mut rest = path.strip_prefix("/proc").into_iter().flatten();
    let is_number = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    rest.next().is_some_and(is_number) && rest.next() == Some(OsStr::new("ns")) && rest.count() == 1
}

/// Opens a path that may lead to a file system which does not answer: EIO then, as others wait for us; and EAGAIN when too many of those are still
/// waited for.
fn look_up(path: PathBuf, kind: Namespace) -> std::result::Result<Ns, Errno> {
    static STUCK: AtomicUsize = AtomicUsize::new(0);
    if STUCK.fetch_add(1, Ordering::SeqCst) >= MAX_STUCK {
        STUCK.fetch_sub(1, Ordering::SeqCst);
        return Err(Errno::EAGAIN);
    }
    let (sender, receiver) = mpsc::channel();
    let look = move || {
        let _ = sender.send(Ns::open(&path, kind));
        STUCK.fetch_sub(1, Ordering::SeqCst);
    };
    if std::thread::Builder::new().name("path".into()).spawn(look).is_err() {
        STUCK.fetch_sub(1, Ordering::SeqCst);
        return Err(Errno::EAGAIN);
    }
    receiver.recv_timeout(PATIENCE).unwrap_or(Err(Errno::EIO))
}

fn store(locked: &Locked<'_>, writer: &Writer<'_>, id: CgroupId, kind: Namespace, text: &[u8]) -> Result<()> {
    // We look, make and move with our rights, so whoever has fewer does not do it through us.
    if !locked.is_trusted(writer) {
        return Err(Error::Perm);
    }
    forget_error(locked, id);
    let request = request(locked, writer, kind, text).inspect_err(|error| refuse(locked, id, text, error))?;
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
        take_back(locked.machine(), &backs.into_inner());
        swap(locked, old);
        for group in &subtree[..n] {
            let there = effective(&locked.tree(), *group, &[]);
            let forget = |changes: &mut [Change]| {
                changes.iter_mut().for_each(|change| change.state.ns.forget(&there));
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
        // Nobody can enter the user namespace that he is in.
        let is_ours =
            |ns: &Ns| ns.kind() == Namespace::User && Ns::active(std::process::id().cast_signed(), Namespace::User).as_ref() == Ok(ns);
        wanted.enter = there.ns.into_iter().map(|(ns, _)| ns).filter(|ns| !is_ours(ns)).collect();
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

fn store_root(locked: &Locked<'_>, writer: &Writer<'_>, id: CgroupId, text: &[u8]) -> Result<()> {
    // A root directory that somebody has made up deceives programs that have more rights than he.
    if !locked.is_trusted(writer) {
        return Err(Error::Perm);
    }
    forget_error(locked, id);
    let mut css = locked.tree().get(id)?.css.ns.clone();
    css.root = match text {
        b"inherit" => None,
        [b'/', ..] => Some(text.to_vec()),
        _ => {
            refuse(locked, id, text, &Error::Invalid);
            return Err(Error::Invalid);
        }
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
