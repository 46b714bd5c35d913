#!/bin/bash
# A container from one small file, as libcontainer makes it: namespaces, a network that is wired, CPUs, a command.
# The other end of the wire is in a network namespace of its own too, so the machine's is left alone.
#
#   examples/libcontainer-like.sh [FILE]      as root with CAP_NET_ADMIN; needs ip (apt install iproute2)
. "$(dirname "$0")/common.sh"
need_root
need ip iproute2

say "What is wanted."
file=${1:-$here/examples/libcontainer-like.conf}
run "cat $file"
name= cpus= mems= namespaces= address= gateway= command=
while IFS='=' read -r key value; do
    case $key in
        name | cpus | mems | namespaces | address | gateway | command) printf -v "$key" %s "$value" ;;
        '' | \#*) ;;
        *) echo "$file: what is $key?" >&2; exit 1 ;;
    esac
done < "$file"
for key in name cpus mems address gateway command; do
    [ -n "${!key}" ] || { echo "$file: $key is missing" >&2; exit 1; }
done
case $name in */* | .*) echo "$file: not a name: $name" >&2; exit 1 ;; esac
container=$dir/$name outside=$dir/$name.outside
groups="$container $outside"

say "The resources."
for group in "$container" "$outside"; do
    run "mkdir $group"
    run "echo $cpus > $group/cpuset.cpus"
    run "echo $mems > $group/cpuset.mems"
done

say "The namespaces, and the network."
for kind in $namespaces; do run "echo new > $container/ns.$kind"; done
run "echo new > $outside/ns.net"
wire "$container" "$address" "$outside" "$gateway"
run "nsenter --net=$(ns "$container" net) ip route add default via ${gateway%/*}"

say "The command, in it."
run "(echo 0 > $container/cgroup.procs && exec sh -c '$command')"

say "Its neighbour at the other end of the wire."
run "(echo 0 > $outside/cgroup.procs && ip -brief address show eth0)"
