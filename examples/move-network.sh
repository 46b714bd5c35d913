#!/bin/bash
# A server that is running already is moved into another network namespace, and serves there.
#
#   examples/move-network.sh      as root with CAP_NET_ADMIN; needs cc (apt install gcc libc6-dev) and ip (apt install iproute2)
. "$(dirname "$0")/common.sh"
need_root
need cc "gcc libc6-dev"
need ip iproute2

work=$(mktemp -d)
cleanup_more() { rm -rf "$work"; }

say "A server. It listens on the loopback, and on SIGHUP it opens one more socket, for all addresses."
cat > "$work/server.c" <<'C'
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static volatile sig_atomic_t open_more = 1;
static void on_hup(int signal) { (void)signal, open_more = 1; }

int main(void) {
    struct pollfd sockets[8];
    char net[8][64];
    int n = 0;
    sigset_t hup, none;
    sigemptyset(&none), sigemptyset(&hup), sigaddset(&hup, SIGHUP);
    sigprocmask(SIG_BLOCK, &hup, 0);
    sigaction(SIGHUP, &(struct sigaction){.sa_handler = on_hup}, 0);
    for (;;) {
        if (open_more && n < 8) {
            struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(n ? INADDR_ANY : INADDR_LOOPBACK)};
            socklen_t len = sizeof at;
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            if (bind(fd, (void *)&at, len) || listen(fd, 8) || getsockname(fd, (void *)&at, &len))
                return 1;
            ssize_t size = readlink("/proc/self/ns/net", net[n], sizeof net[n] - 1);
            net[n][size < 0 ? 0 : size] = 0;
            printf("port %d\n", ntohs(at.sin_port)), fflush(stdout);
            sockets[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
        open_more = 0;
        if (ppoll(sockets, n, 0, &none) < 0)
            continue;
        for (int i = 0; i < n; i++)
            if (sockets[i].revents) {
                int client = accept(sockets[i].fd, 0, 0);
                dprintf(client, "socket %d, opened in %s\n", i + 1, net[i]), close(client);
            }
    }
}
C
cc -D_GNU_SOURCE -o "$work/server" "$work/server.c"
"$work/server" > "$work/log" &
server=$!
started=$server
# port N: where its Nth socket listens, once it does.
port() {
    until [ "$(wc -l < "$work/log")" -ge "$1" ]; do kill -0 "$server"; sleep 0.01; done
    sed -n "$1s/port //p" "$work/log"
}
old=$(port 1)
run "readlink /proc/$server/ns/net"
run "cat < /dev/tcp/127.0.0.1/$old"

say "Two groups with a network of their own, for the server and for a client, and a wire between them."
groups="$dir/web $dir/client"
for group in web client; do
    new_group "$dir/$group" "$(cat "$dir/cpuset.cpus")"
    run "echo new > $dir/$group/ns.net"
done
wire "$dir/web" 10.0.0.2/24 "$dir/client" 10.0.0.1/24
run "cat $dir/web/ns.effective"

say "The server moves, as it runs."
run "echo $server > $dir/web/cgroup.procs"
run "readlink /proc/$server/ns/net"

say "Its socket is still that of the old network. Who is there still reaches it; nobody in the new one does."
run "cat < /dev/tcp/127.0.0.1/$old"
run "(echo 0 > $dir/client/cgroup.procs && cat < /dev/tcp/10.0.0.2/$old) || echo no answer"

say "What it opens from now on is in the new one."
run "kill -HUP $server"
new=$(port 2)
run "(echo 0 > $dir/client/cgroup.procs && cat < /dev/tcp/10.0.0.2/$new)"

say "Out of the group again: back in its own network. The second socket stays where it was opened."
run "echo $server > $dir/cgroup.procs"
run "readlink /proc/$server/ns/net"
