//! Listing a group: types, every entry once, resuming, changes meanwhile.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::errno::Errno::{EACCES, EINVAL, EISDIR, ENOENT};

use super::actor::{Actor, Arg, at};
use super::trees::{both, both_roots};

struct Entry {
    name: Vec<u8>,
    kind: u8,
    ino: u64,
    /// Where the next one is.
    offset: i64,
}

/// One getdents64(2) with a buffer of `size` bytes.
fn getdents(a: &Actor, fd: i64, size: usize) -> Result<Vec<Entry>, Errno> {
    let args = [fd.into(), Arg::Out(size), size.into()];
    let bytes = a.call_sized(libc::SYS_getdents64, args)?;
    let mut rest = &bytes[..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        let name = rest[19..len].split(|byte| *byte == 0).next().expect("a name");
        entries.push(Entry {
            name: name.to_vec(),
            kind: rest[18],
            ino: u64::from_ne_bytes(rest[..8].try_into().expect("8 bytes")),
            offset: i64::from_ne_bytes(rest[8..16].try_into().expect("8 bytes")),
        });
        rest = &rest[len..];
    }
    Ok(entries)
}

fn rest_of(a: &Actor, fd: i64, size: usize) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let some = getdents(a, fd, size).expect("getdents");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn list(a: &Actor, dir: &Path, size: usize) -> Vec<Entry> {
    let fd = a.open(dir, libc::O_RDONLY | libc::O_DIRECTORY).expect("open");
    let all = rest_of(a, fd, size);
    a.close(fd).expect("close");
    all
}

fn names(entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = entries.iter().map(|e| e.name.clone()).collect();
    names.sort();
    names
}

fn types_and_numbers(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("child"), 0o755).expect("mkdir");
    let entries = list(&a, tree, 32768);
    for entry in &entries {
        let dir = matches!(&entry.name[..], b"." | b".." | b"child");
        assert_eq!(entry.kind, if dir { libc::DT_DIR } else { libc::DT_REG }, "{:?}", entry.name);
        let meta = fs::symlink_metadata(at(tree, &entry.name)).expect("stat");
        assert_eq!(meta.is_dir(), dir);
        assert_eq!(meta.ino(), entry.ino, "{:?}", entry.name);
    }
    let unique: HashSet<_> = entries.iter().map(|e| &e.name).collect();
    assert_eq!(unique.len(), entries.len());
    for name in [&b"."[..], b"..", b"child", b"tasks"] {
        assert!(unique.contains(&name.to_vec()), "{name:?}");
    }
    a.rmdir(&tree.join("child")).expect("rmdir");
}

fn small_buffers_and_seeking(tree: &Path) {
    let a = Actor::new();
    let all = names(&list(&a, tree, 32768));
    assert_eq!(names(&list(&a, tree, 64)), all);

    let fd = a.open(tree, libc::O_RDONLY | libc::O_DIRECTORY).expect("open");
    assert_eq!(getdents(&a, fd, 1).map(|_| ()), Err(EINVAL));
    let entries = rest_of(&a, fd, 64);
    assert_eq!(names(&entries), all);
    assert_eq!(getdents(&a, fd, 4096).map(|e| e.len()), Ok(0));
    // Every offset leads to the entries behind it.
    for (i, entry) in entries.iter().enumerate() {
        assert_eq!(a.lseek(fd, entry.offset, libc::SEEK_SET), Ok(entry.offset));
        assert_eq!(names(&rest_of(&a, fd, 4096)), names(&entries[i + 1..]));
    }
    a.mkdir(&tree.join("new"), 0o755).expect("mkdir");
    assert_eq!(a.lseek(fd, 0, libc::SEEK_SET), Ok(0));
    assert_eq!(rest_of(&a, fd, 4096).len(), all.len() + 1);
    a.rmdir(&tree.join("new")).expect("rmdir");
    assert_eq!(a.read(fd, 10), Err(EISDIR));
}

/// What neither comes nor goes during a listing is listed exactly once.
fn changes_meanwhile(tree: &Path) {
    let a = Actor::new();
    let name = |i: usize| format!("group-{i}");
    for i in 0..200 {
        a.mkdir(&tree.join(name(i)), 0o755).expect("mkdir");
    }
    let fd = a.open(tree, libc::O_RDONLY | libc::O_DIRECTORY).expect("open");
    let mut entries = Vec::new();
    while entries.len() < 100 {
        entries.extend(getdents(&a, fd, 512).expect("getdents"));
    }
    // Every third goes, listed or not; as many others come.
    for i in (0..200).step_by(3) {
        a.rmdir(&tree.join(name(i))).expect("rmdir");
    }
    for i in 200..260 {
        a.mkdir(&tree.join(name(i)), 0o755).expect("mkdir");
    }
    entries.extend(rest_of(&a, fd, 512));
    let mut times = HashMap::new();
    entries.iter().for_each(|e| *times.entry(e.name.clone()).or_insert(0) += 1);
    for i in (0..200).filter(|i| i % 3 != 0) {
        assert_eq!(times.get(name(i).as_bytes()), Some(&1), "{}", name(i));
    }
    assert_eq!(times.get(&b"tasks"[..]), Some(&1));
    for (name, times) in times {
        assert_eq!(times, 1, "{name:?}");
    }
    for i in 0..260 {
        let _ = a.rmdir(&tree.join(name(i)));
    }
    let left = fs::read_dir(tree).expect("readdir").filter(|e| e.as_ref().expect("entry").file_name().as_bytes().starts_with(b"group-"));
    assert_eq!(left.count(), 0);
}

fn of_a_removed_group(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    let fd = a.open(&g, libc::O_RDONLY | libc::O_DIRECTORY).expect("open");
    a.rmdir(&g).expect("rmdir");
    assert_eq!(getdents(&a, fd, 4096).map(|e| e.len()), Err(ENOENT));
    // A new one of that name is another one.
    a.mkdir(&g, 0o755).expect("mkdir");
    assert_eq!(getdents(&a, fd, 4096).map(|e| e.len()), Err(ENOENT));
    a.rmdir(&g).expect("rmdir");
}

fn needs_read_permission(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(65534));
    let g = tree.join("g");
    a.mkdir(&g, 0o711).expect("mkdir");
    assert_eq!(user.open(&g, libc::O_RDONLY | libc::O_DIRECTORY), Err(EACCES));
    assert!(user.text(&g.join("tasks")).is_ok());
    a.chmod(&g, 0o755).expect("chmod");
    assert!(list(&user, &g, 4096).len() > 2);
    a.rmdir(&g).expect("rmdir");
}

fn the_root_too(root: &Path) {
    let entries = list(&Actor::new(), root, 4096);
    for entry in &entries {
        let kind = fs::symlink_metadata(at(root, &entry.name)).map(|m| m.is_dir());
        // Groups of other tests come and go.
        if let Ok(dir) = kind {
            assert_eq!(entry.kind, if dir { libc::DT_DIR } else { libc::DT_REG }, "{:?}", entry.name);
        }
    }
    assert!(names(&entries).contains(&b"release_agent".to_vec()));
}

both! {
    types_and_numbers small_buffers_and_seeking changes_meanwhile of_a_removed_group needs_read_permission
}
both_roots! { the_root_too }
