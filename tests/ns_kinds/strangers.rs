//! Ordinary users on a server of root's: what they make is theirs and no more, and they move nobody who has more rights than they.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libc::{EINVAL, EPERM};

use crate::common::namespaces::{USER, good, mine, mount, ns_of, set, value};
use crate::common::{Mount, TempDir, as_user, compiled, ids, skipped, text};
use crate::target::Target;

/// A group that is the user's.
fn his(mount: &Mount, name: &str) -> PathBuf {
    let dir = mount.dir().join(name);
    std::fs::create_dir(&dir).expect("mkdir");
    for path in std::fs::read_dir(&dir).expect("a group").map(|entry| entry.expect("a file").path()).chain([dir.clone()]) {
        chown(path, Some(USER), Some(USER)).expect("chown");
    }
    dir
}

/// A group that he is in besides his own.
const OTHER: u32 = 2000;

/// He writes to a file himself.
fn by_him(path: &Path, text: &str) -> Result<usize, i32> {
    let mut sh = Command::new("setpriv");
    let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), format!("--groups={OTHER}")];
    sh.args(ids).arg("sh");
    // What went wrong is for write(2) to say, not for sh.
    sh.args(["-c", "exec dd of=\"$1\" conv=notrunc status=none", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C");
    let mut sh = sh.spawn().expect("sh");
    std::io::Write::write_all(sh.stdin.as_mut().expect("its input"), text.as_bytes()).expect("dd reads");
    let output = sh.wait_with_output().expect("sh");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match (output.status.success(), &said) {
        (true, _) => Ok(text.len()),
        (_, said) if said.contains("not permitted") => Err(EPERM),
        (_, said) if said.contains("Invalid argument") => Err(EINVAL),
        _ => panic!("{said}"),
    }
}

/// A line of /proc/PID/status.
fn status(pid: i32, field: &str) -> Vec<String> {
    let status = text(format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect(field).split_whitespace().map(str::to_owned).collect()
}

fn holder(group: &Path) -> i32 {
    value(group, "ns.effective").split(['/', ' ']).find_map(|word| word.parse().ok()).expect("a holder")
}

/// Nobody can become root by way of a user namespace or of the process that holds it.
#[test]
fn his_user_namespace_has_no_ids_but_his() {
    let Some(mount) = mount() else { return };
    let web = his(&mount, "web");
    let deep = his(&mount, "web/deep");
    let user = USER.to_string();
    for (dir, kind) in [(&web, "user"), (&web, "net"), (&web, "mnt"), (&web, "pid"), (&deep, "uts")] {
        assert_eq!(by_him(&dir.join(format!("ns.{kind}")), "new"), Ok(3), "{kind}: {}", value(dir, "ns.last_error"));
        let holder = holder(dir);
        for map in ["uid_map", "gid_map"] {
            let map = text(format!("/proc/{holder}/{map}"));
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), [&user, &user, "1"], "{kind}");
        }
        assert_eq!(text(format!("/proc/{holder}/setgroups")), "deny");
        assert_eq!(status(holder, "Uid"), [user.as_str(); 4], "{kind}");
        assert_eq!(status(holder, "Gid"), [user.as_str(); 4], "{kind}");
        // A group may be there to keep him out.
        assert_eq!(status(holder, "Groups"), [OTHER.to_string()], "{kind}");
        for caps in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(holder, caps), ["0000000000000000"], "{kind} {caps}");
        }
    }
    // He is in it, and still himself.
    let target = Target::user(USER, &["idle", "1"]);
    assert_eq!(
        by_him(&deep.join("cgroup.procs"), &target.pid().to_string()),
        Ok(target.pid().to_string().len()),
        "{}",
        value(&deep, "ns.last_error")
    );
    assert_eq!(ns_of(target.pid(), "user"), value(&web, "ns.user"));
    assert_eq!(ns_of(target.pid(), "net"), value(&web, "ns.net"));
    assert_eq!(status(target.pid(), "Uid"), [user.as_str(); 4]);
    // He is still allowed to move it.
    assert_eq!(by_him(&deep.join("ns.ipc"), "new"), Ok(3), "{}", value(&deep, "ns.last_error"));
    assert_eq!(ns_of(target.pid(), "ipc"), value(&deep, "ns.ipc"));
    // Another user namespace below his is his to make, inside.
    assert_eq!(by_him(&deep.join("ns.user"), "new"), Err(EPERM));
    assert!(value(&deep, "ns.last_error").contains("unshare --user"), "{}", value(&deep, "ns.last_error"));
}

