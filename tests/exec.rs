//! `cgfuse exec`: membership, what the command inherits, what stands for it where it must be a child, and what is said when it fails.

mod common;
mod sandbox;

use std::process::Command;

use sandbox::sandbox;

/// Shell functions of the scenarios here. Rootless, the sandbox is a user namespace.
const TOOLS: &str = r#"
mounted_group() {
    "$cgfuse" mount "$D"
    G=$D/web
    mkdir "$G"
    cat "$D/cpuset.cpus" > "$G/cpuset.cpus"
    cat "$D/cpuset.mems" > "$G/cpuset.mems"
}
# A pid namespace whose init is not the command: $ns. In its children's place, as a move leaves a process: $beside COMMAND...
pid_namespace() {
    unshare --pid --fork --kill-child sh -c 'exec sleep 1000' & outer=$!
    eventually grep -qs . "/proc/$outer/task/$outer/children"
    init=$(tr -d ' ' < "/proc/$outer/task/$outer/children")
    ns=/proc/$init/ns/pid
    beside="nsenter --pid=$ns --no-fork --"
}
# The only child of a process.
child_of() { eventually grep -qs . "/proc/$1/task/$1/children"; tr -d ' ' < "/proc/$1/task/$1/children"; }
state_is() { grep -q "^State:.$2" "/proc/$1/status"; }
finish() { kill -KILL "$init"; wait "$outer" || :; umount "$D"; eventually serverless "$D"; }
"#;

fn scenario(test: &str, script: &str) {
    sandbox(test, &format!("{TOOLS}\n{script}"));
}

#[test]
fn help_tells_the_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_cgfuse")).args(["exec", "--help"]).output().expect("cgfuse runs");
    let help = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for text in ["exec [-p] GROUP -- COMMAND", "Exit codes:\n  125 ", "\n  126 ", "\n  127 ", "--mount-proc"] {
        assert!(help.contains(text), "{text}: {help}");
    }
}

#[test]
fn a_command_is_a_member_and_has_the_pid() {
    scenario(
        "a_command_is_a_member_and_has_the_pid",
        r#"
        mounted_group
        cd "$D"
        # With and without --, absolute and relative; options after the command are the command's.
        for how in "$G --" "$G" "web --" "./web/"; do
            said=$("$cgfuse" exec $how sh -c 'echo $$; cat "$0"/cgroup.procs' "$G" -p --help)
            set -- $said
            [ $# -ge 2 ] || die "$how: $said"
            pid=$1; shift
            case " $* " in *" $pid "*) ;; *) die "$how: $pid is not in $*" ;; esac
        done
        [ "$("$cgfuse" exec web -- echo -- a --)" = '-- a --' ] || die '--'
        [ "$("$cgfuse" exec web echo a -- b)" = 'a -- b' ] || die 'a later --'
        # The pid is the starter's.
        "$cgfuse" exec web -- sleep 1000 & pid=$!
        eventually grep -qx $pid web/tasks
        eventually grep -qx sleep /proc/$pid/comm
        kill $pid
        code=0; wait $pid || code=$?
        [ $code = 143 ] || die "exit code $code"
        for code in 0 1 3 125 255; do expect $code '' "$cgfuse" exec web -- sh -c "exit $code"; done
        cd /
        umount "$D"
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn a_command_inherits_what_the_caller_had() {
    scenario(
        "a_command_inherits_what_the_caller_had",
        r#"
        mounted_group
        pid_namespace
        look='grep -E "^Sig(Blk|Ign)|^ShdPnd" /proc/self/status; ls -l /proc/self/fd | sed "s/^.*[0-9] \([0-9]* -> \)/\1/; /proc.*fd$/d"; pwd; env | sort | grep -v ^_='
        cd "$T"
        same() {
            "$@" sh -c "$look" > "$T/plain"
            "$@" "$cgfuse" exec "$G" -- sh -c "$look" > "$T/direct"
            "$@" $beside "$cgfuse" exec "$G" -- sh -c "$look" > "$T/child"
            for way in direct child; do
                # The numbers of pipes and the target of standard output are the command's own.
                for f in plain $way; do sed -i '/^1 -> /d; s/\(pipe\|socket\):.*/\1/; s/SHLVL=.*//' "$T/$f"; done
                diff "$T/plain" "$T/$way" >&2 || die "$way: $*"
            done
        }
        same env A=b 'C=d e'
        same env --ignore-signal=PIPE,INT,CHLD
        same env --ignore-signal=HUP --block-signal=USR1,TERM
        same env --default-signal=PIPE
        exec 7<> "$T/plain7"
        same env
        exec 7>&-
        # Closed streams stay closed.
        closed='ls /proc/self/fd | tr "\n" " "'
        for way in '' "$beside"; do
            said=$($way "$cgfuse" exec "$G" -- readlink /proc/self/fd/0 <&- || echo none)
            case $said in /dev/null) die 'standard input is opened' ;; esac
            $way "$cgfuse" exec "$G" -- sh -c '(: >&2) 2>&-; readlink /proc/$$/fd/2 || echo none' 2>&- > "$T/said"
            [ "$(cat "$T/said")" = none ] || die "standard error: $(cat "$T/said")"
        done
        cd /
        finish
        "#,
    );
}

