#!/bin/bash
# Pins a running service, all its processes and threads and whatever it starts later, by its main pid.
#
#   examples/pin-service.sh            shows it on a service of its own
#   examples/pin-service.sh PID CPUS   pins yours, and keeps it so until you press Enter
. "$(dirname "$0")/common.sh"

service=${1:-}
wanted=${2:-$(sed 's/[-,].*//' "$dir/cpuset.cpus")}
if [ -z "$service" ]; then
    say "A service: a shell that starts a worker every now and then."
    sh -c 'trap "kill \$worker; exit" TERM; while :; do sleep 0.2 & worker=$!; wait $worker; done' &
    service=$!
    started=$service
fi
cpus "$service"

new_group "$dir/service" "$wanted"

# family PID: the process and its descendants. A child born while the list is made is found by the next round.
family() {
    echo "$1"
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do family "$child"; done
}
# outside: those of the family that the group does not have yet. One may exit meanwhile: that is fine.
outside() {
    for member in $(family "$service"); do
        grep -qx "$member" "$dir/service/cgroup.procs" || echo "$member"
    done
}
say "Its processes go into the group; their future children are born there."
while left=$(outside) && [ -n "$left" ]; do
    for member in $left; do
        (echo "$member" > "$dir/service/cgroup.procs") 2>/dev/null || [ ! -d "/proc/$member" ]
    done
done
cpus "$service"

say "Members:"
run "cat $dir/service/cgroup.procs"
if [ -n "${1:-}" ]; then
    printf 'Press Enter to let it go again. '
    read -r _
fi

say "Everybody back to where he was."
while members=$(cat "$dir/service/cgroup.procs") && [ -n "$members" ]; do
    for member in $members; do
        (echo "$member" > "$dir/cgroup.procs") 2>/dev/null || [ ! -d "/proc/$member" ]
    done
done
cpus "$service"
run "rmdir $dir/service"
