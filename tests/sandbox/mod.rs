//! Shell scenarios in mount and pid namespaces of their own: they may mount, install into /sbin and kill as they like,
//! nothing outside changes, and whatever they leave is gone when they end.

use std::process::{Command, Stdio};

use crate::common::{TempDir, is_root, skipped, spawn};

/// What the scenarios say to each other and to us. `$T` is a file system of their own, holding the programs.
const PRELUDE: &str = r#"
die() { echo "FAILED: $*" >&2; exit 1; }
skip() { echo "$*" > "$SKIPPED"; exit 77; }
# expect CODE TEXT COMMAND...: the exit code, and a text in its output.
expect() {
    want=$1 text=$2; shift 2
    code=0; said=$("$@" 2>&1 </dev/null) || code=$?
    [ "$code" = "$want" ] || die "$*: exit code $code, not $want; it said: $said"
    case $said in *"$text"*) ;; *) die "$*: said '$said', not '$text'" ;; esac
}
eventually() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 2000 ] || die "waited in vain for: $*"; sleep 0.01; done; }
never() { ! "$@"; }
# mounts DIR: how many of ours are there.
mounts() { grep -c "^[^ ]* [^ ]* [^ ]* [^ ]* $1 .* - fuse.cgfuse " /proc/self/mountinfo || :; }
ours() { grep " $T/.* - fuse.cgfuse " /proc/self/mountinfo || :; }
mounted() { [ "$(mounts "$1")" -gt 0 ]; }
answers() { [ "$(cat "$1/notify_on_release")" = 0 ]; }
# stat(2) may be answered from the kernel's cache, statfs(2) is not.
dead() { stat -f "$1" 2>&1 | grep -q 'not connected'; }
# servers DIR: the pids of its servers; zombies have no command line.
servers() {
    for p in /proc/[0-9]*; do
        cmd=$(tr '\0' ' ' 2>/dev/null < "$p/cmdline") || continue
        case "$cmd" in *cgfuse*" $1 "*) echo "${p#/proc/}" ;; esac
    done
}
servers_are() { [ "$(servers "$2" | wc -l)" = "$1" ]; }
serverless() { [ -z "$(servers "$1")" ]; }
one_server() { set -- $(servers "$1"); [ $# = 1 ] || die "$# servers, not one"; echo "$1"; }
user() { u=$1; shift; setpriv --reuid="$u" --regid="$u" --clear-groups -- "$@"; }
real_root() { [ "$REAL_ROOT" = yes ] || skip 'needs root'; }
# What udev does elsewhere: /dev/fuse for everybody.
open_device() {
    real_root
    [ -e /dev/fuse ] || skip 'no /dev/fuse'
    mknod -m 666 "$T/fuse" c 10 229 && mount --bind "$T/fuse" /dev/fuse
}
# A /dev of what is needed, with the socket $LOG for the log.
own_dev() {
    mkdir "$T/dev"
    mknod "$T/dev/null" c 1 3
    mknod "$T/dev/fuse" c 10 229
    ln -s "$LOG" "$T/dev/log"
    mount --bind "$T/dev" /dev
}
need_fusermount() { command -v fusermount3 >/dev/null || skip 'fusermount3 is missing: apt install fuse3'; }
# Copies of other tests' mounts would keep their servers from ending. Those of another user namespace cannot be dropped.
for copy in $(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - fuse.cgfuse .*/\1/p' /proc/self/mountinfo); do
    umount -l "$copy" 2>/dev/null || :
done
(: <> /dev/fuse) 2>/dev/null || skip "cannot open /dev/fuse: $(ls -l /dev/fuse 2>&1)"
mount -t tmpfs -o mode=755 none "$T"
touch "$T/cgfuse" "$T/mount.cgfuse"
mount --bind "$CGFUSE" "$T/cgfuse"
mount --bind "$HELPER" "$T/mount.cgfuse"
mkdir "$T/mnt"
cgfuse=$T/cgfuse helper=$T/mount.cgfuse D=$T/mnt
cd /
"#;

const SKIPPED: i32 = 77;

/// Runs a scenario of sh(1); panics with all it said if it fails. If it cannot run, says why and returns false.
#[track_caller]
pub(crate) fn sandbox(test: &str, script: &str) -> bool {
    let dir = TempDir::new();
    let tree = dir.path().join("tree");
    let reason = dir.path().join("skipped");
    std::fs::create_dir(&tree).expect("a directory");
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["sh", "-euc"]).arg(format!("{PRELUDE}\n{script}"));
    command.env("T", &tree).env("SKIPPED", &reason).env("REAL_ROOT", if is_root() { "yes" } else { "no" });
    command.env("CGFUSE", env!("CARGO_BIN_EXE_cgfuse")).env("HELPER", env!("CARGO_BIN_EXE_mount-cgfuse"));
    command.env("SOURCE", env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG").env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(command).and_then(std::process::Child::wait_with_output).expect("timeout(1) and unshare(1)");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => return true,
        Some(SKIPPED) => skipped(test, std::fs::read_to_string(&reason).unwrap_or_default().trim()),
        Some(1) if said.contains("unshare failed") => skipped(test, said.trim()),
        _ => panic!("{test}: {}\n{said}", output.status),
    }
    false
}