#[test]
fn failures_are_explained() {
    scenario(
        "failures_are_explained",
        r#"
        mounted_group
        expect 125 Usage "$cgfuse" exec
        expect 125 COMMAND "$cgfuse" exec "$G"
        expect 125 COMMAND "$cgfuse" exec "$G" --
        expect 125 --frobnicate "$cgfuse" exec --frobnicate "$G" -- true
        expect 0 Usage "$cgfuse" exec -h
        expect 125 "$G/no: no such group; make it with mkdir" "$cgfuse" exec "$G/no" -- true
        expect 125 'not a group but a file' "$cgfuse" exec "$G/tasks" -- true
        expect 125 "/proc: not a group: it is on a file system of type proc" "$cgfuse" exec /proc -- true
        touch "$T/cgroup.procs"
        expect 125 "not a group: it is on a file system of type tmpfs" "$cgfuse" exec "$T" -- true
        [ ! -s "$T/cgroup.procs" ] || die 'written'
        mkdir "$G/empty"
        expect 125 "$G/empty: cannot join the group: No space left on device; cpuset.cpus and cpuset.mems" "$cgfuse" exec "$G/empty" -- true
        # Removed with somebody in it.
        cd "$G/empty"
        rmdir "$G/empty"
        expect 125 'the group has been removed' "$cgfuse" exec . -- true
        cd /
        expect 127 'no-such-command: command not found' "$cgfuse" exec "$G" -- no-such-command
        expect 127 '/no/such/command: command not found' "$cgfuse" exec "$G" -- /no/such/command
        expect 127 ': command not found' "$cgfuse" exec "$G" -- ''
        printf '#!/no/such/interpreter\n' > "$T/script"; chmod +x "$T/script"
        expect 127 'script: its interpreter is not found' "$cgfuse" exec "$G" -- "$T/script"
        expect 126 '/proc/self/status: cannot be executed: Permission denied' "$cgfuse" exec "$G" -- /proc/self/status
        expect 126 "$T: cannot be executed: Permission denied" "$cgfuse" exec "$G" -- "$T"
        # Nobody has stayed.
        [ -z "$(cat "$G/tasks")" ] || die "left: $(cat "$G/tasks")"
        mount -o remount,ro "$D" 2>/dev/null && { expect 125 "'ro'" "$cgfuse" exec "$G" -- true; mount -o remount,rw "$D"; }
        kill -KILL $(one_server "$D")
        eventually dead "$D"
        expect 125 'its server has ended' "$cgfuse" exec "$G" -- true
        umount "$D"
        "#,
    );
}

