//! Hand-written scripts: reading and writing control files, and the core files.

use nix::errno::Errno::*;

use super::step::OnFd as On;
use super::step::*;

const RW: i32 = libc::O_RDWR;
const RO: i32 = libc::O_RDONLY;
const WO: i32 = libc::O_WRONLY;

/// A group that takes tasks.
fn ready(path: &str, cpus: &str) -> [Step; 3] {
    [mkdir(path).ok(), write(format!("{path}/cpuset.cpus"), cpus).ok(), write(format!("{path}/cpuset.mems"), "0").ok()]
}

fn cpus_of(path: &str, cpus: &str) -> Step {
    write(format!("{path}/cpuset.cpus"), cpus)
}

/// 1.8
pub fn reading() -> Vec<Step> {
    let mut s = vec![
        mkdir("a").ok(),
        write("a/cpuset.cpus", "0-1").ok(),
        read("a/cpuset.mems").gives("\n"),
        read_by("a/cpuset.cpus", 1).gives("0-1\n"),
        read_by("a/cpuset.cpus", 3).gives("0-1\n"),
        hold(0, "a/cpuset.cpus", RO).ok(),
        write("a/cpuset.cpus", "1").ok(),
        h_read(0, 100).gives("1\n"),
        write("a/cpuset.cpus", "0-1").ok(),
        h_read(0, 100).gives(""),
        h_seek(0, 0, libc::SEEK_SET).gives("0"),
        h_read(0, 100).gives("0-1\n"),
        h_seek(0, 0, libc::SEEK_SET).gives("0"),
        h_read(0, 1).gives("0"),
        write("a/cpuset.cpus", "1").ok(),
        h_read(0, 100).gives("-1\n"),
        h_read(0, 100).gives(""),
        h_pread(0, 100, 0).gives("1\n"),
        h_pread(0, 1, 1).gives("\n"),
        h_pread(0, 1, 0).gives("1"),
        h_pread(0, 100, 1).gives("\n"),
        h_pread(0, 100, 2).gives(""),
        h_pread(0, 100, 3).gives(""),
        h_pread(0, 100, 4096).gives(""),
        h_pread(0, 100, 1 << 40).gives(""),
        h_pread(0, 100, i64::MAX).fails(EINVAL),
        h_pread(0, 100, -1).fails(EINVAL),
        h_pread(0, 0, 0).gives(""),
        write("a/cpuset.cpus", "0-1").ok(),
        h_pread(0, 2, 1).gives("-1"),
        write("a/cpuset.cpus", "0").ok(),
        h_pread(0, 2, 1).gives("\n"),
        write("a/cpuset.cpus", "0-1").ok(),
        h_pread(0, 2, 0).gives("0-"),
        write("a/cpuset.cpus", "1").ok(),
        h_pread(0, 2, 2).gives("1\n"),
        h_pread(0, 2, 1).gives("\n"),
        h_seek(0, 0, libc::SEEK_SET).gives("0"),
        on(0, On::Readv(1, 3)),
        h_read(0, 0).gives(""),
        hold(1, "a/cpuset.cpus", RW).ok(),
        h_read(1, 1).gives("1"),
        h_write(1, "0-1").ok(),
        h_seek(1, 0, libc::SEEK_CUR).gives("4"),
        h_read(1, 10).gives(""),
        h_seek(1, 1, libc::SEEK_SET).gives("1"),
        h_read(1, 10).gives("-1\n"),
        h_write(1, "1").ok(),
        h_seek(1, 0, libc::SEEK_CUR).gives("5"),
        h_seek(1, 0, libc::SEEK_SET).gives("0"),
        h_read(1, 10).gives("1\n"),
        on(1, On::Close).ok(),
        h_read(1, 10),
    ];
    s.extend(ready("b", "0-1"));
    s.extend([
        read("b/tasks").gives(""),
        read("b/cgroup.procs").gives(""),
        start(0).ok(),
        start(1).ok(),
        thread(P(0)).ok(),
        thread(P(0)).ok(),
        thread(P(1)).ok(),
        attach("b/cgroup.procs", P(1)).ok(),
        attach("b/tasks", T(0, 2)).ok(),
        attach("b/tasks", P(0)).ok(),
        read("b/tasks").gives("p0 p0.t2 p1 p1.t1"),
        read_by("b/tasks", 1).gives("p0 p0.t2 p1 p1.t1"),
        read_by("b/tasks", 5).gives("p0 p0.t2 p1 p1.t1"),
        read_by("b/cgroup.procs", 2).gives("p0 p1"),
        read("tasks").gives(""),
        hold(0, "b/tasks", RO).ok(),
        hold(1, "b/cgroup.procs", RO).ok(),
        attach("b/tasks", T(0, 1)).ok(),
        h_read(0, 4096).gives("p0 p0.t1 p0.t2 p1 p1.t1"),
        h_read(1, 4096).gives("p0 p1"),
        h_read(0, 4096).gives(""),
        stat("b/tasks").gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
    ]);
    s
}

