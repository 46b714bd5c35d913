//! What `ns.effective` shows is what nsenter(1) and ip(8) take.

use crate::sandbox::sandbox;

#[test]
fn handles_for_nsenter_and_ip() {
    sandbox(
        "ns_kinds::tools::handles_for_nsenter_and_ip",
        r#"
        real_root
        command -v ip >/dev/null || skip 'ip is missing: apt install iproute2'
        # ip(8) keeps names there.
        mount -t tmpfs none /run
        "$cgfuse" mount -o ns "$D"
        for g in a b; do mkdir "$D/$g"; echo new > "$D/$g/ns.net"; done
        path() { sed -n 's/^net [^ ]* \([^ ]*\) .*/\1/p' "$D/$1/ns.effective"; }
        number() { path "$1" | cut -d/ -f3; }
        inside() { g=$1; shift; nsenter --net="$(path $g)" "$@"; }
        is() { [ "$1" = "$(cat "$D/$2/ns.net")" ] || die "$1 is not $2's"; }
        is "$(inside a readlink /proc/self/ns/net)" a

        inside a ip link add v0 type veth peer name v1
        inside a ip link set v1 netns "$(number b)"
        inside b ip link show v1 > /dev/null
        expect 1 'v1' inside a ip link show v1

        ip netns attach blue "$(number a)"
        is "$(ip netns exec blue readlink /proc/self/ns/net)" a
        mkdir "$D/c"
        echo /run/netns/blue > "$D/c/ns.net"
        is "$(cat "$D/c/ns.net")" a
        ip netns delete blue
        "$cgfuse" umount "$D"
        eventually serverless "$D"
        "#,
    );
}
