//! Hand-written scripts: the tree and everything one can do to its nodes.

use nix::errno::Errno::*;

use super::step::OnFd as On;
use super::step::*;

const FILES: [&str; 17] = [
    "tasks",
    "cgroup.procs",
    "cgroup.clone_children",
    "notify_on_release",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "cpuset.mem_hardwall",
    "cpuset.memory_migrate",
    "cpuset.memory_spread_page",
    "cpuset.memory_spread_slab",
    "cpuset.sched_load_balance",
    "cpuset.sched_relax_domain_level",
    "cpuset.effective_cpus",
    "cpuset.effective_mems",
    "cpuset.memory_pressure",
];
const ROOT_ONLY: [&str; 3] = ["cgroup.sane_behavior", "release_agent", "cpuset.memory_pressure_enabled"];
const RW: i32 = libc::O_RDWR;
const RO: i32 = libc::O_RDONLY;
const WO: i32 = libc::O_WRONLY;
const DIRECTORY: i32 = libc::O_DIRECTORY;
const CREAT: i32 = libc::O_CREAT;
const EXCL: i32 = libc::O_EXCL;

fn name(n: usize) -> String {
    "n".repeat(n)
}

/// 1.1, 1.2
pub fn files() -> Vec<Step> {
    let mut s = vec![list(""), mkdir("a").ok(), list("a"), list("..")];
    for file in FILES {
        let ro = matches!(file, "cpuset.effective_cpus" | "cpuset.effective_mems" | "cpuset.memory_pressure");
        let mode = if ro { "0444" } else { "0644" };
        let shown = format!("file {mode} 0:0 nlink 1 size 0 blocks 0 of 4096");
        s.push(stat(format!("a/{file}")).gives(&shown));
        s.push(stat(format!("../{file}")));
        s.push(read(format!("a/{file}")));
    }
    for file in ROOT_ONLY {
        s.push(stat(format!("../{file}")));
        s.push(stat(file).fails(ENOENT));
        s.push(read(format!("../{file}")));
    }
    s.extend([
        stat(".."),
        stat("cgroup.event_control").fails(ENOENT),
        stat("tasks/").fails(ENOTDIR),
        stat("tasks/x").fails(ENOTDIR),
        stat("none").fails(ENOENT),
        stat("none/tasks").fails(ENOENT),
        read("cgroup.sane_behavior").fails(ENOENT),
        read("../cgroup.sane_behavior").gives("0\n"),
        write("../cgroup.sane_behavior", "1").fails(EINVAL),
        write("../cgroup.sane_behavior", "").ok(),
        read("../cpuset.cpu_exclusive"),
        read("../cpuset.mem_exclusive"),
        read("../cpuset.memory_pressure").gives("0\n"),
        write("../cpuset.memory_pressure_enabled", "x").fails(EINVAL),
        write("../cpuset.memory_pressure_enabled", "").ok(),
        read("a").fails(EISDIR),
        statfs("a").gives("bsize=4096 frsize=4096 [0, 0, 0, 0, 0] namelen=255"),
        statfs("a/tasks").gives("bsize=4096 frsize=4096 [0, 0, 0, 0, 0] namelen=255"),
    ]);
    s
}

/// 1.2
pub fn nlink_and_times() -> Vec<Step> {
    vec![
        stat("").gives("dir 0755 0:0 nlink 2 size 0 blocks 0 of 4096"),
        mkdir("a").ok(),
        stat("").gives("dir 0755 0:0 nlink 3 size 0 blocks 0 of 4096"),
        mkdir("b").ok(),
        mkdir("a/c").ok(),
        mkdir("a/d").ok(),
        stat("").gives("dir 0755 0:0 nlink 4 size 0 blocks 0 of 4096"),
        stat("a").gives("dir 0755 0:0 nlink 4 size 0 blocks 0 of 4096"),
        rename("a/c", "a/e").ok(),
        stat("a").gives("dir 0755 0:0 nlink 4 size 0 blocks 0 of 4096"),
        rmdir("a/e").ok(),
        stat("a").gives("dir 0755 0:0 nlink 3 size 0 blocks 0 of 4096"),
        stat("a/d").gives("dir 0755 0:0 nlink 2 size 0 blocks 0 of 4096"),
        list("a"),
        rmdir("a/d").ok(),
        rmdir("b").ok(),
        stat("").gives("dir 0755 0:0 nlink 3 size 0 blocks 0 of 4096"),
        times("a").gives("now now now"),
        times("a/tasks").gives("now now now"),
        utime("a/tasks", 1_000_000).ok(),
        times("a/tasks").gives("1000000 1000000 now"),
        write("a/tasks", "").ok(),
        read("a/tasks").gives(""),
        times("a/tasks").gives("1000000 1000000 now"),
        utime("a/cpuset.cpus", 2_000_000).ok(),
        write("a/cpuset.cpus", "0").ok(),
        times("a/cpuset.cpus").gives("2000000 2000000 now"),
        utime("a", 3_000_000).ok(),
        rename("a", "z").ok(),
        times("z").gives("3000000 3000000 now"),
        times("z/tasks").gives("1000000 1000000 now"),
        nobody(utime("z", 4_000_000)).fails(EPERM),
        nobody(utime("z/tasks", 4_000_000)).fails(EPERM),
    ]
}

