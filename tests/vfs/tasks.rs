//! `tasks` and `cgroup.procs`: who is in, in whose numbers, threads and processes.

use std::fs;
use std::path::Path;

use nix::errno::Errno::{EINVAL, ENOSPC, ESRCH};

use super::actor::{Actor, Outcome};
use super::trees::{both, both_roots, configured, free, lacks_root, on_ours};
use crate::common::{Mount, Target, affinity, ids, state, wait_until};

fn moves(a: &Actor, file: &Path, pid: i32) -> Outcome {
    a.put(file, pid.to_string()).map(|_| 0)
}

fn zombie(pid: i32) -> bool {
    state(pid, pid) == Some('Z')
}

/// A process in a pid namespace of its own, and its pid here.
fn namespaced() -> (Actor, i32) {
    let actor = Actor::inside(&["unshare", "-p", "--fork", "--mount-proc"]);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", actor.id)).expect("children");
    (actor, children.trim().parse().expect("one child"))
}

fn in_a_pid_namespace(tree: &Path) {
    let (inner, pid) = namespaced();
    let outside = Actor::new();
    let g = tree.join("g");
    configured(&g);
    let (tasks, procs) = (g.join("tasks"), g.join("cgroup.procs"));
    assert_eq!(inner.call(libc::SYS_getpid, []), Ok(1));
    // 0 is the writer, whatever its number.
    assert_eq!(inner.put(&tasks, "0"), Ok(1));
    assert_eq!(ids(&tasks), [pid]);
    assert_eq!(inner.text(&tasks).as_deref(), Ok("1\n"));
    assert_eq!(inner.text(&procs).as_deref(), Ok("1\n"));
    // 1 is not the one of the whole machine.
    assert_eq!(moves(&outside, &tree.join("tasks"), pid), Ok(0));
    assert_eq!(inner.put(&procs, "1"), Ok(1));
    assert_eq!(ids(&tasks), [pid]);
    // A child and a thread by their numbers there.
    let child = inner.fork();
    let thread = child.thread();
    assert_ne!(child.id, 1);
    assert_eq!(ids(&tasks).len(), 3);
    assert_eq!(inner.text(&tasks), Ok(format!("1\n{}\n{}\n", child.id, thread.id)));
    assert_eq!(inner.text(&procs), Ok(format!("1\n{}\n", child.id)));
    assert_eq!(moves(&inner, &tree.join("tasks"), thread.id), Ok(0));
    assert_eq!(inner.text(&tasks), Ok(format!("1\n{}\n", child.id)));
    assert_eq!(inner.text(&tree.join("cgroup.procs")), Ok(format!("{}\n", child.id)));
    // The thread writes 0.
    assert_eq!(thread.put(&tasks, "0"), Ok(1));
    assert_eq!(inner.text(&tree.join("tasks")).as_deref(), Ok(""));
    assert_eq!(child.put(&tree.join("cgroup.procs"), "0"), Ok(1));
    assert_eq!(inner.text(&tasks).as_deref(), Ok("1\n"));
    // Others have no number there: not shown, and not to be had.
    assert_eq!(moves(&outside, &tasks, outside.id), Ok(0));
    assert_eq!(inner.text(&tasks).as_deref(), Ok("1\n"));
    let mut both = vec![pid, outside.id];
    both.sort_unstable();
    assert_eq!(ids(&tasks), both);
    assert_eq!(moves(&inner, &tasks, outside.id), Err(ESRCH));
}

/// Who a client is is forgotten, and with it his namespace.
#[test]
fn clients_leave_no_pid_namespace_behind() {
    if lacks_root() {
        return;
    }
    let mount = Mount::new();
    let tasks = mount.dir().join("tasks");
    for _ in 0..4 {
        namespaced().0.text(&tasks).expect("tasks");
    }
    let fds = format!("/proc/{}/fd", mount.server_pid());
    let links = || fs::read_dir(&fds).expect("readdir").flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let outside = Actor::new();
    wait_until("no namespace is held", || {
        outside.text(&tasks).expect("tasks");
        !links().any(|link| link.to_string_lossy().starts_with("pid:["))
    });
}

