//! Hand-written scripts: the cpuset controller.

use nix::errno::Errno::{self, *};

use super::step::*;

/// A group that takes tasks.
fn ready(path: &str, cpus: &str) -> [Step; 3] {
    [mkdir(path).ok(), cpus_of(path, cpus).ok(), write(format!("{path}/cpuset.mems"), "0").ok()]
}

fn cpus_of(path: &str, cpus: &str) -> Step {
    write(format!("{path}/cpuset.cpus"), cpus)
}

fn set(path: &str, flag: &str, value: &str) -> Step {
    write(format!("{path}/cpuset.{flag}"), value)
}

/// 3.1
pub fn list_syntax() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok()];
    let good: [(&[u8], &str); 52] = [
        (b"0", "0\n"),
        (b"1\n", "1\n"),
        (b"0-1", "0-1\n"),
        (b"0,1", "0-1\n"),
        (b"1,0", "0-1\n"),
        (b"0,0,0", "0\n"),
        (b"0-0", "0\n"),
        (b"0,,1", "0-1\n"),
        (b",0", "0\n"),
        (b"0,", "0\n"),
        (b",", "\n"),
        (b" , ,", "\n"),
        (b"\n", "\n"),
        (b"  ", "\n"),
        (b"0 1", "0-1\n"),
        (b"0, 1", "0-1\n"),
        (b"0\t1", "0-1\n"),
        (b"0\xa01", "0-1\n"),
        (b"\xa00\xa0", "0\n"),
        (b"0\x0b1", "0-1\n"),
        (b"0\r1", "0-1\n"),
        (b"0\n1", "0\n"),
        (b"0\n,1", "0\n"),
        (b"0-1\nx", "0-1\n"),
        (b"0\nx", "0\n"),
        (b"0,\n1", "0-1\n"),
        (b"0 \n1", "0-1\n"),
        (b"0-1:1/2\n1", "0-1\n"),
        (b"0-1:1/2", "0\n"),
        (b"0-1:2/2", "0-1\n"),
        (b"0-1:0/2", "\n"),
        (b"0-1:1/1", "0-1\n"),
        (b"0-1:1/9", "0\n"),
        (b"1-1:1/2", "1\n"),
        (b"0-0:1/1", "0\n"),
        (b"N", "1\n"),
        (b"0-N", "0-1\n"),
        (b"N-N", "1\n"),
        (b"N-N:1/1", "1\n"),
        (b"all", "0-1\n"),
        (b"ALL", "0-1\n"),
        (b"aLl", "0-1\n"),
        (b"all:1/2", "0\n"),
        (b"all,0", "0-1\n"),
        (b"00", "0\n"),
        (b"0001", "1\n"),
        (b"0-0001", "0-1\n"),
        (b"1,0-0:1/1", "0-1\n"),
        (b"0-1:01/02", "0\n"),
        (b"1\0,0", "1\n"),
        (b" 0-1 ", "0-1\n"),
        (b"\x0c1", "1\n"),
    ];
    for (text, set) in good {
        s.extend([write("a/cpuset.cpus", text).ok(), read("a/cpuset.cpus").gives(set), write("a/cpuset.cpus", "\n").ok()]);
    }
    s.push(cpus_of("a", "1").ok());
    let bad: [(&[u8], Errno); 58] = [
        (b"0-", EINVAL),
        (b"-0", EINVAL),
        (b"-", EINVAL),
        (b"1-0", EINVAL),
        (b"9-5", EINVAL),
        (b"0-1-1", EINVAL),
        (b"0 -1", EINVAL),
        (b"0- 1", EINVAL),
        (b"0 - 1", EINVAL),
        (b"0-1 :1/2", EINVAL),
        (b"0-1: 1/2", EINVAL),
        (b"0-1:1 /2", EINVAL),
        (b"0-1:1/ 2", EINVAL),
        (b"+0", EINVAL),
        (b"0x1", EINVAL),
        (b"a", EINVAL),
        (b"0;1", EINVAL),
        (b"allx", EINVAL),
        (b"0all", EINVAL),
        (b"al", EINVAL),
        (b"n", EINVAL),
        (b"0-n", EINVAL),
        (b"\x80", EINVAL),
        (b"0\xff", EINVAL),
        (b"0:1/2", EINVAL),
        (b"N:1/2", EINVAL),
        (b"0-1:", EINVAL),
        (b"0-1:1", EINVAL),
        (b"0-1:1/", EINVAL),
        (b"0-1:/2", EINVAL),
        (b"0-1:3/2", EINVAL),
        (b"0-1:0/0", EINVAL),
        (b"0-1:1/0", EINVAL),
        (b"0-1:1/2x", EINVAL),
        (b"0-1:-1/2", EINVAL),
        (b"4294967295", EINVAL),
        (b"0-4294967295", EINVAL),
        (b"4294967294", ERANGE),
        (b"4294967296", EOVERFLOW),
        (b"0-4294967296", EOVERFLOW),
        (b"99999999999999999999", EOVERFLOW),
        (b"0-1:4294967296/1", EOVERFLOW),
        (b"0-1:1/4294967296", EOVERFLOW),
        (b"2", ERANGE),
        (b"0-2", ERANGE),
        (b"1,2", ERANGE),
        (b"256", ERANGE),
        (b"2-9", ERANGE),
        (b"2,x", ERANGE),
        (b"x,2", EINVAL),
        (b"0-9:3/2", EINVAL),
        (b"0-9:1/2", ERANGE),
        (b"0-N-1", EINVAL),
        (b"1-N0", EINVAL),
        (b"N1", EINVAL),
        (b"N-0", EINVAL),
        (b"all-1", EINVAL),
        (b"0,1,x", EINVAL),
    ];
    for (text, errno) in bad {
        s.push(write("a/cpuset.cpus", text).fails(errno));
    }
    s.push(read("a/cpuset.cpus").gives("1\n"));
    s.extend([
        write("a/cpuset.cpus", "-1").fails(EINVAL),
        write("a/cpuset.cpus", "0-9999999999").fails(EOVERFLOW),
        write("a/cpuset.cpus", "2\n,x").fails(ERANGE),
        write("a/cpuset.cpus", "0\n2").ok(),
        read("a/cpuset.cpus").gives("0\n"),
    ]);
    s
}

