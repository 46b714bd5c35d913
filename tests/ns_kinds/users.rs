//! A server that an ordinary user has started himself, and his processes.

use crate::sandbox::sandbox;
use crate::target::program;

/// `$p` is a process of his, `$many` one of several threads; `G` is where his hierarchy is.
const PRELUDE: &str = r#"
U=54321
# The mount is his alone.
his() { user $U cat "$1"; }
# of WHO KIND: what the next child of a process is in.
of() { case $2 in pid|time) readlink "/proc/$1/ns/$2_for_children" ;; *) readlink "/proc/$1/ns/$2" ;; esac; }
# The file says pid and time, as its children have it.
is_in() { [ "$(of "$1" "$3")" = "$(his "$2/ns.$3")" ] || die "$1 is not in $2/ns.$3: $(of "$1" "$3"), not $(his "$2/ns.$3")"; }
kinds='user mnt uts ipc net cgroup pid time'
others='mnt uts ipc net cgroup pid time'
"#;

fn scenario(test: &str, script: &str) {
    let program = program().display();
    sandbox(test, &format!("TARGET={program}\n{PRELUDE}\n{script}"));
}

#[test]
fn with_fusermount() {
    scenario(
        "ns_kinds::users::with_fusermount",
        r#"
        need_fusermount
        open_device
        { cat /etc/passwd; echo fresh:x:$U:$U::/:/bin/sh; } > "$T/passwd"
        mount --bind "$T/passwd" /etc/passwd
        chown $U "$D"
        cp "$TARGET" "$T/target"; chmod 755 "$T/target"
        user $U "$cgfuse" mount -o ns "$D"
        start() { setpriv --reuid=$U --regid=$U --clear-groups -- "$@" </dev/zero >/dev/null & started=$!; }
        by() { user $U sh -c "$1"; }
        idle='sleep 1000'
        start $idle; p=$started
        start $idle; q=$started
        start $idle; r=$started
        setpriv --reuid=65534 --regid=65534 --clear-groups -- $idle >/dev/null 2>&1 & stranger=$!

        # Without a user namespace there is none that he could make.
        by "mkdir $D/plain $D/web $D/web/deep $D/other"
        for kind in $others; do
            expect 1 'not permitted' by "/bin/echo new > $D/plain/ns.$kind"
            case $(his "$D/plain/ns.last_error") in *unshare*EPERM*) ;; *) die "$(his "$D/plain/ns.last_error")" ;; esac
        done

        # All kinds in one step.
        for kind in $kinds; do by "echo new > $D/web/ns.$kind"; done
        by "echo $p > $D/web/cgroup.procs"
        for kind in $kinds; do is_in $p "$D/web" $kind; done
        [ "$(by "cat $D/web/tasks")" = $p ] || die 'no member'
        # One way, and none for who has several threads or is somebody else's.
        expect 1 'not permitted' by "/bin/echo $p > $D/tasks"
        case $(his "$D/ns.last_error") in *'cannot be left'*) ;; *) die "$(his "$D/ns.last_error")" ;; esac
        is_in $p "$D/web" user
        expect 1 'ermission denied' by "/bin/echo $stranger > $D/web/cgroup.procs"
        [ "$(readlink /proc/$stranger/ns/net)" = "$(readlink /proc/self/ns/net)" ]

        # A nested group has what it has not of its own from above, in the same step.
        by "echo new > $D/web/deep/ns.uts"
        by "echo $q > $D/web/deep/cgroup.procs"
        for kind in user mnt net; do is_in $q "$D/web" $kind; done
        is_in $q "$D/web/deep" uts

        # What a process of his is in can be adopted, that of a stranger or of the machine cannot be entered.
        for kind in user net uts; do by "echo $p > $D/other/ns.$kind"; done
        by "echo $r > $D/other/cgroup.procs"
        for kind in user net uts; do is_in $r "$D/web" $kind; done
        expect 1 '' by "/bin/echo $stranger > $D/plain/ns.net"
        expect 1 '' by "/bin/echo 1 > $D/plain/ns.net"

        # Himself, and from the beginning.
        said=$(by "echo \$\$ > $D/web/cgroup.procs && readlink /proc/self/ns/net")
        [ "$said" = "$(his "$D/web/ns.net")" ] || die "$said"
        said=$(user $U "$cgfuse" exec "$D/web" -- sh -c 'readlink /proc/self/ns/uts; id -u')
        [ "$said" = "$(his "$D/web/ns.uts")
$U" ] || die "$said"

        start "$T/target" idle 3; many=$started
        eventually [ -d /proc/$many/task ]
        threads() { [ "$(ls /proc/$many/task | wc -l)" = 3 ]; }
        eventually threads
        expect 1 'nvalid' by "/bin/echo $many > $D/web/cgroup.procs"
        case $(his "$D/web/ns.last_error") in *'several threads'*) ;; *) die "$(his "$D/web/ns.last_error")" ;; esac
        kill -9 $p $q $r $stranger $many
        user $U "$cgfuse" umount "$D"
        eventually serverless "$D"
        "#,
    );
}

