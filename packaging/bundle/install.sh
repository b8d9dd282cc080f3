#!/bin/sh
# Installs edgechat from this directory: no network, no compiler, nothing but Python >= 3.10.
#
#   sh install.sh              for you: with pipx if it is there, else in a place of its own and ~/.local/bin
#   sh install.sh --no-pipx    never with pipx
#   EDGECHAT_PREFIX=DIR        another place than ~/.local, without pipx
#   EDGECHAT_PYTHON=PYTHON     with this Python
#
# A second time it installs over the first; settings, conversations and models stay.
set -eu

fail() {
    printf 'edgechat: %s\n' "$1" >&2
    exit "${2:-1}"
}

use_pipx=yes
for option in "$@"; do
    case $option in
        --no-pipx) use_pipx=no ;;
        -h | --help)
            while read -r line && [ -n "$line" ] && [ "$line" != "set -eu" ]; do
                case $line in '#!'*) ;; *) line=${line#'#'} && printf '%s\n' "${line# }" ;; esac
            done < "$0"
            exit 0
            ;;
        *) fail "$option is no option: sh install.sh --help names them" 2 ;;
    esac
done
command -v dirname > /dev/null && command -v uname > /dev/null || fail "not even \`uname\` is in the PATH, which is '$PATH'"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || fail "this directory cannot be read"
[ -n "${EDGECHAT_PREFIX:-${HOME:-}}" ] || fail "HOME is not set: say where to install with EDGECHAT_PREFIX"
[ -z "${EDGECHAT_PREFIX:-}" ] || use_pipx=no
prefix=${EDGECHAT_PREFIX:-$HOME/.local}

# What this machine has.
[ "$(uname -s)" = "@SYSTEM@" ] && [ "$(uname -m)" = "@MACHINE@" ] ||
    fail "this bundle is for @SYSTEM@ on @MACHINE@, and this machine is $(uname -s) on $(uname -m): get the other one"
if ldd --version 2>&1 | grep -qi musl; then
    fail "this system has musl instead of glibc (Alpine?): no module of this bundle would run"
fi
[ -z "${EDGECHAT_PYTHON:-}" ] || command -v "$EDGECHAT_PYTHON" > /dev/null || fail "EDGECHAT_PYTHON is $EDGECHAT_PYTHON, and that is not there"
python=
for name in ${EDGECHAT_PYTHON:-python3 @NAMES@}; do
    command -v "$name" > /dev/null 2>&1 || continue
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || continue
    [ -f "$here/requirements-$version.txt" ] && python=$name && break
    older=${older:-$version}
done
[ -n "$python" ] || fail "Python @FIRST@ to @LAST@ is needed, and ${older:-none} is here: install one of them, or name it in EDGECHAT_PYTHON"
"$python" - <<'CHECK' || exit 1
import platform, sys
if sys.maxsize < 2**32:
    sys.exit("edgechat: this Python is one of 32 bits, and the bundle is for 64: a system of 64 bits is needed")
name, have = platform.libc_ver()
if name == "glibc" and tuple(map(int, have.split(".")[:2])) < tuple(map(int, "@GLIBC@".split("."))):
    sys.exit(f"edgechat: this system has glibc {have}, and @GLIBC@ is needed: a newer system, or a build from source")
CHECK

echo "checking this bundle"
"$python" - "$here" <<'CHECK' || exit 1
import hashlib, pathlib, sys
here, wrong = pathlib.Path(sys.argv[1]), []
try:
    lines = (here / "SHA256SUMS").read_text().splitlines()
except OSError as error:
    lines = []
    wrong.append(f"SHA256SUMS ({error.strerror})")
for line in lines:
    wanted, name = line.split("  ", 1)
    digest = hashlib.sha256()
    try:
        with (here / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        wrong.append(f"{name} ({error.strerror})")
        continue
    if digest.hexdigest() != wanted:
        wrong.append(name)
if wrong:
    sys.exit(f"edgechat: this bundle is damaged: {', '.join(wrong[:3])}; copy it again, nothing was installed")
CHECK

mkdir -p "$prefix" 2> /dev/null && [ -w "$prefix" ] && prefix=$(CDPATH='' cd -- "$prefix" && pwd) ||
    fail "$prefix cannot be written: name another place with EDGECHAT_PREFIX"
needed=$(du -sk "$here" | cut -f1)
free=$(df -Pk "$prefix" | awk 'NR == 2 { print $4 }')
[ "$free" -gt $((needed * 2)) ] || fail "$((needed * 2 / 1024)) MB are needed in $prefix, and $((free / 1024)) MB are free"

# pip must not ask anybody, and what it was told for other work does not count here.
for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\)=.*/\1/p'); do
    unset "$name"
done
wheels=$("$python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1], "wheels").as_uri())' "$here") # spaces would part it
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONFIG_FILE=/dev/null PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV 2> /dev/null || :
home=$prefix/share/edgechat
echo "installing (less than a minute)"
if [ "$use_pipx" = yes ] && command -v pipx > /dev/null 2>&1; then
    pipx install --force --python "$python" "edgechat[starter,serve]" || fail "pipx could not install it; try again with --no-pipx"
    for wheel in "$here"/wheels/edgechat_cuda*.whl; do
        [ ! -f "$wheel" ] || pipx inject edgechat "$wheel" || fail "pipx could not add ${wheel##*/}; try again with --no-pipx"
    done
    command=$(pipx environment --value PIPX_BIN_DIR)/edgechat
else
    old=$home/venv
    new=$home/venv-new
    mkdir -p "$home" "$prefix/bin"
    rm -rf "$new"
    trap 'rm -rf "$new"' EXIT
    trap 'exit 130' HUP INT TERM
    # Only once the new one is complete does it take the place of the old one.
    "$python" -m venv --without-pip "$new" || fail "$python cannot make virtual environments"
    pip=$(ls "$here"/wheels/pip-*.whl | tail -n 1)
    "$new/bin/python" "$pip/pip" install --quiet --no-deps --require-hashes -r "$here/requirements-$version.txt" ||
        fail "the installation did not come to its end; what was there before is still there"
    "$new/bin/python" -m edgechat --version > /dev/null || fail "what was installed does not start; what was there before is still there"
    rm -rf "$home/venv-old"
    [ -d "$old" ] && mv "$old" "$home/venv-old"
    mv "$new" "$old"
    rm -rf "$home/venv-old"
    {
        echo '#!/bin/sh'
        printf "exec '%s' -m edgechat \"\$@\"\n" "$(printf '%s' "$old/bin/python" | sed "s/'/'\\\\''/g")"
    } > "$prefix/bin/edgechat.new"
    chmod 755 "$prefix/bin/edgechat.new"
    mv -f "$prefix/bin/edgechat.new" "$prefix/bin/edgechat"
    command=$prefix/bin/edgechat
    case ":$PATH:" in
        *":$prefix/bin:"*) ;;
        *) printf '%s is not in your PATH. This adds it: export PATH="%s:$PATH"\n' "$prefix/bin" "$prefix/bin" ;;
    esac
fi

if [ -n "$(ls "$here/models")" ]; then
    models=$home/bundle-models # not the user's own, which is beside it
    mkdir -p "$models"
    cp "$here"/models/*.gguf "$models"
    "$command" models add "$models" > /dev/null || printf 'the models of this bundle are in %s: name one with -m\n' "$models" >&2
fi
version=$("$command" --version)
printf 'edgechat %s is installed: %s\n' "${version##* }" "$command"