/// The namespace of the reader counts at each open, not that of who made the group.
fn nested_pid_namespaces(tree: &Path) {
    let (outer, pid) = namespaced();
    let g = tree.join("g");
    configured(&g);
    outer.call(libc::SYS_unshare, [libc::CLONE_NEWPID.into()]).expect("unshare");
    let inner = outer.fork();
    assert_eq!(inner.call(libc::SYS_getpid, []), Ok(1));
    assert_eq!(inner.put(&g.join("tasks"), "0"), Ok(1));
    assert_eq!(inner.text(&g.join("tasks")).as_deref(), Ok("1\n"));
    assert_eq!(outer.text(&g.join("tasks")), Ok(format!("{}\n", inner.id)));
    let here = ids(g.join("tasks"));
    assert!(here.len() == 1 && here[0] != pid && here[0] != 1);
    assert_eq!(outer.put(&g.join("tasks"), "1"), Ok(1));
    assert_eq!(inner.text(&g.join("tasks")).as_deref(), Ok("1\n"));
    assert_eq!(outer.text(&g.join("tasks")), Ok(format!("1\n{}\n", inner.id)));
}

fn threads_one_by_one(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let (leader, t1, t2) = (target.pid(), target.thread(), target.thread());
    let g = tree.join("g");
    configured(&g);
    a.put(&g.join("cpuset.cpus"), "1").expect("cpus");
    // `tasks` takes one, by any id.
    assert_eq!(moves(&a, &g.join("tasks"), t1), Ok(0));
    assert_eq!((ids(g.join("tasks")), ids(g.join("cgroup.procs"))), (vec![t1], vec![leader]));
    assert_eq!((affinity(leader), affinity(t1), affinity(t2)), (free(), vec![1], free()));
    // `cgroup.procs` takes all, by any id.
    assert_eq!(moves(&a, &g.join("cgroup.procs"), t2), Ok(0));
    assert_eq!((ids(g.join("tasks")), ids(g.join("cgroup.procs"))), (sorted([leader, t1, t2]), vec![leader]));
    assert_eq!((affinity(leader), affinity(t1), affinity(t2)), (vec![1], vec![1], vec![1]));
    assert_eq!(moves(&a, &tree.join("tasks"), leader), Ok(0));
    assert_eq!(ids(g.join("tasks")), sorted([t1, t2]));
    // In both, for it has threads in both.
    assert_eq!((ids(g.join("cgroup.procs")), ids(tree.join("cgroup.procs"))), (vec![leader], vec![leader]));
    assert_eq!(affinity(leader), [0, 1]);
}

fn zero_is_the_writer(tree: &Path) {
    let target = Actor::new();
    let thread = target.thread();
    let g = tree.join("g");
    configured(&g);
    assert_eq!(thread.put(&g.join("tasks"), "0"), Ok(1));
    assert_eq!(ids(g.join("tasks")), [thread.id]);
    assert_eq!(target.put(&g.join("tasks"), "0\n"), Ok(2));
    assert_eq!(ids(g.join("tasks")), sorted([target.id, thread.id]));
    assert_eq!(thread.put(&tree.join("cgroup.procs"), "0"), Ok(1));
    assert_eq!(ids(tree.join("tasks")), sorted([target.id, thread.id]));
    assert_eq!(ids(g.join("tasks")), []);
}