/// 3.1, for nodes
pub fn node_syntax() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok()];
    for text in ["0", "0\n", "0-0", "0,0", " 0 ", "0-0:1/1", "0\n1", "0,\n0"] {
        s.extend([set("a", "mems", text).ok(), read("a/cpuset.mems").gives("0\n"), set("a", "mems", "\n").ok()]);
    }
    for text in ["1", "0-1", "1023", "0-1023", "all", "N", "0,5", "x", "0-", "1-0", "0:1/1", "0-1:1/2x"] {
        s.push(set("a", "mems", text).fails(EINVAL));
    }
    for text in ["1024", "0-1024", "2000"] {
        s.push(set("a", "mems", text).fails(ERANGE));
    }
    s.extend([
        set("a", "mems", "0-1:1/2").ok(),
        read("a/cpuset.mems").gives("0\n"),
        set("a", "mems", "0-1023:1/1024"),
        set("a", "mems", "4294967296").fails(EOVERFLOW),
        set("a", "mems", "").ok(),
        read("a/cpuset.mems").gives("0\n"),
        read("a/cpuset.effective_mems").gives("0\n"),
        set("a", "mems", "\n").ok(),
        read("a/cpuset.effective_mems").gives("\n"),
    ]);
    s
}

/// 3.2
pub fn acceptance() -> Vec<Step> {
    vec![
        cpus_of("..", "0").fails(EACCES),
        cpus_of("..", "garbage").fails(EACCES),
        cpus_of("..", "\n").fails(EACCES),
        cpus_of("..", "").ok(),
        set("..", "mems", "0").fails(EACCES),
        set("..", "mems", "x").fails(EACCES),
        mkdir("a").ok(),
        mkdir("a/b").ok(),
        // A parent without cpus takes only an empty child.
        cpus_of("a/b", "0").fails(EACCES),
        cpus_of("a/b", "\n").ok(),
        cpus_of("a/b", "x").fails(EINVAL),
        cpus_of("a/b", "9").fails(ERANGE),
        cpus_of("a", "0").ok(),
        cpus_of("a/b", "1").fails(EACCES),
        cpus_of("a/b", "0-1").fails(EACCES),
        cpus_of("a/b", "0").ok(),
        cpus_of("a", "0").ok(),
        cpus_of("a", "1").fails(EBUSY),
        cpus_of("a", "\n").fails(EBUSY),
        cpus_of("a", "0-1").ok(),
        cpus_of("a/b", "0-1").ok(),
        cpus_of("a", "0").fails(EBUSY),
        cpus_of("", "0").fails(EBUSY),
        cpus_of("a/b", "\n").ok(),
        cpus_of("a", "0").ok(),
        cpus_of("a/b", "0").ok(),
        cpus_of("", "0").ok(),
        read("cpuset.cpus").gives("0\n"),
        // EBUSY before EACCES.
        cpus_of("a", "1").fails(EBUSY),
        cpus_of("a/b", "1").fails(EACCES),
        cpus_of("", "0-1").ok(),
        set("a", "mems", "0").ok(),
        set("a/b", "mems", "0").ok(),
        set("a", "mems", "\n").fails(EBUSY),
        set("", "mems", "\n").fails(EBUSY),
        set("a/b", "mems", "\n").ok(),
        set("a", "mems", "\n").ok(),
        set("a/b", "mems", "0").fails(EACCES),
        set("a", "mems", "0").ok(),
        start(0).ok(),
        attach("a/tasks", P(0)).ok(),
        cpus_of("a", "\n").fails(EBUSY),
        cpus_of("a/b", "\n").ok(),
        cpus_of("a", "\n").fails(ENOSPC),
        set("a", "mems", "\n").fails(ENOSPC),
        cpus_of("a", "0-1").ok(),
        attach("tasks", P(0)).ok(),
        cpus_of("a", "\n").ok(),
        set("a", "mems", "\n").ok(),
        cpus_of("", "\n").fails(ENOSPC),
        attach("a/tasks", P(0)).fails(ENOSPC),
        cpus_of("a", "0").ok(),
        attach("a/tasks", P(0)).fails(ENOSPC),
        set("a", "mems", "0").ok(),
        cpus_of("a", "\n").ok(),
        attach("a/tasks", P(0)).fails(ENOSPC),
        attach("a/cgroup.procs", P(0)).fails(ENOSPC),
        cpus_of("a", "1").ok(),
        attach("a/tasks", P(0)).ok(),
        kill(C(0, 1)),
        exit(0).ok(),
        cpus_of("a", "\n").ok(),
        rmdir("a/b").ok(),
        mkdir("a/c").ok(),
        rename("a/c", "a/d").ok(),
        cpus_of("a", "0").ok(),
        cpus_of("a/d", "0").ok(),
        rmdir("a/d").ok(),
        cpus_of("a", "1").ok(),
    ]
}

