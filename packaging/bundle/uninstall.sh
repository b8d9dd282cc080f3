#!/bin/sh
# Uninstall edgechat. Conversations, settings and models stay, unless:
#
#   sh uninstall.sh --purge          also deletes them, after listing them and asking
#   sh uninstall.sh --purge --yes    also deletes them without asking
set -eu

fail() {
    printf 'edgechat: %s\n' "$1" >&2
    exit "${2:-1}"
}

purge=no
yes=
for option in "$@"; do
    case $option in
        --purge) purge=yes ;;
        --yes) yes=--yes ;;
        -h | --help)
            echo "sh uninstall.sh [--purge [--yes]]: uninstall edgechat; --purge also deletes all its data, after asking"
            exit 0
            ;;
        *) fail "Unknown option $option. See sh uninstall.sh --help." 2 ;;
    esac
done
[ -n "${EDGECHAT_PREFIX:-${HOME:-}}" ] || fail "HOME is not set. Set EDGECHAT_PREFIX to the installation directory."
prefix=${EDGECHAT_PREFIX:-$HOME/.local}
home=$prefix/share/edgechat
command=
if command -v pipx > /dev/null 2>&1 && pipx list --short 2> /dev/null | grep -q '^edgechat '; then
    command=$(pipx environment --value PIPX_BIN_DIR)/edgechat
fi
by_pipx=$command
[ ! -d "$home/venv" ] || command=$prefix/bin/edgechat
# Do not remove an edgechat that this bundle did not install, for example from a Debian package.
[ -n "$command" ] || [ -d "$home/venv-new" ] || fail "edgechat is not installed in $prefix, nor by pipx."
if [ "$purge" = yes ] && [ -n "$command" ]; then
    "$command" uninstall --purge $yes || exit 1
fi
if [ -n "$by_pipx" ]; then
    pipx uninstall edgechat
fi
[ ! -d "$home/venv" ] || rm -f "$prefix/bin/edgechat"
rm -rf "$home/venv" "$home/venv-new" "$home/venv-old" "$home/bundle-models"
rmdir "$home" 2> /dev/null || :
echo "edgechat is uninstalled."
