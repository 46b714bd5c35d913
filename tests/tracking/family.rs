//! Families of tasks that are born and die in every way there is; see family.c.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::common::{as_user, compiled, spawn, state, wait_until};

/// Compiles family.c once; a changed source gets another name.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| compiled("tests/tracking/family.c"))
}

/// Spawns family.c with these arguments as a user, who need not have the right to search the build directory.
pub(crate) fn start(args: &[&str], uid: u32, adjust: impl FnOnce(&mut Command)) -> Child {
    let file = File::open(binary()).expect("the compiled family");
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command.args(args);
    if uid != 0 {
        as_user(&mut command, uid);
    }
    adjust(&mut command);
    spawn(command).expect("the family starts")
}

/// Whether this machine lets a user have a source of events.
pub(crate) fn allowed(tracker: &str, uid: u32) -> bool {
    start(&["probe", tracker], uid, |_| ()).wait().expect("a child of ours").success()
}

/// The guard, and the place where new nodes are awaited.
pub(crate) struct Family {
    guard: Child,
    door: UnixListener,
    nodes: RefCell<usize>,
}

/// A task that takes orders.
pub(crate) struct Node {
    stream: BufReader<UnixStream>,
    /// Its thread id.
    pub(crate) tid: i32,
    /// Its process.
    pub(crate) tgid: i32,
}

impl Family {
    /// A family of one node.
    pub(crate) fn new(uid: u32) -> (Family, Node) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cgfuse-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let door = UnixListener::bind_addr(&address).expect("bind");
        let guard = start(&["guard", &name], uid, |command| {
            command.stdin(Stdio::null());
        });
        let family = Family { guard, door, nodes: RefCell::new(0) };
        let first = family.await_node();
        (family, first)
    }

    /// The node that has just been born.
    pub(crate) fn await_node(&self) -> Node {
        *self.nodes.borrow_mut() += 1;
        let (stream, _) = self.door.accept().expect("a node");
        let here = getsockopt(&stream, PeerCredentials).expect("SO_PEERCRED").pid();
        let mut node = Node { stream: BufReader::new(stream), tid: 0, tgid: here };
        let (tid, tgid) = node.hello();
        // In a pid namespace of its own it calls itself something else.
        (node.tid, node.tgid) = if tgid == here { (tid, tgid) } else { (here, here) };
        node
    }

    /// Has `parent` bear a node; the order is one of those that do.
    #[track_caller]
    pub(crate) fn born(&self, parent: &mut Node, order: &str) -> Node {
        self.try_born(parent, order).unwrap_or_else(|errno| panic!("{order}: errno {errno}"))
    }

    /// The same, or the errno of the call.
    pub(crate) fn try_born(&self, parent: &mut Node, order: &str) -> Result<Node, i32> {
        parent.order(order)?;
        Ok(self.await_node())
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // The nodes are gone before: fields and variables of scripts are dropped in that order. The guard goes with the last of them.
        let ended = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::time::Instant::now() < ended && matches!(self.guard.try_wait(), Ok(None)) {
            // Whoever has come without being awaited.
            let _ = self.door.set_nonblocking(true);
            while self.door.accept().is_ok() {}
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

impl Node {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the node answers");
        assert!(line.ends_with('\n'), "the node {} is gone", self.tid);
        line.trim_end().to_owned()
    }

    fn hello(&mut self) -> (i32, i32) {
        let line = self.line();
        let (tid, tgid) = line.split_once(' ').expect("two numbers");
        (tid.parse().expect("a tid"), tgid.parse().expect("a pid"))
    }

    /// Gives an order without waiting for its end.
    pub(crate) fn begin(&mut self, order: &str) {
        self.stream.get_mut().write_all(format!("{order}\n").as_bytes()).expect("the node listens");
    }

    /// The outcome of what has been begun.
    pub(crate) fn end(&mut self) -> Result<i32, i32> {
        let line = self.line();
        let (verdict, n) = line.split_once(' ').expect("a verdict");
        let n = n.parse().expect("a number");
        if verdict == "R" { Ok(n) } else { Err(n) }
    }

    /// Has the node do something.
    pub(crate) fn order(&mut self, order: &str) -> Result<i32, i32> {
        self.begin(order);
        self.end()
    }

    /// The same, for what must not fail.
    #[track_caller]
    pub(crate) fn does(&mut self, order: &str) -> i32 {
        self.order(order).unwrap_or_else(|errno| panic!("{order}: errno {errno}"))
    }

    /// Executes a program, which is another copy of family.c; "-" is the same one.
    pub(crate) fn exec(&mut self, path: &str) {
        self.begin(&format!("exec {path}"));
        let line = self.line();
        assert!(!line.starts_with('E'), "exec {path}: {line}");
        self.tid = self.tgid;
        wait_until("the other threads are gone", || {
            fs::read_dir(format!("/proc/{}/task", self.tgid)).is_ok_and(|entries| entries.count() == 1)
        });
    }

    /// Ends the task and waits until it is gone; the first one, or the only one, stays a zombie.
    pub(crate) fn leave(mut self) {
        self.does("leave");
        wait_gone(self.tgid, self.tid);
    }

    /// Ends the process and waits until all its threads are gone.
    pub(crate) fn quit(mut self) {
        self.does("quit");
        wait_gone(self.tgid, self.tgid);
        wait_until("the threads are gone", || {
            let tids = fs::read_dir(format!("/proc/{}/task", self.tgid)).into_iter().flatten().flatten();
            let mut tids = tids.filter_map(|e| e.file_name().to_str()?.parse().ok());
            tids.all(|tid: i32| matches!(state(self.tgid, tid), None | Some('Z' | 'X')))
        });
    }

    /// The tids of its process, those of the kernel's workers included.
    pub(crate) fn tids(&self) -> Vec<i32> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.tgid)).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }
}

fn wait_gone(tgid: i32, tid: i32) {
    wait_until("a task is gone", || matches!(state(tgid, tid), None | Some('Z' | 'X')));
}
