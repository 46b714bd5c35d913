//! Pids of dead members are used again: whoever has them is a stranger.

use super::storm::{binary, report, rounds};
use crate::sandbox::sandbox;

/// In a pid namespace with few pids. More than a lap of pids between two looks is a documented gap, so there are looks.
#[test]
fn a_reused_pid_is_a_stranger() {
    let script = format!(
        r#"
        # Since Linux 6.14 each pid namespace has its own.
        [ "$(cat /proc/sys/kernel/ns_last_pid 2>/dev/null)" != '' ] || skip 'no ns_last_pid: is this a pid namespace?'
        real_root
        before=$(cat /proc/sys/kernel/pid_max)
        echo 450 > /proc/sys/kernel/pid_max || skip 'pid_max belongs to the whole machine'
        $cgfuse mount -f "$D" 2>"$T/log" & server=$!
        eventually answers "$D" 2>/dev/null
        mkdir "$D/g"; echo 0 > "$D/g/cpuset.mems"; echo 0 > "$D/g/cpuset.cpus"
        {storm} reuse "$D" {rounds} </dev/null > "$T/figures" || {{ cat "$T/figures"; tail -3 "$T/log"; die 'a stranger was taken for a member'; }}
        cp "$T/figures" "$FIGURES"
        umount "$D"; wait $server
        "#,
        storm = binary().display(),
        rounds = rounds(300),
    );
    let dir = crate::common::TempDir::new();
    let figures = dir.path().join("figures");
    if sandbox("a_reused_pid_is_a_stranger", &format!("FIGURES='{}'\n{script}", figures.display())) {
        report("a_reused_pid_is_a_stranger", std::fs::read_to_string(figures).expect("figures").trim());
    }
}
