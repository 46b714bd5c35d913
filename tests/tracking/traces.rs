//! The same families are in a hierarchy of the kernel's and in ours: after each step both hold the same tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::family::{Family, Node, binary};
use super::side::{BPF, Config, NETLINK, NETLINK_USER, PERF, PERF_USER, SCAN, SCAN_USER, Side, USER, test_name};
use crate::common::{TempDir, skipped, wait_until};
use crate::storm::{report, rounds};

const CLONE_PARENT: i32 = libc::CLONE_PARENT;

/// A family in the groups `a` and `b` of both hierarchies.
struct World<'a> {
    kernel: &'a Side,
    ours: &'a Side,
    uid: u32,
    family: Family,
    groups: [String; 2],
    /// Whoever has been seen.
    known: BTreeSet<i32>,
    steps: usize,
    /// What differs, step by step.
    differs: Vec<String>,
    /// Why it could not be done.
    left_out: Option<String>,
}

/// Ids by file.
type Lists = BTreeMap<String, Vec<i32>>;

impl World<'_> {
    fn born(&mut self, parent: &mut Node, order: &str) -> Node {
        let node = self.family.born(parent, order);
        self.known.extend([node.tid, node.tgid]);
        self.check(order);
        node
    }

    /// None, with the reason noted, where the machine does not have it.
    fn try_born(&mut self, parent: &mut Node, order: &str) -> Option<Node> {
        match self.family.try_born(parent, order) {
            Ok(node) => {
                self.known.extend([node.tid, node.tgid]);
                self.check(order);
                Some(node)
            }
            Err(errno) => {
                self.left_out = Some(format!("{order}: errno {errno}"));
                None
            }
        }
    }

    fn moves_to(&mut self, file: &str, tid: i32) {
        for side in [self.kernel, self.ours] {
            side.write(file, &tid.to_string()).unwrap_or_else(|errno| panic!("{file}: errno {errno}"));
        }
        self.check(&format!("move to {file}"));
    }

    /// Moves one task to the group b, or all threads of a process.
    fn task_to_b(&mut self, tid: i32) {
        self.moves_to(&format!("{}/tasks", self.groups[1]), tid);
    }

    fn process_to_b(&mut self, tid: i32) {
        self.moves_to(&format!("{}/cgroup.procs", self.groups[1]), tid);
    }

    fn lists(&self, side: &Side) -> Lists {
        let mut lists = Lists::new();
        for file in ["tasks", "cgroup.procs"] {
            for group in &self.groups {
                let path = format!("{group}/{file}");
                let ids = side.ids(&path);
                lists.insert(path, ids);
            }
            // Of the root, which has everybody, the family only.
            let mut ids = side.ids(file);
            ids.retain(|id| self.known.contains(id));
            lists.insert(file.to_owned(), ids);
        }
        lists
    }

    /// Compares both. Nobody in the family does anything; threads of the kernel's may.
    fn check(&mut self, step: &str) {
        self.steps += 1;
        loop {
            let before = self.settled();
            let ours = self.lists(self.ours);
            let after = self.lists(self.kernel);
            if before != after {
                continue;
            }
            for (file, kernels) in &after {
                if ours[file] != *kernels {
                    self.differs.push(format!("{step}: {file}: kernel {kernels:?}, ours {:?}", ours[file]));
                }
            }
            return;
        }
    }

    /// The kernel's lists when nobody in them is dying.
    fn settled(&mut self) -> Lists {
        let mut lists = Lists::new();
        wait_until("the dying are dead", || {
            lists = self.lists(self.kernel);
            let tasks = lists.iter().filter(|(file, _)| file.ends_with("tasks")).flat_map(|(_, ids)| ids);
            let alive = |tid: &i32| {
                let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
                let state = stat.rfind(')').and_then(|at| stat[at + 2..].chars().next());
                !matches!(state, None | Some('Z' | 'X'))
            };
            self.known.extend(lists.iter().filter(|(file, _)| file.contains('/')).flat_map(|(_, ids)| ids));
            tasks.into_iter().all(alive)
        });
        lists
    }
}

