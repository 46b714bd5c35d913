//! Nonsense, and texts on the border of it: the kernel's answer, nothing changed, no complaint.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::errno::Errno::{E2BIG, EACCES, EBUSY, EINVAL, ENOSPC, EOVERFLOW, ERANGE, ESRCH};

use super::actor::{Actor, at};
use super::trees::{both, both_roots, configured, has_no_complaints, lacks_root, test_name};
use super::write::{limit, nodes_at_most};
use crate::common::{KernelCpuset, OursSub, skipped};

/// What a text gives: the errno, or what the file then reads.
type Case<'a> = (&'a [u8], Result<&'a str, Errno>);

fn check(a: &Actor, file: &Path, reset: impl Fn(&str), cases: &[Case<'_>]) {
    for (text, expected) in cases {
        let shown = String::from_utf8_lossy(text);
        reset(expected.unwrap_or(""));
        let before = a.text(file).expect("read");
        match expected {
            Ok(value) => {
                assert_eq!(a.put(file, text), Ok(text.len() as i64), "{shown:?}");
                assert_eq!(a.text(file), Ok(format!("{value}\n")), "{shown:?}");
            }
            Err(errno) => {
                assert_eq!(a.put(file, text), Err(*errno), "{shown:?}");
                assert_eq!(a.text(file), Ok(before), "{shown:?}");
            }
        }
    }
}

const SETS: &[Case<'_>] = &[
    // Nothing.
    (b"\n", Ok("")),
    (b" ", Ok("")),
    (b",", Ok("")),
    (b" ,, \t", Ok("")),
    (b"\xa0", Ok("")),
    (b"\0", Ok("")),
    (b"0-1:0/1", Ok("")),
    // White space and separators.
    (b"0", Ok("0")),
    (b"0\n", Ok("0")),
    (b"  0\t\n", Ok("0")),
    (b"\x0b\x0c\r0 ", Ok("0")),
    (b"\xa00\xa0", Ok("0")),
    (b"0,1", Ok("0-1")),
    (b"1,0", Ok("0-1")),
    (b"0 1", Ok("0-1")),
    (b"0, 1", Ok("0-1")),
    (b"0 ,1", Ok("0-1")),
    (b"0\t1", Ok("0-1")),
    (b"0\xa01", Ok("0-1")),
    (b",0", Ok("0")),
    (b"0,", Ok("0")),
    (b"0,,1", Ok("0-1")),
    (b",,,0,,,1,,,", Ok("0-1")),
    (b"0,0,0-0", Ok("0")),
    (b"0-1,1", Ok("0-1")),
    (b"00-0001", Ok("0-1")),
    (b"0-0", Ok("0")),
    // A newline behind an element ends the list.
    (b"0\n1", Ok("0")),
    (b"0\n,1", Ok("0")),
    (b"0\nx", Ok("0")),
    (b"0-1\nx", Ok("0-1")),
    (b"0,\n1", Ok("0-1")),
    (b"0 \n1", Ok("0-1")),
    (b"0-1:1/2\n1", Ok("0-1")),
    // NUL ends the text.
    (b"0\0x", Ok("0")),
    (b"0\x001", Ok("0")),
    // Groups.
    (b"0-1:1/1", Ok("0-1")),
    (b"0-1:1/2", Ok("0")),
    (b"0-1:2/2", Ok("0-1")),
    (b"0-1:1/100", Ok("0")),
    (b"0-1:2/100", Ok("0-1")),
    (b"1-1:1/2", Ok("1")),
    (b"0-0:1/1,1", Ok("0-1")),
    (b"0-1:01/002", Ok("0")),
    (b"0-1:4294967295/4294967295", Ok("0-1")),
    (b"0:1/2", Err(EINVAL)),
    (b"0-1:2/1", Err(EINVAL)),
    (b"0-1:1/0", Err(EINVAL)),
    (b"0-1:0/0", Err(EINVAL)),
    (b"0-1:", Err(EINVAL)),
    (b"0-1:1", Err(EINVAL)),
    (b"0-1:1/", Err(EINVAL)),
    (b"0-1:/1", Err(EINVAL)),
    (b"0-1:1/2x", Err(EINVAL)),
    (b"0-1:1/2/3", Err(EINVAL)),
    (b"0-1:1/2:1/2", Err(EINVAL)),
    (b"0-1 :1/2", Err(EINVAL)),
    (b"0-1: 1/2", Err(EINVAL)),
    (b"0-1:1 /2", Err(EINVAL)),
    (b"0-1:1/ 2", Err(EINVAL)),
    (b"0-1:-1/2", Err(EINVAL)),
    (b"0-1:4294967296/2", Err(EOVERFLOW)),
    (b"0-1:1/4294967296", Err(EOVERFLOW)),
    // Not lists.
    (b"0-", Err(EINVAL)),
    (b"-0", Err(EINVAL)),
    (b"-", Err(EINVAL)),
    (b"1-0", Err(EINVAL)),
    (b"99999-0", Err(EINVAL)),
    (b"0-1-1", Err(EINVAL)),
    (b"0--1", Err(EINVAL)),
    (b"0 - 1", Err(EINVAL)),
    (b"0 -1", Err(EINVAL)),
    (b"0- 1", Err(EINVAL)),
    (b"0-\n1", Err(EINVAL)),
    (b"+0", Err(EINVAL)),
    (b"0x0", Err(EINVAL)),
    (b"0;1", Err(EINVAL)),
    (b"0.1", Err(EINVAL)),
    (b"0/1", Err(EINVAL)),
    (b"a", Err(EINVAL)),
    (b"n", Err(EINVAL)),
    (b"NN", Err(EINVAL)),
    (b"0N", Err(EINVAL)),
    (b"allx", Err(EINVAL)),
    (b"0all", Err(EINVAL)),
    (b"al", Err(EINVAL)),
    (b"all-1", Err(EINVAL)),
    (b"0-all", Err(EINVAL)),
    (b"\xff", Err(EINVAL)),
    (b"0,\xff", Err(EINVAL)),
    (b"0\x80", Err(EINVAL)),
    ("\u{ff10}".as_bytes(), Err(EINVAL)),
    (b"\x7f", Err(EINVAL)),
    (b"0\x01", Err(EINVAL)),
    (b"none", Err(EINVAL)),
    // Large numbers.
    (b"4294967295", Err(EINVAL)),
    (b"0-4294967295", Err(EINVAL)),
    (b"4294967294", Err(ERANGE)),
    (b"0-4294967294", Err(ERANGE)),
    (b"4294967296", Err(EOVERFLOW)),
    (b"0-4294967296", Err(EOVERFLOW)),
    (b"18446744073709551615", Err(EOVERFLOW)),
    (b"18446744073709551616", Err(EOVERFLOW)),
    (b"99999999999999999999999999999999", Err(EOVERFLOW)),
    (b"65536", Err(ERANGE)),
    (b"0,65536", Err(ERANGE)),
    (b"65536,x", Err(ERANGE)),
    (b"x,65536", Err(EINVAL)),
    (b"0-65536", Err(ERANGE)),
    (b"0-65536:1/2", Err(ERANGE)),
    (b"0-9:3/2", Err(EINVAL)),
    (b"65536,4294967296", Err(ERANGE)),
    (b"4294967296,x", Err(EOVERFLOW)),
];

/// The same with `all` and `N`, whose meaning depends on the machine.
const SETS_OF_TWO: &[Case<'_>] = &[
    (b"all", Ok("0-1")),
    (b"ALL", Ok("0-1")),
    (b"aLl\n", Ok("0-1")),
    (b"all:1/2", Ok("0")),
    (b"all,0", Ok("0-1")),
    (b"0,all", Ok("0-1")),
    (b"N", Ok("1")),
    (b"0-N", Ok("0-1")),
    (b"N-N", Ok("1")),
    (b"N-N:1/1", Ok("1")),
    (b"0,N", Ok("0-1")),
    (b"N:1/2", Err(EINVAL)),
    (b"N-0", Err(EINVAL)),
    (b"2", Err(ERANGE)),
    (b"0-2", Err(ERANGE)),
    (b"2,x", Err(ERANGE)),
    (b"x,2", Err(EINVAL)),
    (b"0-2:1/3", Err(ERANGE)),
    (b"2-3:1/2", Err(ERANGE)),
    (b"3-2", Err(EINVAL)),
];

fn cpus(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    if a.text(&file).as_deref() != Ok("0-1\n") {
        return skipped(&test_name(), "needs the CPUs 0 and 1, no more");
    }
    let reset = |value: &str| {
        let other = if value == "0-1" { "0" } else { "0-1" };
        a.put(&file, other).expect("write");
    };
    check(&a, &file, reset, SETS);
    check(&a, &file, reset, SETS_OF_TWO);
}

fn mems(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.mems");
    if a.text(&file).as_deref() != Ok("0\n") {
        return skipped(&test_name(), "needs the node 0, no more");
    }
    let (last, beyond) = ((nodes_at_most() - 1).to_string(), nodes_at_most().to_string());
    let reset = |value: &str| {
        let other = if value == "0" { "" } else { "0" };
        a.put(&file, format!("{other}\n")).expect("write");
    };
    check(
        &a,
        &file,
        reset,
        &[
            (b"0", Ok("0")),
            (b"0-0", Ok("0")),
            (b" 0,\n", Ok("0")),
            (b"\n", Ok("")),
            (b"0-0:1/2", Ok("0")),
            // Numbers that a node could have, but none has here.
            (b"1", Err(EINVAL)),
            (b"0-1", Err(EINVAL)),
            (b"all", Err(EINVAL)),
            (b"N", Err(EINVAL)),
            (last.as_bytes(), Err(EINVAL)),
            (beyond.as_bytes(), Err(ERANGE)),
            (b"x", Err(EINVAL)),
            (b"0-", Err(EINVAL)),
            (b"4294967296", Err(EOVERFLOW)),
            (b"4294967295", Err(EINVAL)),
            (b"1,x", Err(EINVAL)),
            (b"65536,x", Err(ERANGE)),
        ],
    );
    // Of a range, only nodes that are really there count.
    assert_eq!(a.put(&file, "0-1:1/2"), Ok(7));
    assert_eq!(a.text(&file).as_deref(), Ok("0\n"));
}

/// u64 with automatic base, what the flags then read.
const NUMBERS: &[Case<'_>] = &[
    (b"0", Ok("0")),
    (b"1", Ok("1")),
    (b"1\n", Ok("1")),
    (b"+1", Ok("1")),
    (b"+0", Ok("0")),
    (b"01", Ok("1")),
    (b"0x1", Ok("1")),
    (b"0X1\n", Ok("1")),
    (b"0x0", Ok("0")),
    (b"00", Ok("0")),
    (b"2", Ok("1")),
    (b"0xff", Ok("1")),
    (b"017", Ok("1")),
    (b"18446744073709551615", Ok("1")),
    (b"0xffffffffffffffff", Ok("1")),
    (b"1\0x", Ok("1")),
    (b"18446744073709551616", Err(ERANGE)),
    (b"0x10000000000000000", Err(ERANGE)),
    (b"99999999999999999999999999", Err(ERANGE)),
    (b"\n", Err(EINVAL)),
    (b"\0", Err(EINVAL)),
    (b" ", Err(EINVAL)),
    (b" 1", Err(EINVAL)),
    (b"1 ", Err(EINVAL)),
    (b"1\n\n", Err(EINVAL)),
    (b"\n1", Err(EINVAL)),
    (b"1\t", Err(EINVAL)),
    (b"1\r\n", Err(EINVAL)),
    (b"1 0", Err(EINVAL)),
    (b"-1", Err(EINVAL)),
    (b"-0", Err(EINVAL)),
    (b"++1", Err(EINVAL)),
    (b"+-1", Err(EINVAL)),
    (b"+", Err(EINVAL)),
    (b"1x", Err(EINVAL)),
    (b"08", Err(EINVAL)),
    (b"0x", Err(EINVAL)),
    (b"0xg", Err(EINVAL)),
    (b"0b1", Err(EINVAL)),
    (b"1.0", Err(EINVAL)),
    (b"1e0", Err(EINVAL)),
    (b"true", Err(EINVAL)),
    (b"yes", Err(EINVAL)),
    (b"\xff", Err(EINVAL)),
    (b"\xa01", Err(EINVAL)),
];

/// Flags of cpuset look at the low 32 bits only.
const LOW_BITS: &[Case<'_>] = &[
    (b"4294967296", Ok("0")),
    (b"4294967297", Ok("1")),
    (b"0x100000000", Ok("0")),
    (b"18446744069414584320", Ok("0")),
    (b"2147483648", Ok("1")),
];

fn flags(tree: &Path) {
    let a = Actor::new();
    for name in ["notify_on_release", "cgroup.clone_children"] {
        let file = tree.join(name);
        let reset = |value: &str| assert_eq!(a.put(&file, if value == "1" { "0" } else { "1" }), Ok(1));
        check(&a, &file, reset, NUMBERS);
        check(&a, &file, reset, &[(b"4294967296", Ok("1")), (b"4294967297", Ok("1"))]);
        a.put(&file, "0").expect("write");
    }
    for name in [
        "cpuset.mem_hardwall",
        "cpuset.memory_migrate",
        "cpuset.memory_spread_page",
        "cpuset.memory_spread_slab",
        "cpuset.sched_load_balance",
    ] {
        let file = tree.join(name);
        let reset = |value: &str| assert_eq!(a.put(&file, if value == "1" { "0" } else { "1" }), Ok(1));
        check(&a, &file, reset, NUMBERS);
        check(&a, &file, reset, LOW_BITS);
    }
    // Exclusive ones, where nothing is in the way of either value: they are left clear.
    for name in ["cpuset.cpu_exclusive", "cpuset.mem_exclusive"] {
        let file = tree.join(name);
        for (text, expected) in NUMBERS.iter().filter(|(_, expected)| expected != &Ok("1")) {
            assert_eq!(a.put(&file, text), expected.map(|_| text.len() as i64), "{name} {text:?}");
            assert_eq!(a.text(&file).as_deref(), Ok("0\n"), "{name} {text:?}");
        }
    }
}

fn relax_level(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.sched_relax_domain_level");
    let reset = |value: &str| assert!(a.put(&file, if value == "-1" { "0" } else { "-1" }).is_ok());
    check(
        &a,
        &file,
        reset,
        &[
            (b"0", Ok("0")),
            (b"-0", Ok("0")),
            (b"1", Ok("1")),
            (b"-1\n", Ok("-1")),
            (b"+1", Ok("1")),
            (b"0x1", Ok("1")),
            (b"-0x1", Ok("-1")),
            (b"-01", Ok("-1")),
            (b"-2", Err(EINVAL)),
            (b"100", Err(EINVAL)),
            (b"2147483648", Err(EINVAL)),
            (b"4294967295", Err(EINVAL)),
            (b"4294967296", Err(EINVAL)),
            (b"-4294967297", Err(EINVAL)),
            (b"9223372036854775807", Err(EINVAL)),
            (b"9223372036854775808", Err(ERANGE)),
            (b"-9223372036854775808", Err(EINVAL)),
            (b"-9223372036854775809", Err(ERANGE)),
            (b"99999999999999999999", Err(ERANGE)),
            (b"\n", Err(EINVAL)),
            (b"-", Err(EINVAL)),
            (b"--1", Err(EINVAL)),
            (b"-+1", Err(EINVAL)),
            (b" 1", Err(EINVAL)),
            (b"1 ", Err(EINVAL)),
            (b"x", Err(EINVAL)),
        ],
    );
}

fn pids(tree: &Path) {
    let (a, member) = (Actor::new(), Actor::new());
    let pid = member.id;
    for name in ["tasks", "cgroup.procs"] {
        let file = tree.join(name);
        for (text, errno) in [
            (&b"\n"[..], EINVAL),
            (b" ", EINVAL),
            (b"\0", EINVAL),
            (b"x", EINVAL),
            (b"-1", EINVAL),
            (b"-2147483648", EINVAL),
            (b"1.5", EINVAL),
            (b"0x", EINVAL),
            (b"08", EINVAL),
            (b"0 0", EINVAL),
            (b"0\n0", EINVAL),
            (b"0,0", EINVAL),
            (b"2147483648", EINVAL),
            (b"4294967296", EINVAL),
            (b"4294967295", EINVAL),
            (b"18446744073709551616", EINVAL),
            (b"99999999999999999999999999", EINVAL),
            (b"self", EINVAL),
            (b"\xff", EINVAL),
            (b"++0", EINVAL),
            (b"2147483647", ESRCH),
            (b"0x7fffffff", ESRCH),
            (b"4194305", ESRCH),
        ] {
            assert_eq!(a.put(&file, text), Err(errno), "{name} {:?}", String::from_utf8_lossy(text));
            assert_eq!(a.text(&file).as_deref(), Ok(""), "{name} {:?}", String::from_utf8_lossy(text));
        }
        for text in [
            format!("{pid}"),
            format!("{pid}\n"),
            format!("  {pid}\t\n\n"),
            format!("\x0b{pid}\x0c\r"),
            format!("+{pid}"),
            format!("{pid:#x}"),
            format!("0{pid:o}"),
            format!("{pid}\0garbage"),
        ] {
            assert_eq!(a.put(&file, &text), Ok(text.len() as i64), "{name} {text:?}");
            assert_eq!(a.text(&file), Ok(format!("{pid}\n")), "{name} {text:?}");
            a.put(&tree.parent().expect("parent").join(name), pid.to_string()).expect("attach");
        }
        let text = [b"\xa0", pid.to_string().as_bytes(), b"\xa0"].concat();
        assert_eq!(a.put(&file, &text), Ok(text.len() as i64), "{name}");
        a.put(&tree.parent().expect("parent").join(name), pid.to_string()).expect("attach");
        // Zero by another name is the writer.
        for text in ["0", "-0", "+0", "0x0", " 0\n", "000"] {
            let writer = Actor::new();
            assert_eq!(writer.put(&file, text), Ok(text.len() as i64), "{name} {text:?}");
            assert_eq!(a.text(&file), Ok(format!("{}\n", writer.id)), "{name} {text:?}");
        }
    }
}

/// What the root's own files refuse.
fn the_root(root: &Path) {
    let a = Actor::new();
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let before = a.text(&root.join(name));
        for text in ["0", "0-1", "x", "\n", "99999999999", "all"] {
            assert_eq!(a.put(&root.join(name), text), Err(EACCES), "{name} {text:?}");
        }
        assert_eq!(a.put(&root.join(name), ""), Ok(0), "{name}");
        assert_eq!(a.text(&root.join(name)), before, "{name}");
    }
    for text in ["0", "1", "\n", "x"] {
        assert_eq!(a.put(&root.join("cgroup.sane_behavior"), text), Err(EINVAL), "{text:?}");
        assert_eq!(a.put(&root.join("cpuset.effective_cpus"), text), Err(EINVAL), "{text:?}");
    }
    assert_eq!(a.put(&root.join("cgroup.sane_behavior"), ""), Ok(0));
    assert_eq!(a.text(&root.join("cgroup.sane_behavior")).as_deref(), Ok("0\n"));
    for text in ["x", "\n", "-1", " 1"] {
        assert_eq!(a.put(&root.join("cpuset.memory_pressure_enabled"), text), Err(EINVAL), "{text:?}");
    }
}