/// 3.2, 3.3: exclusive groups
pub fn exclusive() -> Vec<Step> {
    let mut s = vec![
        mkdir("a").ok(),
        mkdir("b").ok(),
        // The parent is not exclusive.
        set("a", "cpu_exclusive", "1").fails(EACCES),
        set("a", "mem_exclusive", "1").fails(EACCES),
        set("a", "cpu_exclusive", "0").ok(),
        set("", "cpu_exclusive", "1").ok(),
        set("", "mem_exclusive", "1").ok(),
        read("cpuset.cpu_exclusive").gives("1\n"),
        read("a/cpuset.cpu_exclusive").gives("0\n"),
        cpus_of("a", "0").ok(),
        cpus_of("b", "0-1").ok(),
        set("a", "cpu_exclusive", "1").fails(EINVAL),
        read("a/cpuset.cpu_exclusive").gives("0\n"),
        cpus_of("b", "1").ok(),
        set("a", "cpu_exclusive", "1").ok(),
        read("a/cpuset.cpu_exclusive").gives("1\n"),
        cpus_of("b", "0-1").fails(EINVAL),
        cpus_of("b", "0").fails(EINVAL),
        cpus_of("a", "0-1").fails(EINVAL),
        cpus_of("b", "\n").ok(),
        cpus_of("a", "0-1").ok(),
        cpus_of("b", "1").fails(EINVAL),
        cpus_of("a", "0").ok(),
        cpus_of("b", "1").ok(),
        set("b", "cpu_exclusive", "1").ok(),
        set("", "cpu_exclusive", "0").fails(EBUSY),
        set("b", "cpu_exclusive", "0").ok(),
        set("", "cpu_exclusive", "0").fails(EBUSY),
        // Children overlap freely with their parent.
        mkdir("a/c").ok(),
        cpus_of("a/c", "0").ok(),
        set("a/c", "cpu_exclusive", "1").ok(),
        set("a", "cpu_exclusive", "0").fails(EBUSY),
        mkdir("a/d").ok(),
        cpus_of("a/d", "0").fails(EINVAL),
        set("a/d", "cpu_exclusive", "1").ok(),
        cpus_of("a/d", "0").fails(EINVAL),
        cpus_of("a/d", "1").fails(EACCES),
        set("a/c", "cpu_exclusive", "0").ok(),
        cpus_of("a/d", "0").fails(EINVAL),
        set("a/d", "cpu_exclusive", "0").ok(),
        cpus_of("a/d", "0").ok(),
        set("a/d", "cpu_exclusive", "1").fails(EINVAL),
        rmdir("a/c").ok(),
        set("a/d", "cpu_exclusive", "1").ok(),
        rmdir("a/d").ok(),
        set("a", "cpu_exclusive", "0").ok(),
        set("a", "cpu_exclusive", "1").ok(),
        // A removed group excludes nobody any more.
        rmdir("a").ok(),
        cpus_of("b", "0-1").ok(),
        mkdir("a").ok(),
        set("a", "cpu_exclusive", "1").ok(),
        cpus_of("a", "1").fails(EINVAL),
        set("a", "cpu_exclusive", "4294967296").ok(),
        read("a/cpuset.cpu_exclusive").gives("0\n"),
        cpus_of("a", "1").ok(),
        set("a", "cpu_exclusive", "4294967297").fails(EINVAL),
        set("a", "cpu_exclusive", "2").fails(EINVAL),
        cpus_of("b", "0").ok(),
        set("a", "cpu_exclusive", "2").ok(),
        read("a/cpuset.cpu_exclusive").gives("1\n"),
        set("a", "cpu_exclusive", "0").ok(),
        // Memory nodes.
        set("a", "mems", "0").ok(),
        set("a", "mem_exclusive", "1").ok(),
        set("b", "mems", "0").fails(EINVAL),
        read("b/cpuset.mems").gives("\n"),
        set("a", "mems", "\n").ok(),
        set("b", "mems", "0").ok(),
        set("a", "mems", "0").fails(EINVAL),
        set("", "mem_exclusive", "0").fails(EBUSY),
        set("a", "mem_exclusive", "0").ok(),
        set("", "mem_exclusive", "0").ok(),
        set("b", "mem_exclusive", "1").fails(EACCES),
        set("", "mem_exclusive", "1").ok(),
        set("b", "mem_exclusive", "1").ok(),
        set("a", "mems", "0").fails(EINVAL),
        // EACCES (not exclusive, or not within the parent) before EINVAL (overlap).
        set("b", "mem_exclusive", "0").ok(),
        set("a", "cpu_exclusive", "1").ok(),
        cpus_of("b", "0").ok(),
        cpus_of("", "0").fails(EBUSY),
        // An exclusive group keeps CPUs for the deadline servers of its own.
        cpus_of("a", "\n").fails(EBUSY),
        set("a", "cpu_exclusive", "0").ok(),
        cpus_of("a", "\n").ok(),
        set("a", "cpu_exclusive", "1").ok(),
        cpus_of("", "0").ok(),
        cpus_of("a", "0-1").fails(EACCES),
        cpus_of("a", "0").fails(EINVAL),
        set("a", "cpu_exclusive", "0").ok(),
        set("", "cpu_exclusive", "0").ok(),
        cpus_of("a", "0").ok(),
        set("a", "cpu_exclusive", "1").fails(EACCES),
        rename("a", "x").ok(),
        set("x", "cpu_exclusive", "1").fails(EACCES),
    ];
    s.extend([set("", "cpu_exclusive", "x").fails(EINVAL), set("", "cpu_exclusive", "").ok()]);
    s
}