type Script = fn(&mut World<'_>, Node);

macro_rules! scripts {
    ($($name:ident)*) => { [$((stringify!($name), $name as Script)),*] };
}

const SCRIPTS: [(&str, Script); 33] = scripts! {
    fork vfork posix_spawn clone_parent clone_vm threads_by_threads
    threads_move_alone processes_move_whole vfork_by_a_moved_thread
    exec_by_the_leader exec_by_a_thread exec_by_a_thread_elsewhere exec_after_the_leader exec_of_a_moved_leader
    leader_exits zombie killed_with_threads orphan orphan_unseen double_fork_of_a_moved_thread daemon heir_of_a_thread
    setuid_exec unreadable_exec session set_tid reused_by_a_stranger reused_by_a_member
    pid_namespace grandchildren_in_a_pid_namespace io_uring_worker io_uring_poller many
};

fn fork(w: &mut World<'_>, mut main: Node) {
    let mut child = w.born(&mut main, "fork");
    let grandchild = w.born(&mut child, "fork");
    w.task_to_b(child.tid);
    let other = w.born(&mut child, "fork");
    let third = w.born(&mut main, "fork");
    for node in [grandchild, child, third, other] {
        node.quit();
        w.check("exit");
    }
}

fn vfork(w: &mut World<'_>, mut main: Node) {
    for ends in [false, true] {
        main.begin("vfork");
        let mut child = w.family.await_node();
        w.known.insert(child.tid);
        w.check("vfork");
        if ends {
            child.quit();
        } else {
            child.exec("-");
            w.check("exec");
            let _grandchild = w.born(&mut child, "fork");
        }
        main.end().expect("vfork");
        w.check("the parent goes on");
    }
}

fn posix_spawn(w: &mut World<'_>, mut main: Node) {
    let mut thread = w.born(&mut main, "thread");
    w.task_to_b(thread.tid);
    let (mut one, mut two) = (w.born(&mut main, "spawn"), w.born(&mut thread, "spawn"));
    let (_three, _four) = (w.born(&mut one, "spawn"), w.born(&mut two, "thread"));
}

fn clone_parent(w: &mut World<'_>, mut main: Node) {
    let mut child = w.born(&mut main, "fork");
    w.task_to_b(child.tid);
    let mut sibling = w.born(&mut child, &format!("clone {CLONE_PARENT}"));
    let _nephew = w.born(&mut sibling, "fork");
    let _brother = w.born(&mut main, &format!("clone {CLONE_PARENT}"));
}

fn clone_vm(w: &mut World<'_>, mut main: Node) {
    let mut child = w.born(&mut main, "vm");
    w.task_to_b(child.tid);
    let _grandchild = w.born(&mut child, "fork");
    child.quit();
    w.check("exit");
}

fn threads_by_threads(w: &mut World<'_>, mut main: Node) {
    let mut one = w.born(&mut main, "thread");
    let mut two = w.born(&mut one, "thread");
    let three = w.born(&mut two, "thread");
    let _child = w.born(&mut two, "fork");
    for node in [two, one, three] {
        node.leave();
        w.check("a thread exits");
    }
}

fn threads_move_alone(w: &mut World<'_>, mut main: Node) {
    let mut mover = w.born(&mut main, "thread");
    w.task_to_b(mover.tid);
    let mut child = w.born(&mut mover, "fork");
    let mut thread = w.born(&mut mover, "thread");
    let _grandchild = w.born(&mut child, "thread");
    let _others = (w.born(&mut thread, "thread"), w.born(&mut thread, "fork"), w.born(&mut main, "thread"));
    // The creator is gone, and what it has made is not.
    mover.leave();
    w.check("a thread exits");
    w.moves_to("tasks", thread.tid);
    let _last = (w.born(&mut thread, "fork"), w.born(&mut thread, "thread"));
}

fn processes_move_whole(w: &mut World<'_>, mut main: Node) {
    let mut one = w.born(&mut main, "thread");
    let mut child = w.born(&mut one, "fork");
    w.task_to_b(one.tid);
    w.process_to_b(one.tid);
    let _born = (w.born(&mut main, "fork"), w.born(&mut main, "thread"), w.born(&mut child, "thread"));
    w.moves_to("cgroup.procs", main.tid);
    let (_stranger, _thread) = (w.born(&mut one, "fork"), w.born(&mut one, "thread"));
    w.process_to_b(main.tid);
    let _again = w.born(&mut one, "fork");
}

fn vfork_by_a_moved_thread(w: &mut World<'_>, mut main: Node) {
    let mut thread = w.born(&mut main, "thread");
    w.task_to_b(thread.tid);
    thread.begin("vfork");
    let mut child = w.family.await_node();
    w.known.insert(child.tid);
    w.check("vfork");
    // Meanwhile the process goes on.
    let _other = w.born(&mut main, "thread");
    child.exec("-");
    w.check("exec");
    thread.end().expect("vfork");
}

fn exec_by_the_leader(w: &mut World<'_>, mut main: Node) {
    let _one = w.born(&mut main, "thread");
    let two = w.born(&mut main, "thread");
    w.task_to_b(two.tid);
    main.exec("-");
    w.check("exec");
    let _new = (w.born(&mut main, "thread"), w.born(&mut main, "fork"));
}

fn exec_by_a_thread(w: &mut World<'_>, mut main: Node) {
    let mut one = w.born(&mut main, "thread");
    let _two = w.born(&mut main, "thread");
    one.exec("-");
    w.check("exec");
    let _new = (w.born(&mut one, "thread"), w.born(&mut one, "fork"));
}

fn exec_by_a_thread_elsewhere(w: &mut World<'_>, mut main: Node) {
    let mut one = w.born(&mut main, "thread");
    w.task_to_b(one.tid);
    one.exec("-");
    w.check("exec");
    let _new = (w.born(&mut one, "thread"), w.born(&mut one, "fork"));
}

fn exec_of_a_moved_leader(w: &mut World<'_>, mut main: Node) {
    let mut one = w.born(&mut main, "thread");
    w.task_to_b(main.tid);
    one.exec("-");
    w.check("exec");
    let _child = w.born(&mut one, "fork");
}

fn exec_after_the_leader(w: &mut World<'_>, mut main: Node) {
    let (mut one, _two) = (w.born(&mut main, "thread"), w.born(&mut main, "thread"));
    w.task_to_b(one.tid);
    main.leave();
    w.check("the leader exits");
    one.exec("-");
    w.check("exec");
    let _new = (w.born(&mut one, "thread"), w.born(&mut one, "fork"));
}

fn leader_exits(w: &mut World<'_>, mut main: Node) {
    let (mut one, mut two) = (w.born(&mut main, "thread"), w.born(&mut main, "thread"));
    w.task_to_b(two.tid);
    main.leave();
    w.check("the leader exits");
    let _new = (w.born(&mut one, "thread"), w.born(&mut one, "fork"), w.born(&mut two, "fork"));
    w.process_to_b(one.tid);
    one.leave();
    w.check("a thread exits");
    two.quit();
    w.check("the process exits");
}

fn zombie(w: &mut World<'_>, mut main: Node) {
    let child = w.born(&mut main, "fork");
    main.does(&format!("kill {}", child.tid));
    w.check("a zombie");
    w.task_to_b(child.tid);
    main.does(&format!("reap {}", child.tid));
    w.check("reaped");
}

fn killed_with_threads(w: &mut World<'_>, mut main: Node) {
    let mut child = w.born(&mut main, "fork");
    let (one, mut two) = (w.born(&mut child, "thread"), w.born(&mut child, "thread"));
    w.task_to_b(one.tid);
    let _orphan = w.born(&mut two, "fork");
    main.does(&format!("reap {}", child.tid));
    w.check("killed");
}

fn orphan(w: &mut World<'_>, mut main: Node) {
    let mut child = w.born(&mut main, "fork");
    let mut grandchild = w.born(&mut child, "fork");
    child.quit();
    w.check("the parent exits");
    let _later = (w.born(&mut grandchild, "fork"), w.born(&mut grandchild, "thread"));
}

fn orphan_unseen(w: &mut World<'_>, mut main: Node) {
    let mut grandchild = w.born(&mut main, "orphan");
    let _later = (w.born(&mut grandchild, "fork"), w.born(&mut grandchild, "thread"));
}

fn double_fork_of_a_moved_thread(w: &mut World<'_>, mut main: Node) {
    let mut thread = w.born(&mut main, "thread");
    w.task_to_b(thread.tid);
    let _grandchild = w.born(&mut thread, "orphan");
}

fn daemon(w: &mut World<'_>, mut main: Node) {
    let mut daemon = w.born(&mut main, "daemon");
    let _child = w.born(&mut daemon, "fork");
    main.quit();
    w.check("who started it exits");
}

fn heir_of_a_thread(w: &mut World<'_>, mut main: Node) {
    let mut thread = w.born(&mut main, "thread");
    w.task_to_b(thread.tid);
    let _children = (w.born(&mut thread, "heir"), w.born(&mut main, "heir"));
}

fn setuid_exec(w: &mut World<'_>, main: Node) {
    exec_copy(w, main, 0o4755);
}

fn unreadable_exec(w: &mut World<'_>, main: Node) {
    exec_copy(w, main, 0o711);
}

/// An ordinary user executes a program of root's.
fn exec_copy(w: &mut World<'_>, mut main: Node, mode: u32) {
    let temp = TempDir::new();
    let copy = temp.path().join("copy");
    fs::copy(binary(), &copy).expect("a copy");
    fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).expect("chmod");
    let copy = copy.to_str().expect("a plain path");
    let (mut child, mut split) = (w.born(&mut main, "fork"), w.born(&mut main, "fork"));
    let mut thread = w.born(&mut split, "thread");
    w.task_to_b(thread.tid);
    if w.uid == 0 {
        for node in [&mut child, &mut split, &mut thread] {
            node.does(&format!("setuid {USER}"));
        }
    }
    child.exec(copy);
    w.check("exec");
    thread.exec(copy);
    w.check("exec by a thread");
    let _born = (w.born(&mut child, "fork"), w.born(&mut child, "thread"), w.born(&mut thread, "fork"));
    child.quit();
    w.check("exit");
}

