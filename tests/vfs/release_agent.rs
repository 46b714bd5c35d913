//! The release agent really runs: when, and with what.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno::{EINVAL, EPERM};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::actor::{Actor, Arg, Outcome, at};
use super::trees::{both_roots, has_no_complaints, lacks_root, test_name};
use crate::common::named::{empty, remove};
use crate::common::{Mount, TempDir, affinity, skipped, wait_until};

/// A hierarchy of the kernel's without controllers: its agent is nobody else's.
struct Named {
    temp: TempDir,
    name: String,
}

impl Named {
    fn new() -> Option<Named> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let temp = TempDir::new();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cgfuse-test-{}-{n}", std::process::id());
        let options = format!("none,name={name},clone_children");
        let mounted = mount(Some("cgroup"), temp.path(), Some("cgroup"), MsFlags::empty(), Some(&*options));
        if let Err(errno) = mounted {
            skipped(&test_name(), &format!("no hierarchy of the kernel's: {errno}"));
            return None;
        }
        Some(Named { temp, name })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // What is left in groups would keep the hierarchy.
        let left = fs::read_dir(self.temp.path()).into_iter().flatten().flatten();
        left.filter(|e| e.path().is_dir()).for_each(|e| empty(self.temp.path(), &e.path()));
        let _ = umount2(self.temp.path(), MntFlags::MNT_DETACH);
        remove(&self.name);
    }
}

/// Where the agent is and what it has noted.
struct Notes {
    temp: TempDir,
}

impl Notes {
    /// An agent that notes, per run, what it was given.
    fn new() -> Notes {
        let temp = TempDir::new();
        let notes = Notes { temp };
        // The first line in a subshell, so that the shell's own descriptors are those it was
        // started with. The rename tells that the rest is written.
        let out = notes.temp.path().join("$$");
        let script = "#!/bin/sh\n\
            (ls /proc/$$/fd > OUT.fds)\n\
            tr '\\0' '\\n' < /proc/$$/environ > OUT.env\n\
            readlink /proc/$$/cwd > OUT.cwd\n\
            cat /proc/$$/status > OUT.status\n\
            cat /proc/$$/cmdline > OUT.argv\n\
            mv OUT.argv OUT.run\n";
        notes.agent("agent", &script.replace("OUT", out.to_str().expect("a plain path")));
        notes
    }

    fn agent(&self, name: &str, script: &str) -> PathBuf {
        let path = self.temp.path().join(name);
        fs::write(&path, script).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("agent")
    }

    /// For each finished run its arguments.
    fn runs(&self) -> Vec<(PathBuf, Vec<OsString>)> {
        let files = fs::read_dir(self.temp.path()).expect("readdir").map(|e| e.expect("entry").path());
        let argv = |path: &Path| {
            let bytes = fs::read(path).expect("the arguments");
            let words = bytes.split_inclusive(|byte| *byte == 0).map(|word| OsString::from_vec(word[..word.len() - 1].to_vec()));
            words.collect()
        };
        let runs = files.filter(|path| path.extension().is_some_and(|ext| ext == "run"));
        runs.map(|path| (path.clone(), argv(&path))).collect()
    }

    /// How often each group was announced.
    fn announced(&self) -> HashMap<OsString, usize> {
        let mut times = HashMap::new();
        self.runs().into_iter().for_each(|(_, argv)| *times.entry(argv.last().expect("an argument").clone()).or_insert(0) += 1);
        times
    }

    #[track_caller]
    fn wait_for(&self, group: &str) {
        wait_until(&format!("{group} is announced"), || self.announced().contains_key(&OsString::from(group)));
    }
}

/// Runs `check` with the root of a hierarchy, and with notes whose agent is set there.
fn with_agent(check: fn(&Path, &Notes), root: &Path) {
    let notes = Notes::new();
    Actor::new().put(&root.join("release_agent"), notes.path().to_str().expect("a plain path")).expect("release_agent");
    check(root, &notes);
}

/// Makes a test of each check for the kernel and for ours.
macro_rules! agents {
    ($($name:ident)*) => { $(mod $name {
        #[test]
        fn kernel() {
            if super::lacks_root() {
                return;
            }
            if let Some(named) = super::Named::new() {
                super::with_agent(super::$name, named.temp.path());
            }
        }
        #[test]
        fn ours() {
            if super::lacks_root() {
                return;
            }
            // So that new groups can take members at once, as those of the named hierarchy.
            let mount = super::Mount::with_options("clone_children");
            super::with_agent(super::$name, mount.dir());
            super::has_no_complaints(&mount);
        }
    })* };
}

