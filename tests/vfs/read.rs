//! Reading: one rendering per open, at any offset, in any pieces.

use std::path::Path;

use nix::errno::Errno;
use nix::errno::Errno::{EINVAL, EISDIR, ENXIO};

use super::actor::{Actor, Arg};
use super::trees::{both, configured, on_ours};
use crate::common::wait_until;

fn pread(a: &Actor, fd: i64, size: usize, offset: i64) -> Result<Vec<u8>, Errno> {
    a.call_sized(libc::SYS_pread64, [fd.into(), Arg::Out(size), size.into(), offset.into()])
}

fn rest(a: &Actor, fd: i64, size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let piece = a.read(fd, size).expect("read");
        assert!(piece.len() <= size);
        if piece.is_empty() {
            return all;
        }
        all.extend(piece);
    }
}

fn in_pieces(tree: &Path) {
    let a = Actor::new();
    for name in ["cpuset.cpus", "cpuset.effective_cpus", "notify_on_release", "cpuset.sched_relax_domain_level"] {
        let whole = a.text(&tree.join(name)).expect("read").into_bytes();
        assert_eq!(whole.last(), Some(&b'\n'), "{name}");
        for size in [1, 2, 3, 4096, 1 << 20] {
            let fd = a.open(&tree.join(name), libc::O_RDONLY).expect("open");
            assert_eq!(rest(&a, fd, size), whole, "{name} by {size}");
            // At the end it stays.
            assert_eq!(a.read(fd, size).as_deref(), Ok(&b""[..]));
            a.close(fd).expect("close");
        }
    }
}

fn at_offsets(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    let whole = a.text(&file).expect("read").into_bytes();
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    for from in (0..whole.len()).rev() {
        for size in 0..5 {
            let to = (from + size).min(whole.len());
            assert_eq!(pread(&a, fd, size, from as i64).as_deref(), Ok(&whole[from..to]), "{size} at {from}");
        }
    }
    for beyond in [whole.len() as i64, 100, 4096, i64::from(i32::MAX), 1 << 40, i64::MAX - 4096] {
        assert_eq!(pread(&a, fd, 10, beyond).as_deref(), Ok(&b""[..]), "at {beyond}");
    }
    assert_eq!(pread(&a, fd, 10, -1), Err(EINVAL));
    assert_eq!(pread(&a, fd, 10, i64::MAX - 3), Err(EINVAL));
    // pread does not move the position.
    assert_eq!(a.lseek(fd, 0, libc::SEEK_CUR), Ok(0));
    a.close(fd).expect("close");
}

fn seeking(tree: &Path) {
    let a = Actor::new();
    let fd = a.open(&tree.join("cpuset.cpus"), libc::O_RDONLY).expect("open");
    for to in [0, 1, 4096, i64::from(i32::MAX) - 5] {
        assert_eq!(a.lseek(fd, to, libc::SEEK_SET), Ok(to));
        assert_eq!(a.lseek(fd, 5, libc::SEEK_CUR), Ok(to + 5));
    }
    assert_eq!(a.lseek(fd, 0, libc::SEEK_END), Ok(0));
    assert_eq!(a.lseek(fd, 7, libc::SEEK_END), Ok(7));
    assert_eq!(a.lseek(fd, -1, libc::SEEK_END), Err(EINVAL));
    assert_eq!(a.lseek(fd, -1, libc::SEEK_SET), Err(EINVAL));
    assert_eq!(a.lseek(fd, -8, libc::SEEK_CUR), Err(EINVAL));
    assert_eq!(a.lseek(fd, 0, libc::SEEK_DATA), Err(ENXIO));
    assert_eq!(a.lseek(fd, 0, libc::SEEK_HOLE), Err(ENXIO));
    assert_eq!(a.lseek(fd, 0, 77), Err(EINVAL));
    a.close(fd).expect("close");
}