/// 1.9
pub fn writing() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok()];
    for (file, limit) in [("cpuset.cpus", 1636), ("cpuset.mems", 6244), ("tasks", 4096), ("notify_on_release", 4096)] {
        let path = format!("a/{file}");
        s.extend([
            fill(path.clone(), b' ', limit),
            fill(path.clone(), b' ', limit + 1).fails(E2BIG),
            fill(path.clone(), b'x', limit + 1).fails(E2BIG),
        ]);
        s.extend([write(path.clone(), "").ok(), fill(path, 0, limit)]);
    }
    for file in ["cpuset.effective_cpus", "cpuset.effective_mems", "cpuset.memory_pressure"] {
        let path = format!("a/{file}");
        s.extend([write(path.clone(), "").ok(), write(path.clone(), "0").fails(EINVAL), fill(path.clone(), b'0', 4096).fails(EINVAL)]);
        s.push(fill(path, b'0', 4097).fails(E2BIG));
    }
    s.extend([
        fill("../cpuset.cpus", b' ', 2000).fails(E2BIG),
        fill("../cgroup.sane_behavior", b' ', 4097).fails(E2BIG),
        fill("../cgroup.sane_behavior", b' ', 10).fails(EINVAL),
        fill("cpuset.cpu_exclusive", b'0', 4097).fails(E2BIG),
        fill("cpuset.cpu_exclusive", b'0', 4096).ok(),
        write("a/cpuset.cpus", "0\0garbage").ok(),
        read("a/cpuset.cpus").gives("0\n"),
        write("a/cpuset.cpus", "1\0").ok(),
        read("a/cpuset.cpus").gives("1\n"),
        write("a/cpuset.cpus", "\0").ok(),
        read("a/cpuset.cpus").gives("\n"),
        write("a/notify_on_release", "1\0x").ok(),
        read("a/notify_on_release").gives("1\n"),
        write("a/notify_on_release", "\0").fails(EINVAL),
        write("a/tasks", "\0").fails(EINVAL),
        hold(0, "a/cpuset.cpus", WO).ok(),
        h_write(0, "0").ok(),
        read("a/cpuset.cpus").gives("0\n"),
        h_write(0, "0-1").ok(),
        read("a/cpuset.cpus").gives("0-1\n"),
        on(0, On::Pwrite("1".into(), 1000)).ok(),
        read("a/cpuset.cpus").gives("1\n"),
        on(0, On::Writev("0".into(), "-1".into())).ok(),
        read("a/cpuset.cpus").gives("0-1\n"),
        on(0, On::Writev("".into(), "0".into())).ok(),
        read("a/cpuset.cpus").gives("0\n"),
        on(0, On::Writev("0".into(), "x".into())).fails(EINVAL),
        h_write(0, "x").fails(EINVAL),
        h_write(0, "1").ok(),
        h_seek(0, 0, libc::SEEK_CUR),
        h_write(0, "").ok(),
        hold(1, "a/cpuset.cpus", WO | libc::O_APPEND).ok(),
        h_write(1, "0").ok(),
        read("a/cpuset.cpus").gives("0\n"),
        h_write(1, "0-1\n").ok(),
        read("a/cpuset.cpus").gives("0-1\n"),
        chmod("a/cpuset.cpus", 0o444).ok(),
        h_write(1, "0").ok(),
        read("a/cpuset.cpus").gives("0\n"),
        nobody(h_write(1, "0-1")).ok(),
        read("a/cpuset.cpus").gives("0-1\n"),
        chmod("a/notify_on_release", 0o666).ok(),
        nobody(hold(2, "a/notify_on_release", RW)).ok(),
        chmod("a/notify_on_release", 0o600).ok(),
        nobody(h_write(2, "0")).ok(),
        nobody(open("a/notify_on_release", RO)).fails(EACCES),
        nobody(h_pread(2, 10, 0)).gives("0\n"),
    ]);
    s
}