/// 3.2: an exclusive group with balanced load cannot lose its last CPU
pub fn exclusive_and_empty() -> Vec<Step> {
    let mut s = vec![set("", "cpu_exclusive", "1").ok()];
    s.extend(ready("a", "0-1"));
    s.extend([
        set("a", "cpu_exclusive", "1").ok(),
        cpus_of("a", "0").ok(),
        cpus_of("a", "\n").fails(EBUSY),
        cpus_of("a", "1").ok(),
        cpus_of("a", "\n").fails(EBUSY),
        start(0).ok(),
        attach("a/tasks", P(0)).ok(),
        cpus_of("a", "\n").fails(ENOSPC),
        attach("tasks", P(0)).ok(),
        set("a", "mems", "\n").ok(),
        set("a", "sched_load_balance", "0").ok(),
        cpus_of("a", "\n").ok(),
        cpus_of("a", "0").ok(),
        set("a", "sched_load_balance", "1").ok(),
        cpus_of("a", "\n").fails(EBUSY),
        read("a/cpuset.cpus").gives("0\n"),
        set("", "sched_load_balance", "0").ok(),
        cpus_of("a", "1").ok(),
        cpus_of("a", "\n").fails(EBUSY),
        set("", "sched_load_balance", "1").ok(),
        cpus_of("a", "0-1").ok(),
        mkdir("a/b").ok(),
        set("a/b", "cpu_exclusive", "1").ok(),
        cpus_of("a/b", "0").ok(),
        cpus_of("a/b", "\n").fails(EBUSY),
        cpus_of("a", "1").fails(EBUSY),
        set("a", "cpu_exclusive", "0").fails(EBUSY),
        set("a/b", "cpu_exclusive", "0").ok(),
        cpus_of("a/b", "\n").ok(),
        set("", "cpu_exclusive", "0").fails(EBUSY),
        set("a", "cpu_exclusive", "0").ok(),
        cpus_of("a", "\n").ok(),
        read("cpuset.cpus").gives("0-1\n"),
        cpus_of("", "\n").fails(ENOSPC),
        set("", "cpu_exclusive", "0").ok(),
        exit(0).ok(),
        cpus_of("", "\n").ok(),
    ]);
    s
}

