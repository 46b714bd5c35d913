#!/usr/bin/env bash
# boot.sh KERNEL FILE... -- COMMAND: boots what fetch.sh has fetched in QEMU, with these files at their places and nothing else but
# busybox and setpriv, runs the command by its shell as root, and exits with its status. Needs no rights.
set -euo pipefail
for program in busybox qemu-system-x86_64; do
    command -v $program > /dev/null || { echo "$0: no $program (Debian: apt install busybox-static qemu-system-x86)" >&2; exit 99; }
done
kernel=$(realpath "$1")
shift
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
root=$part/root
mkdir -p "$root"/{bin,dev,etc,lib,lib64,mods,proc,sys,tmp,var/log}

# A file with the libraries that it needs.
put() {
    local file
    { echo "$1"; { ldd "$1" 2>/dev/null || :; } | sed -n 's/.*[[:space:]]\(\/[^ ]*\) (0x.*/\1/p'; } | while read -r file; do
        [ -e "$root$file" ] && continue
        mkdir -p "$root$(dirname "$file")"
        cp -L --preserve=mode "$file" "$root$file"
    done
}
while [ "$1" != -- ]; do put "$1"; shift; done
shift
busybox=$(command -v busybox)
put "$busybox"
# busybox's own changes no users.
put "$(command -v setpriv)"
cp -L "$busybox" "$root/bin/busybox"
find "$kernel" -name 'fuse.ko*' -exec cp {} "$root/mods" \;
echo 'root:x:0:0:root:/tmp:/bin/sh' > "$root/etc/passwd"
echo 'root:x:0:' > "$root/etc/group"
printf '%s\n' "$*" > "$root/command"
cat > "$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
chmod 1777 /tmp
ip link set lo up
for module in /mods/*; do [ -e "$module" ] && insmod "$module"; done
sh /command
echo "exit status $?"
poweroff -f
END
chmod +x "$root/init"
(cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) | gzip -1 > "$part/initrd"

timeout "${TIMEOUT:-600}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2G -nodefaults -no-reboot -display none \
    -serial stdio -kernel "$kernel"/boot/vmlinuz-* -initrd "$part/initrd" -append 'console=ttyS0 quiet loglevel=0 panic=-1' < /dev/null > "$part/said" ||
    echo "$0: qemu ended with $?" >&2
tr -d '\r' < "$part/said"
exit "$(tr -d '\r' < "$part/said" | sed -n 's/^exit status //p' | tail -n 1 | grep . || echo 99)"