/// The content is that of the first read, not of the open.
fn content_is_of_the_first_read(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    a.put(&file, "0").expect("write");
    assert_eq!(a.read(fd, 100).as_deref(), Ok(&b"0\n"[..]));
    a.close(fd).expect("close");
}

fn a_rendering_is_kept_while_read_on(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    a.put(&file, "0-1").expect("write");
    assert_eq!(a.read(fd, 1).as_deref(), Ok(&b"0"[..]));
    a.put(&file, "1").expect("write");
    assert_eq!(a.read(fd, 1).as_deref(), Ok(&b"-"[..]));
    assert_eq!(rest(&a, fd, 100), b"1\n");
    // The end stays the end, whatever has changed.
    a.put(&file, "0-1").expect("write");
    assert_eq!(a.read(fd, 100).as_deref(), Ok(&b""[..]));
    // From the start it is fresh.
    assert_eq!(a.lseek(fd, 0, libc::SEEK_SET), Ok(0));
    assert_eq!(a.read(fd, 1).as_deref(), Ok(&b"0"[..]));
    a.put(&file, "1").expect("write");
    assert_eq!(pread(&a, fd, 100, 0).as_deref(), Ok(&b"1\n"[..]));
    a.close(fd).expect("close");
}

/// Reading elsewhere than where the last read ended is fresh too.
fn jumping_is_fresh(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    a.put(&file, "0-1").expect("write");
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    assert_eq!(a.read(fd, 3).as_deref(), Ok(&b"0-1"[..]));
    a.put(&file, "0").expect("write");
    assert_eq!(pread(&a, fd, 100, 1).as_deref(), Ok(&b"\n"[..]));
    a.put(&file, "0-1").expect("write");
    assert_eq!(pread(&a, fd, 100, 1).as_deref(), Ok(&b"-1\n"[..]));
    a.close(fd).expect("close");
}

fn opens_are_independent(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    a.put(&file, "0-1").expect("write");
    let (x, y) = (a.open(&file, libc::O_RDONLY).expect("open"), a.open(&file, libc::O_RDONLY).expect("open"));
    assert_eq!(a.read(x, 1).as_deref(), Ok(&b"0"[..]));
    a.put(&file, "0").expect("write");
    assert_eq!(a.read(y, 100).as_deref(), Ok(&b"0\n"[..]));
    assert_eq!(a.read(x, 100).as_deref(), Ok(&b"-1\n"[..]));
    // A copy shares position and rendering.
    assert_eq!(a.lseek(x, 0, libc::SEEK_SET), Ok(0));
    assert_eq!(a.read(x, 1).as_deref(), Ok(&b"0"[..]));
    let copy = a.call(libc::SYS_dup, [x.into()]).expect("dup");
    assert_eq!(a.read(copy, 100).as_deref(), Ok(&b"\n"[..]));
    for fd in [x, y, copy] {
        a.close(fd).expect("close");
    }
}

fn an_empty_set_is_a_newline(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    for name in ["cpuset.cpus", "cpuset.mems", "cpuset.effective_cpus", "cpuset.effective_mems"] {
        assert_eq!(a.text(&g.join(name)).as_deref(), Ok("\n"), "{name}");
    }
    assert_eq!(a.text(&g.join("tasks")).as_deref(), Ok(""));
    assert_eq!(a.text(&g.join("cgroup.procs")).as_deref(), Ok(""));
    a.rmdir(&g).expect("rmdir");
}

