#!/bin/sh
# Removes what install.sh installed. Conversations, settings and models of yours stay, unless:
#
#   sh uninstall.sh --purge          removes them too, after showing what and asking
#   sh uninstall.sh --purge --yes    the same without asking
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
            echo "sh uninstall.sh [--purge [--yes]]: removes edgechat; with --purge also all that it keeps, after asking"
            exit 0
            ;;
        *) fail "$option is no option: sh uninstall.sh --help names them" 2 ;;
    esac
done
[ -n "${EDGECHAT_PREFIX:-${HOME:-}}" ] || fail "HOME is not set: say where it was installed with EDGECHAT_PREFIX"
prefix=${EDGECHAT_PREFIX:-$HOME/.local}
home=$prefix/share/edgechat
command=
if command -v pipx > /dev/null 2>&1 && pipx list --short 2> /dev/null | grep -q '^edgechat '; then
    command=$(pipx environment --value PIPX_BIN_DIR)/edgechat
fi
by_pipx=$command
[ ! -d "$home/venv" ] || command=$prefix/bin/edgechat
# Another edgechat, of a package for example, is not ours to remove.
[ -n "$command" ] || [ -d "$home/venv-new" ] || fail "it is not installed in $prefix, and not by pipx"
if [ "$purge" = yes ] && [ -n "$command" ]; then
    "$command" uninstall --purge $yes || exit 1
fi
if [ -n "$by_pipx" ]; then
    pipx uninstall edgechat
fi
[ ! -d "$home/venv" ] || rm -f "$prefix/bin/edgechat"
rm -rf "$home/venv" "$home/venv-new" "$home/venv-old" "$home/bundle-models"
rmdir "$home" 2> /dev/null || :
echo "edgechat is removed"
