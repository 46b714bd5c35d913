//! How long an injection takes: `cargo bench --bench inject`. Figures are medians and 99th percentiles in microseconds.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/inject/target.rs"]
#[allow(dead_code, reason = "a part is used")]
mod target;

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use cgfuse::inject::{Injector, Namespace, Report, Target as Whom};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns as setns_self};
use nix::unistd::Pid;

use target::{DEADLINE, NET, Target, UTS, file, holder, injector, setns, setns_file};

fn main() {
    if !common::is_root() {
        return common::skipped("bench inject", "not root");
    }
    let lock = File::options().create(true).truncate(false).read(true).write(true).open("/tmp/cgfuse-tests-cpus.lock");
    let _lock = lock.ok().and_then(|file| Flock::lock(file, FlockArg::LockShared).ok());
    let rounds = std::env::var("CGFUSE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    println!("{:44} {:>9} {:>9} {:>9} {:>9} {:>9}", "", "caller", "p99", "injector", "p99", "stopped");
    for (name, mode) in [("blocked", "idle"), ("running now and then", "busy")] {
        let target = Target::new(&[mode, "1"]);
        one(&format!("1 thread, {name}, same CPU"), &target, true, rounds);
        one(&format!("1 thread, {name}, anywhere"), &target, false, rounds);
    }
    by_file(rounds);
    for threads in [10, 100, 1000] {
        many(threads, (rounds / threads).clamp(10, 100));
    }
    plain(rounds);
    nsenter((rounds / 20).max(5));
}

fn pin(pid: i32, cpu: Option<usize>) {
    let mut cpus = CpuSet::new();
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let chosen = cpu.map_or(0..all, |cpu| cpu..cpu + 1);
    chosen.for_each(|cpu| cpus.set(cpu).expect("a CPU"));
    sched_setaffinity(Pid::from_raw(pid), &cpus).expect("sched_setaffinity");
}

fn show(name: &str, mut columns: [Vec<u64>; 3]) {
    columns.iter_mut().for_each(|column| column.sort_unstable());
    let at = |column: usize, part: f64| columns[column][((columns[column].len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    let (caller, injector) = (at(0, 0.5), at(1, 0.5));
    println!("{name:44} {caller:9.1} {:9.1} {injector:9.1} {:9.1} {:9.1}", at(0, 0.99), at(1, 0.99), at(2, 0.5));
}

/// So many times to and fro: nanoseconds for the caller, the injector, and the target.
fn measure(rounds: usize, mut inject: impl FnMut(usize) -> Report) -> [Vec<u64>; 3] {
    let mut columns = [const { Vec::new() }; 3];
    for round in 0..rounds + rounds / 10 {
        let start = Instant::now();
        let report = inject(round);
        let caller = start.elapsed().as_nanos() as u64;
        // Warm by then.
        if round >= rounds / 10 {
            columns.iter_mut().zip([caller, report.total_ns, report.stopped_ns]).for_each(|(column, ns)| column.push(ns));
        }
    }
    columns
}

fn moves(injector: &mut Injector, target: &Target, rounds: usize, flags: i32) -> [Vec<u64>; 3] {
    let homes = [holder(NET | UTS), holder(NET | UTS)];
    let plans = homes.each_ref().map(|home| setns(home.pid(), home.pid(), flags));
    measure(rounds, |round| injector.inject(Whom::Process(target.pid()), &plans[round % 2], DEADLINE).expect("moved"))
}

fn one(name: &str, target: &Target, same_cpu: bool, rounds: usize) {
    let mut injector = injector();
    injector.start().expect("starts");
    pin(target.pid(), same_cpu.then_some(0));
    pin(0, same_cpu.then_some(0));
    std::thread::sleep(Duration::from_millis(50));
    show(name, moves(&mut injector, target, rounds, NET));
    pin(0, None);
}

fn by_file(rounds: usize) {
    let target = Target::new(&["idle", "1"]);
    let homes = [holder(NET), holder(NET)];
    let plans = homes.each_ref().map(|home| setns_file(home.pid(), Namespace::Net));
    let mut injector = injector();
    pin(target.pid(), Some(0));
    pin(0, Some(0));
    let columns = measure(rounds, |round| injector.inject(Whom::Process(target.pid()), &plans[round % 2], DEADLINE).expect("moved"));
    show("1 thread, blocked, same CPU, fd handed over", columns);
    pin(0, None);
}

fn many(threads: usize, rounds: usize) {
    let target = Target::new(&["idle", &threads.to_string()]);
    let mut injector = injector();
    show(&format!("{threads} threads"), moves(&mut injector, &target, rounds, NET));
    for tid in target.tids() {
        pin(tid, Some(0));
    }
    show(&format!("{threads} threads, same CPU"), moves(&mut injector, &target, rounds, NET));
}

fn plain(rounds: usize) {
    let home = holder(NET);
    let fds = [File::open("/proc/self/ns/net"), File::open(format!("/proc/{}/ns/net", home.pid()))].map(|fd| fd.expect("open"));
    let columns = measure(rounds, |round| {
        setns_self(&fds[(round + 1) % 2], CloneFlags::CLONE_NEWNET).expect("setns");
        Report::default()
    });
    setns_self(&fds[0], CloneFlags::CLONE_NEWNET).expect("setns");
    show("setns(2) itself", columns);
    let _ = file("/dev/null");
}

fn nsenter(rounds: usize) {
    let home = holder(NET);
    let pid = home.pid().to_string();
    let columns = measure(rounds, |_| {
        let status = Command::new("nsenter").args(["-t", &pid, "-n", "true"]).status();
        assert!(status.is_ok_and(|status| status.success()), "nsenter");
        Report::default()
    });
    show("nsenter -n true (a new program)", columns);
}
