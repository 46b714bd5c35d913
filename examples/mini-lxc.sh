#!/bin/bash
# Two containers in the manner of LXC, made of groups: namespaces, a root directory, CPUs, and a wire to ping each other through.
#
#   examples/mini-lxc.sh      as root with CAP_NET_ADMIN; needs busybox (apt install busybox-static) and ip (apt install iproute2)
. "$(dirname "$0")/common.sh"
need_root
need busybox busybox-static
need ip iproute2

work=$(mktemp -d)
cleanup_more() { rm -rf "$work"; }
first=$(sed 's/[-,].*//' "$dir/cpuset.cpus")

# inside CONTAINER SCRIPT: a process that enters a pid namespace is not in it, but its children are: it forks one.
inside() { sh -c "echo 0 > '$dir/$1/cgroup.procs' && /bin/sh -c '$2'; exit \$?"; }

say "A root directory: a shell with some tools."
mkdir -p "$work/root/bin" "$work/root/proc"
cp "$(command -v busybox)" "$work/root/bin/busybox"
"$work/root/bin/busybox" true
for tool in sh ps hostname ping mount ls; do ln -s busybox "$work/root/bin/$tool"; done
chmod 755 "$work" "$work/root"

groups="$dir/alice $dir/bob"
for name in alice bob; do
    say "The container $name."
    new_group "$dir/$name" "$first"
    for kind in mnt uts ipc pid net; do run "echo new > $dir/$name/ns.$kind"; done
    run "echo $work/root > $dir/$name/ns.root"
done
run "cat $dir/alice/ns.effective"

say "A wire between them."
wire "$dir/alice" 10.0.0.1/24 "$dir/bob" 10.0.0.2/24

for name in alice bob; do
    say "What $name sees."
    run "inside $name 'mount -t proc proc /proc && hostname $name'"
    run "inside $name 'hostname && ls / && ps'"
done

say "They ping each other."
run "inside alice 'ping -c 1 -W 10 10.0.0.2'"
run "inside bob 'ping -c 1 -W 10 10.0.0.1'"

say "A program that is not made for containers is none the wiser."
run "inside alice 'for i in 1 2 3; do echo \$i; done; echo I am process \$\$ of \$(hostname)'"
