//! Changes of a large group, lists, births and deaths in groups that want to be announced, groups that come and go, all at once: nobody waits for ever.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::storm::{cannot_mount, group, report, rounds};
use crate::common::{Mount, Target, read, spawn, write};

#[test]
fn nobody_waits_for_ever() {
    const TEST: &str = "nobody_waits_for_ever";
    if cannot_mount(TEST) {
        return;
    }
    let mount = Mount::with_options("cpuset,release_agent=/bin/true");
    let dir = mount.dir();
    let (big, a, b) = (group(dir, "big", "0-1"), group(dir, "a", "0"), group(dir, "b", "1"));
    let mut target = Target::new();
    (0..250).for_each(|_| _ = target.thread());
    write(big.join("cgroup.procs"), target.pid().to_string()).expect("attach");
    for group in [&a, &b] {
        write(group.join("notify_on_release"), "1").expect("notify_on_release");
    }
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let repeat = |step: &dyn Fn(usize)| {
        for n in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            step(n);
            done.fetch_add(1, Ordering::SeqCst);
        }
    };
    let dies_in = |group: &std::path::Path| {
        let mut sh = Command::new("sh");
        sh.args(["-c", "echo 0 > \"$0/tasks\""]).arg(group).stdin(Stdio::null());
        assert!(spawn(sh).and_then(|mut sh| sh.wait()).expect("sh").success());
    };
    std::thread::scope(|scope| {
        scope.spawn(|| repeat(&|n| _ = write(big.join("cpuset.cpus"), ["0", "0-1"][n % 2]).expect("cpus")));
        scope.spawn(|| repeat(&|_| _ = read(dir.join("tasks")).expect("tasks")));
        scope.spawn(|| repeat(&|_| _ = read(big.join("tasks")).expect("tasks")));
        for group in [&a, &b] {
            scope.spawn(move || repeat(&|_| dies_in(group)));
        }
        for name in ["x", "y"] {
            scope.spawn(move || {
                repeat(&|_| {
                    std::fs::create_dir(dir.join(name)).expect("mkdir");
                    std::fs::remove_dir(dir.join(name)).expect("rmdir");
                });
            });
        }
        let end = Instant::now() + Duration::from_millis(rounds(6_000) as u64);
        let mut last = (0, Instant::now());
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
            let now = done.load(Ordering::SeqCst);
            if now != last.0 {
                last = (now, Instant::now());
            }
            // The threads would wait for ever, and this test with them.
            if last.1.elapsed() > Duration::from_secs(20) {
                eprintln!("{TEST}: nothing has happened for 20 s\n{}", mount.log());
                std::process::abort();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    report(TEST, &format!("{} operations", done.into_inner()));
}