/// 1.3
pub fn mkdir_modes() -> Vec<Step> {
    vec![
        mkdir_mode("a", 0o777, 0).ok(),
        stat("a").gives("dir 0777 0:0 nlink 2 size 0 blocks 0 of 4096"),
        stat("a/tasks").gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
        mkdir_mode("b", 0o777, 0o077).ok(),
        stat("b").gives("dir 0700 0:0 nlink 2 size 0 blocks 0 of 4096"),
        stat("b/tasks").gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
        mkdir_mode("c", 0o7777, 0o022).ok(),
        stat("c").gives("dir 1755 0:0 nlink 2 size 0 blocks 0 of 4096"),
        mkdir_mode("d", 0, 0).ok(),
        stat("d").gives("dir 0000 0:0 nlink 2 size 0 blocks 0 of 4096"),
        read("d/tasks").gives(""),
        nobody(stat("d/tasks")).fails(EACCES),
        nobody(list("d")).fails(EACCES),
        mkdir_mode("e", 0o6711, 0).ok(),
        stat("e").gives("dir 0711 0:0 nlink 2 size 0 blocks 0 of 4096"),
        nobody(mkdir("n")).fails(EACCES),
        nobody(mkdir("a/n")).ok(),
        stat("a/n").gives("dir 0755 65534:65534 nlink 2 size 0 blocks 0 of 4096"),
        stat("a/n/tasks").gives("file 0644 65534:65534 nlink 1 size 0 blocks 0 of 4096"),
        stat("a/n/cpuset.effective_cpus").gives("file 0444 65534:65534 nlink 1 size 0 blocks 0 of 4096"),
        nobody(write("a/n/cpuset.cpus", "0")).fails(EACCES),
        write("a/cpuset.cpus", "0").ok(),
        nobody(write("a/n/cpuset.cpus", "0")).ok(),
        nobody(write("a/cpuset.cpus", "1")).fails(EACCES),
        nobody(mkdir("a/n/m")).ok(),
        mkdir("a/n/r").ok(),
        stat("a/n/r").gives("dir 0755 0:0 nlink 2 size 0 blocks 0 of 4096"),
        nobody(rmdir("a/n/r")).ok(),
        nobody(rmdir("a/n/m")).ok(),
        chmod("a", 0o2777).ok(),
        mkdir("a/g").ok(),
        chown("a", 0, 777).ok(),
        stat("a"),
        chmod("a", 0o2777).ok(),
        mkdir("a/h").ok(),
        stat("a/h").gives("dir 2755 0:777 nlink 2 size 0 blocks 0 of 4096"),
        stat("a/h/tasks").gives("file 0644 0:777 nlink 1 size 0 blocks 0 of 4096"),
        nobody(mkdir("a/i")).ok(),
        stat("a/i").gives("dir 2755 65534:777 nlink 2 size 0 blocks 0 of 4096"),
        stat("a/i/cpuset.cpus"),
        chmod("a", 0o1777).ok(),
        nobody(rmdir("a/h")).fails(EPERM),
        nobody(rename("a/h", "a/k")).fails(EPERM),
        nobody(rmdir("a/i")).ok(),
    ]
}