/// 3.3
pub fn flags() -> Vec<Step> {
    let mut s = vec![mkdir("a").ok()];
    for flag in ["mem_hardwall", "memory_migrate", "memory_spread_page", "memory_spread_slab", "sched_load_balance"] {
        let file = format!("a/cpuset.{flag}");
        s.extend([read(file.clone()), set("a", flag, "1").ok(), read(file.clone()).gives("1\n"), set("a", flag, "0\n").ok()]);
        s.extend([read(file.clone()).gives("0\n"), set("a", flag, "2").ok(), read(file.clone()).gives("1\n")]);
        s.extend([set("a", flag, "4294967296").ok(), read(file.clone()).gives("0\n")]);
        s.extend([set("a", flag, "4294967297").ok(), read(file.clone()).gives("1\n")]);
        s.extend([set("a", flag, "x").fails(EINVAL), set("a", flag, "-1").fails(EINVAL), set("a", flag, "").ok()]);
        s.extend([set("a", flag, "18446744073709551616").fails(ERANGE), read(file).gives("1\n")]);
    }
    s.push(read("a/cpuset.sched_relax_domain_level").gives("-1\n"));
    for (text, errno) in [
        ("0", None),
        ("1\n", None),
        ("-1", None),
        ("-0", None),
        ("+1", None),
        ("0x1", None),
        ("01", None),
        ("-2", Some(EINVAL)),
        ("100", Some(EINVAL)),
        ("2147483647", Some(EINVAL)),
        ("2147483648", Some(EINVAL)),
        ("4294967295", Some(EINVAL)),
        ("4294967296", Some(EINVAL)),
        ("x", Some(EINVAL)),
        (" 1", Some(EINVAL)),
        ("1 ", Some(EINVAL)),
        ("--1", Some(EINVAL)),
        ("9223372036854775807", Some(EINVAL)),
        ("-9223372036854775808", Some(EINVAL)),
        ("9223372036854775808", Some(ERANGE)),
        ("-9223372036854775809", Some(ERANGE)),
    ] {
        let step = set("a", "sched_relax_domain_level", text);
        s.push(if let Some(errno) = errno { step.fails(errno) } else { step.ok() });
        s.push(read("a/cpuset.sched_relax_domain_level"));
    }
    s.extend([
        set("a", "sched_relax_domain_level", "2"),
        set("a", "sched_relax_domain_level", "3"),
        set("a", "sched_relax_domain_level", "4"),
    ]);
    s.extend([set("a", "sched_relax_domain_level", "-1").ok(), read("a/cpuset.memory_pressure").gives("0\n")]);
    s
}

/// 3.3: what a new group has from its parent
pub fn inheritance() -> Vec<Step> {
    let mut s = vec![
        mkdir("a").ok(),
        cpus_of("a", "0-1").ok(),
        set("a", "mems", "0").ok(),
        set("a", "mem_hardwall", "1").ok(),
        set("a", "memory_migrate", "1").ok(),
        set("a", "memory_spread_page", "1").ok(),
        set("a", "memory_spread_slab", "1").ok(),
        set("a", "sched_load_balance", "0").ok(),
        set("a", "sched_relax_domain_level", "1").ok(),
        mkdir("a/b").ok(),
    ];
    let fresh = [
        ("cpus", "\n"),
        ("mems", "\n"),
        ("effective_cpus", "\n"),
        ("effective_mems", "\n"),
        ("cpu_exclusive", "0\n"),
        ("mem_exclusive", "0\n"),
        ("mem_hardwall", "0\n"),
        ("memory_migrate", "0\n"),
        ("memory_spread_page", "1\n"),
        ("memory_spread_slab", "1\n"),
        ("sched_load_balance", "1\n"),
        ("sched_relax_domain_level", "-1\n"),
    ];
    s.extend(fresh.map(|(file, text)| read(format!("a/b/cpuset.{file}")).gives(text)));
    s.extend([
        write("a/cgroup.clone_children", "1").ok(),
        mkdir("a/c").ok(),
        read("a/c/cpuset.cpus").gives("0-1\n"),
        read("a/c/cpuset.mems").gives("0\n"),
        read("a/c/cpuset.effective_cpus").gives("0-1\n"),
        read("a/c/cpuset.effective_mems").gives("0\n"),
        read("a/c/cpuset.mem_hardwall").gives("0\n"),
        read("a/c/cpuset.sched_load_balance").gives("1\n"),
        read("a/c/cgroup.clone_children").gives("1\n"),
        mkdir("a/c/d").ok(),
        read("a/c/d/cpuset.cpus").gives("0-1\n"),
        start(0).ok(),
        attach("a/c/d/tasks", P(0)).ok(),
        attach("tasks", P(0)).ok(),
        set("a/b", "mems", "0").ok(),
        write("a/b/cgroup.clone_children", "1").ok(),
        mkdir("a/b/e").ok(),
        read("a/b/e/cpuset.cpus").gives("\n"),
        read("a/b/e/cpuset.mems").gives("0\n"),
        mkdir("f").ok(),
        read("f/cpuset.cpus").gives("\n"),
        write("cgroup.clone_children", "1").ok(),
        mkdir("g").ok(),
        read("g/cpuset.cpus").gives("0-1\n"),
        read("g/cpuset.mems").gives("0\n"),
        rmdir("g").ok(),
        nobody(mkdir("g")).fails(EACCES),
        chmod("", 0o777).ok(),
        nobody(mkdir("g")).ok(),
        read("g/cpuset.cpus").gives("0-1\n"),
        nobody(write("g/cpuset.cpus", "0")).ok(),
    ]);
    s
}

