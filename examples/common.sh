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
cleanup() {
    for pid in $started; do kill "$pid" 2>/dev/null || true; done
    for pid in $started; do wait "$pid" 2>/dev/null || true; done
    cd /
    [ -z "$mounted" ] || "$cgfuse" umount "$dir"
    rmdir "$dir"
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
# new_group PATH CPUS: a group that can run tasks.
new_group() {
    run "mkdir $1"
    run "echo $2 > $1/cpuset.cpus"
    run "cat $dir/cpuset.mems > $1/cpuset.mems"
}