/// A group that is announced when it gets empty.
fn group(root: &Path, name: &str) -> PathBuf {
    let dir = at(root, name);
    let a = Actor::new();
    a.mkdir(&dir, 0o755).expect("mkdir");
    a.put(&dir.join("notify_on_release"), "1").expect("notify_on_release");
    dir
}

fn moves(a: &Actor, dir: &Path, pid: i32) -> Outcome {
    a.put(&dir.join("cgroup.procs"), pid.to_string()).map(|_| 0)
}

/// In and out, so that the group is announced; proves that what came before was not.
fn sentinel(root: &Path, notes: &Notes) {
    for name in ["sentinel-1", "sentinel-2"] {
        let (a, member) = (Actor::new(), Actor::new());
        moves(&a, &group(root, name), member.id).expect("attach");
        moves(&a, root, member.id).expect("attach");
        notes.wait_for(&format!("/{name}"));
        a.rmdir(&root.join(name)).expect("rmdir");
    }
}

/// Nothing but the sentinels and `expected` has been announced.
#[track_caller]
fn only(root: &Path, notes: &Notes, expected: &[&str]) {
    sentinel(root, notes);
    let mut names: Vec<_> = notes.announced().into_keys().filter(|name| !name.as_bytes().starts_with(b"/sentinel")).collect();
    names.sort();
    assert_eq!(names, expected);
}

fn the_last_member_is_moved_away(root: &Path, notes: &Notes) {
    let (a, first, last) = (Actor::new(), Actor::new(), Actor::new());
    let g = group(root, "g");
    moves(&a, &g, first.id).expect("attach");
    moves(&a, &g, last.id).expect("attach");
    moves(&a, root, first.id).expect("attach");
    only(root, notes, &[]);
    moves(&a, root, last.id).expect("attach");
    notes.wait_for("/g");
    // Once more.
    moves(&a, &g, last.id).expect("attach");
    moves(&a, root, last.id).expect("attach");
    wait_until("it is announced again", || notes.announced()[&OsString::from("/g")] >= 2);
    a.rmdir(&g).expect("rmdir");
    only(root, notes, &["/g"]);
}

fn the_last_member_exits(root: &Path, notes: &Notes) {
    let (a, parent) = (Actor::new(), Actor::new());
    let g = group(root, "g");
    let child = parent.fork();
    moves(&a, &g, child.id).expect("attach");
    // It stays a zombie: nobody waits for it.
    child.quit();
    notes.wait_for("/g");
    a.rmdir(&g).expect("rmdir");
}

fn the_last_member_is_killed(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = group(root, "g");
    member.park(5);
    moves(&a, &g, member.id).expect("attach");
    a.call(libc::SYS_kill, [member.id.into(), libc::SIGKILL.into()]).expect("kill");
    notes.wait_for("/g");
    a.rmdir(&g).expect("rmdir");
}

fn the_last_thread_is_moved_away(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let thread = member.thread();
    let g = group(root, "g");
    for tid in [member.id, thread.id] {
        a.put(&g.join("tasks"), tid.to_string()).expect("attach");
    }
    assert_eq!(member.put(&root.join("tasks"), "0"), Ok(1));
    only(root, notes, &[]);
    assert_eq!(thread.put(&root.join("tasks"), "0"), Ok(1));
    notes.wait_for("/g");
    a.rmdir(&g).expect("rmdir");
}

fn the_last_child_group_goes(root: &Path, notes: &Notes) {
    let a = Actor::new();
    let g = group(root, "g");
    // The child's own flag does not matter, nor that nobody ever was in either.
    for child in ["x", "y"] {
        a.mkdir(&g.join(child), 0o755).expect("mkdir");
        a.put(&g.join(child).join("notify_on_release"), "0").expect("notify_on_release");
    }
    a.rmdir(&g.join("x")).expect("rmdir");
    only(root, notes, &[]);
    a.rmdir(&g.join("y")).expect("rmdir");
    notes.wait_for("/g");
    a.rmdir(&g).expect("rmdir");
    only(root, notes, &["/g"]);
}