/// 1.9: numbers
pub fn numbers() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok()];
    let good = [
        "1",
        "0",
        "1\n",
        "0\n",
        "+1",
        "0x1",
        "0X0",
        "01",
        "00",
        "2",
        "18446744073709551615",
        "0xffffffffffffffff",
        "4294967296",
        "4294967297",
    ];
    let bad = [
        " 1", "1 ", "1\n\n", "-1", "-0", "", "\n", "1x", "08", "0x", "true", "++1", "+-1", "1.0", "0b1", "1\t", "x", "0x1g", "+", "1,0",
        "１",
    ];
    for file in ["notify_on_release", "cgroup.clone_children", "cpuset.mem_hardwall", "cpuset.memory_migrate"] {
        for text in good {
            s.extend([write(format!("a/{file}"), text).ok(), read(format!("a/{file}"))]);
        }
        for text in bad {
            let step = write(format!("a/{file}"), text);
            s.push(if text.is_empty() { step.ok() } else { step.fails(EINVAL) });
        }
        for text in ["18446744073709551616", "0x10000000000000000", "99999999999999999999999999"] {
            s.push(write(format!("a/{file}"), text).fails(ERANGE));
        }
        s.push(read(format!("a/{file}")));
    }
    s
}

/// 2.1: what a pid may look like
pub fn pid_syntax() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0-1"));
    s.extend([start(0).ok(), thread(P(0)).ok()]);
    let good: [&[u8]; 15] = [
        b"{d}",
        b"{d}\n",
        b"+{d}",
        b" {d} ",
        b"\t{d}\n\n",
        b"\x0b\x0c\r{d}\r\n",
        b"\xa0{d}\xa0",
        b"0x{x}",
        b"0X{x}",
        b"0{o}",
        b"{d}\0garbage",
        b"+0x{x}",
        b"00{o}",
        b"  0{o}\n",
        b" +{d}",
    ];
    for template in good {
        s.extend([attach_as("a/tasks", template, P(0)).ok(), read("a/tasks").gives("p0"), attach("tasks", P(0)).ok()]);
    }
    let bad: [&[u8]; 14] = [
        b"{d} {d}",
        b"{d} 1",
        b"{d},",
        b"{d}x",
        b"-{d}",
        b"x{d}",
        b"{d}\x85",
        b"{d}.0",
        b"+ {d}",
        b"++{d}",
        b"{d}\n{d}",
        b"\0{d}",
        b"0x",
        b"{x}g",
    ];
    for template in bad {
        s.push(attach_as("a/tasks", template, P(0)).fails(EINVAL));
        s.push(attach_as("a/cgroup.procs", template, P(0)).fails(EINVAL));
    }
    for text in ["\n", " ", "garbage", "2147483648", "4294967296", "-1", "99999999999999999999", "-2147483648", "1 2"] {
        s.push(write("a/tasks", text).fails(EINVAL));
    }
    s.extend([
        write("a/tasks", "").ok(),
        write("a/cgroup.procs", "").ok(),
        write("a/tasks", "2147483647").fails(ESRCH),
        write("a/cgroup.procs", "4194304").fails(ESRCH),
        write("a/cgroup.procs", "0x7fffffff").fails(ESRCH),
        read("a/tasks").gives(""),
    ]);
    s
}

