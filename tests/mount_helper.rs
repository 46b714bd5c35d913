//! mount.cgfuse as mount(8) calls it, and mount(8), fstab and umount(8) after `make install`.

mod common;
mod sandbox;

use std::process::Command;

use sandbox::sandbox;

/// Installs as a package would, then lets this mount namespace's /sbin hold the result beside the machine's own programs.
const INSTALL: &str = r#"
command -v make >/dev/null || skip 'make is missing: apt install make'
mkdir "$T/bin" "$T/stage"
touch "$T/bin/cgfuse" "$T/bin/mount-cgfuse"
mount --bind "$CGFUSE" "$T/bin/cgfuse"
mount --bind "$HELPER" "$T/bin/mount-cgfuse"
install() { make -s -C "$SOURCE" "$@" OUT="$T/bin" DESTDIR="$T/stage" PREFIX=/opt; }
install install
mkdir "$T/sbin" "$T/real"
mount --bind "$(readlink -f /sbin)" "$T/real"
for program in "$T"/real/*; do ln -s "$program" "$T/sbin/"; done
for program in "$T"/stage/sbin/*; do rm -f "$T/sbin/${program##*/}"; cp -P "$program" "$T/sbin/"; done
mount --bind "$T/sbin" "$(readlink -f /sbin)"
"#;

fn installed(test: &str, script: &str) {
    sandbox(test, &format!("{INSTALL}\n{script}"));
}

