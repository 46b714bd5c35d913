#!/bin/bash
# Mounts cgfuse in a temporary directory and pins a process that is already running, before your eyes.
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
run "rmdir $dir/web"