/// 2.1: zero is the writer
pub fn writer_moves_itself() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "1"));
    s.extend([
        start(0).ok(),
        thread(P(0)).ok(),
        thread(P(0)).ok(),
        writes(P(0), "a/tasks", "0").ok(),
        read("a/tasks").gives("p0"),
        affinity(P(0)).gives("[0]"),
        affinity(T(0, 1)),
        writes(T(0, 1), "b/tasks", "0\n").ok(),
        read("b/tasks").gives("p0.t1"),
        read("b/cgroup.procs").gives("p0"),
        read("a/cgroup.procs").gives("p0"),
        affinity(T(0, 1)).gives("[1]"),
        writes(T(0, 2), "b/cgroup.procs", "0").ok(),
        read("a/tasks").gives(""),
        read("b/tasks").gives("p0 p0.t1 p0.t2"),
        affinity(P(0)).gives("[1]"),
        affinity(T(0, 2)).gives("[1]"),
        writes(P(0), "a/tasks", "-0").ok(),
        read("a/tasks").gives("p0"),
        writes(T(0, 1), "a/tasks", " +0x0 ").ok(),
        read("a/tasks").gives("p0 p0.t1"),
        writes(T(0, 1), "tasks", "00").ok(),
        affinity(T(0, 1)),
        start_as(1, NOBODY).ok(),
        chmod("a/tasks", 0o666).ok(),
        chmod("a/cgroup.procs", 0o666).ok(),
        chmod("b/tasks", 0o600).ok(),
        writes(P(1), "a/tasks", "0").ok(),
        read("a/tasks").gives("p0 p1"),
        affinity(P(1)).gives("[0]"),
        writes(P(1), "b/tasks", "0").fails(EACCES),
        writes(P(1), "tasks", "0").fails(EACCES),
        thread(P(1)).ok(),
        writes(T(1, 1), "a/cgroup.procs", "0").ok(),
        mkdir("e").ok(),
        chmod("e/tasks", 0o666).ok(),
        writes(P(1), "e/tasks", "0").fails(ENOSPC),
        writes(P(0), "e/tasks", "0").fails(ENOSPC),
        writes(P(0), "a/tasks", "garbage").fails(EINVAL),
        writes(P(0), "a/cpuset.cpus", "9").fails(ERANGE),
    ]);
    s
}