fn a_long_list(tree: &Path) {
    let a = Actor::new();
    let many = Actor::new();
    many.park(1500);
    let g = tree.join("g");
    configured(&g);
    a.put(&g.join("cgroup.procs"), many.id.to_string()).expect("attach");
    let whole = a.text(&g.join("tasks")).expect("read");
    let tids: Vec<i32> = whole.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(tids.len(), 1501);
    assert!(tids.is_sorted_by(|x, y| x < y));
    // Pids wrap around: the leader need not have the lowest.
    assert!(tids.contains(&many.id));
    for size in [7, 1000, 4096] {
        let fd = a.open(&g.join("tasks"), libc::O_RDONLY).expect("open");
        assert!(rest(&a, fd, size) == whole.as_bytes(), "by {size}");
        a.close(fd).expect("close");
    }
    let fd = a.open(&g.join("tasks"), libc::O_RDONLY).expect("open");
    for from in [0, 1, 17, 4095, 4096, 5000, whole.len() - 1] {
        let to = (from + 10).min(whole.len());
        assert_eq!(pread(&a, fd, 10, from as i64).as_deref(), Ok(&whole.as_bytes()[from..to]), "at {from}");
    }
    a.close(fd).expect("close");
    many.quit();
    wait_until("the group can go", || a.rmdir(&g).is_ok());
}

fn directories_are_not_read(tree: &Path) {
    let a = Actor::new();
    let fd = a.open(tree, libc::O_RDONLY).expect("open");
    assert_eq!(a.read(fd, 10), Err(EISDIR));
    assert_eq!(pread(&a, fd, 10, 0), Err(EISDIR));
    a.close(fd).expect("close");
}

fn spliced_and_sent(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    a.put(&file, "0-1").expect("write");
    let pipe = a.call_out(libc::SYS_pipe2, [Arg::Out(8), 0.into()]).expect("pipe");
    let end = |i: usize| i64::from(i32::from_ne_bytes(pipe[4 * i..4 * i + 4].try_into().expect("4 bytes")));
    let (from, to) = (end(0), end(1));
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    assert_eq!(a.call(libc::SYS_sendfile, [to.into(), fd.into(), Arg::Null, 100.into()]), Ok(4));
    assert_eq!(a.read(from, 100).as_deref(), Ok(&b"0-1\n"[..]));
    assert_eq!(a.lseek(fd, 0, libc::SEEK_SET), Ok(0));
    let args = [fd.into(), Arg::Null, to.into(), Arg::Null, 100.into(), 0.into()];
    assert_eq!(a.call(libc::SYS_splice, args), Ok(4));
    assert_eq!(a.read(from, 100).as_deref(), Ok(&b"0-1\n"[..]));
    for fd in [fd, from, to] {
        a.close(fd).expect("close");
    }
}

/// The file's position advances by what was written, and reading goes on there.
fn after_writing_on_the_same_descriptor(tree: &Path) {
    let a = Actor::new();
    let fd = a.open(&tree.join("cpuset.cpus"), libc::O_RDWR).expect("open");
    assert_eq!(a.write(fd, "0"), Ok(1));
    assert_eq!(a.lseek(fd, 0, libc::SEEK_CUR), Ok(1));
    assert_eq!(a.read(fd, 100).as_deref(), Ok(&b"\n"[..]));
    a.close(fd).expect("close");
}

/// The kernel keeps one list per file for a second; we never show an old one.
#[test]
fn differs_tasks_read_again_is_fresh() {
    on_ours(|tree| {
        let (a, member) = (Actor::new(), Actor::new());
        let fd = a.open(&tree.join("tasks"), libc::O_RDONLY).expect("open");
        assert_eq!(a.read(fd, 100).as_deref(), Ok(&b""[..]));
        a.put(&tree.join("tasks"), member.id.to_string()).expect("attach");
        assert_eq!(a.lseek(fd, 0, libc::SEEK_SET), Ok(0));
        assert_eq!(a.read(fd, 100), Ok(format!("{}\n", member.id).into_bytes()));
        a.close(fd).expect("close");
    });
}

both! {
    in_pieces at_offsets seeking content_is_of_the_first_read a_rendering_is_kept_while_read_on jumping_is_fresh
    opens_are_independent an_empty_set_is_a_newline a_long_list directories_are_not_read spliced_and_sent
    after_writing_on_the_same_descriptor
}