/// Each error of a set meets its own condition, in the kernel's order.
fn precedence(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    configured(&g);
    configured(&g.join("child"));
    a.put(&g.join("child/cpuset.cpus"), "0").expect("write");
    a.put(&tree.join("cpuset.cpus"), "0-1").expect("write");
    let put = |name: &str, text: &str| a.put(&at(&g, name), text);
    assert_eq!(put("cpuset.cpus", "1"), Err(EBUSY));
    assert_eq!(put("cpuset.cpus", "0"), Ok(1));
    assert_eq!(a.put(&tree.join("cpuset.cpus"), "0"), Ok(1));
    // Covers no child and does not fit the parent: busy first.
    assert_eq!(put("cpuset.cpus", "1"), Err(EBUSY));
    assert_eq!(a.put(&g.join("child/cpuset.cpus"), "\n"), Ok(1));
    assert_eq!(put("cpuset.cpus", "1"), Err(EACCES));
    assert_eq!(put("cpuset.cpus", "0-1"), Err(EACCES));
    assert_eq!(put("cpuset.cpus", "x"), Err(EINVAL));
    let member = Actor::new();
    assert_eq!(put("tasks", &member.id.to_string()).map(|_| ()), Ok(()));
    assert_eq!(put("cpuset.cpus", "\n"), Err(ENOSPC));
    assert_eq!(put("cpuset.mems", ""), Ok(0));
    assert_eq!(put("cpuset.mems", "\n"), Err(EBUSY), "the child has mems");
    assert_eq!(put("cpuset.cpu_exclusive", "1"), Err(EACCES), "the parent is not");
    assert_eq!(a.text(&g.join("cpuset.cpus")).as_deref(), Ok("0\n"));
    assert_eq!(a.text(&g.join("cpuset.mems")).as_deref(), Ok("0\n"));
}