/// 2.1: threads and processes, the dead and the dying
pub fn threads_and_processes() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "1"));
    s.extend([
        start(0).ok(),
        thread(P(0)).ok(),
        thread(P(0)).ok(),
        attach("a/tasks", T(0, 1)).ok(),
        read("a/tasks").gives("p0.t1"),
        read("a/cgroup.procs").gives("p0"),
        attach("b/cgroup.procs", T(0, 2)).ok(),
        read("a/tasks").gives(""),
        read("b/tasks").gives("p0 p0.t1 p0.t2"),
        attach("a/tasks", P(0)).ok(),
        read("a/tasks").gives("p0"),
        read("b/tasks").gives("p0.t1 p0.t2"),
        thread(T(0, 1)).ok(),
        thread(P(0)).ok(),
        read("b/tasks").gives("p0.t1 p0.t2 p0.t3"),
        read("a/tasks").gives("p0 p0.t4"),
        affinity(T(0, 3)).gives("[1]"),
        affinity(T(0, 4)).gives("[0]"),
        fork(T(0, 1)).ok(),
        fork(P(0)).ok(),
        read("b/cgroup.procs").gives("p0 p0.c1"),
        read("a/cgroup.procs").gives("p0 p0.c2"),
        affinity(C(0, 1)).gives("[1]"),
        attach("a/tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[0]"),
        attach("a/tasks", C(0, 1)).ok(),
        kill(C(0, 1)).ok(),
        read("a/tasks").gives("p0 p0.c2 p0.t4"),
        attach("b/tasks", C(0, 1)).ok(),
        attach("b/cgroup.procs", C(0, 1)).ok(),
        read("b/tasks").gives("p0.t1 p0.t2 p0.t3"),
        mkdir("e").ok(),
        attach("e/tasks", C(0, 1)).ok(),
        attach("e/cgroup.procs", C(0, 1)).ok(),
        pin_by(C(0, 1), &[0]).ok(),
        reap(C(0, 1)).ok(),
        attach("b/tasks", C(0, 1)).fails(ESRCH),
        attach("b/cgroup.procs", C(0, 1)).fails(ESRCH),
        end_thread(T(0, 4)).ok(),
        read("a/tasks").gives("p0 p0.c2"),
        attach("b/tasks", T(0, 4)).fails(ESRCH),
        end_thread(P(0)).ok(),
        read("a/tasks").gives("p0.c2"),
        read("a/cgroup.procs"),
        read("b/tasks").gives("p0.t1 p0.t2 p0.t3"),
        read("b/cgroup.procs").gives("p0"),
        attach("a/tasks", P(0)).ok(),
        read("a/tasks").gives("p0.c2"),
        attach("e/tasks", P(0)).ok(),
        attach("e/cgroup.procs", P(0)).fails(ENOSPC),
        attach("a/cgroup.procs", P(0)).ok(),
        read("a/tasks").gives("p0.c2 p0.t1 p0.t2 p0.t3"),
        read("a/cgroup.procs").gives("p0 p0.c2"),
        read("b/tasks").gives(""),
        affinity(T(0, 2)).gives("[0]"),
        attach("b/cgroup.procs", T(0, 2)).ok(),
        read("b/cgroup.procs").gives("p0"),
        start(1).ok(),
        fork(P(1)).ok(),
        attach("a/cgroup.procs", P(1)).ok(),
        read("a/tasks"),
        exit(1).ok(),
        read("a/tasks"),
        attach("b/tasks", P(1)).ok(),
        read("b/tasks"),
        wait(1).ok(),
        attach("b/tasks", P(1)).fails(ESRCH),
    ]);
    s
}

/// 2.1: execve(2) ends the other threads and makes the caller the leader
pub fn exec_in_a_group() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "1"));
    s.extend([
        start(0).ok(),
        thread(P(0)).ok(),
        fork(P(0)).ok(),
        attach("a/cgroup.procs", P(0)).ok(),
        exec(P(0)).ok(),
        read("a/tasks").gives("p0"),
        read("a/cgroup.procs").gives("p0"),
        attach("b/tasks", T(0, 1)).fails(ESRCH),
        thread(P(0)).ok(),
        attach("b/cgroup.procs", P(0)).ok(),
        exec(T(0, 2)).ok(),
        read("b/tasks").gives("p0"),
        affinity(P(0)).gives("[1]"),
        read("a/tasks").gives(""),
        thread(P(0)).ok(),
        read("b/tasks").gives("p0 p0.t3"),
        attach("a/tasks", P(0)).ok(),
        exec(P(0)).ok(),
        read("a/tasks").gives("p0"),
        read("b/tasks").gives(""),
        cpus_of("a", "0-1").ok(),
        affinity(P(0)).gives("[0, 1]"),
    ]);
    s
}

/// 2.1: the same when the old leader is dead already
pub fn exec_after_the_leader() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("b", "1"));
    s.extend([
        start(0).ok(),
        thread(P(0)).ok(),
        attach("b/cgroup.procs", P(0)).ok(),
        end_thread(P(0)).ok(),
        read("b/tasks").gives("p0.t1"),
        exec(T(0, 1)).ok(),
        read("b/tasks").gives("p0"),
        read("b/cgroup.procs").gives("p0"),
        cpus_of("b", "0").ok(),
        affinity(P(0)).gives("[0]"),
    ]);
    s
}