fn session(w: &mut World<'_>, mut main: Node) {
    let mut child = w.born(&mut main, "fork");
    child.does("setsid");
    let mut grandchild = w.born(&mut child, "fork");
    main.quit();
    child.quit();
    w.check("its parents exit");
    let _later = w.born(&mut grandchild, "fork");
}

/// A pid that nobody has and that is not handed out soon.
fn free_pid() -> i32 {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let max: i32 = text("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(32768);
    let last: i32 = text("/proc/loadavg").split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0);
    let own = i32::try_from(std::process::id()).unwrap_or(0) % 97;
    let far = (1..).map(|n| (last + max / 2 + 331 * n + own) % (max - 400) + 301);
    far.into_iter().find(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)).expect("a free pid")
}

fn set_tid(w: &mut World<'_>, mut main: Node) {
    let Some(mut child) = w.try_born(&mut main, &format!("settid {}", free_pid())) else { return };
    w.task_to_b(child.tid);
    let _grandchild = w.born(&mut child, "fork");
}

fn reused_by_a_stranger(w: &mut World<'_>, mut main: Node) {
    let (strangers, mut stranger) = Family::new(w.uid);
    let Some(child) = w.try_born(&mut main, &format!("settid {}", free_pid())) else { return };
    let pid = child.tid;
    main.does(&format!("reap {pid}"));
    let Ok(mut other) = strangers.try_born(&mut stranger, &format!("settid {pid}")) else { return };
    w.check("its pid is a stranger's");
    let grandchild = strangers.born(&mut other, "fork");
    w.known.insert(grandchild.tid);
    w.check("the stranger's child");
    drop((other, grandchild, stranger));
    drop(strangers);
}

