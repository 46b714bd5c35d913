//! Writing: one write, one command.

use std::fs::{self, OpenOptions};
use std::io::{IoSlice, Write};
use std::path::Path;

use nix::errno::Errno::{E2BIG, EACCES, EINVAL};

use super::actor::{Actor, Outcome};
use super::trees::{both, both_roots};

/// `a` writes through one descriptor, at `offset`.
fn pwrite(a: &Actor, fd: i64, bytes: &str, offset: i64) -> Outcome {
    a.call(libc::SYS_pwrite64, [fd.into(), bytes.into(), bytes.len().into(), offset.into()])
}

fn each_write_is_a_command(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND, libc::O_WRONLY | libc::O_SYNC] {
        let fd = a.open(&file, flags).expect("open");
        for (text, value) in [("0\n", "0\n"), ("1", "1\n"), ("0-1\n", "0-1\n"), ("0,1", "0-1\n"), ("1\n", "1\n")] {
            assert_eq!(a.write(fd, text), Ok(text.len() as i64), "{text:?}");
            assert_eq!(a.text(&file).as_deref(), Ok(value), "{text:?}");
        }
        a.close(fd).expect("close");
    }
}

fn offset_and_position_are_ignored(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    let fd = a.open(&file, libc::O_WRONLY).expect("open");
    for offset in [0, 1, 4095, 4096, 4097, i64::from(i32::MAX) - 10] {
        assert_eq!(pwrite(&a, fd, "0", offset), Ok(1), "at {offset}");
        assert_eq!(a.text(&file).as_deref(), Ok("0\n"), "at {offset}");
        assert_eq!(pwrite(&a, fd, "0-1", offset), Ok(3), "at {offset}");
        assert_eq!(a.text(&file).as_deref(), Ok("0-1\n"), "at {offset}");
    }
    assert_eq!(pwrite(&a, fd, "0", -1), Err(EINVAL));
    assert_eq!(a.lseek(fd, 100, libc::SEEK_SET), Ok(100));
    assert_eq!(a.write(fd, "1"), Ok(1));
    assert_eq!(a.text(&file).as_deref(), Ok("1\n"));
    assert_eq!(a.lseek(fd, 0, libc::SEEK_CUR), Ok(101));
    // A refused command does not move it.
    assert_eq!(a.write(fd, "x"), Err(EINVAL));
    assert_eq!(a.lseek(fd, 0, libc::SEEK_CUR), Ok(101));
    a.close(fd).expect("close");
}

fn pieces_are_put_together(tree: &Path) {
    let file = tree.join("cpuset.cpus");
    let mut open = OpenOptions::new().write(true).open(&file).expect("open");
    let pieces = [&b"0"[..], b"", b"-", b"1", b"\n"].map(IoSlice::new);
    assert_eq!(open.write_vectored(&pieces).expect("writev"), 4);
    assert_eq!(fs::read_to_string(&file).expect("read"), "0-1\n");
    let pieces = [&b"1"[..], b"\0", b"garbage"].map(IoSlice::new);
    assert_eq!(open.write_vectored(&pieces).expect("writev"), 9);
    assert_eq!(fs::read_to_string(&file).expect("read"), "1\n");
}

fn nul_ends_the_text(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    assert_eq!(a.put(&file, b"0\0-1"), Ok(4));
    assert_eq!(a.text(&file).as_deref(), Ok("0\n"));
    assert_eq!(a.put(&file, b"0-1\0\0\0"), Ok(6));
    assert_eq!(a.text(&file).as_deref(), Ok("0-1\n"));
    assert_eq!(a.put(&tree.join("notify_on_release"), b"1\0x"), Ok(3));
    assert_eq!(a.text(&tree.join("notify_on_release")).as_deref(), Ok("1\n"));
    // Nothing before it is an empty text: for a number an error, for a set the empty one.
    assert_eq!(a.put(&tree.join("notify_on_release"), b"\x000"), Err(EINVAL));
    assert_eq!(a.put(&tree.join("tasks"), b"\0"), Err(EINVAL));
    assert_eq!(a.put(&file, b"\x0001"), Ok(3));
    assert_eq!(a.text(&file).as_deref(), Ok("\n"));
}

/// How many CPUs the kernel was built for.
fn cpus_at_most() -> usize {
    let max = fs::read_to_string("/sys/devices/system/cpu/kernel_max").expect("kernel_max");
    max.trim().parse::<usize>().expect("a number") + 1
}

/// How many nodes: the mask in /proc/PID/status has all the bits.
pub(crate) fn nodes_at_most() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let mask = status.lines().find_map(|line| line.strip_prefix("Mems_allowed:")).expect("Mems_allowed");
    mask.trim().split(',').count() * 32
}