/// 2.1: threads and children are born where their creator is, not where its leader is
pub fn born_of_split_processes() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "1"));
    s.extend([
        start(0).ok(),
        thread(P(0)).ok(),
        attach("a/tasks", P(0)).ok(),
        fork(T(0, 1)).ok(),
        read("a/tasks").gives("p0"),
        thread(T(0, 1)).ok(),
        read("a/tasks").gives("p0"),
        affinity(C(0, 1)).gives("[0, 1]"),
        affinity(T(0, 2)).gives("[0, 1]"),
        attach("b/tasks", T(0, 1)).ok(),
        thread(T(0, 1)).ok(),
        fork(T(0, 3)).ok(),
        fork(T(0, 2)).ok(),
        read("b/tasks").gives("p0.c2 p0.t1 p0.t3"),
        read("a/tasks").gives("p0"),
        cpus_of("b", "0").ok(),
        affinity(T(0, 3)).gives("[0]"),
        affinity(C(0, 2)).gives("[0]"),
        affinity(T(0, 2)).gives("[0, 1]"),
        fork(P(0)).ok(),
        read("a/tasks"),
        end_thread(P(0)).ok(),
        read("a/tasks").gives("p0.c4"),
        thread(T(0, 2)).ok(),
        fork(T(0, 2)).ok(),
        read("a/tasks").gives("p0.c4"),
        read("b/tasks").gives("p0.c2 p0.t1 p0.t3"),
        attach("a/cgroup.procs", P(0)).ok(),
        read("a/tasks").gives("p0.c4 p0.t1 p0.t2 p0.t3 p0.t4"),
        read("b/tasks").gives("p0.c2"),
    ]);
    s
}

/// 2.1: nobody is moved who is gone, not even to where he was
pub fn the_gone() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend([
        start(0).ok(),
        start(1).ok(),
        start(2).ok(),
        attach("a/tasks", P(0)).ok(),
        wait(0).ok(),
        attach("a/tasks", P(0)).fails(ESRCH),
        attach("a/cgroup.procs", P(0)).fails(ESRCH),
        attach("a/cgroup.procs", P(1)).ok(),
        thread(P(1)).ok(),
        fork(P(1)).ok(),
        read("a/tasks").gives("p1 p1.c1 p1.t1"),
        end_thread(T(1, 1)).ok(),
        attach("a/tasks", T(1, 1)).fails(ESRCH),
        reap(C(1, 1)).ok(),
        attach("a/cgroup.procs", C(1, 1)).fails(ESRCH),
        attach("a/tasks", P(2)).ok(),
        thread(P(2)).ok(),
        exec(T(2, 1)).ok(),
        attach("a/tasks", T(2, 1)).fails(ESRCH),
        attach("a/tasks", P(2)).ok(),
        read("a/tasks").gives("p1 p2"),
        rmdir("a").fails(EBUSY),
        wait(1).ok(),
        wait(2).ok(),
        rmdir("a").ok(),
    ]);
    s
}