fn children_and_members_hold(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = group(root, "g");
    a.mkdir(&g.join("x"), 0o755).expect("mkdir");
    moves(&a, &g, member.id).expect("attach");
    moves(&a, root, member.id).expect("attach");
    only(root, notes, &[]);
    moves(&a, &g, member.id).expect("attach");
    a.rmdir(&g.join("x")).expect("rmdir");
    only(root, notes, &[]);
    moves(&a, root, member.id).expect("attach");
    notes.wait_for("/g");
    a.rmdir(&g).expect("rmdir");
}

fn what_announces_nothing(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = group(root, "g");
    // The flag on a group that is empty already.
    for value in ["0", "1"] {
        a.put(&g.join("notify_on_release"), value).expect("notify_on_release");
    }
    moves(&a, &g, member.id).expect("attach");
    moves(&a, &g, member.id).expect("attach again");
    a.put(&g.join("notify_on_release"), "0").expect("notify_on_release");
    moves(&a, root, member.id).expect("attach");
    // Too late.
    a.put(&g.join("notify_on_release"), "1").expect("notify_on_release");
    a.rename(&g, &root.join("h"), 0).expect("rename");
    a.rmdir(&root.join("h")).expect("rmdir");
    only(root, notes, &[]);
}

/// The root is never announced, whatever its flag.
fn the_root_is_not(root: &Path, notes: &Notes) {
    let a = Actor::new();
    a.put(&root.join("notify_on_release"), "1").expect("notify_on_release");
    // New groups have the flag from it.
    a.mkdir(&root.join("g"), 0o755).expect("mkdir");
    assert_eq!(a.text(&root.join("g/notify_on_release")).as_deref(), Ok("1\n"));
    a.rmdir(&root.join("g")).expect("rmdir");
    only(root, notes, &[]);
    a.put(&root.join("notify_on_release"), "0").expect("notify_on_release");
}

/// The flag and the agent are those of the moment.
fn what_counts_is_the_moment(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let agent = root.join("release_agent");
    let g = group(root, "g");
    let in_and_out = || {
        moves(&a, &g, member.id).expect("attach");
        moves(&a, root, member.id).expect("attach");
    };
    let path = notes.path();
    let path = path.to_str().expect("a plain path");
    let not_executable = notes.agent("plain", "#!/bin/sh\n");
    fs::set_permissions(&not_executable, fs::Permissions::from_mode(0o644)).expect("chmod");
    for nothing in ["\n", "/nonexistent/agent", not_executable.to_str().expect("a plain path"), &format!("{path} argument"), "/"] {
        a.put(&agent, nothing).expect("release_agent");
        in_and_out();
    }
    until_tried(&a, root, notes, &in_and_out);
    a.put(&agent, path).expect("release_agent");
    // Nothing of it is made up for.
    only(root, notes, &[]);
    in_and_out();
    notes.wait_for("/g");
    a.rmdir(&g).expect("rmdir");
}

/// An agent is called some time later, the one that there is by then. Once this one has run, those before have been tried.
fn until_tried(a: &Actor, root: &Path, notes: &Notes, in_and_out: &dyn Fn()) {
    let marker = notes.temp.path().join("marker");
    let last = notes.agent("last", &format!("#!/bin/sh\n: > {}\n", marker.display()));
    a.put(&root.join("release_agent"), last.to_str().expect("a plain path")).expect("release_agent");
    in_and_out();
    wait_until("the last agent has run", || marker.exists());
}

/// A directory entry of `/`.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir(&self.0));
    }
}

