#!/bin/bash
# Root hands a part of the machine to a user, who divides it further and cannot take more than he was given.
#
#   examples/delegate.sh [USER]       USER is a name or number, default nobody
OPTIONS=allow_other
. "$(dirname "$0")/common.sh"

[ "$(id -u)" = 0 ] || { echo "delegation is root's to do: run this as root" >&2; exit 1; }
user=$(id -u "${1:-nobody}")
# as_user COMMAND: done with the user's rights and no others.
as_user() { run "setpriv --reuid=$user --regid=$user --clear-groups bash -c '$*'"; }

first=$(sed 's/[-,].*//' "$dir/cpuset.cpus")

say "Root makes a group and gives it away: the directory, and the files that put tasks into it."
new_group "$dir/guest" "$first"
run "chown $user $dir/guest $dir/guest/tasks $dir/guest/cgroup.procs"

say "The user makes a group of his own below, with what he was given."
as_user "mkdir $dir/guest/job"
as_user "echo $first > $dir/guest/job/cpuset.cpus"
as_user "cat $dir/guest/cpuset.mems > $dir/guest/job/cpuset.mems"

say "His process goes in."
setpriv --reuid="$user" --regid="$user" --clear-groups sleep 1000 &
pid=$!
started=$pid
until [ "$(stat -c %u "/proc/$pid")" = "$user" ]; do :; done
as_user "echo $pid > $dir/guest/job/tasks"
cpus "$pid"

say "He cannot give himself more: these files are still root's."
as_user "cat $dir/cpuset.cpus > $dir/guest/cpuset.cpus" || true
say "And he cannot move a process that is not his."
as_user "echo $$ > $dir/guest/job/tasks" || true

run "echo $pid > $dir/tasks"
run "rmdir $dir/guest/job $dir/guest"
