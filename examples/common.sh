# Sourced by the examples: finds or builds cgfuse, mounts it in a temporary directory and cleans up at the end.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
cgfuse=${CGFUSE:-$here/target/release/cgfuse}
if [ ! -x "$cgfuse" ]; then
    say_build="cargo build --release"
    echo "building: $say_build"
    (cd "$here" && $say_build)
fi

dir=$(mktemp -d)
started=
mounted=
groups=
cleanup() {
    trap '' INT TERM
    for pid in $started; do kill "$pid" 2>/dev/null || true; done
    for pid in $started; do wait "$pid" 2>/dev/null || true; done
    cd /
    for group in $groups; do remove "$group"; done
    [ -z "$mounted" ] || "$cgfuse" umount "$dir"
    rmdir "$dir"
    ! type cleanup_more >/dev/null 2>&1 || cleanup_more
}
# remove GROUP: once its last members are gone, or back where they came from if they are somebody else's ($theirs is not empty).
# With it go its namespaces, and the interfaces in them.
theirs=
remove() {
    for _ in $(seq 500); do
        [ -d "$1" ] && ! rmdir "$1" 2>/dev/null || break
        for pid in $(cat "$1/cgroup.procs" 2>/dev/null); do
            if [ -n "$theirs" ]; then echo "$pid" > "$dir/cgroup.procs" || true; else kill -9 "$pid" 2>/dev/null || true; fi
        done
        sleep 0.01
    done
}
trap cleanup EXIT
trap 'exit 130' INT TERM

"$cgfuse" mount "${SPEC:-example}" "$dir" ${OPTIONS:+-o "$OPTIONS"}
mounted=yes

# say TEXT: what comes next.
say() { printf '\n# %s\n' "$*"; }
# run COMMAND: shown, then done.
run() { printf '$ %s\n' "$*"; eval "$*"; }
# cpus TID...: where each thread may run, by the kernel's own word.
cpus() {
    for tid in "$@"; do
        printf '  thread %s may run on CPUs %s\n' "$tid" "$(sed -n 's/^Cpus_allowed_list:\t//p' "/proc/$tid/status")"
    done
}
# need PROGRAM PACKAGE: what an example cannot do without.
need() { command -v "$1" >/dev/null || { echo "$1 is missing: apt install $2" >&2; exit 1; }; }
# need_root: namespaces are made, and interfaces moved, by root.
need_root() { [ "$(id -u)" = 0 ] || { echo "this needs root" >&2; exit 1; }; }
# ns GROUP KIND: a path to the namespace that is effective there, for nsenter(1) and ip(8).
ns() { sed -n "s,^$2 [^ ]* \\([^ ]*\\) .*,\\1,p" "$1/ns.effective"; }
# wire GROUP ADDRESS GROUP ADDRESS: a veth pair between two network namespaces, eth0 in both.
wire() {
    one=$(ns "$1" net) other=$(ns "$3" net)
    run "ip link add eth0 netns $one type veth peer name eth0 netns $other"
    for end in "$one $2" "$other $4"; do
        run "nsenter --net=${end% *} ip address add ${end#* } dev eth0"
        run "nsenter --net=${end% *} ip link set eth0 up"
        run "nsenter --net=${end% *} ip link set lo up"
    done
}
# new_group PATH CPUS: a group that can run tasks.
new_group() {
    run "mkdir $1"
    run "echo $2 > $1/cpuset.cpus"
    run "cat $dir/cpuset.mems > $1/cpuset.mems"
}