/// A name without a slash means a file of `/`: nobody looks in PATH, and no shell takes a file that is no program for a script.
fn how_it_is_found(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let agent = root.join("release_agent");
    let name = name_of(notes);
    let (entry, made) = (Entry(Path::new("/").join(&name).with_extension("agent")), Entry(Path::new("/").join(&name)));
    // `mkdir /NAME`, were it found in PATH.
    let g = group(root, &name);
    let in_and_out = || {
        moves(&a, &g, member.id).expect("attach");
        moves(&a, root, member.id).expect("attach");
    };
    let script = notes.agent("script", &format!(": > {}\n", notes.temp.path().join("script.ran").display()));
    for nothing in ["mkdir", script.to_str().expect("a plain path")] {
        a.put(&agent, nothing).expect("release_agent");
        in_and_out();
    }
    until_tried(&a, root, notes, &in_and_out);
    a.put(&agent, notes.path().to_str().expect("a plain path")).expect("release_agent");
    only(root, notes, &[]);
    assert!(!made.0.exists() && !notes.temp.path().join("script.ran").exists());
    if let Err(error) = std::os::unix::fs::symlink(notes.path(), &entry.0) {
        return skipped(&test_name(), &format!("{}: {error}", entry.0.display()));
    }
    let short = entry.0.file_name().and_then(|name| name.to_str()).expect("a plain name");
    for given in [short.to_owned(), format!("./{short}")] {
        a.put(&agent, &given).expect("release_agent");
        in_and_out();
        // By the name that was given.
        let argv = [OsString::from("/bin/sh"), OsString::from(&given), OsString::from(format!("/{name}"))];
        wait_until(&format!("{given} has run"), || notes.runs().iter().any(|(_, run)| *run == argv));
    }
    a.rmdir(&g).expect("rmdir");
}

/// A name that nobody else has.
fn name_of(notes: &Notes) -> String {
    notes.temp.path().file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned()
}

fn paths(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let names: [&[u8]; 4] = [b"a", b"a/b c", b"a/b c/$(x)'\"*", b"a/b c/\xff\\\t"];
    for name in names {
        let dir = at(root, name);
        a.mkdir(&dir, 0o755).expect("mkdir");
        a.put(&dir.join("notify_on_release"), "1").expect("notify_on_release");
    }
    let announced = |name: &[u8]| notes.announced().contains_key(&OsString::from_vec([b"/", name].concat()));
    for name in names.iter().rev() {
        let dir = at(root, name);
        moves(&a, &dir, member.id).expect("attach");
        moves(&a, root, member.id).expect("attach");
        // The upper ones by their last child, the lower ones by their last member.
        wait_until("the path is announced", || announced(name));
        a.rmdir(&dir).expect("rmdir");
    }
    assert_eq!(notes.announced().len(), names.len());
}

