#!/bin/sh
# edgechat in a single file: unpacks itself once and starts from there. An archive follows this script.
set -eu
home=${EDGECHAT_SINGLE_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set EDGECHAT_SINGLE_DIR to a directory for unpacking}/.cache}}/edgechat-single
here=$home/@SHA256@
if [ -x "$here/edgechat" ]; then
    touch -c "$here" 2> /dev/null || : # marks the version as used
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
    fail "This file is for 64-bit @SYSTEM@ on @MACHINE@; this machine runs $(uname -s) on $(uname -m). Get the file for it."
if ldd --version 2>&1 | grep -qi musl; then
    fail "This system uses musl instead of glibc (Alpine?). This file cannot run here."
fi
mkdir -p "$home" 2> /dev/null && [ -w "$home" ] || fail "Cannot write to $home. Set EDGECHAT_SINGLE_DIR to another directory."
needed="@NEEDED_KB@"
free=$(df -Pk "$home" | awk 'NR == 2 { print $4 }')
[ "$free" -gt "$needed" ] || fail "Not enough disk space in $home: $((needed / 1024)) MB needed, $((free / 1024)) MB free."
printf 'edgechat: unpacking into %s (first start only)\n' "$home" >&2
command -v sha256sum > /dev/null || fail "sha256sum is missing, which verifies this file. Install coreutils."
[ "$(payload | sha256sum | cut -d ' ' -f 1)" = @SHA256@ ] || fail "This file is damaged. Copy it again."

# Delete interrupted attempts, and versions that were not started for a month.
find "$home" -mindepth 1 -maxdepth 1 -type d \( -name 'new-*' -mmin +60 -o -name '????????????????????????????????????????????????????????????????' -mtime +30 \) \
    -exec rm -rf {} + 2> /dev/null || :
new=$(mktemp -d "$home/new-XXXXXX") || fail "Cannot write to $home. Set EDGECHAT_SINGLE_DIR to another directory."
trap 'rm -rf "$new"' EXIT
trap 'exit 130' HUP INT TERM
payload | gzip -dc | tar -xf - -C "$new" || fail "Unpacking into $home failed."
"$new/edgechat" --version > /dev/null ||
    fail "The program unpacked into $home does not start. Is $home mounted noexec, or glibc older than @GLIBC@? EDGECHAT_SINGLE_DIR sets another directory."
# If another process finished first, this moves into its directory instead.
mv "$new" "$here" 2> /dev/null || :
rm -rf "${here:?}/${new##*/}" "$new"
[ -x "$here/edgechat" ] || fail "$here has unexpected content. Delete it and start again."
exec "$here/edgechat" "$@"