/// 1.3
pub fn mkdir_names() -> Vec<Step> {
    let mut s = Vec::new();
    let odd: [&[u8]; 14] = [
        b"with space",
        b"tab\there",
        b" ",
        b"\x01\x7f",
        b"\xff\xfe",
        b".hidden",
        b"...",
        b"*",
        b"back\\slash",
        b"cpuset.foo",
        b"cgroup.foo",
        b"release_agent",
        b"cgroup.sane_behavior",
        b"-",
    ];
    for name in odd {
        s.push(mkdir(name).ok());
    }
    s.push(list(""));
    s.extend(odd.map(|name| rmdir(name).ok()));
    for name in ["a\nb", "\n", "a\n", "\na"] {
        s.push(mkdir(name).fails(EINVAL));
    }
    for n in [255, 256, 300, 1000, 1024] {
        s.push(mkdir(name(n)).ok());
        s.push(stat(name(n)));
        s.push(rmdir(name(n)).ok());
    }
    s.extend([
        mkdir(name(4096)).fails(ENAMETOOLONG),
        mkdir("a").ok(),
        mkdir("a").fails(EEXIST),
        mkdir("a/").fails(EEXIST),
        mkdir("a/.").fails(EEXIST),
        mkdir("a/..").fails(EEXIST),
        mkdir("tasks").fails(EEXIST),
        mkdir("cpuset.cpus").fails(EEXIST),
        mkdir("a/tasks/").fails(EEXIST),
        mkdir("none/x").fails(ENOENT),
        mkdir("tasks/x").fails(ENOTDIR),
        mkdir("b/").ok(),
        mkdir("b//c").ok(),
        mkdir("b/c/../d").ok(),
        list("b"),
        mkdir("a/b").ok(),
        mkdir("a/b/c").ok(),
        mkdir("a/b/c/d").ok(),
        mkdir("a/b/c/d/e").ok(),
        stat("a/b/c/d/e/../../../b").fails(ENOENT),
        stat("a/b/c/d/e/../../..").gives("dir 0755 0:0 nlink 3 size 0 blocks 0 of 4096"),
    ]);
    s
}

/// 1.3, 1.9: what a descriptor still gives after its group is gone.
pub fn removed_groups() -> Vec<Step> {
    vec![
        mkdir("a").ok(),
        write("a/cpuset.cpus", "0").ok(),
        hold(0, "a", RO | DIRECTORY).ok(),
        hold(1, "a/cpuset.cpus", RW).ok(),
        hold(2, "a/tasks", RW).ok(),
        hold(3, "a/cpuset.effective_cpus", RW).ok(),
        hold(4, "a/cpuset.cpus", RO).ok(),
        h_read(4, 1).gives("0"),
        rmdir("a").ok(),
        h_read(4, 10).gives("\n"),
        h_read(4, 10).fails(ENODEV),
        h_pread(4, 10, 0).fails(ENODEV),
        stat("a").fails(ENOENT),
        stat("a/tasks").fails(ENOENT),
        h_read(1, 10).fails(ENODEV),
        h_pread(1, 10, 0).fails(ENODEV),
        h_read(2, 10).fails(ENODEV),
        h_write(1, "0").fails(ENODEV),
        h_write(1, "garbage").fails(ENODEV),
        on(1, On::Write(Bytes(vec![b' '; 2000]))).fails(E2BIG),
        on(2, On::Write(Bytes(vec![b' '; 4097]))).fails(E2BIG),
        on(2, On::Write(Bytes(vec![b' '; 4096]))).fails(ENODEV),
        h_write(3, "1").fails(ENODEV),
        on(3, On::Write(Bytes(vec![b'1'; 4097]))).fails(E2BIG),
        on(1, On::Stat).gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
        on(1, On::Chmod(Octal(0o600))).ok(),
        on(1, On::Stat).gives("file 0600 0:0 nlink 1 size 0 blocks 0 of 4096"),
        on(0, On::List).gives(""),
        on(0, On::Mkdirat("x".into())).fails(ENOENT),
        on(0, On::Openat("notify_on_release".into())).fails(ENOENT),
        on(0, On::Openat("x".into())).fails(ENOENT),
        on(0, On::Stat),
        mkdir("a").ok(),
        h_read(1, 10).fails(ENODEV),
        h_write(1, "0").fails(ENODEV),
        on(0, On::List).gives(""),
        start(0).ok(),
        h_attach(2, "{d}", P(0)).fails(ENODEV),
        read("a/cpuset.cpus").gives("\n"),
        close(1).ok(),
        close(0).ok(),
        stat("a").gives("dir 0755 0:0 nlink 2 size 0 blocks 0 of 4096"),
    ]
}

