#!/bin/sh
# edgechat in one file: unpacks itself once, and starts from there. What follows this script is an archive.
set -eu
home=${EDGECHAT_SINGLE_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: say where to unpack with EDGECHAT_SINGLE_DIR}/.cache}/edgechat-single}
here=$home/@SHA256@
if [ -x "$here/edgechat" ]; then
    exec "$here/edgechat" "$@"
fi

fail() {
    printf 'edgechat: %s\n' "$1" >&2
    exit 1
}

payload() {
    tail -c +@OFFSET@ "$0"
}

[ "$(uname -s)" = "@SYSTEM@" ] && [ "$(uname -m)" = "@MACHINE@" ] ||
    fail "this file is for @SYSTEM@ on @MACHINE@, and this machine is $(uname -s) on $(uname -m): get the other one"
if ldd --version 2>&1 | grep -qi musl; then
    fail "this system has musl instead of glibc (Alpine?): this file would not run"
fi
mkdir -p "$home" 2> /dev/null && [ -w "$home" ] || fail "$home cannot be written: name another place with EDGECHAT_SINGLE_DIR"
free=$(df -Pk "$home" | awk 'NR == 2 { print $4 }')
needed="@NEEDED_KB@"
[ "$free" -gt "$needed" ] || fail "$((needed / 1024)) MB are needed in $home, and $((free / 1024)) MB are free"
printf 'edgechat: unpacking into %s, this once\n' "$home" >&2
[ "$(payload | sha256sum | cut -d ' ' -f 1)" = @SHA256@ ] || fail "this file is damaged: copy it again"

# What was interrupted, and versions that nobody unpacked again for a month.
find "$home" -mindepth 1 -maxdepth 1 \( -name 'new-*' -mmin +60 -o -mtime +30 \) -exec rm -rf {} +
new=$home/new-$$
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM
mkdir "$new"
payload | gzip -dc | tar -xf - -C "$new" || fail "unpacking into $home came to no end"
"$new/edgechat" --version > /dev/null || fail "what was unpacked into $home does not start (is it mounted noexec, or is this system's glibc older than @GLIBC@?): another place is named with EDGECHAT_SINGLE_DIR"
mv "$new" "$here" 2> /dev/null || [ -x "$here/edgechat" ] # another one was faster
exec "$here/edgechat" "$@"