/// Random bytes to both: the same answer, the same text afterwards.
#[test]
fn random_bytes_on_both() {
    if lacks_root() {
        return;
    }
    let Some(kernel) = KernelCpuset::new() else { return };
    let ours = OursSub::new();
    // Below a group without exclusive flags, so that nobody else's group matters.
    let trees = [kernel.dir(), ours.dir()].map(|dir| dir.join("g"));
    for tree in &trees {
        configured(tree);
    }
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    println!("seed {seed}");
    let mut random = xorshift(seed | 1);
    let a = Actor::new();
    let names = fs::read_dir(&trees[0]).expect("readdir").map(|e| e.expect("entry").file_name());
    let names: Vec<_> = names.map(|name| name.into_string().expect("a plain name")).collect();
    for round in 0..3000 {
        let name = &names[random(names.len())];
        // A pid that happens to be somebody's must not come out of it.
        let alphabet: &[u8] =
            if name == "tasks" || name == "cgroup.procs" { b"x-+ \n\t,\xa0\0/:\xff" } else { b"00112N--::,,  \n\n\t//x+\xa0\0all\xff9" };
        let len = if round % 100 == 0 { limit(name) - 1 + random(3) } else { random(12) };
        let text: Vec<u8> = (0..len).map(|_| alphabet[random(alphabet.len())]).collect();
        let outcome = |tree: &Path| {
            let file = tree.join(name);
            (a.put(&file, &text), a.text(&file))
        };
        let expected = outcome(&trees[0]);
        assert_eq!(outcome(&trees[1]), expected, "seed {seed}: {name} <- {:?}", String::from_utf8_lossy(&text));
        assert!(len <= limit(name) || expected.0 == Err(E2BIG));
    }
    has_no_complaints(ours.mount());
}

fn xorshift(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    }
}

both! { cpus mems flags relax_level pids precedence }
both_roots! { the_root }
