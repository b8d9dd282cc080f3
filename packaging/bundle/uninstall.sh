#!/bin/sh
# Removes what install.sh installed. Conversations, settings and downloaded models stay, unless:
#
#   sh uninstall.sh --purge    removes them too, after showing what
set -eu
prefix=${EDGECHAT_PREFIX:-${HOME:?HOME is not set: say where it was installed with EDGECHAT_PREFIX}/.local}
home=$prefix/share/edgechat
command=$prefix/bin/edgechat
[ -x "$command" ] || command=$(command -v edgechat) || { echo "edgechat: it is not installed in $prefix" >&2; exit 1; }
if [ "${1:-}" = "--purge" ]; then
    "$command" uninstall --purge || exit 1
fi
if command -v pipx > /dev/null 2>&1 && pipx list --short 2> /dev/null | grep -q '^edgechat '; then
    pipx uninstall edgechat
fi
rm -rf "$home/venv" "$home/venv-new" "$home/venv-old" "$home/models"
rmdir "$home" 2> /dev/null || :
rm -f "$prefix/bin/edgechat"
echo "edgechat is removed"