#[test]
fn wrong_invocation() {
    for (args, text) in [
        (&[][..], "Usage: mount.cgfuse"),
        (&["spec"], "<DIR>"),
        (&["spec", "/nowhere", "-x"], "-x"),
        (&["spec", "/nowhere", "-t", "ext4"], "ext4"),
        (&["spec", "/nowhere", "-o", "bogus"], "'bogus'"),
        (&["spec", "/nowhere", "-s", "-o", "bogus,remount"], "'remount'"),
        (&["spec", "nowhere", "-N", "1"], "absolute"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_mount-cgfuse")).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
}

#[test]
fn protocol_of_mount() {
    sandbox(
        "protocol_of_mount",
        r#"
        expect 32 'does not exist' $helper web /nowhere -f
        expect 1 "'bogus'" $helper web "$D" -f -o ro,bogus
        expect 0 '' $helper web "$D" -sfn -o ro,bogus -t fuse.cgfuse
        expect 0 "web would be mounted on $D" $helper web "$D" -fv -t cgfuse
        mounted "$D" && die 'fake mounts'
        ignored=rw,noauto,user=anna,users,owner,group,nofail,_netdev,defaults,comment=x,x-systemd.automount,X-mount.mkdir=0755,relatime,dev,suid
        expect 0 "web mounted on $D" $helper web "$D" -n -v -o "$ignored" -o noexec
        grep -q " $D rw,noexec,relatime - fuse.cgfuse web " /proc/self/mountinfo || die "$(ours)"
        answers "$D"
        umount "$D"
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn another_mount_namespace() {
    sandbox(
        "another_mount_namespace",
        r#"
        unshare --mount --propagation private sh -c 'echo $$ > "$T/pid"; while [ ! -e "$T/go" ]; do sleep 0.01; done
            grep -q " $T/mnt .* - fuse.cgfuse web " /proc/self/mountinfo && cat "$T/mnt/notify_on_release" && umount "$T/mnt"' & other=$!
        eventually test -s "$T/pid"
        expect 32 '/proc/self/mem' $helper web "$D" -N /proc/self/mem
        expect 32 'No such file' $helper web "$D" -N 999999999
        expect 0 '' $helper web "$D" -N "$(cat "$T/pid")" -f
        $helper web "$D" -N "/proc/$(cat "$T/pid")/ns/mnt"
        mounted "$D" && die 'mounted here'
        touch "$T/go"
        wait $other || die 'not mounted there'
        eventually serverless "$D"
        "#,
    );
}

#[test]
fn install_and_uninstall() {
    installed(
        "install_and_uninstall",
        r#"
        cd "$T/stage"
        files=$(find . ! -type d | sort | tr '\n' ' ')
        want='./opt/bin/cgfuse ./opt/share/man/man8/cgfuse.8 ./opt/share/man/man8/mount.cgfuse.8 ./sbin/mount.cgfuse ./sbin/mount.fuse.cgfuse '
        [ "$files" = "$want" ] || die "installed: $files"
        expect 0 'Usage: mount.cgfuse' sbin/mount.fuse.cgfuse --help
        install uninstall
        [ -z "$(find . ! -type d)" ] || die "left: $(find . ! -type d)"
        "#,
    );
}

#[test]
fn mount_and_umount() {
    installed(
        "mount_and_umount",
        r#"
        for type in cgfuse fuse.cgfuse; do
            mount -t $type web "$D"
            grep -q " $D .* - fuse.cgfuse web " /proc/self/mountinfo || die "$type: $(ours)"
            answers "$D"
            [ "$(findmnt -n -o FSTYPE,SOURCE "$D")" = 'fuse.cgfuse web' ] || die "findmnt: $(findmnt "$D")"
            umount "$D"
            mounted "$D" && die 'still mounted'
            eventually serverless "$D"
            mount -t $type -o ro,nosuid,noexec,uid=54321,mode=700 web "$D"
            grep -q " $D ro,nosuid,nodev,noexec," /proc/self/mountinfo || die "$type: $(ours)"
            mount -i -o remount,rw "$D"
            grep -q " $D rw," /proc/self/mountinfo || die "$type: $(ours)"
            umount "$D"
            expect 1 "'bogus'" mount -t $type -o bogus web "$D"
            expect 0 '' mount -s -t $type -o bogus web "$D"
            umount "$D"
            expect 0 '' mount -f -t $type web "$D"
            expect 1 "'remount'" mount -t $type -o remount,ro web "$D"
            mounted "$D" && die 'still mounted'
            expect 32 '' mount -t $type web /nowhere
            mount -t $type -o 'release_agent="/a,b"' web "$D"
            [ "$(cat "$D/release_agent")" = /a,b ] || die "agent: $(cat "$D/release_agent")"
            umount "$D"
            mount -t $type web "$D"
            kill -9 $(servers "$D")
            eventually dead "$D"
            mount -t $type web "$D"
            [ "$(mounts "$D")" = 1 ] || die 'the dead one is still there'
            umount "$D"
        done
        "#,
    );
}

#[test]
fn fstab() {
    installed(
        "fstab",
        r#"
        mkdir "$T/two" "$T/three"
        cat > "$T/fstab" <<END
web $D cgfuse defaults,nofail,x-systemd.requires=x.service,_netdev 0 0
two $T/two fuse.cgfuse ro,mode=755 0 0
three $T/three cgfuse noauto,comment=z 0 0
END
        mount -T "$T/fstab" "$D"
        answers "$D"
        umount "$D"
        mount -a -T "$T/fstab"
        answers "$D"
        answers "$T/two"
        mounted "$T/three" && die 'noauto'
        grep -q " $T/two ro,.* - fuse.cgfuse two " /proc/self/mountinfo || die "$(ours)"
        mount -a -T "$T/fstab"
        [ "$(mounts "$T/two")" = 1 ] || die 'mount -a mounts what is mounted'
        mount -T "$T/fstab" "$T/three"
        umount "$T/three" "$T/two"
        umount "$D"
        "#,
    );
}

#[test]
fn fstab_lets_users_mount() {
    installed(
        "fstab_lets_users_mount",
        r#"
        need_fusermount
        open_device
        [ -u "$(command -v mount)" ] || skip 'mount(8) is not setuid'
        mkdir "$T/own"; chown 65534:65534 "$T/own"
        echo "web $T/own cgfuse noauto,user 0 0" > "$T/fstab"
        mount --bind "$T/fstab" /etc/fstab
        expect 0 '' user 65534 mount "$T/own"
        grep -q " $T/own rw,nosuid,nodev,noexec.* - fuse.cgfuse web rw,user_id=65534," /proc/self/mountinfo || die "$(ours)"
        user 65534 cat "$T/own/notify_on_release" >/dev/null
        expect 0 '' user 65534 umount "$T/own"
        mounted "$T/own" && die 'still mounted'
        eventually serverless "$T/own"
        "#,
    );
}
