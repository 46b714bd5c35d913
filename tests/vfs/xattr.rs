//! Extended attributes: kept for whoever wants to note something on a group.

use std::path::Path;

use nix::errno::Errno;
use nix::errno::Errno::{E2BIG, EACCES, EEXIST, EINVAL, ENODATA, ENOENT, ENOSPC, EOPNOTSUPP, EPERM, ERANGE};

use super::actor::{Actor, Arg, Outcome};
use super::trees::both;

fn set(a: &Actor, path: &Path, name: &str, value: &[u8], flags: i32) -> Outcome {
    a.call(libc::SYS_setxattr, [path.into(), name.into(), value.into(), value.len().into(), flags.into()])
}

fn get(a: &Actor, path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    a.call_sized(libc::SYS_getxattr, [path.into(), name.into(), Arg::Out(65536), 65536.into()])
}

fn remove(a: &Actor, path: &Path, name: &str) -> Outcome {
    a.call(libc::SYS_removexattr, [path.into(), name.into()])
}

fn list(a: &Actor, path: &Path) -> Vec<String> {
    let bytes = a.call_sized(libc::SYS_listxattr, [path.into(), Arg::Out(65536), 65536.into()]).expect("listxattr");
    let text = String::from_utf8(bytes).expect("text");
    let mut names: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
    names.sort();
    names
}

fn set_get_list_remove(tree: &Path) {
    let a = Actor::new();
    for path in [tree.to_owned(), tree.join("tasks"), tree.join("cpuset.effective_cpus")] {
        assert_eq!(list(&a, &path), [""; 0]);
        for name in ["user.a", "user.b", "trusted.a", "security.cgfuse"] {
            assert_eq!(get(&a, &path, name), Err(ENODATA), "{name}");
            assert_eq!(set(&a, &path, name, b"one\0two\xff", 0), Ok(0), "{name}");
            assert_eq!(get(&a, &path, name).as_deref(), Ok(&b"one\0two\xff"[..]), "{name}");
            assert_eq!(set(&a, &path, name, b"", 0), Ok(0), "{name}");
            assert_eq!(get(&a, &path, name).as_deref(), Ok(&b""[..]), "{name}");
        }
        assert_eq!(list(&a, &path), ["security.cgfuse", "trusted.a", "user.a", "user.b"]);
        assert_eq!(remove(&a, &path, "user.a"), Ok(0));
        assert_eq!(remove(&a, &path, "user.a"), Err(ENODATA));
        assert_eq!(list(&a, &path), ["security.cgfuse", "trusted.a", "user.b"]);
        for name in ["user.b", "trusted.a", "security.cgfuse"] {
            assert_eq!(remove(&a, &path, name), Ok(0), "{name}");
        }
        assert_eq!(list(&a, &path), [""; 0]);
    }
}

fn flags(tree: &Path) {
    let a = Actor::new();
    let (create, replace) = (libc::XATTR_CREATE, libc::XATTR_REPLACE);
    assert_eq!(set(&a, tree, "user.a", b"1", replace), Err(ENODATA));
    assert_eq!(set(&a, tree, "user.a", b"1", create), Ok(0));
    assert_eq!(set(&a, tree, "user.a", b"2", create), Err(EEXIST));
    assert_eq!(get(&a, tree, "user.a").as_deref(), Ok(&b"1"[..]));
    assert_eq!(set(&a, tree, "user.a", b"3", replace), Ok(0));
    assert_eq!(get(&a, tree, "user.a").as_deref(), Ok(&b"3"[..]));
    assert_eq!(set(&a, tree, "user.a", b"4", 4), Err(EINVAL));
}

fn names(tree: &Path) {
    let a = Actor::new();
    for path in [tree.to_owned(), tree.join("tasks")] {
        for name in ["system.a", "other.a", "a", "usera", "os2.a"] {
            assert_eq!(set(&a, &path, name, b"x", 0), Err(EOPNOTSUPP), "{name}");
            assert_eq!(get(&a, &path, name), Err(EOPNOTSUPP), "{name}");
            assert_eq!(remove(&a, &path, name), Err(EOPNOTSUPP), "{name}");
        }
        // A list of three entries, as setfacl makes it of the mode 0644.
        let acl = [2u16, 0, 1, 6, !0, !0, 4, 4, !0, !0, 0x20, 4, !0, !0];
        let acl: Vec<u8> = acl.iter().flat_map(|half| half.to_le_bytes()).collect();
        // (Default lists are for directories; for files FUSE's own check says EACCES.)
        let names = ["system.posix_acl_access", "system.posix_acl_default"];
        for name in &names[..if path.is_dir() { 2 } else { 1 }] {
            assert_eq!(set(&a, &path, name, &acl, 0), Err(EOPNOTSUPP), "{name}");
            assert_eq!(get(&a, &path, name), Err(EOPNOTSUPP), "{name}");
            assert_eq!(remove(&a, &path, name), Err(EOPNOTSUPP), "{name}");
        }
        for name in ["user.", "trusted.", "security."] {
            assert_eq!(set(&a, &path, name, b"x", 0), Err(EINVAL), "{name}");
            assert_eq!(get(&a, &path, name), Err(EINVAL), "{name}");
            assert_eq!(remove(&a, &path, name), Err(EINVAL), "{name}");
        }
        let longest = format!("user.{}", "n".repeat(250));
        assert_eq!(set(&a, &path, &longest, b"x", 0), Ok(0));
        assert_eq!(list(&a, &path), std::slice::from_ref(&longest));
        assert_eq!(set(&a, &path, &format!("{longest}n"), b"x", 0), Err(ERANGE));
        assert_eq!(set(&a, &path, "", b"x", 0), Err(ERANGE));
        assert_eq!(remove(&a, &path, &longest), Ok(0));
    }
    assert_eq!(set(&a, &tree.join("nothing"), "user.a", b"x", 0), Err(ENOENT));
}