/// 1.4
pub fn rmdir_rules() -> Vec<Step> {
    vec![
        rmdir("none").fails(ENOENT),
        rmdir("tasks").fails(ENOTDIR),
        rmdir("none/x").fails(ENOENT),
        mkdir("a").ok(),
        mkdir("a/b").ok(),
        rmdir("a").fails(EBUSY),
        rmdir("a/.").fails(EINVAL),
        rmdir("a/b/..").fails(ENOTEMPTY),
        rmdir("a/b/").ok(),
        rmdir("a").ok(),
        mkdir("a").ok(),
        write("a/cpuset.cpus", "0").ok(),
        write("a/cpuset.mems", "0").ok(),
        start(0).ok(),
        attach("a/tasks", P(0)).ok(),
        rmdir("a").fails(EBUSY),
        mkdir("a/b").ok(),
        rmdir("a").fails(EBUSY),
        attach("tasks", P(0)).ok(),
        rmdir("a").fails(EBUSY),
        rmdir("a/b").ok(),
        rmdir("a").ok(),
        mkdir("a").ok(),
        write("a/cpuset.cpus", "0").ok(),
        write("a/cpuset.mems", "0").ok(),
        attach("a/cgroup.procs", P(0)).ok(),
        fork(P(0)).ok(),
        attach("tasks", P(0)).ok(),
        rmdir("a").fails(EBUSY),
        kill(C(0, 1)).ok(),
        read("a/tasks").gives(""),
        read("a/cgroup.procs").gives(""),
        rmdir("a").ok(),
        reap(C(0, 1)).ok(),
        mkdir("a").ok(),
        write("a/cpuset.cpus", "0-1").ok(),
        write("a/cpuset.mems", "0").ok(),
        thread(P(0)).ok(),
        attach("a/cgroup.procs", P(0)).ok(),
        end_thread(P(0)).ok(),
        read("a/tasks").gives("p0.t1"),
        read("a/cgroup.procs").gives("p0"),
        rmdir("a").fails(EBUSY),
        exit(0).ok(),
        rmdir("a").ok(),
        mkdir("a").ok(),
        write("a/cpuset.cpus", "0").ok(),
        write("a/cpuset.mems", "0").ok(),
        start(1).ok(),
        thread(P(1)).ok(),
        thread(P(1)).ok(),
        attach("a/cgroup.procs", P(1)).ok(),
        wait(1).ok(),
        rmdir("a").ok(),
        mkdir("s").ok(),
        chmod("s", 0o1777).ok(),
        mkdir("s/r").ok(),
        nobody(mkdir("s/n")).ok(),
        nobody(rmdir("s/r")).fails(EPERM),
        nobody(rmdir("s/n")).ok(),
        nobody(rmdir("s")).fails(EACCES),
    ]
}

/// 1.5
pub fn rename_rules() -> Vec<Step> {
    let noreplace = libc::RENAME_NOREPLACE;
    let exchange = libc::RENAME_EXCHANGE;
    let whiteout = libc::RENAME_WHITEOUT;
    let mut s = vec![
        mkdir("a").ok(),
        mkdir("b").ok(),
        mkdir("d").ok(),
        mkdir("d/e").ok(),
        rename("a", "a").ok(),
        rename("a", "b").fails(EEXIST),
        rename("a", "d").fails(EEXIST),
        rename("d/e", "d").fails(ENOTEMPTY),
        rename("d/e", "d/").fails(ENOTEMPTY),
        rename("a", "a/x").fails(EINVAL),
        rename("d", "d/e/x").fails(EINVAL),
        rename("d/e", "e").fails(EIO),
        rename("a", "d/a").fails(EIO),
        rename("a", "d/e").fails(EIO),
        rename("d/e", "a").fails(EIO),
        rename("a", "x\ny").fails(EINVAL),
        rename("tasks", "x").fails(ENOTDIR),
        rename("tasks", "cgroup.procs").fails(ENOTDIR),
        rename("tasks", "a").fails(EISDIR),
        rename("tasks", "tasks"),
        rename("a", "tasks").fails(ENOTDIR),
        rename("a", "d/tasks"),
        rename("a/tasks", "b/tasks").fails(ENOTDIR),
        rename("none", "x").fails(ENOENT),
        rename("a", "none/x").fails(ENOENT),
        rename("none", "a").fails(ENOENT),
        rename_out("a").fails(EXDEV),
        rename_out("tasks").fails(EXDEV),
        rename("a", ".").fails(EBUSY),
        rename("a", "d/..").fails(EBUSY),
        rename("a/.", "x").fails(EBUSY),
        rename2("a", "b", noreplace).fails(EEXIST),
        rename2("a", "x", noreplace).fails(EINVAL),
        rename2("a", "b", exchange).fails(EINVAL),
        rename2("a", "x", exchange).fails(ENOENT),
        rename2("a", "x", whiteout).fails(EINVAL),
        rename("a", "tasks/x").fails(ENOTDIR),
        rename("a", "x/").ok(),
        rename("x/", "a").ok(),
        nobody(rename("a", "x")).fails(EACCES),
        rename("a", name(300)).ok(),
        rename(name(300), b"\xff *"[..].to_vec().as_slice()).ok(),
        rename(b"\xff *"[..].to_vec().as_slice(), "cpuset.x").ok(),
        rename("cpuset.x", "a").ok(),
        list(""),
    ];
    s.extend([
        write("d/cpuset.cpus", "0").ok(),
        write("d/cpuset.mems", "0").ok(),
        write("d/e/cpuset.cpus", "0").ok(),
        write("d/e/cpuset.mems", "0").ok(),
        chmod("d/tasks", 0o600).ok(),
        chown("d", 5, 6).ok(),
        start(0).ok(),
        start(1).ok(),
        attach("d/tasks", P(0)).ok(),
        attach("d/e/tasks", P(1)).ok(),
        hold(0, "d/cpuset.cpus", RW).ok(),
        hold(1, "d/e/tasks", RO).ok(),
        rename("d", "f").ok(),
        stat("d").fails(ENOENT),
        stat("f").gives("dir 0755 5:6 nlink 3 size 0 blocks 0 of 4096"),
        stat("f/tasks").gives("file 0600 0:0 nlink 1 size 0 blocks 0 of 4096"),
        read("f/tasks").gives("p0"),
        read("f/e/tasks").gives("p1"),
        read("f/cpuset.cpus").gives("0\n"),
        affinity(P(0)).gives("[0]"),
        h_read(0, 10).gives("0\n"),
        h_read(1, 100).gives("p1"),
        h_write(0, "0-1").ok(),
        read("f/cpuset.cpus").gives("0-1\n"),
        affinity(P(0)).gives("[0, 1]"),
        mkdir("d").ok(),
        read("d/tasks").gives(""),
        rename("f/e", "f/g").ok(),
        read("f/g/tasks").gives("p1"),
        affinity(P(1)).gives("[0]"),
        rename("f", "d").fails(EEXIST),
        rmdir("d").ok(),
        rename("f", "d").ok(),
        list("d"),
    ]);
    s
}