fn reused_by_a_member(w: &mut World<'_>, mut main: Node) {
    let Some(first) = w.try_born(&mut main, &format!("settid {}", free_pid())) else { return };
    let pid = first.tid;
    w.task_to_b(pid);
    main.does(&format!("reap {pid}"));
    let _second = w.born(&mut main, &format!("settid {pid}"));
}

fn namespaced(w: &mut World<'_>, main: &mut Node) -> Option<Node> {
    let flags = if w.uid == 0 { libc::CLONE_NEWPID } else { libc::CLONE_NEWPID | libc::CLONE_NEWUSER };
    w.try_born(main, &format!("clone {flags}"))
}

fn pid_namespace(w: &mut World<'_>, mut main: Node) {
    let Some(init) = namespaced(w, &mut main) else { return };
    // Not his who has made it: see SEMANTICS.
    if w.uid == 0 {
        w.task_to_b(init.tid);
    }
    drop(init);
    w.check("its init exits");
}

fn grandchildren_in_a_pid_namespace(w: &mut World<'_>, mut main: Node) {
    let Some(mut init) = namespaced(w, &mut main) else { return };
    // Not his who has made it: see SEMANTICS.
    if w.uid == 0 {
        w.task_to_b(init.tid);
    }
    let _thread = w.born(&mut init, "thread");
    let mut child = w.born(&mut init, "fork");
    let _grandchildren = (w.born(&mut child, "fork"), w.born(&mut child, "spawn"));
    let _orphan = w.born(&mut child, "orphan");
    init.quit();
    w.check("all die with their init");
}