/// The longest write a file takes: 4096 bytes, the sets by what their longest text needs.
pub(crate) fn limit(name: &str) -> usize {
    match name {
        "cpuset.cpus" => 100 + 6 * cpus_at_most(),
        "cpuset.mems" => 100 + 6 * nodes_at_most(),
        "release_agent" => 4095,
        _ => 4096,
    }
}

/// Each file takes a text of its limit and refuses one byte more, whatever it says.
fn limits_of(dir: &Path, a: &Actor) {
    let entries = fs::read_dir(dir).expect("readdir").map(|e| e.expect("entry"));
    let files = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_file()));
    for name in files.map(|e| e.file_name().into_string().expect("a plain name")) {
        let file = dir.join(&name);
        let before = a.text(&file).expect("read");
        let garbage = vec![b'x'; limit(&name)];
        // Any text makes a release agent, so that one is not tried.
        if name != "release_agent" {
            let refused = a.put(&file, &garbage).expect_err("garbage");
            assert!([EINVAL, EACCES].contains(&refused), "{name}: {refused}");
        }
        for size in [limit(&name) + 1, 8192, 65536, 131_072, 1 << 20] {
            if size > limit(&name) {
                assert_eq!(a.put(&file, vec![b'x'; size]), Err(E2BIG), "{name}: {size} bytes");
                assert_eq!(a.put(&file, vec![0; size]), Err(E2BIG), "{name}: {size} NULs");
            }
        }
        if name != "tasks" && name != "cgroup.procs" {
            assert_eq!(a.text(&file).as_ref(), Ok(&before), "{name}");
        }
    }
}

fn limits(tree: &Path) {
    limits_of(tree, &Actor::new());
}

fn limits_in_the_root(root: &Path) {
    limits_of(root, &Actor::new());
}

/// White space does not count as text but as length.
fn texts_of_full_length(tree: &Path) {
    let a = Actor::new();
    for (name, value) in [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")] {
        let file = tree.join(name);
        let text = format!("{value:>width$}", width = limit(name));
        assert_eq!(a.put(&file, &text), Ok(text.len() as i64), "{name}");
        assert_eq!(a.put(&file, format!("{text} ")), Err(E2BIG), "{name}");
        let text = format!("{value:,<width$}", width = limit(name));
        assert_eq!(a.put(&file, &text), Ok(text.len() as i64), "{name}");
        assert_eq!(a.text(&file), Ok(format!("{value}\n")), "{name}");
    }
    let member = Actor::new();
    let text = format!("{:>4096}", member.id);
    assert_eq!(a.put(&tree.join("tasks"), &text), Ok(4096));
    assert_eq!(a.text(&tree.join("tasks")), Ok(format!("{}\n", member.id)));
    assert_eq!(a.put(&tree.join("tasks"), format!("{text}\n")), Err(E2BIG));
    let zeros = format!("{:0>4096}", 1);
    assert_eq!(a.put(&tree.join("notify_on_release"), &zeros), Ok(4096));
    assert_eq!(a.text(&tree.join("notify_on_release")).as_deref(), Ok("1\n"));
}

fn nothing_is_no_command(tree: &Path) {
    let a = Actor::new();
    for entry in fs::read_dir(tree).expect("readdir") {
        let file = entry.expect("entry").path();
        let before = a.text(&file);
        assert_eq!(a.put(&file, ""), Ok(0), "{}", file.display());
        assert_eq!(a.text(&file), before, "{}", file.display());
    }
}

/// A flag written by many, by turns: what is read is what was written last.
fn writers_by_turns(tree: &Path) {
    let writers: Vec<_> = (0..4).map(|_| Actor::new()).collect();
    let file = tree.join("notify_on_release");
    let fds: Vec<_> = writers.iter().map(|a| a.open(&file, libc::O_RDWR).expect("open")).collect();
    for round in 0..50 {
        let (a, fd) = (&writers[round % 4], fds[round % 4]);
        let value = if round % 3 == 0 { "1\n" } else { "0\n" };
        assert_eq!(a.write(fd, value), Ok(2));
        for (reader, fd) in writers.iter().zip(&fds) {
            assert_eq!(reader.lseek(*fd, 0, libc::SEEK_SET), Ok(0));
            assert_eq!(reader.read(*fd, 10).as_deref(), Ok(value.as_bytes()));
        }
    }
}

both! {
    each_write_is_a_command offset_and_position_are_ignored pieces_are_put_together nul_ends_the_text limits
    texts_of_full_length nothing_is_no_command writers_by_turns
}
both_roots! { limits_in_the_root }