fn what_it_is_given(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = group(root, "g");
    moves(&a, &g, member.id).expect("attach");
    moves(&a, root, member.id).expect("attach");
    notes.wait_for("/g");
    let (run, argv) = notes.runs().remove(0);
    let note = |what: &str| fs::read_to_string(run.with_extension(what)).expect(what);
    // The shell comes from the script's first line.
    assert_eq!(argv, ["/bin/sh", notes.path().to_str().expect("a plain path"), "/g"]);
    let mut env: Vec<_> = note("env").lines().map(str::to_owned).collect();
    env.sort();
    assert_eq!(env, ["HOME=/", "PATH=/sbin:/bin:/usr/sbin:/usr/bin"]);
    assert_eq!(note("cwd"), "/\n");
    let fds: Vec<u32> = note("fds").lines().map(|line| line.parse().expect("a number")).collect();
    // The shell has the script itself at 10 or above; nothing of the server's is there.
    assert!(fds.iter().all(|fd| *fd >= 10) && fds.len() <= 1, "{fds:?}");
    let status = note("status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned();
    let ours = fs::read_to_string("/proc/self/status").expect("status");
    let full = ours.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("CapBnd").trim().to_owned();
    assert_eq!(field("Uid:").split_whitespace().collect::<Vec<_>>(), ["0"; 4]);
    assert_eq!(field("Gid:").split_whitespace().collect::<Vec<_>>(), ["0"; 4]);
    // All there are, even such as we could not have ourselves; from user space those we could.
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").expect("cap_last_cap").trim().parse().expect("a number");
    let all = format!("{:016x}", (1u64 << (last + 1)) - 1);
    assert_eq!(field("CapEff:"), field("CapPrm:"));
    assert!([full, all].contains(&field("CapEff:")), "{}", field("CapEff:"));
    // (What is blocked is up to the shell while it waits.)
    assert_eq!(field("SigIgn:"), "0000000000000000");
    assert_eq!(field("Cpus_allowed_list:"), list(&affinity(1)));
    a.rmdir(&g).expect("rmdir");
}

/// `0-3`, as /proc writes it; there are no gaps where the tests run.
fn list(cpus: &[usize]) -> String {
    match cpus {
        [one] => one.to_string(),
        all => format!("{}-{}", all[0], all[all.len() - 1]),
    }
}

/// What agents are for: the group removes itself.
fn the_agent_removes_the_group(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let script = format!("#!/bin/sh\nrmdir \"{}$1\"\n", root.display());
    let agent = notes.agent("remove", &script);
    a.put(&root.join("release_agent"), agent.to_str().expect("a plain path")).expect("release_agent");
    let outer = group(root, "outer");
    let inner = group(&outer, "inner");
    moves(&a, &inner, member.id).expect("attach");
    moves(&a, root, member.id).expect("attach");
    wait_until("the inner group is gone", || !inner.exists());
    // Its going announces the outer one.
    wait_until("the outer group is gone", || !outer.exists());
}

/// An agent that takes its time is in nobody's way.
fn a_slow_agent_holds_nobody(root: &Path, notes: &Notes) {
    let (a, member) = (Actor::new(), Actor::new());
    let dir = notes.temp.path().to_str().expect("a plain path").to_owned();
    // It ends with the test, should that fail.
    let agent = notes.agent(
        "slow",
        &format!("#!/bin/sh\n: > {dir}/started\nwhile test -d {dir} && ! test -e {dir}/go; do sleep 0.01; done\n: > {dir}/ended\n"),
    );
    a.put(&root.join("release_agent"), agent.to_str().expect("a plain path")).expect("release_agent");
    let g = group(root, "g");
    moves(&a, &g, member.id).expect("attach");
    moves(&a, root, member.id).expect("attach");
    wait_until("the agent runs", || Path::new(&dir).join("started").exists());
    moves(&a, &g, member.id).expect("attach");
    moves(&a, root, member.id).expect("attach");
    a.mkdir(&root.join("h"), 0o755).expect("mkdir");
    a.rmdir(&root.join("h")).expect("rmdir");
    assert_eq!(a.text(&g.join("tasks")).as_deref(), Ok(""));
    a.rmdir(&g).expect("rmdir");
    assert!(!Path::new(&dir).join("ended").exists());
    fs::write(Path::new(&dir).join("go"), "").expect("let it go");
    wait_until("the agent has ended", || Path::new(&dir).join("ended").exists());
}

/// However many run, one thread of the server starts them and waits for them.
#[test]
fn agents_share_a_thread() {
    if lacks_root() {
        return;
    }
    let mount = Mount::with_options("clone_children");
    let (root, notes) = (mount.dir(), Notes::new());
    let (a, member) = (Actor::new(), Actor::new());
    let dir = notes.temp.path().to_str().expect("a plain path").to_owned();
    // They end with the test, should that fail.
    let script = format!("#!/bin/sh\n: > {dir}/started.$$\nwhile test -d {dir} && ! test -e {dir}/go; do sleep 0.01; done\n");
    let agent = notes.agent("slow", &script);
    a.put(&root.join("release_agent"), agent.to_str().expect("a plain path")).expect("release_agent");
    let g = group(root, "g");
    let started = || fs::read_dir(&dir).expect("readdir").flatten().filter(|e| e.file_name().as_bytes().starts_with(b"started.")).count();
    let tasks = format!("/proc/{}/task", mount.server_pid());
    let comms = || fs::read_dir(&tasks).expect("readdir").flatten().map(|e| fs::read_to_string(e.path().join("comm")).unwrap_or_default());
    let threads = || comms().filter(|comm| comm.starts_with("release-agent")).count();
    for n in 1..=8 {
        moves(&a, &g, member.id).expect("attach");
        moves(&a, root, member.id).expect("attach");
        wait_until("the agent runs", || started() == n);
    }
    assert_eq!(threads(), 1);
    fs::write(Path::new(&dir).join("go"), "").expect("let them go");
    // It goes when all have been waited for.
    wait_until("the thread is gone", || threads() == 0);
    let children = |e: fs::DirEntry| fs::read_to_string(e.path().join("children")).unwrap_or_default();
    let of_agents: String = fs::read_dir(&tasks).expect("readdir").flatten().map(children).collect();
    let zombie = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    assert!(!of_agents.split_whitespace().any(zombie), "{of_agents}");
    has_no_complaints(&mount);
}

fn text_of_the_file(root: &Path, _: &Notes) {
    let a = Actor::new();
    let file = root.join("release_agent");
    for (text, value) in [
        ("/bin/true", "/bin/true"),
        ("  /bin/true \t\n\n", "/bin/true"),
        ("no/such path with args", "no/such path with args"),
        ("a\nb", "a\nb"),
        ("x\0y", "x"),
        ("\n", ""),
        (" ", ""),
        ("\u{e9}", "\u{e9}"),
    ] {
        assert_eq!(a.put(&file, text), Ok(text.len() as i64), "{text:?}");
        assert_eq!(a.text(&file), Ok(format!("{value}\n")), "{text:?}");
    }
    let longest = "a".repeat(4095);
    assert_eq!(a.put(&file, &longest), Ok(4095));
    assert_eq!(a.text(&file), Ok(format!("{longest}\n")));
    assert_eq!(a.put(&file, "\n"), Ok(1));
}

/// It runs as root, so only who may do all sets it, whatever the file's mode.
fn who_may_set_it(root: &Path, notes: &Notes) {
    let a = Actor::new();
    let file = root.join("release_agent");
    let path = notes.path();
    let before = Ok(format!("{}\n", path.display()));
    a.chmod(&file, 0o666).expect("chmod");
    let user = Actor::user(65534);
    assert_eq!(user.put(&file, "/bin/true"), Err(EPERM));
    assert_eq!(user.put(&file, ""), Ok(0));
    // Root without the capability.
    let weak = Actor::new();
    let header = [0x2008_0522u32, 0].map(u32::to_ne_bytes).concat();
    let mut sets = weak.call_out(libc::SYS_capget, [header[..].into(), Arg::Out(24)]).expect("capget");
    // CAP_SYS_ADMIN (21), in the first word, which is of the effective set.
    let effective = u32::from_ne_bytes(sets[..4].try_into().expect("4 bytes"));
    sets[..4].copy_from_slice(&(effective & !(1 << 21)).to_ne_bytes());
    weak.call(libc::SYS_capset, [header[..].into(), sets[..].into()]).expect("capset");
    assert_eq!(weak.put(&file, "/bin/true"), Err(EPERM));
    // The right is looked for in who opened the file, like that to move tasks.
    let opener = Actor::new();
    opener.setresuid(u32::MAX, 65534, 0).expect("seteuid");
    let fd = opener.open(&file, libc::O_WRONLY).expect("open");
    opener.setresuid(0, 0, 0).expect("seteuid");
    assert_eq!(opener.write(fd, "/bin/true"), Err(EPERM));
    assert_eq!(a.text(&file), before);
    let fd = opener.open(&file, libc::O_WRONLY).expect("open");
    opener.become_user(65534);
    assert_eq!(opener.write(fd, "/bin/true"), Ok(9));
    assert_eq!(a.text(&file).as_deref(), Ok("/bin/true\n"));
    a.chmod(&file, 0o644).expect("chmod");
}

#[test]
fn as_a_mount_option() {
    if lacks_root() {
        return;
    }
    let notes = Notes::new();
    let mount = Mount::with_options(&format!("clone_children,release_agent={}", notes.path().display()));
    let (a, member) = (Actor::new(), Actor::new());
    assert_eq!(a.text(&mount.dir().join("release_agent")), Ok(format!("{}\n", notes.path().display())));
    let g = group(mount.dir(), "g");
    moves(&a, &g, member.id).expect("attach");
    moves(&a, mount.dir(), member.id).expect("attach");
    notes.wait_for("/g");
    has_no_complaints(&mount);
}

/// Where there is none it is empty, and the flag does nothing.
fn unset_it_is_empty(root: &Path) {
    let a = Actor::new();
    // Who set one on this machine is not disturbed.
    if a.text(&root.join("release_agent")).as_deref() != Ok("\n") {
        return skipped(&test_name(), "somebody has set an agent");
    }
    assert_eq!(a.put(&root.join("cgroup.sane_behavior"), "/bin/true"), Err(EINVAL));
    assert_eq!(a.text(&root.join("release_agent")).as_deref(), Ok("\n"));
}

agents! {
    the_last_member_is_moved_away the_last_member_exits the_last_member_is_killed the_last_thread_is_moved_away
    the_last_child_group_goes children_and_members_hold what_announces_nothing the_root_is_not
    what_counts_is_the_moment how_it_is_found paths what_it_is_given the_agent_removes_the_group a_slow_agent_holds_nobody
    text_of_the_file who_may_set_it
}
both_roots! { unset_it_is_empty }