/// 1.6
pub fn forbidden() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok(), mkdir("b").ok()];
    for flags in [CREAT | WO, CREAT | RO, CREAT | RW, CREAT | EXCL | WO] {
        s.push(open("new", flags).fails(EACCES));
        s.push(open("a/new", flags).fails(EACCES));
    }
    for kind in ['r', 'p', 's', 'c', 'b'] {
        let errno = if kind == 'r' { EACCES } else { EPERM };
        s.push(mknod("new", kind).fails(errno));
        s.push(mknod("a/new", kind).fails(errno));
        s.push(mknod("tasks", kind).fails(EEXIST));
        s.push(nobody(mknod("new", kind)));
    }
    s.extend([
        open("new\nline", CREAT | WO).fails(EACCES),
        open("tasks", CREAT | EXCL | WO).fails(EEXIST),
        open("a", CREAT | EXCL | WO).fails(EEXIST),
        open("tasks", CREAT | WO).ok(),
        open("tasks", CREAT | RW | libc::O_TRUNC).ok(),
        open("a", CREAT | WO).fails(EISDIR),
        open("a", CREAT | RO).fails(EISDIR),
        open("none/x", CREAT | WO).fails(ENOENT),
        open("new", CREAT | RO | DIRECTORY).fails(EINVAL),
        symlink("tasks", "s").fails(EPERM),
        symlink("x", "tasks").fails(EEXIST),
        symlink("x", "a").fails(EEXIST),
        symlink("x", "s\n").fails(EPERM),
        symlink("x", "none/s").fails(ENOENT),
        link("tasks", "l").fails(EPERM),
        link("a", "l").fails(EPERM),
        link("tasks", "cgroup.procs").fails(EEXIST),
        link("tasks", "a").fails(EEXIST),
        link("tasks", "a/l"),
        link("none", "l").fails(ENOENT),
        link_in("l").fails(EXDEV),
        link_in("tasks"),
        unlink("tasks").fails(EPERM),
        unlink("a/cpuset.cpus").fails(EPERM),
        unlink("a").fails(EISDIR),
        unlink("none").fails(ENOENT),
        unlink("tasks/").fails(ENOTDIR),
        unlink("tasks/x").fails(ENOTDIR),
        readlink("tasks").fails(EINVAL),
        readlink("a").fails(EINVAL),
        readlink("none").fails(ENOENT),
        open("a", WO).fails(EISDIR),
        open("a", RW).fails(EISDIR),
        open("a", RO).ok(),
        open("a", RO | DIRECTORY).ok(),
        open("tasks", RO | DIRECTORY).fails(ENOTDIR),
        open("tasks/", RO).fails(ENOTDIR),
        open("tasks/x", RO).fails(ENOTDIR),
        open("none", RO).fails(ENOENT),
        open("a", WO | libc::O_TMPFILE).fails(EOPNOTSUPP),
        open("tasks", RO | libc::O_DIRECT).fails(EINVAL),
        open("tasks", RO | libc::O_NOFOLLOW).ok(),
        open("tasks", RO | libc::O_PATH).ok(),
        open("cpuset.effective_cpus", RW).ok(),
        open("tasks", WO | libc::O_APPEND).ok(),
        hold(0, "a", RO | DIRECTORY).ok(),
        h_read(0, 10).fails(EISDIR),
        on(0, On::List),
        on(0, On::Openat("tasks".into())).ok(),
        on(0, On::Mkdirat("m".into())).ok(),
        nobody(symlink("x", "s")).fails(EACCES),
        nobody(open("new", CREAT | WO)).fails(EACCES),
        nobody(unlink("tasks")).fails(EACCES),
        nobody(link("tasks", "l")).fails(EPERM),
        nobody(open("tasks", WO)).fails(EACCES),
        nobody(open("tasks", RO)).ok(),
        nobody(open("cpuset.effective_cpus", WO)).fails(EACCES),
        chown("b", NOBODY, NOBODY).ok(),
        nobody(symlink("x", "b/s")).fails(EPERM),
        nobody(open("b/new", CREAT | WO)).fails(EACCES),
        nobody(mknod("b/new", 'r')).fails(EACCES),
        nobody(mknod("b/new", 'p')).fails(EPERM),
        nobody(unlink("b/tasks")).fails(EPERM),
        nobody(mkdir("b/c")).ok(),
        nobody(link("b/c/tasks", "b/l")).fails(EPERM),
        nobody(unlink("b/c")).fails(EISDIR),
        list(""),
        list("b"),
    ]);
    s
}