fn sizes(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("tasks");
    let full = vec![7; 65536];
    assert_eq!(set(&a, &file, "user.a", &full, 0), Ok(0));
    assert!(get(&a, &file, "user.a").as_deref() == Ok(&full));
    assert_eq!(set(&a, &file, "user.a", &vec![7; 70000], 0), Err(E2BIG));
    // Asking for the size, and with too little room.
    let ask = |size: usize| a.call(libc::SYS_getxattr, [(&file).into(), "user.a".into(), Arg::Out(100), size.into()]);
    set(&a, &file, "user.a", b"12345", 0).expect("setxattr");
    assert_eq!((ask(0), ask(4), ask(5), ask(100)), (Ok(5), Err(ERANGE), Ok(5), Ok(5)));
    let list = |size: usize| a.call(libc::SYS_listxattr, [(&file).into(), Arg::Out(100), size.into()]);
    assert_eq!((list(0), list(6), list(7)), (Ok(7), Err(ERANGE), Ok(7)));
}

/// 128 user attributes, 128 KiB of them, per file.
fn how_much(tree: &Path) {
    let a = Actor::new();
    for path in [tree.to_owned(), tree.join("tasks")] {
        for n in 0..128 {
            assert_eq!(set(&a, &path, &format!("user.{n}"), b"x", 0), Ok(0), "{n}");
        }
        assert_eq!(set(&a, &path, "user.128", b"x", 0), Err(ENOSPC));
        // Nor a new value for one that is there: Linux counts first and looks later.
        assert_eq!(set(&a, &path, "user.5", b"y", 0), Err(ENOSPC));
        assert_eq!(set(&a, &path, "trusted.128", b"x", 0), Ok(0));
        assert_eq!(remove(&a, &path, "trusted.128"), Ok(0));
        for n in 0..128 {
            assert_eq!(remove(&a, &path, &format!("user.{n}")), Ok(0), "{n}");
        }
        let half = vec![1; 65536];
        assert_eq!(set(&a, &path, "user.a", &half, 0), Ok(0));
        assert_eq!(set(&a, &path, "user.b", &half[1..], 0), Ok(0));
        assert_eq!(set(&a, &path, "user.c", b"xyz", 0), Err(ENOSPC));
        for name in ["user.a", "user.b"] {
            assert_eq!(remove(&a, &path, name), Ok(0));
        }
    }
}

fn live_with_the_group(tree: &Path) {
    let a = Actor::new();
    let (x, y) = (tree.join("x"), tree.join("y"));
    a.mkdir(&x, 0o755).expect("mkdir");
    set(&a, &x, "user.a", b"1", 0).expect("setxattr");
    set(&a, &x.join("tasks"), "user.b", b"2", 0).expect("setxattr");
    a.rename(&x, &y, 0).expect("rename");
    assert_eq!(get(&a, &y, "user.a").as_deref(), Ok(&b"1"[..]));
    assert_eq!(get(&a, &y.join("tasks"), "user.b").as_deref(), Ok(&b"2"[..]));
    assert_eq!(get(&a, &y.join("tasks"), "user.a"), Err(ENODATA));
    a.rmdir(&y).expect("rmdir");
    a.mkdir(&y, 0o755).expect("mkdir");
    assert_eq!(get(&a, &y, "user.a"), Err(ENODATA));
    a.rmdir(&y).expect("rmdir");
}

fn by_users(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(65534));
    for path in [tree.to_owned(), tree.join("tasks")] {
        set(&a, &path, "user.a", b"1", 0).expect("setxattr");
        set(&a, &path, "trusted.a", b"1", 0).expect("setxattr");
        set(&a, &path, "security.cgfuse", b"1", 0).expect("setxattr");
        assert_eq!(get(&user, &path, "user.a").as_deref(), Ok(&b"1"[..]));
        assert_eq!(set(&user, &path, "user.a", b"2", 0), Err(EACCES));
        assert_eq!(remove(&user, &path, "user.a"), Err(EACCES));
        assert_eq!(set(&user, &path, "trusted.a", b"2", 0), Err(EPERM));
        assert_eq!(get(&user, &path, "trusted.a"), Err(ENODATA));
        assert_eq!(get(&user, &path, "security.cgfuse").as_deref(), Ok(&b"1"[..]));
        assert_eq!(set(&user, &path, "security.cgfuse", b"2", 0), Err(EPERM));
        assert_eq!(list(&user, &path), ["security.cgfuse", "user.a"], "trusted ones are not shown");
        a.chown(&path, 65534, 65534).expect("chown");
        assert_eq!(set(&user, &path, "user.a", b"2", 0), Ok(0));
        assert_eq!(get(&a, &path, "user.a").as_deref(), Ok(&b"2"[..]));
    }
}

both! { set_get_list_remove flags names sizes how_much live_with_the_group by_users }
