#!/bin/bash
# Pins each virtual CPU of a running QEMU to a CPU of its own, and the rest of QEMU to the first: by the names of its threads.
#
#   examples/pin-vcpus.sh        shows it on an empty machine of its own, emulated (apt install qemu-system-x86)
#   examples/pin-vcpus.sh PID    pins yours, started with -name NAME,debug-threads=on as libvirt does, until you press Enter
. "$(dirname "$0")/common.sh"
theirs=${1:-}

qemu=${1:-}
if [ -z "$qemu" ]; then
    need qemu-system-x86_64 qemu-system-x86
    say "A machine with two CPUs and nothing else."
    qemu-system-x86_64 -name guest,debug-threads=on -smp 2 -m 32 -accel tcg,thread=multi \
        -nodefaults -no-user-config -display none </dev/null &
    qemu=$!
    started=$qemu
fi
# vcpus: a line "NUMBER TID" for each virtual CPU.
vcpus() {
    for task in /proc/"$qemu"/task/*; do
        read -r cpu number < "$task/comm" || continue
        [ "$cpu" != CPU ] || echo "${number%/*} ${task##*/}"
    done | sort -n
}
if [ -n "$started" ]; then
    until [ "$(vcpus | wc -l)" = 2 ]; do kill -0 "$qemu"; sleep 0.01; done
fi
threads=$(vcpus)
[ -n "$threads" ] || { echo "no thread of $qemu is named like 'CPU 0/KVM': was it started with debug-threads=on?" >&2; exit 1; }
tids=$(echo "$threads" | sed 's/.* //')
cpus $tids

cpus=$(tr , '\n' < "$dir/cpuset.cpus" | while IFS=- read -r from to; do seq "$from" "${to:-$from}"; done)
first=${cpus%%[!0-9]*}

say "QEMU itself."
groups="$dir/emulator"
new_group "$dir/emulator" "$first"
run "echo $qemu > $dir/emulator/cgroup.procs"

say "Its virtual CPUs, one by one."
set --
while read -r number tid; do
    [ $# -gt 0 ] || set -- $cpus
    groups="$groups $dir/vcpu$number"
    new_group "$dir/vcpu$number" "$1"
    run "echo $tid > $dir/vcpu$number/tasks"
    shift
done <<< "$threads"
cpus $tids
if [ -z "$started" ]; then
    printf 'Press Enter to let it go again. '
    read -r _
fi

say "Back to where they were."
run "echo $qemu > $dir/cgroup.procs"
cpus $tids