/// Root of a user namespace of his, who has all rights there.
#[test]
fn in_a_user_namespace() {
    scenario(
        "ns_kinds::users::in_a_user_namespace",
        r#"
        cat > "$T/inside" <<'END'
        set -eu
        mount --make-rprivate /
        "$cgfuse" mount -o ns "$D"
        kinds='mnt uts ipc net cgroup'
        mkdir "$D/web"
        sleep 1000 >/dev/null 2>&1 & p=$!
        for kind in $kinds; do echo new > "$D/web/ns.$kind"; done
        echo $p > "$D/web/cgroup.procs" || { cat "$D/web/ns.last_error" >&2; exit 1; }
        for kind in $kinds; do [ "$(readlink /proc/$p/ns/$kind)" = "$(cat "$D/web/ns.$kind")" ] || { echo "not in ns.$kind" >&2; exit 1; }; done
        nsenter --net="$(sed -n 's/^net [^ ]* \([^ ]*\) .*/\1/p' "$D/web/ns.effective")" ip link set lo up 2>/dev/null || nsenter --net=/proc/$p/ns/net true
        echo $p > "$D/cgroup.procs"
        for kind in $kinds; do [ "$(readlink /proc/$p/ns/$kind)" = "$(readlink /proc/$$/ns/$kind)" ] || { echo "not home: $kind" >&2; exit 1; }; done
        # With several threads too, all of them.
        "$T/target" idle 5 < /dev/zero > "$T/said" & many=$!
        n=0; until grep -q ready "$T/said"; do n=$((n + 1)); [ $n -lt 1000 ]; sleep 0.01; done
        all_in() { for t in /proc/$many/task/*; do [ "$(readlink "$t/ns/$1")" = "$2" ] || { echo "a thread is not in $2" >&2; exit 1; }; done; }
        echo $many > "$D/web/cgroup.procs" || { cat "$D/web/ns.last_error" >&2; exit 1; }
        for kind in $kinds; do all_in $kind "$(cat "$D/web/ns.$kind")"; done
        echo $many > "$D/cgroup.procs" || { cat "$D/ns.last_error" >&2; exit 1; }
        for kind in $kinds; do all_in $kind "$(readlink /proc/$$/ns/$kind)"; done
        kill -9 $many
        "$cgfuse" exec "$D/web" -- sh -c '[ "$(readlink /proc/self/ns/net)" != "$0" ]' "$(readlink /proc/self/ns/net)"
        kill -9 $p
        "$cgfuse" umount "$D"
END
        cp "$TARGET" "$T/target"; chmod 755 "$T/target"
        touch "$T/said"; chmod 666 "$T/said"
        export cgfuse D T
        if [ "$REAL_ROOT" = yes ]; then
            open_device
            chown $U "$D"
            expect 0 '' user $U unshare --user --map-root-user --mount --uts --ipc --net --cgroup sh "$T/inside"
        else
            expect 0 '' unshare --user --map-root-user --mount --uts --ipc --net --cgroup sh "$T/inside"
        fi
        "#,
    );
}