fn io_uring_worker(w: &mut World<'_>, main: Node) {
    uring(w, main, "uring");
}

fn io_uring_poller(w: &mut World<'_>, main: Node) {
    uring(w, main, "sqpoll");
}

/// Of a thread that has moved the worker is where that is.
fn uring(w: &mut World<'_>, mut main: Node, order: &str) {
    let mut thread = w.born(&mut main, "thread");
    w.task_to_b(thread.tid);
    let before = main.tids().len();
    if let Err(errno) = thread.order(order) {
        w.left_out = Some(format!("{order}: errno {errno}"));
        return;
    }
    wait_until("a worker is born", || main.tids().len() > before);
    w.check(order);
    w.process_to_b(main.tid);
    main.quit();
    w.check("exit");
}

fn many(w: &mut World<'_>, mut main: Node) {
    let mut thread = w.born(&mut main, "thread");
    w.task_to_b(thread.tid);
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..24 {
        let parent = if i % 2 == 0 { &mut main } else { &mut thread };
        nodes.push(w.family.born(parent, "fork"));
        let child = nodes.last_mut().expect("a child");
        let other = w.family.born(child, "thread");
        nodes.push(other);
    }
    w.check("all are born");
    drop(nodes);
}

/// What differs in a script. `Err` if it could not be done.
fn run(kernel: &Side, ours: &Side, config: Config, nr: usize, script: Script) -> Result<(usize, Vec<String>), String> {
    let groups = [format!("a{nr}"), format!("b{nr}")];
    for (group, cpus) in groups.iter().zip(["0", "0-1"]) {
        kernel.group(group, cpus);
        ours.group(group, cpus);
    }
    let (family, main) = Family::new(config.uid);
    let known = BTreeSet::from([main.tid]);
    let mut world = World { kernel, ours, uid: config.uid, family, groups, known, steps: 0, differs: Vec::new(), left_out: None };
    world.moves_to(&format!("{}/cgroup.procs", world.groups[0]), main.tid);
    script(&mut world, main);
    // All end with their nodes.
    let groups = world.groups.clone();
    wait_until("the kernel's groups are empty", || groups.iter().all(|group| kernel.ids(&format!("{group}/tasks")).is_empty()));
    world.check("the end");
    for group in &groups {
        for side in [kernel, ours] {
            if let Err(error) = side.run(|| fs::remove_dir(side.dir().join(group))) {
                world.differs.push(format!("the end: rmdir {group}: {error}"));
            }
        }
    }
    match world.left_out.take() {
        Some(why) => Err(why),
        None => Ok((world.steps, world.differs)),
    }
}

