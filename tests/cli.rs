//! The program `cgfuse` as people and scripts meet it: exit codes, messages, life in the background, users.

mod common;
mod sandbox;

use std::process::{Command, Output};

use common::Mount;
use nix::sys::signal::Signal;
use sandbox::sandbox;

fn cgfuse(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cgfuse")).args(args).output().expect("cgfuse runs")
}

/// What a call that cannot mount anything returns, and a text on stderr.
#[track_caller]
fn refused(args: &[&str], code: i32, text: &str) {
    let output = cgfuse(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(text), "{args:?} said: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn help_and_version() {
    let version = cgfuse(&["--version"]);
    assert_eq!(version.stdout, format!("cgfuse {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    for args in [&["--help"][..], &["-h"], &["mount", "--help"], &["umount", "--help"]] {
        let output = cgfuse(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: cgfuse"), "{args:?}");
    }
    let help = String::from_utf8(cgfuse(&["mount", "--help"]).stdout).unwrap();
    for text in ["release_agent=PATH", "x-*", "Examples:", "Exit codes:", "\n  32 "] {
        assert!(help.contains(text), "{text}: {help}");
    }
}

#[test]
fn wrong_invocation() {
    refused(&[], 1, "Usage");
    refused(&["mount"], 1, "<DIR>");
    refused(&["umount"], 1, "<DIR>");
    refused(&["frobnicate"], 1, "frobnicate");
    refused(&["mount", "--frobnicate", "/"], 1, "--frobnicate");
    refused(&["mount", "a", "b", "c"], 1, "'c'");
}

#[test]
fn wrong_options() {
    let mount = |list: &str, text: &str| {
        refused(&["mount", "-o", list, "/nowhere"], 1, text);
        refused(&["mount", "-f", "-o", "ro", "-o", list, "/nowhere"], 1, text);
    };
    mount("ro,bogus=1", "unknown mount option 'bogus'");
    mount("bogus", "known are: cpuset,");
    mount("remount,ro", "'remount' is not supported");
    mount("uid=", "needs a value");
    mount("uid=no such user", "no such user");
    mount("mode=9", "mode=9");
    mount("ro=1", "takes no value");
    mount("\"ro", "quotation");
}

#[test]
fn wrong_directories() {
    refused(&["mount", "/nowhere"], 32, "/nowhere: mount point does not exist");
    refused(&["mount", "-f", "/nowhere"], 32, "/nowhere: mount point does not exist");
    refused(&["mount", "/proc/self/status"], 32, "not a directory");
    refused(&["mount", "/proc/self/status/x"], 32, "not a directory");
    refused(&["umount", "/nowhere"], 32, "No such file");
    refused(&["umount", "/proc/self/net"], 32, "not mounted");
    refused(&["umount", "/proc"], 32, "type proc");
}

#[test]
fn log_file_that_cannot_be_written() {
    refused(&["mount", "-o", "logfile=/nowhere/log", "/"], 2, "/nowhere/log");
}

/// Whether our file system can be mounted here at all; if not, says so.
fn can_mount(test: &str) -> bool {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let means = common::is_root() || Command::new("fusermount3").arg("-V").output().is_ok();
    match opened {
        Ok(_) if means => return true,
        Ok(_) => common::skipped(test, "fusermount3 is missing: apt install fuse3"),
        Err(error) => common::skipped(test, &format!("cannot open /dev/fuse: {error}")),
    }
    false
}

#[test]
fn foreground_ends_cleanly_on_a_signal() {
    if !can_mount("foreground_ends_cleanly_on_a_signal") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut mount = Mount::with_args(&["-v", "web"]);
        let entry = common::mount_entry(mount.dir()).expect("an entry");
        assert!(entry.windows(2).any(|pair| pair == ["fuse.cgfuse", "web"]), "{entry:?}");
        assert_eq!(mount.stop(signal).code(), Some(0), "{signal}: {}", mount.log());
        assert!(!common::is_mounted(mount.dir()));
        let log = mount.log();
        assert!(log.contains("mounted on") && log.contains(signal.as_str()) && log.contains("unmounted from"), "{log}");
    }
}

#[test]
fn nohup_is_respected() {
    sandbox(
        "nohup_is_respected",
        r#"
        (trap '' HUP; exec $cgfuse mount -f -v "$D" 2>"$T/log") & pid=$!
        eventually grep -q 'mounted on' "$T/log"
        kill -HUP $pid
        eventually grep -q 'SIGHUP ignored' "$T/log"
        answers "$D"
        kill $pid
        wait $pid
        "#,
    );
}

#[test]
fn children_that_the_caller_ignores_are_waited_for() {
    sandbox(
        "children_that_the_caller_ignores_are_waited_for",
        r#"
        expect 0 '' env --ignore-signal=CHLD $cgfuse mount "$D"
        answers "$D"
        expect 0 '' env --ignore-signal=CHLD $cgfuse umount "$D"
        eventually serverless "$D"
        need_fusermount
        open_device
        chown 65534:65534 "$D"
        expect 0 '' user 65534 env --ignore-signal=CHLD $cgfuse mount "$D"
        expect 0 '' user 65534 env --ignore-signal=CHLD $cgfuse umount "$D"
        "#,
    );
}

#[test]
fn options_reach_the_mount() {
    if !can_mount("options_reach_the_mount") {
        return;
    }
    let mount = Mount::with_options("ro,noexec,fsname=a b,noatime");
    let entry = common::mount_entry(mount.dir()).expect("an entry").join(" ");
    assert!(entry.contains(" ro,nosuid,nodev,noexec,noatime "), "{entry}");
    assert!(entry.contains(r" - fuse.cgfuse a\040b "), "{entry}");
    assert_eq!(common::write(mount.dir().join("notify_on_release"), "1"), Err(libc::EROFS));
}

#[test]
fn background_answers_at_once_and_owns_nothing_of_its_starter() {
    sandbox(
        "background_answers_at_once_and_owns_nothing_of_its_starter",
        r#"
        cd "$T"
        exec 9> "$T/lock"
        # Were a standard stream kept open, the pipe of $(...) would not end.
        [ -z "$("$cgfuse" mount web mnt 2>&1)" ] || die 'it should be silent'
        answers "$D" || die 'no answer'
        [ "$(mounts "$D")" = 1 ] || die 'not mounted once'
        grep -q ' - fuse.cgfuse web ' /proc/self/mountinfo || die 'source'
        set -- $(for p in /proc/[0-9]*; do grep -qs '^Name:.cgfuse$' $p/status && grep -qs 'State:.[^Z]' $p/status && echo ${p#/proc/}; done)
        [ $# = 1 ] || die "$# processes"
        [ "$(readlink /proc/$1/cwd)" = / ] || die 'working directory'
        for fd in 0 1 2; do [ "$(readlink /proc/$1/fd/$fd)" = /dev/null ] || die "descriptor $fd"; done
        ! readlink /proc/$1/fd/* | grep -qxF "$T/lock" || die 'keeps a lock of its starter'
        for fd in /proc/$1/fdinfo/*; do
            [ "${fd##*/}" -le 2 ] || grep -q '^flags:.*02[0-9]\{6\}$' $fd || die "descriptor ${fd##*/} survives exec: $(readlink /proc/$1/fd/${fd##*/})"
        done
        set -- $1 $(sed 's/.*) //' /proc/$1/stat)
        # pid, then from the state on: ppid, process group, session, terminal.
        [ "$5" != "$1" ] && [ "$6" = 0 ] || die "session $5, terminal $6"
        kill -HUP $1
        answers "$D"
        kill -TERM $1
        eventually never mounted "$D"
        eventually never grep -qs 'State:.[^Z]' /proc/$1/status
        "#,
    );
}

#[test]
fn unmounting_from_outside_ends_the_server() {
    sandbox(
        "unmounting_from_outside_ends_the_server",
        r#"
        for how in "umount $D" "$cgfuse umount $D" "$cgfuse umount $D/../mnt/."; do
            $cgfuse mount "$D"
            $how
            mounted "$D" && die "still mounted after $how"
            eventually serverless "$D"
        done
        $cgfuse mount -f "$D" 2>"$T/log" & pid=$!
        eventually mounted "$D"
        eventually grep -q 'mounted on' "$T/log"
        umount "$D"
        wait $pid || die "exit code $?: $(cat "$T/log")"
        "#,
    );
}

#[test]
fn only_the_own_mount_is_taken_away() {
    sandbox(
        "only_the_own_mount_is_taken_away",
        r#"
        mount -t tmpfs below "$D"
        touch "$D/here"
        $cgfuse mount first "$D"
        umount "$D"
        eventually serverless "$D"
        [ -e "$D/here" ] || die 'ending the server took away the mount below'
        # Stacked, as mount(2) does.
        $cgfuse mount first "$D"
        first=$(one_server "$D")
        $cgfuse mount second "$D"
        [ "$(mounts "$D")" = 2 ] || die 'not stacked'
        answers "$D"
        # The first one is covered: it must not unmount what covers it.
        kill $first
        eventually servers_are 1 "$D"
        answers "$D" || die 'the second one is gone'
        umount "$D"
        eventually dead "$D"
        umount "$D"
        [ -e "$D/here" ] || die 'too much is gone'
        # Moved: it unmounts where it is now. mount(8) cannot write its own records in a user namespace.
        [ "$REAL_ROOT" = yes ] || exit 0
        $cgfuse mount "$D"
        pid=$(one_server "$D")
        mkdir "$T/moved"
        mount --move "$D" "$T/moved"
        kill $pid
        eventually serverless "$D"
        [ -e "$D/here" ] || die 'unmounted at the old place'
        [ -z "$(ours)" ] || die "left: $(ours)"
        "#,
    );
}

/// The kernel gives a mount's id to the next one as soon as it is free.
#[test]
fn a_mount_that_got_the_id_of_ours_stays() {
    sandbox(
        "a_mount_that_got_the_id_of_ours_stays",
        r#"
        $cgfuse mount -f "$D" 2>"$T/log" & pid=$!
        eventually grep -q 'mounted on' "$T/log"
        id=$(sed -n "s|^\([0-9]*\) [^ ]* [^ ]* [^ ]* $D .*|\1|p" /proc/self/mountinfo)
        # A copy keeps the server.
        unshare --mount --propagation private sh -c "touch '$T/copied'; exec sleep 1000" & copy=$!
        eventually test -e "$T/copied"
        umount "$D"
        mkdir "$T/other"
        n=0
        until grep -q "^$id [^ ]* [^ ]* [^ ]* $T/other " /proc/self/mountinfo; do
            n=$((n + 1))
            [ $n -lt 50 ] || skip 'the id is not used again'
            mount -t tmpfs none "$T/other"
        done
        kill $pid
        eventually grep -q 'unmounted already' "$T/log"
        grep -q "^$id .* $T/other " /proc/self/mountinfo || die "another mount is gone: $(cat "$T/log")"
        kill $copy
        wait $pid || die "exit code $?"
        "#,
    );
}

/// A server that cannot look at the mounts does not know that its own is gone.
#[test]
fn without_descriptors_the_mount_is_not_taken_for_gone() {
    sandbox(
        "without_descriptors_the_mount_is_not_taken_for_gone",
        r#"
        real_root
        $cgfuse mount -f -v "$D" 2>"$T/log" & pid=$!
        eventually grep -q 'mounted on' "$T/log"
        mkdir "$D/g"
        echo new > "$D/g/ns.uts"
        uts=$(cat "$D/g/ns.uts")
        mkdir "$D/h"
        echo 0 > "$D/h/cpuset.cpus"
        echo 0 > "$D/h/cpuset.mems"
        sleep 1000 & member=$!
        echo $member > "$D/h/tasks"
        no_descriptors() { prlimit --pid $pid --nofile=3:; }
        tried() { [ "$(grep -c 'cannot be looked at' "$T/log")" -gt "$1" ]; }
        no_descriptors
        mount -t tmpfs none /mnt
        eventually tried 0
        [ "$(cat "$D/g/ns.uts")" = "$uts" ] || die "the namespace is gone: $(cat "$D/g/ns.uts")"
        grep -qx mounts /proc/$pid/task/*/comm || die 'nobody watches the mounts any more'
        # Nor a task for gone.
        expect 1 'Too many open files' sh -c "/bin/echo 0 > '$D/h/tasks'"
        # Nor that it is covered, or unmounted already.
        kill $pid
        eventually grep -q 'SIGTERM: unmounting' "$T/log"
        n=$(grep -c 'cannot be looked at' "$T/log")
        eventually tried $((n + 2))
        prlimit --pid $pid --nofile=$(ulimit -Hn):
        wait $pid || die "exit code $?: $(cat "$T/log")"
        kill $member
        mounted "$D" && die "still mounted: $(cat "$T/log")"
        :
        "#,
    );
}

#[test]
fn the_server_has_all_descriptors_and_its_agent_those_of_its_starter() {
    sandbox(
        "the_server_has_all_descriptors_and_its_agent_those_of_its_starter",
        r#"
        real_root
        printf '#!/bin/sh\nulimit -Sn > "%s/limit.new"\nmv "%s/limit.new" "%s/limit"\n' "$T" "$T" "$T" > "$T/agent"
        chmod 755 "$T/agent"
        ulimit -Sn 200
        ulimit -Hn 400
        $cgfuse mount -o "clone_children,release_agent=$T/agent" "$D"
        grep -q '^Max open files  *400  *400 ' /proc/$(one_server "$D")/limits || die "$(grep open /proc/$(one_server "$D")/limits)"
        mkdir "$D/g"
        echo 1 > "$D/g/notify_on_release"
        echo $$ > "$D/g/tasks"
        echo $$ > "$D/tasks"
        eventually test -e "$T/limit"
        [ "$(cat "$T/limit")" = 200 ] || die "the agent has $(cat "$T/limit")"
        umount "$D"
        "#,
    );
}

#[test]
fn dead_mounts_are_healed() {
    sandbox(
        "dead_mounts_are_healed",
        r#"
        for n in 1 2 3; do $cgfuse mount "$D"; done
        kill -9 $(servers "$D")
        eventually dead "$D"
        cd "$T"
        $cgfuse mount -o "logfile=log" ./mnt
        answers "$D"
        [ "$(mounts "$D")" = 1 ] || die 'the dead ones are still there'
        [ "$(grep -c 'INFO.*removing the dead mount' "$T/log")" = 3 ] || die "log: $(cat "$T/log")"
        kill -9 $(servers ./mnt)
        eventually dead "$D"
        $cgfuse mount -f "$D" 2>"$T/log2" & pid=$!
        eventually grep -q 'mounted on' "$T/log2"
        grep -q 'INFO.*removing the dead mount' "$T/log2" || die "log: $(cat "$T/log2")"
        kill $pid
        wait $pid
        # umount copes with one as well.
        $cgfuse mount "$D"
        kill -9 $(servers "$D")
        eventually dead "$D"
        $cgfuse umount "$D"
        mounted "$D" && die 'still mounted'
        :
        "#,
    );
}

#[test]
fn starters_at_the_same_time_leave_each_others_mounts() {
    sandbox(
        "starters_at_the_same_time_leave_each_others_mounts",
        r#"
        for round in 1 2 3 4 5 6 7 8 9 10; do
            for n in 1 2 3; do $cgfuse mount "$D"; done
            kill -9 $(servers "$D")
            eventually dead "$D"
            starters=
            for n in 1 2 3 4; do $cgfuse mount "$D" & starters="$starters $!"; done
            for starter in $starters; do wait $starter || die "round $round: exit code $?"; done
            eventually servers_are 4 "$D"
            [ "$(mounts "$D")" = 4 ] || die "round $round: $(mounts "$D") mounts"
            for n in 1 2 3 4; do
                answers "$D" || die "round $round: a dead one"
                umount "$D"
            done
            eventually serverless "$D"
        done
        "#,
    );
}

#[test]
fn busy_mounts_are_detached_on_a_signal() {
    sandbox(
        "busy_mounts_are_detached_on_a_signal",
        r#"
        $cgfuse mount -o "logfile=$T/log" "$D"
        pid=$(one_server "$D")
        exec 8< "$D/notify_on_release"
        expect 32 'target is busy' $cgfuse umount "$D"
        kill -TERM $pid
        eventually never mounted "$D"
        eventually grep -q 'WARN.*in use' "$T/log"
        # The user of the mount is served to the end.
        [ "$(cat <&8)" = 0 ] || die 'no answer on the open file'
        exec 8<&-
        eventually serverless "$D"
        grep -q 'unmounted from' "$T/log" || die "log: $(cat "$T/log")"

        $cgfuse mount "$D"
        exec 8< "$D/notify_on_release"
        $cgfuse umount --lazy "$D"
        mounted "$D" && die 'still mounted'
        serverless "$D" && die 'ended too early'
        exec 8<&-
        eventually serverless "$D"

        $cgfuse mount -f "$D" 2>"$T/log2" & pid=$!
        eventually grep -q 'mounted on' "$T/log2"
        exec 8< "$D/notify_on_release"
        kill -INT $pid
        eventually never mounted "$D"
        kill -INT $pid
        code=0; wait $pid || code=$?
        [ $code = 8 ] || die "exit code $code after a second signal"
        grep -q 'WARN.*still in use' "$T/log2" || die "log: $(cat "$T/log2")"
        exec 8<&-
        "#,
    );
}

#[test]
fn starter_notices_an_interrupt_and_a_death() {
    sandbox(
        "starter_notices_an_interrupt_and_a_death",
        r#"
        # Opening a fifo nobody reads holds the server up before it mounts.
        mkfifo "$T/fifo"
        for signal in INT TERM HUP; do
            $cgfuse mount -o "logfile=$T/fifo" "$D" 2>"$T/said" & pid=$!
            eventually servers_are 2 "$D"
            kill -$signal $pid
            code=0; wait $pid || code=$?
            [ $code = 8 ] && grep -q interrupted "$T/said" || die "exit code $code: $(cat "$T/said")"
            eventually serverless "$D"
        done
        $cgfuse mount -o "logfile=$T/fifo" "$D" 2>"$T/said" & pid=$!
        eventually servers_are 2 "$D"
        kill -9 $(servers "$D" | grep -vx $pid)
        code=0; wait $pid || code=$?
        [ $code = 4 ] && grep -q 'killed by SIGKILL' "$T/said" || die "exit code $code: $(cat "$T/said")"
        mounted "$D" && die 'mounted'
        :
        "#,
    );
}

#[test]
fn missing_means_are_named_with_a_remedy() {
    sandbox(
        "missing_means_are_named_with_a_remedy",
        r#"
        real_root
        need_fusermount
        mkdir "$T/own"; chown 65534:65534 "$T/own"
        mount -t tmpfs none "$T/own"; chown 65534:65534 "$T/own"
        mknod -m 600 "$T/fuse" c 10 229
        touch "$T/fuse.conf"
        [ ! -e /etc/fuse.conf ] || mount --bind "$T/fuse.conf" /etc/fuse.conf
        mount --bind "$T/fuse" /dev/fuse
        expect 1 'chmod 0666 /dev/fuse' user 65534 $cgfuse mount "$T/own"
        chmod 666 "$T/fuse"
        expect 1 'no write permission' user 65534 $cgfuse mount "$D"
        expect 1 "'user_allow_other' in /etc/fuse.conf" user 65534 $cgfuse mount -o allow_other "$T/own"
        expect 32 'apt install fuse3' user 65534 env PATH=/nowhere $cgfuse mount "$T/own"
        mkdir -m 700 "$T/closed" "$T/closed/in"
        expect 32 'no permission to reach' user 65534 $cgfuse mount "$T/closed/in"
        $cgfuse mount "$D"
        expect 32 "$D" user 65534 $cgfuse umount "$D"
        answers "$D"
        umount "$D"
        mount -t tmpfs none /dev
        mknod /dev/null c 1 3
        expect 32 'modprobe fuse' $cgfuse mount "$D"
        expect 32 'modprobe fuse' $cgfuse mount -f "$D"
        "#,
    );
}

#[test]
fn ordinary_users_mount_with_fusermount3() {
    sandbox(
        "ordinary_users_mount_with_fusermount3",
        r#"
        need_fusermount
        open_device
        expect 32 'entry in /etc/passwd' user 54320 $cgfuse mount -o ro "$(mktemp -d -p "$T" && chown 54320 "$T"/tmp.*)"
        { cat /etc/passwd; echo fresh:x:54321:54321::/:/bin/sh; } > "$T/passwd"
        mount --bind "$T/passwd" /etc/passwd
        for uid in 65534 54321; do
            mkdir "$T/$uid"; chown $uid:$uid "$T/$uid"
            d=$T/$uid/mnt
            user $uid mkdir "$d"
            expect 0 '' user $uid $cgfuse mount -o ro mine "$d"
            grep -q " - fuse.cgfuse mine ro,user_id=$uid," /proc/self/mountinfo || die "$(ours)"
            user $uid cat "$d/notify_on_release" >/dev/null
            cat "$d/notify_on_release" >/dev/null 2>&1 && die 'others may enter without allow_other'
            expect 0 '' user $uid $cgfuse umount "$d"
            mounted "$d" && die 'still mounted'
            eventually serverless "$d"
            # A signal, busy or not.
            user $uid $cgfuse mount "$d"
            kill -TERM $(one_server "$d")
            eventually never mounted "$d"
            eventually serverless "$d"
            user $uid $cgfuse mount "$d"
            user $uid sh -c "exec 8< $d/notify_on_release; touch $T/$uid/open; while [ ! -e $T/$uid/go ]; do sleep 0.01; done" & pid=$!
            eventually test -e "$T/$uid/open"
            kill -TERM $(one_server "$d")
            eventually never mounted "$d"
            serverless "$d" && die 'ended too early'
            user $uid touch "$T/$uid/go"
            wait $pid
            eventually serverless "$d"
            # A dead mount.
            user $uid $cgfuse mount "$d"
            kill -9 $(servers "$d")
            eventually user $uid sh -c "stat -f $d 2>&1 | grep -q 'not connected'"
            expect 0 '' user $uid $cgfuse mount "$d"
            [ "$(mounts "$d")" = 1 ] || die 'the dead one is still there'
            umount "$d"
            eventually serverless "$d"
        done
        "#,
    );
}

#[test]
fn users_share_a_mount_where_fuse_conf_allows_it() {
    sandbox(
        "users_share_a_mount_where_fuse_conf_allows_it",
        r#"
        need_fusermount
        open_device
        [ -e /etc/fuse.conf ] || skip 'no /etc/fuse.conf to replace'
        echo user_allow_other > "$T/fuse.conf"
        mount --bind "$T/fuse.conf" /etc/fuse.conf
        chown 65534:65534 "$D"
        expect 0 '' user 65534 $cgfuse mount -o allow_other "$D"
        answers "$D" || die 'root cannot enter'
        user 54321 cat "$D/notify_on_release" >/dev/null || die 'a stranger cannot enter'
        umount "$D"
        "#,
    );
}

#[test]
fn strangers_enter_roots_mount_unless_told_not_to() {
    sandbox(
        "strangers_enter_roots_mount_unless_told_not_to",
        r#"
        real_root
        $cgfuse mount "$D"
        user 54321 cat "$D/notify_on_release" >/dev/null || die 'a stranger cannot enter'
        umount "$D"
        $cgfuse mount -o noallow_other "$D"
        user 54321 cat "$D/notify_on_release" 2>/dev/null && die 'a stranger may enter'
        answers "$D"
        umount "$D"
        "#,
    );
}

#[test]
fn mounts_in_a_user_namespace() {
    sandbox(
        "mounts_in_a_user_namespace",
        r#"
        open_device
        inside='set -e
            cd /
            $0 mount "$1"
            test "$(cat "$1/notify_on_release")" = 0
            grep " $1 .* - fuse.cgfuse cgfuse " /proc/self/mountinfo
            $0 umount "$1"
            ! grep " $1 .* - fuse.cgfuse" /proc/self/mountinfo'
        for uid in 65534 54321; do
            code=0
            said=$(user $uid unshare -Ur -m true 2>&1) || skip "user namespaces: $said"
            expect 0 fuse.cgfuse user $uid unshare -Ur -m sh -c "$inside" "$cgfuse" "$D"
            expect 32 'unshare -Urm' user $uid unshare -Ur "$cgfuse" mount "$D"
        done
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn background_logs_to_syslog() {
    let dir = common::TempDir::new();
    let socket = dir.path().join("log");
    let log = std::os::unix::net::UnixDatagram::bind(&socket).expect("a socket");
    log.set_nonblocking(true).expect("non-blocking");
    let script = r#"
        real_root
        own_dev
        [ -z "$($cgfuse mount "$D" 2>&1)" ] || die 'it should be silent'
        umount "$D"
        eventually serverless "$D"
        $cgfuse mount -o "logfile=$T/file" "$D"
        umount "$D"
        eventually serverless "$D"
        "#;
    let ran = sandbox("background_logs_to_syslog", &format!("LOG='{}'\n{script}", socket.display()));
    let mut buffer = [0; 4096];
    let records = std::iter::from_fn(|| {
        let length = log.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    let records: Vec<_> = records.collect();
    let about = |text: &str| records.iter().filter(|r| r.starts_with("<30>") && r.contains("cgfuse[") && r.contains(text)).count();
    assert!(!ran || (about("]: mounted on") == 1 && about("]: unmounted from") == 1), "{records:?}");
}

/// A syslog that has stopped reading does not stop the server.
#[test]
fn nobody_waits_for_syslog() {
    let dir = common::TempDir::new();
    let socket = dir.path().join("log");
    let _stuck = std::os::unix::net::UnixDatagram::bind(&socket).expect("a socket");
    let script = r#"
        real_root
        own_dev
        # Each request is logged, far more than the socket has room for.
        timeout 20 $cgfuse mount -vv "$D" || die "exit code $?"
        n=0
        while [ $n -lt $(($(cat /proc/sys/net/unix/max_dgram_qlen) + 100)) ]; do
            n=$((n + 1))
            [ "$(timeout 20 cat "$D/notify_on_release")" = 0 ] || die "no answer to request $n"
        done
        umount "$D"
        eventually serverless "$D"
        "#;
    sandbox("nobody_waits_for_syslog", &format!("LOG='{}'\n{script}", socket.display()));
}

#[test]
fn root_group_belongs_to_whom_the_options_say() {
    sandbox(
        "root_group_belongs_to_whom_the_options_say",
        r#"
        real_root
        $cgfuse mount -o uid=nobody,gid=54321,mode=1750 "$D"
        [ "$(stat -c '%u %g %a' "$D")" = '65534 54321 1750' ] || die "$(stat -c '%u %g %a' "$D")"
        umount "$D"
        # Not even the server itself may look in.
        $cgfuse mount -o uid=54321,mode=0 "$D"
        umount "$D"
        "#,
    );
}

/// Whoever makes a user namespace has all capabilities in it; the release agent runs with the server's rights.
#[test]
fn a_foreign_user_namespace_cannot_name_the_release_agent() {
    sandbox(
        "a_foreign_user_namespace_cannot_name_the_release_agent",
        r#"real_root
        "$cgfuse" mount "$D"
        chmod 666 "$D/release_agent"
        expect 1 'Operation not permitted' user 65534 unshare -Ur bash -c "echo /bin/true > $D/release_agent"
        [ -z "$(cat "$D/release_agent")" ] || die "named: $(cat "$D/release_agent")"
        echo /bin/true > "$D/release_agent"
        [ "$(cat "$D/release_agent")" = /bin/true ] || die "root cannot name it"
        umount "$D""#,
    );
}

/// Below the mount, `.` is what it covers; what is meant is the mount.
#[test]
fn from_the_directory_that_is_covered() {
    sandbox(
        "from_the_directory_that_is_covered",
        r#"cd "$D"
        "$cgfuse" mount .
        grep -q " $D " /proc/self/mountinfo || die "not mounted"
        "$cgfuse" umount .
        grep -q " $D " /proc/self/mountinfo && die "still mounted"
        true"#,
    );
}

/// With too few descriptors it fails at one point or another: what has failed is not mounted.
#[test]
fn a_failed_mount_leaves_nothing() {
    sandbox(
        "a_failed_mount_leaves_nothing",
        r#"failed=0
        for n in $(seq 8 24); do
            if (ulimit -n "$n"; exec "$cgfuse" mount "$D" 2>/dev/null); then
                umount "$D"
            else
                failed=$((failed + 1))
            fi
            grep -q " $D " /proc/self/mountinfo && die "mounted with $n descriptors, although it failed"
        done
        [ "$failed" -gt 3 ] || die "it failed $failed times only""#,
    );
}