/// 2.1: who may move whom
pub fn credentials() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "0-1"));
    s.push(mkdir("e").ok());
    s.extend(["a", "b", "e"].map(|g| chmod(format!("{g}/tasks"), 0o666).ok()));
    s.extend(["a", "b", "e"].map(|g| chmod(format!("{g}/cgroup.procs"), 0o666).ok()));
    s.extend([
        start(0).ok(),
        start_as(1, NOBODY).ok(),
        start_as(2, 12345).ok(),
        thread(P(1)).ok(),
        nobody(attach("a/tasks", P(0))).fails(EACCES),
        nobody(attach("a/cgroup.procs", P(0))).fails(EACCES),
        nobody(attach("e/tasks", P(0))).fails(EACCES),
        nobody(attach("a/tasks", P(2))).fails(EACCES),
        nobody(write("e/tasks", "2147483647")).fails(ESRCH),
        nobody(write("e/tasks", "garbage")).fails(EINVAL),
        nobody(attach("e/tasks", P(1))).fails(ENOSPC),
        nobody(attach("a/tasks", P(1))).ok(),
        read("a/tasks").gives("p1"),
        nobody(attach("a/cgroup.procs", T(1, 1))).ok(),
        read("a/tasks").gives("p1 p1.t1"),
        affinity(T(1, 1)).gives("[0]"),
        nobody(attach("tasks", P(1))).fails(EACCES),
        chmod("a", 0o700).ok(),
        nobody(attach("b/tasks", P(1))).ok(),
        nobody(attach("a/tasks", P(1))).fails(EACCES),
        chmod("a", 0o755).ok(),
        attach("a/tasks", P(0)).ok(),
        nobody(attach("b/tasks", P(0))).fails(EACCES),
        attach("a/tasks", P(2)).ok(),
        read("a/tasks").gives("p0 p1.t1 p2"),
        // The opener counts, not the writer.
        hold(0, "b/tasks", WO).ok(),
        nobody(hold(1, "b/tasks", WO)).ok(),
        nobody(h_attach(0, "{d}", P(0))).fails(EPERM),
        nobody(h_attach(0, "{d}", T(1, 1))).ok(),
        // Not the ids decide then, but the capabilities: another user's task has none either.
        nobody(h_attach(0, "{d}", P(2))).ok(),
        read("b/tasks").gives("p1 p1.t1 p2"),
        h_attach(1, "{d}", P(0)).fails(EACCES),
        h_attach(1, "{d}", P(2)).fails(EACCES),
        attach("a/tasks", P(1)).ok(),
        h_attach(1, "{d}", P(1)).ok(),
        h_attach(0, "{d}", P(0)).ok(),
        read("b/tasks").gives("p0 p1 p1.t1 p2"),
        nobody(hold(2, "e/tasks", WO)).ok(),
        h_attach(2, "{d}", P(0)).fails(EACCES),
        h_attach(2, "{d}", P(1)).fails(ENOSPC),
        hold(3, "e/tasks", WO).ok(),
        nobody(h_attach(3, "{d}", P(0))).fails(ENOSPC),
        nobody(h_write(3, "x")).fails(EINVAL),
        exit(2).ok(),
        nobody(attach("a/tasks", P(2))),
    ]);
    s.extend(kernel_threads());
    s
}

/// Threads of the kernel that stay where they are, where they can be seen.
fn kernel_threads() -> Vec<Step> {
    let named = |name: &str| (2..100).find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name));
    let mut s = Vec::new();
    for pid in ["kthreadd", "migration/0", "ksoftirqd/0"].iter().filter_map(|name| named(name)) {
        s.push(write("b/tasks", pid.to_string()).fails(EINVAL));
        s.push(write("e/cgroup.procs", pid.to_string()).fails(EINVAL));
        s.push(nobody(write("e/tasks", pid.to_string())).fails(EINVAL));
    }
    s
}

/// 2.2
pub fn core_flags() -> Vec<Step> {
    let mut s = Vec::new();
    for file in ["notify_on_release", "cgroup.clone_children"] {
        s.extend([
            read(file).gives("0\n"),
            write(file, "1").ok(),
            read(file).gives("1\n"),
            mkdir("a").ok(),
            read(format!("a/{file}")).gives("1\n"),
            write(file, "0").ok(),
            read(format!("a/{file}")).gives("1\n"),
            mkdir("a/b").ok(),
            read(format!("a/b/{file}")).gives("1\n"),
            write(format!("a/{file}"), "4294967296").ok(),
            read(format!("a/{file}")).gives("1\n"),
            write(format!("a/{file}"), "5").ok(),
            read(format!("a/{file}")).gives("1\n"),
            write(format!("a/{file}"), "0").ok(),
            read(format!("a/{file}")).gives("0\n"),
            read(format!("a/b/{file}")).gives("1\n"),
            rmdir("a/b").ok(),
            mkdir("a/c").ok(),
            read(format!("a/c/{file}")).gives("0\n"),
            rmdir("a/c").ok(),
            rmdir("a").ok(),
        ]);
    }
    s
}