/// 1.7: chmod, chown
pub fn chmod_chown() -> Vec<Step> {
    vec![
        mkdir("a").ok(),
        chmod("a", 0o700).ok(),
        stat("a").gives("dir 0700 0:0 nlink 2 size 0 blocks 0 of 4096"),
        nobody(read("a/tasks")).fails(EACCES),
        chmod("a", 0o755).ok(),
        chmod("a/tasks", 0o666).ok(),
        stat("a/tasks").gives("file 0666 0:0 nlink 1 size 0 blocks 0 of 4096"),
        nobody(write("a/tasks", "")).ok(),
        nobody(chmod("a/tasks", 0o777)).fails(EPERM),
        nobody(chmod("a", 0o777)).fails(EPERM),
        nobody(chown("a/tasks", NOBODY, NOBODY)).fails(EPERM),
        chmod("a/cpuset.cpus", 0o000).ok(),
        read("a/cpuset.cpus").gives("\n"),
        write("a/cpuset.cpus", "0").ok(),
        nobody(read("a/cpuset.cpus")).fails(EACCES),
        stat("a/cpuset.cpus").gives("file 0000 0:0 nlink 1 size 0 blocks 0 of 4096"),
        chmod("a/notify_on_release", 0o7777).ok(),
        stat("a/notify_on_release").gives("file 7777 0:0 nlink 1 size 0 blocks 0 of 4096"),
        write("a/notify_on_release", "1").ok(),
        stat("a/notify_on_release").gives("file 7777 0:0 nlink 1 size 0 blocks 0 of 4096"),
        chown("a/notify_on_release", 1, 2).ok(),
        stat("a/notify_on_release").gives("file 1777 1:2 nlink 1 size 0 blocks 0 of 4096"),
        chown("a/cpuset.mems", NOBODY, 0).ok(),
        stat("a/cpuset.mems").gives("file 0644 65534:0 nlink 1 size 0 blocks 0 of 4096"),
        nobody(write("a/cpuset.mems", "0")).ok(),
        nobody(chmod("a/cpuset.mems", 0o600)).ok(),
        nobody(chown("a/cpuset.mems", 0, 0)).fails(EPERM),
        nobody(chown("a/cpuset.mems", NOBODY, NOBODY)),
        chmod("a/cpuset.effective_cpus", 0o666).ok(),
        nobody(write("a/cpuset.effective_cpus", "0")).fails(EINVAL),
        nobody(write("a/cpuset.effective_cpus", "")).ok(),
        chown("a", NOBODY, NOBODY).ok(),
        nobody(chmod("a", 0o750)).ok(),
        stat("a").gives("dir 0750 65534:65534 nlink 2 size 0 blocks 0 of 4096"),
        nobody(utime("a", 5_000_000)).ok(),
        times("a").gives("5000000 5000000 now"),
        nobody(mkdir("a/b")).ok(),
        nobody(rename("a/b", "a/c")).ok(),
        nobody(rmdir("a/c")).ok(),
        rename("a", "z").ok(),
        stat("z").gives("dir 0750 65534:65534 nlink 2 size 0 blocks 0 of 4096"),
        stat("z/tasks").gives("file 0666 0:0 nlink 1 size 0 blocks 0 of 4096"),
        chmod("none", 0o755).fails(ENOENT),
        chown("none", 0, 0).fails(ENOENT),
        chmod("z", 0o7777).ok(),
        stat("z").gives("dir 7777 65534:65534 nlink 2 size 0 blocks 0 of 4096"),
        chown("z", 3, 4).ok(),
        stat("z"),
        rmdir("z").ok(),
        mkdir("z").ok(),
        stat("z").gives("dir 0755 0:0 nlink 2 size 0 blocks 0 of 4096"),
        stat("z/tasks").gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
    ]
}

