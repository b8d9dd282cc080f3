#!/bin/sh
# edgechat in one file: unpacks itself once, and starts from there. What follows this script is an archive.
set -eu
home=${EDGECHAT_SINGLE_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: say where to unpack with EDGECHAT_SINGLE_DIR}/.cache}}/edgechat-single
here=$home/@SHA256@
if [ -x "$here/edgechat" ]; then
    touch -c "$here" 2> /dev/null || : # in use, whoever tidies up
    exec "$here/edgechat" "$@"
fi

fail() {
    printf 'edgechat: %s\n' "$1" >&2
    exit 1
}

payload() {
    tail -c +@OFFSET@ "$0"
}

[ "$(uname -s)" = "@SYSTEM@" ] && [ "$(uname -m)" = "@MACHINE@" ] && [ "$(getconf LONG_BIT 2> /dev/null || echo 64)" = 64 ] ||
    fail "this file is for programs of 64 bits on @SYSTEM@ and @MACHINE@, and this is $(uname -s) on $(uname -m): get another one"
if ldd --version 2>&1 | grep -qi musl; then
    fail "this system has musl instead of glibc (Alpine?): this file would not run"
fi
mkdir -p "$home" 2> /dev/null && [ -w "$home" ] || fail "$home cannot be written: name another place with EDGECHAT_SINGLE_DIR"
needed="@NEEDED_KB@"
free=$(df -Pk "$home" | awk 'NR == 2 { print $4 }')
[ "$free" -gt "$needed" ] || fail "$((needed / 1024)) MB are needed in $home, and $((free / 1024)) MB are free"
printf 'edgechat: unpacking into %s, this once\n' "$home" >&2
command -v sha256sum > /dev/null || fail "sha256sum is not here, and whether this file is whole cannot be said without it: install coreutils"
[ "$(payload | sha256sum | cut -d ' ' -f 1)" = @SHA256@ ] || fail "this file is damaged: copy it again"

# What was interrupted, and versions that were not started for a month.
find "$home" -mindepth 1 -maxdepth 1 -type d \( -name 'new-*' -mmin +60 -o -name '????????????????????????????????????????????????????????????????' -mtime +30 \) \
    -exec rm -rf {} + 2> /dev/null || :
new=$(mktemp -d "$home/new-XXXXXX") || fail "$home cannot be written: name another place with EDGECHAT_SINGLE_DIR"
trap 'rm -rf "$new"' EXIT
trap 'exit 130' HUP INT TERM
payload | gzip -dc | tar -xf - -C "$new" || fail "unpacking into $home came to no end"
"$new/edgechat" --version > /dev/null ||
    fail "what was unpacked into $home does not start (is it mounted noexec, or is this system's glibc older than @GLIBC@?): another place is named with EDGECHAT_SINGLE_DIR"
# If another one was faster, this moves into the other's directory instead.
mv "$new" "$here" 2> /dev/null || :
rm -rf "${here:?}/${new##*/}"
[ -x "$here/edgechat" ] || fail "$here is not what was unpacked: remove it"
exec "$here/edgechat" "$@"