/// Threads and processes are born where their maker is, the thread, not its leader.
fn births(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let (leader, t1) = (target.pid(), target.thread());
    for (name, cpus) in [("x", "0"), ("y", "1")] {
        a.put(&configured(&tree.join(name)).join("cpuset.cpus"), cpus).expect("cpus");
    }
    moves(&a, &tree.join("x/tasks"), leader).expect("attach");
    moves(&a, &tree.join("y/tasks"), t1).expect("attach");
    let (from_leader, from_t1) = (target.fork_from(leader), target.fork_from(t1));
    assert_eq!(ids(tree.join("x/tasks")), sorted([leader, from_leader]));
    let in_y = ids(tree.join("y/tasks"));
    assert_eq!(in_y, sorted([t1, from_t1]));
    let (new_leader, new_t1) = (target.thread_from(leader), target.thread_from(t1));
    assert_eq!(ids(tree.join("x/tasks")), sorted([leader, from_leader, new_leader]));
    assert_eq!(ids(tree.join("y/tasks")), sorted([t1, from_t1, new_t1]));
    assert_eq!(ids(tree.join("y/cgroup.procs")), sorted([leader, from_t1]));
}

/// Where two groups of one process have the same CPUs, /proc does not tell which of its threads
/// has made another: Linux puts what t1 makes into y, ours into one of the two.
#[test]
fn differs_births_in_groups_of_equal_cpus() {
    on_ours(|tree| {
        let a = Actor::new();
        let mut target = Target::new();
        let (leader, t1) = (target.pid(), target.thread());
        for (name, tid) in [("x", leader), ("y", t1)] {
            moves(&a, &configured(&tree.join(name)).join("tasks"), tid).expect("attach");
        }
        let (child, thread) = (target.fork_from(t1), target.thread_from(t1));
        let (x, y) = (ids(tree.join("x/tasks")), ids(tree.join("y/tasks")));
        for new in [child, thread] {
            assert!(x.contains(&new) != y.contains(&new), "{new} is in one of them");
        }
        assert!(x.contains(&leader) && y.contains(&t1) && x.len() + y.len() == 4);
    });
}

fn deaths(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let (leader, t1) = (target.pid(), target.thread());
    let child = target.fork();
    let g = tree.join("g");
    configured(&g);
    for pid in [leader, child] {
        moves(&a, &g.join("cgroup.procs"), pid).expect("attach");
    }
    assert_eq!(ids(g.join("tasks")), sorted([leader, t1, child]));
    target.kill_child(child);
    assert_eq!(ids(g.join("tasks")), sorted([leader, t1]), "a zombie is not there");
    target.end_thread(t1);
    assert_eq!(ids(g.join("tasks")), [leader]);
    assert_eq!(moves(&a, &g.join("tasks"), t1), Err(ESRCH));
    // A zombie can be written, with no effect, even where nobody can be.
    let bare = tree.join("bare");
    a.mkdir(&bare, 0o755).expect("mkdir");
    assert_eq!(moves(&a, &bare.join("tasks"), leader), Err(ENOSPC));
    for dir in [&bare, &g] {
        assert_eq!(moves(&a, &dir.join("tasks"), child), Ok(0));
        assert_eq!(moves(&a, &dir.join("cgroup.procs"), child), Ok(0));
    }
    assert_eq!((ids(bare.join("tasks")), ids(g.join("cgroup.procs"))), (vec![], vec![leader]));
    target.reap(child);
    assert_eq!(moves(&a, &g.join("tasks"), child), Err(ESRCH));
    assert_eq!(a.rmdir(&bare), Ok(0));
    target.exit();
    assert_eq!(ids(g.join("tasks")), []);
    target.wait();
    assert_eq!(moves(&a, &g.join("tasks"), leader), Err(ESRCH));
    assert_eq!(a.rmdir(&g), Ok(0));
}