/// Scripts in which this back end does not do as the kernel: exactly these.
fn traces(config: Config, documented: &[&str]) {
    let Some(ours) = Side::ours(config) else { return };
    let Some(kernel) = Side::named() else { return };
    let (mut differing, mut steps, mut nr) = (BTreeMap::new(), 0, 0);
    for _ in 0..rounds(3) {
        for (name, script) in SCRIPTS {
            // Whether a gap shows may depend on when the server last looked.
            let tries = if documented.contains(&name) { 10 } else { 1 };
            for _ in 0..tries {
                nr += 1;
                match run(&kernel, &ours, config, nr, script) {
                    Err(why) => {
                        skipped(&format!("{}: {name}", test_name()), &why);
                        if documented.contains(&name) {
                            differing.insert(name, Vec::new());
                        }
                        break;
                    }
                    Ok((n, differs)) => {
                        steps += n;
                        if !differs.is_empty() {
                            differing.entry(name).or_insert(differs);
                            break;
                        }
                    }
                }
            }
        }
    }
    let names: BTreeSet<_> = differing.keys().copied().collect();
    report(&test_name(), &format!("scripts={nr} steps={steps} differing={names:?} {}", ours.doubts()));
    let unexpected: Vec<_> = differing.iter().filter(|(name, _)| !documented.contains(name)).collect();
    assert!(unexpected.is_empty(), "not documented: {unexpected:#?}");
    assert_eq!(names, documented.iter().copied().collect(), "documented, and the same as in the kernel");
}

#[test]
fn traces_bpf() {
    traces(BPF, &[]);
}

#[test]
fn traces_perf() {
    traces(PERF, &[]);
}

/// The kernel tells the parent of a new process, who has not made it if that was with CLONE_PARENT; and of a new thread only its process, whose
/// threads are in several groups here.
const NETLINK_GAPS: [&str; 5] = ["clone_parent", "heir_of_a_thread", "io_uring_poller", "io_uring_worker", "threads_move_alone"];

#[test]
fn traces_netlink() {
    traces(NETLINK, &NETLINK_GAPS);
}

#[test]
fn traces_netlink_of_a_user() {
    traces(NETLINK_USER, &NETLINK_GAPS);
}

#[test]
fn traces_perf_of_a_user() {
    traces(PERF_USER, &[]);
}

/// Nobody tells anything.
const SCAN_GAPS: [&str; 12] = [
    "clone_parent",
    "daemon",
    "double_fork_of_a_moved_thread",
    "exec_by_a_thread_elsewhere",
    "exec_of_a_moved_leader",
    "heir_of_a_thread",
    "orphan_unseen",
    "reused_by_a_member",
    "reused_by_a_stranger",
    "set_tid",
    "setuid_exec",
    "unreadable_exec",
];

#[test]
fn traces_scan() {
    traces(SCAN, &SCAN_GAPS);
}

#[test]
fn traces_scan_of_a_user() {
    traces(SCAN_USER, &SCAN_GAPS);
}