/// Also in one that he has made himself, whoever has it adopted.
#[test]
fn holders_in_his_user_namespace_are_his() {
    let Some(mount) = mount() else { return };
    let web = his(&mount, "web");
    let program = crate::target::program().to_str().expect("text");
    let made = Target::with(Path::new("/usr/bin/unshare"), &["--user", "--net", program, "idle", "1"], |command| as_user(command, USER));
    let pid = made.pid().to_string();
    for (kind, text) in [("user", pid.as_str()), ("net", pid.as_str()), ("uts", "new")] {
        assert_eq!(by_him(&web.join(format!("ns.{kind}")), text), Ok(text.len()), "{kind}: {}", value(&web, "ns.last_error"));
        assert_eq!(status(holder(&web), "Uid"), [USER.to_string().as_str(); 4], "{kind}");
        assert_eq!(status(holder(&web), "CapPrm"), ["0000000000000000"], "{kind}");
    }
    // Root cannot know what groups he is in, if the machine does not know him.
    let other = crate::common::namespaces::group(&mount, "other");
    match set(&other, "user", &pid) {
        Ok(_) => assert_eq!(status(holder(&other), "Uid"), [USER.to_string().as_str(); 4]),
        Err(errno) => assert!(errno == EPERM && value(&other, "ns.last_error").contains("not known here")),
    }
}

/// What he has written stays his when the user namespace goes.
#[test]
fn a_root_directory_does_not_outlive_his_user_namespace() {
    let Some(mount) = mount() else { return };
    let web = his(&mount, "web");
    assert_eq!(by_him(&web.join("ns.user"), "new"), Ok(3));
    assert_eq!(by_him(&web.join("ns.root"), "/usr"), Ok(4));
    assert_eq!(by_him(&web.join("ns.user"), "inherit"), Err(EPERM));
    assert!(value(&web, "ns.last_error").contains("ns.root first"), "{}", value(&web, "ns.last_error"));
    assert_eq!(by_him(&web.join("ns.root"), "inherit"), Ok(7));
    assert_eq!(by_him(&web.join("ns.user"), "inherit"), Ok(7));
}

#[test]
fn a_root_directory_of_his_is_for_a_user_namespace_of_his() {
    let Some(mount) = mount() else { return };
    let web = his(&mount, "web");
    assert_eq!(by_him(&web.join("ns.root"), "/usr"), Err(EPERM));
    assert_eq!(value(&web, "ns.root"), "inherit");
    assert_eq!(by_him(&web.join("ns.user"), "new"), Ok(3));
    assert_eq!(by_him(&web.join("ns.root"), "/usr"), Ok(4), "{}", value(&web, "ns.last_error"));
    let target = Target::user(USER, &["idle", "1"]);
    assert_eq!(
        by_him(&web.join("cgroup.procs"), &target.pid().to_string()),
        Ok(target.pid().to_string().len()),
        "{}",
        value(&web, "ns.last_error")
    );
    let root = std::fs::read_link(format!("/proc/{}/root", target.pid())).expect("it lives");
    assert_eq!(root, Path::new("/usr"));
}

/// A set-user-ID program runs for him with root's rights: he may move it between groups, as in the kernel, but not make it call anything.
#[test]
fn programs_with_more_rights_stay_where_they_are() {
    const TEST: &str = "programs_with_more_rights_stay_where_they_are";
    let Some(mount) = mount() else { return };
    let dir = TempDir::new();
    let program = dir.path().join("program");
    std::fs::copy(compiled("tests/common/target.c"), &program).expect("copy");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).expect("chmod");
    let more = crate::common::Target::with(|command| {
        *command = Command::new(&program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        as_user(command, USER);
    });
    if status(more.pid(), "Uid")[1] != "0" {
        return skipped(TEST, "set-user-ID programs have no effect here");
    }
    let (web, plain) = (his(&mount, "web"), his(&mount, "plain"));
    let pid = more.pid().to_string();
    assert_eq!(by_him(&web.join("ns.user"), "new"), Ok(3));
    assert_eq!(by_him(&web.join("ns.uts"), "new"), Ok(3));
    assert_eq!(by_him(&web.join("cgroup.procs"), &pid), Err(EPERM));
    assert!(value(&web, "ns.last_error").contains("not a process that you may trace"), "{}", value(&web, "ns.last_error"));
    assert_eq!(ids(web.join("tasks")), []);
    // Nor by changing a group that it is in.
    assert_eq!(by_him(&plain.join("cgroup.procs"), &pid), Ok(pid.len()));
    for (file, text) in [("ns.user", "new"), ("ns.root", "/usr")] {
        assert_eq!(by_him(&plain.join(file), text), Err(EPERM), "{file}");
        assert_eq!(value(&plain, file), "inherit");
    }
    for kind in ["user", "uts", "mnt"] {
        assert_eq!(ns_of(more.pid(), kind), mine(kind));
    }
    // Root may.
    good(&web, crate::common::namespaces::enter(&web, "cgroup.procs", more.pid()));
    assert_eq!(ns_of(more.pid(), "uts"), value(&web, "ns.uts"));
    // What is his he moves, while it has no more rights.
    let own = Target::user(USER, &["idle", "1"]);
    assert_eq!(
        by_him(&web.join("cgroup.procs"), &own.pid().to_string()),
        Ok(own.pid().to_string().len()),
        "{}",
        value(&web, "ns.last_error")
    );
    good(&web, set(&web, "uts", "new"));
}