/// 1.7: truncate, seek, and the calls that make no sense here
pub fn odd_calls() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok(), write("a/cpuset.cpus", "0-1").ok()];
    for len in [0, 1, 5, i64::from(i32::MAX)] {
        s.push(truncate("a/cpuset.cpus", len).ok());
    }
    s.extend([
        stat("a/cpuset.cpus").gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
        read("a/cpuset.cpus").gives("0-1\n"),
        truncate("a/cpuset.cpus", -1).fails(EINVAL),
        truncate("a/cpuset.cpus", 1 << 31).fails(EFBIG),
        truncate("a/cpuset.cpus", 1 << 40).fails(EFBIG),
        truncate("a/cpuset.effective_cpus", 0).ok(),
        truncate("a", 0).fails(EISDIR),
        truncate("none", 0).fails(ENOENT),
        nobody(truncate("a/cpuset.cpus", 0)).fails(EACCES),
        open("a/cpuset.cpus", WO | libc::O_TRUNC).ok(),
        read("a/cpuset.cpus").gives("0-1\n"),
        open("a/cpuset.cpus", RO | libc::O_TRUNC).ok(),
        nobody(open("a/cpuset.cpus", RO | libc::O_TRUNC)).fails(EACCES),
        open("a/cpuset.effective_cpus", RO | libc::O_TRUNC).ok(),
        hold(0, "a/cpuset.cpus", RW).ok(),
        hold(1, "a/cpuset.cpus", RO).ok(),
        on(0, On::Truncate(0)).ok(),
        on(0, On::Truncate(10)).ok(),
        on(0, On::Truncate(-1)).fails(EINVAL),
        on(0, On::Truncate(1 << 32)).fails(EFBIG),
        on(1, On::Truncate(0)).fails(EINVAL),
        on(0, On::Fsync).ok(),
        on(0, On::Fdatasync).ok(),
        on(1, On::Fsync).ok(),
        on(0, On::Flock).ok(),
        on(0, On::Fallocate).fails(EOPNOTSUPP),
        on(0, On::MmapShared).fails(ENODEV),
        on(0, On::Ioctl).fails(ENOTTY),
        h_seek(1, 4, libc::SEEK_SET).gives("4"),
        h_seek(1, 0, libc::SEEK_CUR).gives("4"),
        h_seek(1, 1000, libc::SEEK_SET).gives("1000"),
        h_read(1, 10).gives(""),
        h_seek(1, -1, libc::SEEK_SET).fails(EINVAL),
        h_seek(1, -1, libc::SEEK_CUR).gives("999"),
        h_seek(1, -1000, libc::SEEK_CUR).fails(EINVAL),
        h_seek(1, 0, libc::SEEK_END).gives("0"),
        h_seek(1, 5, libc::SEEK_END).gives("5"),
        h_seek(1, -1, libc::SEEK_END).fails(EINVAL),
        h_seek(1, 0, libc::SEEK_DATA).fails(ENXIO),
        h_seek(1, 0, libc::SEEK_HOLE).fails(ENXIO),
        h_seek(1, 2, libc::SEEK_DATA).fails(ENXIO),
        h_seek(1, i64::from(i32::MAX), libc::SEEK_SET).gives("2147483647"),
        h_read(1, 10).gives(""),
        h_seek(1, 1, libc::SEEK_SET).gives("1"),
        h_read(1, 10).gives("-1\n"),
        h_write(1, "0").fails(EBADF),
        hold(2, "a/cpuset.cpus", WO).ok(),
        h_read(2, 1).fails(EBADF),
        hold(3, "a", RO | DIRECTORY).ok(),
        on(3, On::Fsync),
        on(3, On::Ioctl),
        on(3, On::Chmod(Octal(0o711))).ok(),
        on(3, On::Stat).gives("dir 0711 0:0 nlink 2 size 0 blocks 0 of 4096"),
    ]);
    s
}

