#!/bin/bash
# Spreads the threads of one process over several groups: cgroup v2 forbids it, here it is one echo for each thread.
#
#   examples/split-threads.sh         shows it on a process of its own (needs cc)
#   examples/split-threads.sh PID     spreads the threads of yours until you press Enter
. "$(dirname "$0")/common.sh"

pid=${1:-}
if [ -z "$pid" ]; then
    say "A process with four threads."
    program=$(mktemp)
    printf '%s\n' '#include <pthread.h>' '#include <unistd.h>' \
        'static void *wait_for_the_end(void *arg) { for (;;) pause(); return arg; }' \
        'int main(void) { pthread_t t; for (int i = 0; i < 3; i++) pthread_create(&t, 0, wait_for_the_end, 0); wait_for_the_end(0); }' |
        cc -x c -pthread -o "$program" -
    "$program" &
    pid=$!
    started=$pid
    until [ "$(ls "/proc/$pid/task" | wc -l)" = 4 ]; do :; done
    rm "$program"
fi

# One group for each CPU.
cpus=$(tr , '\n' < "$dir/cpuset.cpus" | while IFS=- read -r from to; do seq "$from" "${to:-$from}"; done)
for cpu in $cpus; do
    new_group "$dir/cpu$cpu" "$cpu"
done

say "Its threads in turn to the groups."
set --
for tid in $(ls "/proc/$pid/task"); do
    [ $# -gt 0 ] || set -- $cpus
    run "echo $tid > $dir/cpu$1/tasks"
    shift
done
cpus $(ls "/proc/$pid/task")

say "Each group has some threads of the process, and shows the process itself."
for cpu in $cpus; do
    run "cat $dir/cpu$cpu/tasks"
    run "cat $dir/cpu$cpu/cgroup.procs"
done
if [ $# -gt 0 ] && [ -z "$started" ]; then
    printf 'Press Enter to bring them together again. '
    read -r _
fi

say "Together again."
run "echo $pid > $dir/cgroup.procs"
cpus $(ls "/proc/$pid/task")
for cpu in $cpus; do
    run "rmdir $dir/cpu$cpu"
done
