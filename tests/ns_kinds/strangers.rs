//! Ordinary users on a server of root's: namespaces are for whoever may do all that the server may. They have servers of their own (users.rs).

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libc::EPERM;

use crate::common::namespaces::{KINDS, USER, enter, good, group, mine, mount, ns_of, set, value};
use crate::common::{Mount, TempDir, as_user, compiled, ids, skipped, text};
use crate::target::Target;

/// A group that is the user's, with files that everybody may open.
fn his(mount: &Mount, name: &str) -> PathBuf {
    let dir = group(mount, name);
    for path in std::fs::read_dir(&dir).expect("a group").map(|entry| entry.expect("a file").path()).chain([dir.clone()]) {
        chown(&path, Some(USER), Some(USER)).expect("chown");
        if path.is_file() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
        }
    }
    dir
}

/// Writes to a file with these ids and capabilities.
fn by(ids: &[&str], path: &Path, text: &str) -> Result<usize, i32> {
    let mut dd = Command::new("setpriv");
    dd.args(ids).arg("dd").arg(format!("of={}", path.display())).args(["conv=notrunc", "status=none"]);
    let mut dd = dd.stdin(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C").spawn().expect("setpriv and dd");
    std::io::Write::write_all(dd.stdin.as_mut().expect("its input"), text.as_bytes()).expect("dd reads");
    let output = dd.wait_with_output().expect("dd");
    match String::from_utf8_lossy(&output.stderr).into_owned() {
        _ if output.status.success() => Ok(text.len()),
        said if said.contains("not permitted") => Err(EPERM),
        said => panic!("{said}"),
    }
}

/// He writes to a file himself.
fn by_him(path: &Path, text: &str) -> Result<usize, i32> {
    by(&[&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"], path, text)
}

/// A line of /proc/PID/status.
fn status(pid: i32, field: &str) -> Vec<String> {
    let status = text(format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect(field).split_whitespace().map(str::to_owned).collect()
}

/// What is written to files of namespaces is done by the server's rights.
#[test]
fn namespaces_are_for_whoever_may_do_all() {
    let Some(mount) = mount() else { return };
    let (web, target) = (his(&mount, "web"), Target::user(USER, &["idle", "1"]));
    let pid = target.pid().to_string();
    for (kind, _) in KINDS {
        for text in ["new", &pid, &format!("/proc/{pid}/ns/{kind}"), "inherit"] {
            assert_eq!(by_him(&web.join(format!("ns.{kind}")), text), Err(EPERM), "{kind} {text}");
        }
        assert_eq!(value(&web, &format!("ns.{kind}")), "inherit");
    }
    for text in ["/", "inherit"] {
        assert_eq!(by_him(&web.join("ns.root"), text), Err(EPERM), "{text}");
    }
    // Root without capabilities is nobody special.
    for kind in ["user", "net"] {
        assert_eq!(by(&["--bounding-set=-all", "--inh-caps=-all"], &web.join(format!("ns.{kind}")), "new"), Err(EPERM), "{kind}");
    }
    // Who has opened a file for somebody else is the one who decides.
    let argv = ["-c", "exec 3>\"$1\"; exec setpriv --reuid=0 --clear-groups sh -c 'echo new >&3'", "sh"];
    let mut lent = Command::new("sh");
    lent.args(argv).arg(web.join("ns.uts")).stderr(Stdio::null());
    as_user(&mut lent, USER);
    assert!(!lent.status().expect("sh").success());
    assert_eq!(value(&web, "ns.uts"), "inherit");
}

/// His tasks go between groups as long as they need not be elsewhere for it.
#[test]
fn he_moves_nobody_into_other_namespaces() {
    const TEST: &str = "he_moves_nobody_into_other_namespaces";
    let Some(mount) = mount() else { return };
    let (plain, web, deep) = (his(&mount, "plain"), his(&mount, "web"), his(&mount, "web/deep"));
    good(&web, set(&web, "uts", "new"));
    let own = Target::user(USER, &["idle", "1"]);
    let pid = own.pid().to_string();
    assert_eq!(by_him(&web.join("cgroup.procs"), &pid), Err(EPERM));
    assert!(value(&web, "ns.last_error").contains("mount one of your own"), "{}", value(&web, "ns.last_error"));
    assert_eq!(by_him(&plain.join("cgroup.procs"), &pid), Ok(pid.len()));
    assert_eq!((ids(plain.join("tasks")), ids(web.join("tasks")), ns_of(own.pid(), "uts")), (vec![own.pid()], vec![], mine("uts")));

    // A set-user-ID program of his runs with root's rights, and stays where it is.
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
    let pid = more.pid().to_string();
    assert_eq!(by_him(&plain.join("cgroup.procs"), &pid), Ok(pid.len()), "as in the kernel");
    assert_eq!(by_him(&web.join("cgroup.procs"), &pid), Err(EPERM));
    // Root moves it, and he moves it on where it is in the same namespaces, and not out.
    good(&web, enter(&web, "cgroup.procs", more.pid()));
    assert_eq!(ns_of(more.pid(), "uts"), value(&web, "ns.uts"));
    assert_eq!(by_him(&deep.join("cgroup.procs"), &pid), Ok(pid.len()));
    assert_eq!(by_him(&plain.join("cgroup.procs"), &pid), Err(EPERM));
    assert_eq!((ids(deep.join("tasks")), ns_of(more.pid(), "uts")), (vec![more.pid()], value(&web, "ns.uts")));
}

/// A holder in somebody else's user namespace would be in his power, with root's ids.
#[test]
fn user_namespaces_of_others_are_not_adopted() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    let program = crate::target::program().to_str().expect("text");
    let unshare = |args: &[&str]| Target::with(Path::new("/usr/bin/unshare"), args, |command| as_user(command, USER));
    let made = unshare(&["--user", "--net", program, "idle", "1"]);
    for text in [made.pid().to_string(), format!("/proc/{}/ns/user", made.pid())] {
        assert_eq!(set(&web, "user", &text), Err(EPERM), "{text}");
        assert!(value(&web, "ns.last_error").contains("a server of his own"), "{}", value(&web, "ns.last_error"));
    }
    // A network is no process.
    good(&web, set(&web, "net", &made.pid().to_string()));
    let holder: i32 = value(&web, "ns.effective").split(['/', ' ']).find_map(|word| word.parse().ok()).expect("a holder");
    assert_eq!(ns_of(holder, "user"), mine("user"));
}

/// Who may not be there is not given the directories to go there by.
#[test]
fn who_has_no_rights_is_not_handed_anything() {
    let Some(mount) = mount() else { return };
    let (web, jail) = (group(&mount, "web"), group(&mount, "jail"));
    good(&web, set(&web, "mnt", "new"));
    good(&jail, set(&jail, "root", "/usr"));
    let target = Target::user(USER, &["idle", "1"]);
    for dir in [&web, &jail] {
        assert_eq!(enter(dir, "cgroup.procs", target.pid()), Err(EPERM));
        assert!(value(dir, "ns.last_error").contains("needs CAP_SYS_ADMIN and CAP_SYS_CHROOT"), "{}", value(dir, "ns.last_error"));
    }
}
