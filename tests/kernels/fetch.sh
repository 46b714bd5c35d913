#!/usr/bin/env bash
# Fetches the kernels that the tests in tests/common/kernels.rs boots, as Debian delivers them, into target/kernels (or the directory given).
# Needs apt-get and dpkg-deb; what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=${1:-target/kernels}
mkdir -p "$dir"
dir=$(realpath "$dir")

[ "$(dpkg --print-architecture)" = amd64 ] || { echo "$0: only for amd64" >&2; exit 1; }
# On the same file system: whole, or not at all.
part=$(mktemp -d "$dir/.part-XXXXXX")
trap 'rm -rf "$part"' EXIT
# The oldest one that the release is supported with, and the newest.
for meta in linux-image-cloud-amd64 linux-image-6.12-cloud-amd64; do
    package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1) || package=
    [ -n "$package" ] || { echo "$0: no package $meta: apt-get update?" >&2; exit 1; }
    [ -e "$dir/$package" ] && continue
    (cd "$part" && apt-get download -q "$package" 2>&1 && dpkg-deb -x "$package"_*.deb "$package" && rm -f "$package"_*.deb)
    mv "$part/$package" "$dir/"
done
ls -d "$dir"/*
