//! The examples do what they say, as root and as an ordinary user.

mod common;
mod sandbox;

use sandbox::sandbox;

/// Runs an example and leaves what it printed in `$OUT`.
const RUN: &str = r#"
cp -r "$SOURCE/examples" "$T/examples"
chmod -R a+rX "$T/examples"
OUT=$T/out
export CGFUSE=$cgfuse
example() { "$@" > "$OUT" 2>&1 || die "$*: exit code $?: $(cat "$OUT")"; [ -z "$(ours)" ] || die "left mounted: $(ours)"; }
# printed END-OF-LINE [TIMES]
printed() { [ "$(grep -c -- "$1\$" "$OUT")" = "${2:-1}" ] || die "not ${2:-1} times '$1' in: $(cat "$OUT")"; }
ALL=$(cat /sys/devices/system/cpu/online)
FIRST=${ALL%%[-,]*}
need_two_cpus() { [ "$ALL" != "$FIRST" ] || skip 'needs two CPUs'; }
"#;

fn example(test: &str, script: &str) {
    sandbox(test, &format!("{RUN}\n{script}"));
}

/// A running process is pinned, unpinned, let go, and moved to another network.
const QUICKSTART: &str = r#"
printed "may run on CPUs $FIRST"
printed "may run on CPUs $ALL" 3
printed "Device or resource busy"
printed "Numerical result out of range"
[ "$(grep -c '^net:' "$OUT")" -ge 2 ] && [ "$(grep '^net:' "$OUT" | sort -u | wc -l)" = 2 ] || die "not moved: $(cat "$OUT")"
"#;

#[test]
fn quickstart_as_root() {
    example("quickstart_as_root", &format!("need_two_cpus; example bash $T/examples/quickstart.sh; {QUICKSTART}"));
}

#[test]
fn quickstart_as_user() {
    let script = "need_two_cpus; open_device; need_fusermount; example user 65534 bash $T/examples/quickstart.sh;";
    example("quickstart_as_user", &format!("{script} {QUICKSTART}"));
}

#[test]
fn pin_service() {
    example(
        "pin_service",
        r#"need_two_cpus
        example bash "$T/examples/pin-service.sh"
        printed "may run on CPUs $FIRST"
        printed "may run on CPUs $ALL" 2
        [ "$(grep -c '^[0-9][0-9]*$' "$OUT")" -ge 1 ] || die "no members: $(cat "$OUT")""#,
    );
}

#[test]
fn split_threads() {
    example(
        "split_threads",
        r#"need_two_cpus
        [ "$ALL" = 0-1 ] || skip 'written for two CPUs'
        example bash "$T/examples/split-threads.sh"
        printed "may run on CPUs 0" 2
        printed "may run on CPUs 0-1" 4
        printed "may run on CPUs 1" 2"#,
    );
}

#[test]
fn delegate() {
    example(
        "delegate",
        r#"real_root; need_two_cpus
        example bash "$T/examples/delegate.sh"
        printed "may run on CPUs $FIRST"
        printed "Permission denied" 2"#,
    );
}

/// What they do without is no reason to fail.
const PROGRAMS: &str = r#"
real_root
need() { command -v "$1" >/dev/null || skip "$1 is missing: apt install $2"; }
"#;

#[test]
fn move_network() {
    let script = r#"need ip iproute2; need cc gcc
    example bash "$T/examples/move-network.sh"
    printed "socket 1, opened in net:.*" 2
    printed "socket 2, opened in net:.*"
    printed "^no answer""#;
    example("move_network", &format!("{PROGRAMS}{script}"));
}

#[test]
fn mini_lxc() {
    let script = r#"need ip iproute2; need busybox busybox-static
    example bash "$T/examples/mini-lxc.sh"
    printed "1 packets transmitted, 1 packets received, 0% packet loss" 2
    printed "I am process [0-9]* of alice""#;
    example("mini_lxc", &format!("{PROGRAMS}{script}"));
}

#[test]
fn libcontainer_like() {
    let script = r#"need ip iproute2
    example bash "$T/examples/libcontainer-like.sh"
    printed "^web"
    grep -q "UP  *10.0.0.2/24" "$OUT" || die "no network: $(cat "$OUT")"
    printed "^Cpus_allowed_list:.0""#;
    example("libcontainer_like", &format!("{PROGRAMS}{script}"));
}

#[test]
fn pin_vcpus() {
    let script = r#"need_two_cpus; need qemu-system-x86_64 qemu-system-x86
    [ "$ALL" = 0-1 ] || skip 'written for two CPUs'
    example bash "$T/examples/pin-vcpus.sh"
    printed "may run on CPUs 0"
    printed "may run on CPUs 1"
    printed "may run on CPUs 0-1" 4"#;
    example("pin_vcpus", &format!("{PROGRAMS}{script}"));
}