#[test]
fn strangers_need_permission() {
    scenario(
        "strangers_need_permission",
        r#"
        real_root
        mounted_group
        for uid in 65534 54321; do
            expect 125 "$G: cgroup.procs: Permission denied; its owner can allow it" user $uid "$cgfuse" exec "$G" -- true
            chown $uid "$G/cgroup.procs"
            expect 0 "$uid" user $uid "$cgfuse" exec "$G" -- sh -c "grep -qx \$\$ $G/tasks && id -u"
            chown 0 "$G/cgroup.procs"
        done
        mkdir -m 700 "$T/closed"
        expect 125 'no permission to reach it' user 54321 "$cgfuse" exec "$T/closed/web" -- true
        umount "$D"
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn ordinary_users_run_commands_in_their_own_mount() {
    scenario(
        "ordinary_users_run_commands_in_their_own_mount",
        r#"
        need_fusermount
        open_device
        { cat /etc/passwd; echo fresh:x:54321:54321::/:/bin/sh; } > "$T/passwd"
        mount --bind "$T/passwd" /etc/passwd
        chown 54321 "$D"
        user 54321 "$cgfuse" mount "$D"
        mkdir="mkdir $D/web; cat $D/cpuset.cpus > $D/web/cpuset.cpus; cat $D/cpuset.mems > $D/web/cpuset.mems"
        user 54321 sh -c "$mkdir"
        expect 0 54321 user 54321 "$cgfuse" exec "$D/web" -- sh -c "grep -qx \$\$ $D/web/tasks && id -u"
        expect 125 'no permission to reach it' user 65534 "$cgfuse" exec "$D/web" -- true
        # A pid namespace of his own.
        inside='init=; unshare --pid "$0" exec "$1" -- sh -c "exit 7"'
        expect 7 '' user 54321 unshare --user --map-root-user sh -c "$inside" "$cgfuse" "$D/web"
        umount "$D"
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn the_kernels_groups_are_groups() {
    let Some(kernel) = common::KernelCpuset::new() else { return };
    let mut command = Command::new(env!("CARGO_BIN_EXE_cgfuse"));
    command.arg("exec").arg(kernel.dir()).args(["--", "sh", "-c", "exec cat /proc/$$/cgroup"]);
    let output = command.output().expect("cgfuse runs");
    let name = kernel.dir().file_name().expect("a name").to_string_lossy().into_owned();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.lines().any(|line| line.contains(":cpuset:") && line.ends_with(&name)), "{output:?}");
}

#[test]
fn a_pid_namespace_makes_it_a_child_whose_end_is_passed_on() {
    scenario(
        "a_pid_namespace_makes_it_a_child_whose_end_is_passed_on",
        r#"
        mounted_group
        pid_namespace
        # In the namespace, and a member: both are.
        said=$($beside "$cgfuse" exec "$G" -- sh -c 'echo $$; readlink /proc/self/ns/pid; wc -l < "$0/cgroup.procs"' "$G")
        set -- $said
        [ "$1" != 1 ] && [ "$1" -lt 50 ] && [ "$2" = "$(readlink "$ns")" ] || die "$said"
        for code in 0 1 42 255; do expect $code '' $beside "$cgfuse" exec "$G" -- sh -c "exit $code"; done
        expect 127 'command not found' $beside "$cgfuse" exec "$G" -- no-such-command
        expect 126 'cannot be executed' $beside "$cgfuse" exec "$G" -- "$T"
        for signal in KILL TERM SEGV PIPE USR1 ABRT; do
            n=$(bash -c "kill -l $signal")
            expect $((128 + n)) '' $beside "$cgfuse" exec "$G" -- sh -c "ulimit -c 0; kill -$signal \$\$"
        done
        # A real death, not an exit code alike: a shell gives it a name. Real-time signals too.
        for signal in KILL:Killed TERM:Terminated RTMIN+3:'Real-time signal 3'; do
            expect 0 "${signal#*:}" bash -c '"$@"; :' - $beside "$cgfuse" exec "$G" -- bash -c "kill -${signal%%:*} \$\$"
        done
        # Where SIGCHLD is ignored, there is something to wait for all the same.
        expect 5 '' env --ignore-signal=CHLD $beside "$cgfuse" exec "$G" -- sh -c 'exit 5'
        # As init of a namespace nobody has been in yet, and of one whose init has ended.
        expect 6 '' unshare --pid "$cgfuse" exec "$G" -- sh -c '[ $$ = 1 ] && exit 6'
        (exec 8< "$ns"; kill -KILL "$init"; wait "$outer" || :; beside="nsenter --pid=/proc/self/fd/8 --no-fork --"
        eventually never test -d "/proc/$init"
        expect 125 'the init of the group' $beside "$cgfuse" exec "$G" -- true)
        wait "$outer" || :
        [ -z "$(cat "$G/tasks")" ] || die "left: $(cat "$G/tasks")"
        umount "$D"
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn signals_are_passed_on() {
    scenario(
        "signals_are_passed_on",
        r#"
        mounted_group
        pid_namespace
        # What sh(1) starts with & ignores INT and QUIT.
        for signal in HUP USR1 USR2 WINCH ALRM CONT QUIT INT TERM; do
            : > "$T/told"
            env --default-signal=INT,QUIT $beside "$cgfuse" exec "$G" -- bash -c 'trap "echo $1 >> $0; exit 9" $1; echo ready >> $0; while :; do sleep 0.01; done' "$T/told" $signal & pid=$!
            eventually grep -q ready "$T/told"
            kill -$signal $pid
            code=0; wait $pid || code=$?
            [ $code = 9 ] && [ "$(cat "$T/told")" = "ready
$signal" ] || die "$signal: exit code $code: $(cat "$T/told")"
        done
        # Without a handler.
        $beside "$cgfuse" exec "$G" -- sleep 1000 & pid=$!
        child=$(child_of $pid)
        eventually grep -qx sleep "/proc/$child/comm"
        kill -RTMIN+1 $pid 2>/dev/null || kill -35 $pid
        code=0; wait $pid || code=$?
        [ $code = 163 ] || [ $code = 225 ] || die "exit code $code of a real-time signal"
        [ ! -d "/proc/$child" ] || die 'the command lives on'
        # To itself, it may stop; whoever waits sees it, and continues both.
        $beside "$cgfuse" exec "$G" -- sh -c 'kill -STOP $$; exit 3' & pid=$!
        child=$(child_of $pid)
        eventually state_is $child T
        eventually state_is $pid T
        kill -CONT $pid
        code=0; wait $pid || code=$?
        [ $code = 3 ] || die "exit code $code after a stop"
        # From outside.
        for signal in STOP TSTP TTIN; do
            $beside "$cgfuse" exec "$G" -- sleep 1000 & pid=$!
            child=$(child_of $pid)
            eventually grep -qx sleep "/proc/$child/comm"
            for round in 1 2 3; do
                if [ $signal = TSTP ]; then kill -TSTP $pid; else kill -$signal $child; fi
                eventually state_is $child T
                eventually state_is $pid T
                kill -CONT $pid
                eventually state_is $pid S
                eventually state_is $child S
            done
            kill $pid
            code=0; wait $pid || code=$?
            [ $code = 143 ] || die "exit code $code"
        done
        # Whoever wants it to die with him wants the command to.
        setpriv --pdeathsig KILL $beside "$cgfuse" exec "$G" -- sleep 1000 & pid=$!
        child=$(child_of $pid)
        eventually grep -qx sleep "/proc/$child/comm"
        kill -KILL $pid
        wait $pid || :
        eventually never test -d "/proc/$child"
        finish
        "#,
    );
}

/// ^C goes to both; the command must get it once.
#[test]
fn a_terminals_signals_come_once() {
    scenario(
        "a_terminals_signals_come_once",
        r#"
        command -v script >/dev/null || skip 'script(1) is missing: apt install bsdutils'
        mounted_group
        pid_namespace
        mkfifo "$T/keys" "$T/idle"
        # It waits without a child: bash that sees one die of SIGINT may end with 130 whatever its traps say.
        cat > "$T/command" <<'END'
n=0
trap 'n=$((n + 1)); echo "interrupt $n"' INT
trap 'echo "$n in all"; exit 4' TERM
exec 8<> "${0%/*}/idle"
echo ready
while :; do read -r -t 0.01 -u 8; done
END
        cat > "$T/run" <<END
echo \$\$ > "$T/pid"
exec $beside "$cgfuse" exec "$G" -- bash "$T/command"
END
        # script(1) runs it by $SHELL: exec, since a shell in between would be ended by ^C.
        env --default-signal=INT,QUIT SHELL=/bin/sh script --quiet --return --command "exec sh $T/run" "$T/log" < "$T/keys" > "$T/said" & terminal=$!
        exec 7> "$T/keys"
        eventually grep -q ready "$T/said"
        for round in 1 2 3; do
            printf '\003' >&7
            eventually grep -q "interrupt $round" "$T/said"
        done
        kill -TERM "$(cat "$T/pid")"
        code=0; wait $terminal || code=$?
        exec 7>&-
        grep -q '3 in all' "$T/said" && [ $code = 4 ] || die "exit code $code: $(cat "$T/said")"
        # ^Z and fg in a shell with job control.
        cat > "$T/command" <<'END'
trap 'echo continued; exit 0' USR1
echo $PPID ready
while :; do sleep 0.01; done
END
        env --default-signal=INT,QUIT SHELL=/bin/sh script --quiet --command "exec env PS1=prompt ENV= sh -i" "$T/log" < "$T/keys" > "$T/said" 2>&1 & terminal=$!
        exec 7> "$T/keys"
        eventually grep -q prompt "$T/said"
        echo "sh $T/run" >&7
        eventually grep -q '^[0-9]* ready' "$T/said"
        pid=$(cat "$T/pid")
        child=$(child_of "$pid")
        printf '\032' >&7
        eventually state_is "$child" T
        eventually state_is "$pid" T
        eventually grep -q Stopped "$T/said"
        echo fg >&7
        eventually state_is "$pid" S
        kill -USR1 "$pid"
        eventually grep -q '^continued' "$T/said"
        echo exit >&7
        wait $terminal || :
        exec 7>&-
        finish
        "#,
    );
}

#[test]
fn proc_is_not_mounted_for_the_caller() {
    scenario(
        "proc_is_not_mounted_for_the_caller",
        r#"
        mounted_group
        pid_namespace
        before=$(grep -c . /proc/self/mountinfo)
        expect 125 "$G: /proc is not mounted in the caller's own mount namespace" $beside "$cgfuse" exec -p "$G" -- true
        expect 125 "ns.mnt, or leave out -p" $beside "$cgfuse" exec --mount-proc "$G" -- true
        # Nothing to do.
        expect 0 '' "$cgfuse" exec -p "$G" -- true
        [ "$(grep -c . /proc/self/mountinfo)" = "$before" ] || die 'mounted'
        finish
        "#,
    );
}

/// The namespaces controller moves the process while it writes.
#[test]
fn a_group_with_namespaces() {
    scenario(
        "a_group_with_namespaces",
        r#"
        real_root
        mounted_group
        [ -e "$G/ns.pid" ] || skip 'there is no ns controller'
        # Were something to propagate, it would be here.
        mount --make-rshared /
        for kind in pid mnt uts; do echo new > "$G/ns.$kind"; done
        before=$(cat /proc/self/mountinfo)
        expect 0 '' "$cgfuse" exec "$G" -- true
        said=$("$cgfuse" exec -p "$G" -- sh -c 'hostname elsewhere; echo $$; readlink /proc/self; ls /proc | grep -c "^[0-9]"')
        set -- $said
        [ "$1" != 1 ] && [ "$1" -lt 50 ] && [ "$3" -lt 50 ] || die "$said"
        # A second command finds it there.
        lines='grep -c " /proc .* - proc proc " /proc/self/mountinfo'
        first=$("$cgfuse" exec -p "$G" -- sh -c "$lines")
        [ "$("$cgfuse" exec -p "$G" -- sh -c "$lines")" = "$first" ] || die 'mounted twice'
        [ "$(cat /proc/self/mountinfo)" = "$before" ] || die "outside: $(cat /proc/self/mountinfo)"
        [ "$(hostname)" != elsewhere ] || die 'the name is the same'
        expect 12 '' "$cgfuse" exec -p "$G" -- sh -c 'exit 12'
        expect 137 '' "$cgfuse" exec -p "$G" -- sh -c 'kill -9 $$'
        expect 127 "command not found in the group's mount namespace" "$cgfuse" exec "$G" -- no-such-command
        umount -l "$D"
        "#,
    );
}
