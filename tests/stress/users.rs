//! The same as an ordinary user, through fusermount3.

use super::storm::{binary, report, rounds};
use crate::common::TempDir;
use crate::sandbox::sandbox;

#[test]
fn a_user_moves_his_own_storm() {
    let dir = TempDir::new();
    let figures = dir.path().join("figures");
    let script = format!(
        r#"
        need_fusermount
        open_device
        mkdir "$T/own"; chown 65534:65534 "$T/own"
        cp {storm} "$T/storm"; chmod 755 "$T/storm"
        d=$T/own/mnt
        user 65534 mkdir "$d"
        user 65534 $cgfuse mount "$d"
        user 65534 sh -ec 'for g in 0:a 1:b; do cd "$1"; mkdir ${{g#*:}}; cd ${{g#*:}}; echo 0 > cpuset.mems; echo ${{g%:*}} > cpuset.cpus; done' sh "$d"
        user 65534 "$T/storm" move "$d" {rounds} </dev/null > "$T/figures" || {{ cat "$T/figures"; die 'threads left behind'; }}
        cp "$T/figures" '{figures}'
        moving() {{ [ -n "$(user 65534 cat "$d/a/tasks" "$d/b/tasks")" ]; }}
        # The server dies while a storm moves itself.
        n=0
        while [ $n -lt {deaths} ]; do
            n=$((n + 1))
            user 65534 "$T/storm" move "$d" 1000000 </dev/null >/dev/null 2>"$T/said" & pid=$!
            eventually moving
            # The storm's command line names the directory too.
            for server in $(servers "$d"); do [ "$(cat "/proc/$server/comm")" != cgfuse ] || kill -9 "$server"; done
            code=0; wait $pid || code=$?
            [ $code = 1 ] && grep -q 'not connected\|connection abort' "$T/said" || die "exit code $code: $(cat "$T/said")"
            user 65534 $cgfuse mount "$d"
            [ "$(mounts "$d")" = 1 ] || die 'the dead mount is still there'
            user 65534 sh -ec 'for g in 0:a 1:b; do cd "$1"; mkdir ${{g#*:}}; cd ${{g#*:}}; echo 0 > cpuset.mems; echo ${{g%:*}} > cpuset.cpus; done' sh "$d"
        done
        echo "deaths=$n" >> '{figures}'
        user 65534 $cgfuse umount "$d"
        eventually serverless "$d"
        "#,
        storm = binary().display(),
        figures = figures.display(),
        rounds = rounds(60),
        deaths = rounds(3),
    );
    if sandbox("a_user_moves_his_own_storm", &script) {
        report("a_user_moves_his_own_storm", &std::fs::read_to_string(figures).expect("figures").replace('\n', " "));
    }
}