/// 1.7: a file that has not been read yet counts as changed
pub fn polling() -> Vec<Step> {
    vec![
        hold(0, "cpuset.cpus", RW).ok(),
        on(0, On::Poll),
        h_pread(0, 10, 0).gives("0-1\n"),
        on(0, On::Poll),
        h_write(0, "0").ok(),
        on(0, On::Poll),
        hold(1, "tasks", RO).ok(),
        on(1, On::Poll),
        h_read(1, 10).gives(""),
        on(1, On::Poll),
        hold(2, "", RO | DIRECTORY).ok(),
        on(2, On::Poll),
        hold(3, "cpuset.cpus", WO).ok(),
        on(3, On::Poll),
    ]
}

/// 1.7: extended attributes
pub fn xattrs() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok()];
    for path in ["a", "a/tasks", "a/cpuset.effective_cpus"] {
        for name in ["user.x", "trusted.x", "security.x"] {
            s.extend([
                getxattr(path, name).fails(ENODATA),
                removexattr(path, name).fails(ENODATA),
                setxattr(path, name, "v", 0).ok(),
                getxattr(path, name).gives("1 bytes, \"v\""),
                setxattr(path, name, "w", libc::XATTR_CREATE).fails(EEXIST),
                setxattr(path, name, "", libc::XATTR_REPLACE).ok(),
                getxattr(path, name).gives("0 bytes, \"\""),
            ]);
        }
        s.push(listxattr(path).gives("security.x trusted.x user.x"));
        s.push(removexattr(path, "user.x").ok());
        s.push(setxattr(path, "user.x", "v", libc::XATTR_REPLACE).fails(ENODATA));
        s.push(listxattr(path).gives("security.x trusted.x"));
    }
    s.extend([
        setxattr("a", "system.x", "v", 0).fails(EOPNOTSUPP),
        getxattr("a", "system.x").fails(EOPNOTSUPP),
        setxattr("a", "system.posix_acl_access", "v", 0).fails(EINVAL),
        setxattr("a", "system.posix_acl_access", b"\x02\0\0\0", 0),
        getxattr("a", "system.posix_acl_access").fails(EOPNOTSUPP),
        getxattr("a", "system.posix_acl_default").fails(EOPNOTSUPP),
        setxattr("a", "foo.x", "v", 0).fails(EOPNOTSUPP),
        getxattr("a", "foo.x").fails(EOPNOTSUPP),
        removexattr("a", "foo.x").fails(EOPNOTSUPP),
        setxattr("a", "x", "v", 0).fails(EOPNOTSUPP),
        setxattr("a", "user.", "v", 0).fails(EINVAL),
        getxattr("a", "user.").fails(EINVAL),
        setxattr("a", "user.big", Bytes(vec![b'v'; 65536]), 0).ok(),
        getxattr("a", "user.big"),
        setxattr("a", "user.big", Bytes(vec![b'v'; 70000]), 0).fails(E2BIG),
        getxattr("none", "user.x").fails(ENOENT),
        nobody(getxattr("a", "user.big")),
        nobody(setxattr("a", "user.n", "v", 0)).fails(EACCES),
        nobody(setxattr("a/tasks", "user.n", "v", 0)).fails(EACCES),
        nobody(getxattr("a", "trusted.x")).fails(ENODATA),
        nobody(setxattr("a", "trusted.n", "v", 0)).fails(EPERM),
        nobody(setxattr("a", "security.n", "v", 0)).fails(EPERM),
        nobody(listxattr("a")),
        rename("a", "b").ok(),
        listxattr("b").gives("security.x trusted.x user.big"),
        listxattr("b/tasks").gives("security.x trusted.x"),
        rmdir("b").ok(),
        mkdir("b").ok(),
        listxattr("b").gives(""),
        listxattr("b/tasks").gives(""),
    ]);
    s
}