/// 3.3: an exclusive sibling keeps clone_children from copying
pub fn clone_children_and_exclusive() -> Vec<Step> {
    vec![
        set("", "cpu_exclusive", "1").ok(),
        set("", "mem_exclusive", "1").ok(),
        write("cgroup.clone_children", "1").ok(),
        mkdir("a").ok(),
        read("a/cpuset.cpus").gives("0-1\n"),
        set("a", "cpu_exclusive", "1").ok(),
        mkdir("b").ok(),
        read("b/cpuset.cpus").gives("\n"),
        read("b/cpuset.mems").gives("\n"),
        set("a", "cpu_exclusive", "0").ok(),
        mkdir("c").ok(),
        read("c/cpuset.cpus").gives("0-1\n"),
        set("b", "mem_exclusive", "1").ok(),
        mkdir("d").ok(),
        read("d/cpuset.cpus").gives("\n"),
        read("d/cpuset.mems").gives("\n"),
        read("d/cgroup.clone_children").gives("1\n"),
        rmdir("b").ok(),
        mkdir("e").ok(),
        read("e/cpuset.mems").gives("0\n"),
        // Exclusive elsewhere in the tree does not matter.
        rmdir("c").ok(),
        rmdir("e").ok(),
        set("a", "cpu_exclusive", "1").ok(),
        mkdir("a/x").ok(),
        read("a/x/cpuset.cpus").gives("0-1\n"),
        read("a/x/cpuset.cpu_exclusive").gives("0\n"),
    ]
}

/// 3.4
pub fn effective() -> Vec<Step> {
    vec![
        read("cpuset.effective_cpus"),
        read("../cpuset.effective_cpus"),
        read("../cpuset.effective_mems"),
        mkdir("a").ok(),
        read("a/cpuset.effective_cpus").gives("\n"),
        cpus_of("a", "1").ok(),
        read("a/cpuset.effective_cpus").gives("1\n"),
        cpus_of("a", "0-1").ok(),
        read("a/cpuset.effective_cpus").gives("0-1\n"),
        cpus_of("a", "\n").ok(),
        read("a/cpuset.effective_cpus").gives("\n"),
        set("a", "mems", "0").ok(),
        read("a/cpuset.effective_mems").gives("0\n"),
        mkdir("a/b").ok(),
        read("a/b/cpuset.effective_mems").gives("\n"),
    ]
}

/// 3.5
pub fn affinity_follows() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "1"));
    s.extend(ready("w", "0-1"));
    s.extend([
        start(0).ok(),
        thread(P(0)).ok(),
        fork(P(0)).ok(),
        affinity(P(0)),
        attach("a/tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        affinity(T(0, 1)),
        affinity(C(0, 1)),
        attach("b/cgroup.procs", P(0)).ok(),
        affinity(P(0)).gives("[1]"),
        affinity(T(0, 1)).gives("[1]"),
        cpus_of("b", "0-1").ok(),
        affinity(P(0)).gives("[0, 1]"),
        affinity(T(0, 1)).gives("[0, 1]"),
        cpus_of("b", "0").ok(),
        affinity(P(0)).gives("[0]"),
        thread(P(0)).ok(),
        fork(T(0, 1)).ok(),
        affinity(T(0, 2)).gives("[0]"),
        affinity(C(0, 2)).gives("[0]"),
        read("b/tasks").gives("p0 p0.c2 p0.t1 p0.t2"),
        cpus_of("b", "1").ok(),
        affinity(T(0, 2)).gives("[1]"),
        affinity(C(0, 2)).gives("[1]"),
        rename("b", "c").ok(),
        affinity(P(0)).gives("[1]"),
        set("c", "mem_hardwall", "1").ok(),
        set("c", "sched_load_balance", "0").ok(),
        affinity(P(0)).gives("[1]"),
        set("c", "sched_load_balance", "1").ok(),
        attach("c/tasks", P(0)).ok(),
        affinity(P(0)).gives("[1]"),
        attach("tasks", T(0, 2)).ok(),
        affinity(T(0, 2)).gives("[0, 1]"),
        attach("../tasks", T(0, 1)).ok(),
        affinity(T(0, 1)).gives("[0, 1]"),
        attach("../cgroup.procs", P(0)).ok(),
        affinity(P(0)).gives("[0, 1]"),
        read("c/tasks").gives("p0.c2"),
        attach("a/cgroup.procs", C(0, 2)).ok(),
        affinity(C(0, 2)).gives("[0]"),
        mkdir("a/n").ok(),
        set("a/n", "mems", "0").ok(),
        attach("a/n/tasks", P(0)).fails(ENOSPC),
        affinity(P(0)).gives("[0, 1]"),
        start(1).ok(),
        thread(P(1)).ok(),
        attach("a/tasks", T(1, 1)).ok(),
        attach("c/tasks", P(1)).ok(),
        affinity(T(1, 1)).gives("[0]"),
        affinity(P(1)).gives("[1]"),
        thread(T(1, 1)).ok(),
        affinity(T(1, 2)).gives("[0]"),
        cpus_of("a", "0-1").ok(),
        affinity(T(1, 2)).gives("[0, 1]"),
        affinity(P(1)).gives("[1]"),
        rmdir("a/n").ok(),
    ]);
    s
}

