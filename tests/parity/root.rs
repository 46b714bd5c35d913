//! Scripts for the root of our own hierarchy: they would change the kernel's for everybody.

use nix::errno::Errno::*;

use super::step::*;

/// 2.4
pub fn release_agent() -> Vec<Step> {
    let agent = "release_agent";
    vec![
        read(agent).gives("\n"),
        write(agent, "/bin/true").ok(),
        read(agent).gives("/bin/true\n"),
        write(agent, " /no/such file \n").ok(),
        read(agent).gives("/no/such file\n"),
        write(agent, "two\nlines\n\n").ok(),
        read(agent).gives("two\nlines\n"),
        write(agent, "a\0b").ok(),
        read(agent).gives("a\n"),
        write(agent, "").ok(),
        read(agent).gives("a\n"),
        fill(agent, b'x', 4095).ok(),
        fill(agent, b'x', 4096).fails(E2BIG),
        write(agent, "\n").ok(),
        read(agent).gives("\n"),
        nobody(write(agent, "/x")).fails(EACCES),
        chmod(agent, 0o666).ok(),
        nobody(write(agent, "/x")).fails(EPERM),
        read(agent).gives("\n"),
        mkdir("a").ok(),
        read("a/release_agent").fails(ENOENT),
        mkdir("a/release_agent").ok(),
    ]
}

/// 1.1, 1.4, 2.2, 2.3, 3.2, 3.3
pub fn core_files() -> Vec<Step> {
    vec![
        stat("").gives("dir 0555 0:0 nlink 2 size 0 blocks 0 of 4096"),
        rmdir("").fails(EBUSY),
        read("cgroup.sane_behavior").gives("0\n"),
        stat("cgroup.sane_behavior").gives("file 0444 0:0 nlink 1 size 0 blocks 0 of 4096"),
        stat("release_agent").gives("file 0644 0:0 nlink 1 size 0 blocks 0 of 4096"),
        read("cpuset.cpus").gives("0-1\n"),
        read("cpuset.mems").gives("0\n"),
        read("cpuset.effective_cpus").gives("0-1\n"),
        read("cpuset.effective_mems").gives("0\n"),
        read("cpuset.cpu_exclusive").gives("1\n"),
        read("cpuset.mem_exclusive").gives("1\n"),
        read("cpuset.memory_pressure_enabled").gives("0\n"),
        write("cpuset.memory_pressure_enabled", "1").ok(),
        read("cpuset.memory_pressure_enabled").gives("1\n"),
        write("cpuset.memory_pressure_enabled", "0").ok(),
        write("cpuset.memory_pressure_enabled", "x").fails(EINVAL),
        write("cpuset.cpus", "0").fails(EACCES),
        write("cpuset.cpus", "x").fails(EACCES),
        write("cpuset.mems", "0").fails(EACCES),
        nobody(write("cpuset.cpus", "0")).fails(EACCES),
        nobody(mkdir("n")).fails(EACCES),
        write("cgroup.clone_children", "1").ok(),
        write("notify_on_release", "1").ok(),
        mkdir("a").ok(),
        read("a/cgroup.clone_children").gives("1\n"),
        read("a/notify_on_release").gives("1\n"),
        read("a/cpuset.cpus").gives("0-1\n"),
        read("a/cpuset.mems").gives("0\n"),
        stat("").gives("dir 0555 0:0 nlink 3 size 0 blocks 0 of 4096"),
        write("cpuset.cpu_exclusive", "0").ok(),
        write("a/cpuset.cpu_exclusive", "1").fails(EACCES),
        write("cpuset.cpu_exclusive", "1").ok(),
        write("a/cpuset.cpu_exclusive", "1").ok(),
        write("cpuset.cpu_exclusive", "0").fails(EBUSY),
        start(0).ok(),
        attach("a/tasks", P(0)).ok(),
        read("a/tasks").gives("p0"),
        write("a/cpuset.cpus", "1").ok(),
        affinity(P(0)).gives("[1]"),
        attach("tasks", P(0)).ok(),
        affinity(P(0)).gives("[0, 1]"),
        read("a/tasks").gives(""),
    ]
}