fn a_dead_leader(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let (leader, t1, t2) = (target.pid(), target.thread(), target.thread());
    for name in ["x", "y"] {
        configured(&tree.join(name));
    }
    moves(&a, &tree.join("x/cgroup.procs"), leader).expect("attach");
    target.exit_leader();
    wait_until("the leader is dead", || zombie(leader));
    assert_eq!((ids(tree.join("x/tasks")), ids(tree.join("x/cgroup.procs"))), (sorted([t1, t2]), vec![leader]));
    assert_eq!(moves(&a, &tree.join("y/tasks"), leader), Ok(0));
    assert_eq!(ids(tree.join("y/tasks")), [], "nobody to move");
    assert_eq!(moves(&a, &tree.join("y/cgroup.procs"), leader), Ok(0));
    assert_eq!((ids(tree.join("y/tasks")), ids(tree.join("y/cgroup.procs"))), (sorted([t1, t2]), vec![leader]));
    assert_eq!((ids(tree.join("x/tasks")), ids(tree.join("x/cgroup.procs"))), (vec![], vec![]));
    assert_eq!(moves(&a, &tree.join("x/cgroup.procs"), t2), Ok(0));
    assert_eq!(ids(tree.join("x/tasks")), sorted([t1, t2]));
}

/// exec(2) of a thread: it takes the leader's number and stays where it was itself.
fn exec_keeps_the_group(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let (leader, t1) = (target.pid(), target.thread());
    let g = tree.join("g");
    configured(&g);
    moves(&a, &g.join("cgroup.procs"), leader).expect("attach");
    assert_eq!(ids(g.join("tasks")), sorted([leader, t1]));
    target.exec(leader);
    assert_eq!((ids(g.join("tasks")), ids(g.join("cgroup.procs"))), (vec![leader], vec![leader]));
    let t2 = target.thread();
    target.exec(t2);
    assert_eq!((ids(g.join("tasks")), ids(g.join("cgroup.procs"))), (vec![leader], vec![leader]));
}

fn to_where_it_is(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let g = tree.join("g");
    configured(&g);
    let pid = target.pid();
    moves(&a, &g.join("tasks"), pid).expect("attach");
    target.setaffinity(pid, &[1]).expect("setaffinity");
    for name in ["tasks", "cgroup.procs"] {
        assert_eq!(moves(&a, &g.join(name), pid), Ok(0), "{name}");
        assert_eq!(affinity(pid), [1], "{name}");
    }
}

fn kernel_threads(tree: &Path) {
    let a = Actor::new();
    for name in ["tasks", "cgroup.procs"] {
        assert_eq!(moves(&a, &tree.join(name), 2), Err(EINVAL), "kthreadd, {name}");
    }
    assert_eq!(ids(tree.join("tasks")), []);
}

/// Whoever is in no other group is in the root.
fn the_root_holds_the_rest(root: &Path) {
    let a = Actor::new();
    let thread = a.thread();
    let g = root.join(format!("cgfuse-test-{}-rest", std::process::id()));
    configured(&g);
    let in_root = |file: &str, id: i32| ids(root.join(file)).contains(&id);
    for id in [1, 2, a.id, thread.id] {
        assert!(in_root("tasks", id), "{id}");
    }
    assert!(in_root("cgroup.procs", a.id) && !in_root("cgroup.procs", thread.id));
    let all = ids(root.join("tasks"));
    assert!(all.is_sorted_by(|x, y| x < y));
    assert_eq!(thread.put(&g.join("tasks"), "0"), Ok(1));
    assert!(!in_root("tasks", thread.id) && in_root("tasks", a.id) && in_root("cgroup.procs", a.id));
    assert_eq!(a.put(&g.join("tasks"), "0"), Ok(1));
    assert!(!in_root("tasks", a.id) && !in_root("cgroup.procs", a.id));
    assert_eq!(a.put(&root.join("cgroup.procs"), "0"), Ok(1));
    assert!(in_root("tasks", thread.id) && in_root("tasks", a.id));
    assert_eq!(a.rmdir(&g), Ok(0));
}

fn sorted<const N: usize>(mut ids: [i32; N]) -> Vec<i32> {
    ids.sort_unstable();
    ids.to_vec()
}

both! {
    in_a_pid_namespace nested_pid_namespaces threads_one_by_one zero_is_the_writer births deaths a_dead_leader
    exec_keeps_the_group to_where_it_is kernel_threads
}
both_roots! { the_root_holds_the_rest }