/// 3.5: a mask the task asked for itself, within what its group allows
pub fn own_masks() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "0"));
    s.extend(ready("b", "1"));
    s.extend(ready("w", "0-1"));
    s.extend([
        start(0).ok(),
        attach("w/tasks", P(0)).ok(),
        pin(P(0), &[0]).ok(),
        affinity(P(0)).gives("[0]"),
        attach("w/tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        cpus_of("w", "0-1\n").ok(),
        affinity(P(0)).gives("[0]"),
        cpus_of("w", "1").ok(),
        affinity(P(0)).gives("[1]"),
        cpus_of("w", "0-1").ok(),
        affinity(P(0)).gives("[0]"),
        attach("b/tasks", P(0)).ok(),
        affinity(P(0)).gives("[1]"),
        attach("w/tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        attach("a/tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        attach("../tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        attach("b/tasks", P(0)).ok(),
        attach("../tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        pin(P(0), &[1]).ok(),
        affinity(P(0)).gives("[1]"),
        attach("a/tasks", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        attach("w/tasks", P(0)).ok(),
        affinity(P(0)).gives("[1]"),
        pin(P(0), &[0, 1]).ok(),
        affinity(P(0)).gives("[0, 1]"),
        attach("a/tasks", P(0)).ok(),
        attach("w/tasks", P(0)).ok(),
        affinity(P(0)).gives("[0, 1]"),
        // Threads and children inherit it.
        pin(P(0), &[1]).ok(),
        thread(P(0)).ok(),
        fork(P(0)).ok(),
        affinity(T(0, 1)).gives("[1]"),
        affinity(C(0, 1)).gives("[1]"),
        read("w/tasks").gives("p0 p0.c1 p0.t1"),
        pin(T(0, 1), &[0]).ok(),
        attach("a/cgroup.procs", P(0)).ok(),
        affinity(P(0)).gives("[0]"),
        affinity(T(0, 1)).gives("[0]"),
        attach("w/cgroup.procs", P(0)).ok(),
        affinity(P(0)).gives("[1]"),
        affinity(T(0, 1)).gives("[0]"),
        attach("a/tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[0]"),
        attach("w/tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[1]"),
        cpus_of("w", "0").ok(),
        affinity(C(0, 1)).gives("[0]"),
        cpus_of("w", "0-1").ok(),
        affinity(C(0, 1)).gives("[1]"),
        rename("w", "v").ok(),
        set("v", "memory_migrate", "1").ok(),
        affinity(C(0, 1)).gives("[1]"),
        // Set by somebody else.
        pin_by(C(0, 1), &[0]).ok(),
        affinity(C(0, 1)).gives("[0]"),
        attach("b/tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[1]"),
        attach("../tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[0]"),
        start(1).ok(),
        pin(P(1), &[1]).ok(),
        attach("v/tasks", P(1)).ok(),
        affinity(P(1)).gives("[1]"),
        attach("a/tasks", P(1)).ok(),
        affinity(P(1)).gives("[0]"),
        attach("../tasks", P(1)).ok(),
        affinity(P(1)).gives("[1]"),
    ]);
    s
}

/// 3.5: children of a task whose own mask is overruled at the moment remember it too
pub fn own_masks_born_overruled() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("b", "1"));
    s.extend(ready("w", "0-1"));
    s.extend([
        start(0).ok(),
        attach("w/tasks", P(0)).ok(),
        pin(P(0), &[0]).ok(),
        attach("b/tasks", P(0)).ok(),
        affinity(P(0)).gives("[1]"),
        thread(P(0)).ok(),
        fork(P(0)).ok(),
        affinity(T(0, 1)).gives("[1]"),
        attach("w/tasks", T(0, 1)).ok(),
        affinity(T(0, 1)).gives("[0]"),
        attach("w/tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[0]"),
        cpus_of("b", "0-1").ok(),
        affinity(P(0)).gives("[0]"),
    ]);
    s
}

/// 3.5: a mask of one's own that happens to be what the group had before
pub fn own_masks_like_a_former_set() -> Vec<Step> {
    let mut s = Vec::new();
    s.extend(ready("a", "1"));
    s.push(mkdir("e").ok());
    s.extend([
        start(0).ok(),
        attach("a/tasks", P(0)).ok(),
        cpus_of("a", "0-1").ok(),
        pin(P(0), &[1]).ok(),
        fork(P(0)).ok(),
        thread(P(0)).ok(),
        attach("e/tasks", P(0)).fails(ENOSPC),
        attach("e/tasks", T(0, 1)).fails(ENOSPC),
        read("a/tasks").gives("p0 p0.c1 p0.t1"),
        affinity(P(0)).gives("[1]"),
        affinity(C(0, 1)).gives("[1]"),
        affinity(T(0, 1)).gives("[1]"),
        attach("tasks", C(0, 1)).ok(),
        affinity(C(0, 1)).gives("[1]"),
        cpus_of("a", "0").ok(),
        affinity(T(0, 1)).gives("[0]"),
        cpus_of("a", "0-1").ok(),
        affinity(T(0, 1)).gives("[1]"),
        affinity(P(0)).gives("[1]"),
    ]);
    s
}

/// 8
pub fn precedence() -> Vec<Step> {
    let mut s = vec![
        mkdir("p").ok(),
        cpus_of("p", "0-1").ok(),
        set("p", "mems", "0").ok(),
        mkdir("p/c").ok(),
        cpus_of("p/c", "0").ok(),
        mkdir("q").ok(),
        mkdir("q/r").ok(),
        cpus_of("q", "0").ok(),
        cpus_of("q/r", "0").ok(),
        // Neither covers the child nor fits the parent.
        cpus_of("q/r", "1").fails(EACCES),
        mkdir("q/r/s").ok(),
        cpus_of("q/r/s", "0").ok(),
        cpus_of("q/r", "1").fails(EBUSY),
        start(0).ok(),
        attach("p/tasks", P(0)).ok(),
        cpus_of("p", "\n").fails(EBUSY),
        set("p", "mems", "\n").fails(ENOSPC),
        cpus_of("p/c", "\n").ok(),
        cpus_of("p", "\n").fails(ENOSPC),
        cpus_of("p", "x").fails(EINVAL),
        cpus_of("p", "9,x").fails(ERANGE),
        cpus_of("p", "x,9").fails(EINVAL),
        set("p/c", "cpu_exclusive", "1").fails(EACCES),
        mkdir("e").ok(),
        attach("e/tasks", P(0)).fails(ENOSPC),
        write("e/tasks", "2147483647").fails(ESRCH),
        write("e/tasks", "x").fails(EINVAL),
        read("p/tasks").gives("p0"),
        affinity(P(0)).gives("[0, 1]"),
    ];
    s.extend([fill("e/cpuset.cpus", b'x', 1636).fails(EINVAL), fill("e/cpuset.cpus", b'x', 1637).fails(E2BIG)]);
    s
}

/// 8, with exclusive siblings
pub fn precedence_exclusive() -> Vec<Step> {
    vec![
        set("", "cpu_exclusive", "1").ok(),
        mkdir("p").ok(),
        mkdir("p/x").ok(),
        mkdir("p/y").ok(),
        cpus_of("p", "0").ok(),
        set("p", "cpu_exclusive", "1").ok(),
        cpus_of("p/x", "0").ok(),
        set("p/x", "cpu_exclusive", "1").ok(),
        // Neither fits the parent nor respects the sibling.
        cpus_of("p/y", "0-1").fails(EACCES),
        cpus_of("p/y", "0").fails(EINVAL),
        set("p", "cpu_exclusive", "0").fails(EBUSY),
        set("p/x", "cpu_exclusive", "0").ok(),
        cpus_of("p/y", "0").ok(),
        set("p", "cpu_exclusive", "0").ok(),
        // The parent is not exclusive and the sibling overlaps.
        set("p/x", "cpu_exclusive", "1").fails(EACCES),
        set("p", "cpu_exclusive", "1").ok(),
        set("p/x", "cpu_exclusive", "1").fails(EINVAL),
        start(0).ok(),
        set("p/y", "mems", "0").fails(EACCES),
        set("p", "mems", "0").ok(),
        set("p/y", "mems", "0").ok(),
        attach("p/y/tasks", P(0)).ok(),
        cpus_of("p/y", "\n").fails(ENOSPC),
        cpus_of("p", "\n").fails(EBUSY),
        cpus_of("p/y", "1").fails(EACCES),
        affinity(P(0)).gives("[0]"),
    ]
}
