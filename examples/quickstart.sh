#!/bin/bash
# Mounts cgfuse in a temporary directory, pins a process that is already running and moves it to another network, before your eyes.
# Runs as root and as an ordinary user (who needs fusermount3: apt install fuse3).
. "$(dirname "$0")/common.sh"

first=$(sed 's/[-,].*//' "$dir/cpuset.cpus")

say "A process is running. Nobody has prepared it for anything."
sleep 1000 &
pid=$!
started=$pid
cpus "$pid"

say "A group with one CPU, $first. It is a directory."
new_group "$dir/web" "$first"

say "The process goes into the group, and is pinned."
run "echo $pid > $dir/web/cgroup.procs"
cpus "$pid"
run "cat $dir/web/tasks"

say "A change of the group is a change of all its processes."
run "cat $dir/cpuset.cpus > $dir/web/cpuset.cpus"
cpus "$pid"

say "Mistakes get the kernel's own errors."
run "rmdir $dir/web || true"
run "echo 100000 > $dir/web/cpuset.cpus || true"

say "Out of the group again: the process has what it had."
run "echo $pid > $dir/cgroup.procs"
cpus "$pid"

say "The group gets a network of its own. The process moves there; nobody starts it anew."
run "readlink /proc/$pid/ns/net"
# An ordinary user has rights over a network only in a user namespace of his own.
[ "$(id -u)" = 0 ] || run "echo new > $dir/web/ns.user"
run "echo new > $dir/web/ns.net"
run "echo $pid > $dir/web/cgroup.procs"
run "readlink /proc/$pid/ns/net"
run "cat $dir/web/ns.effective"

if [ "$(id -u)" = 0 ]; then
    say "And back."
    run "echo $pid > $dir/cgroup.procs"
    run "readlink /proc/$pid/ns/net"
    run "rmdir $dir/web"
else
    say "There is no way out of a user namespace, and that is said."
    run "echo $pid > $dir/cgroup.procs || cat $dir/ns.last_error"
fi
