#!/bin/sh
# Install edgechat from this directory, without a network or a compiler. Needs Python >= 3.10.
#
#   sh install.sh              install for your user: with pipx if available, else under ~/.local
#   sh install.sh --no-pipx    install without pipx
#   EDGECHAT_PREFIX=DIR        install under DIR instead of ~/.local, without pipx
#   EDGECHAT_PYTHON=PYTHON     use this Python
#
# Run it again to upgrade or repair; settings, conversations and models stay.
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
        *) fail "Unknown option $option. See sh install.sh --help." 2 ;;
    esac
done
command -v dirname > /dev/null && command -v uname > /dev/null || fail "The PATH '$PATH' lacks basic commands such as uname."
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || fail "Cannot read this directory."
[ -n "${EDGECHAT_PREFIX:-${HOME:-}}" ] || fail "HOME is not set. Set EDGECHAT_PREFIX to the installation directory."
[ -z "${EDGECHAT_PREFIX:-}" ] || use_pipx=no
prefix=${EDGECHAT_PREFIX:-$HOME/.local}

# Check this machine.
[ "$(uname -s)" = "@SYSTEM@" ] && [ "$(uname -m)" = "@MACHINE@" ] ||
    fail "This bundle is for @SYSTEM@ on @MACHINE@; this machine runs $(uname -s) on $(uname -m). Get the bundle for it."
if ldd --version 2>&1 | grep -qi musl; then
    fail "This system uses musl instead of glibc (Alpine?). This bundle cannot run here."
fi
[ -z "${EDGECHAT_PYTHON:-}" ] || command -v "$EDGECHAT_PYTHON" > /dev/null || fail "EDGECHAT_PYTHON is $EDGECHAT_PYTHON, which does not exist."
python=
for name in ${EDGECHAT_PYTHON:-python3 @NAMES@}; do
    command -v "$name" > /dev/null 2>&1 || continue
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || continue
    [ -f "$here/requirements-$version.txt" ] && python=$name && break
    older=${older:-$version}
done
[ -n "$python" ] || fail "Python @FIRST@ to @LAST@ is required (found: ${older:-none}). Install one, or set EDGECHAT_PYTHON to it."
"$python" - <<'CHECK' || exit 1
import platform, sys
if sys.maxsize < 2**32:
    sys.exit("edgechat: This is a 32-bit Python. The bundle needs a 64-bit system.")
name, have = platform.libc_ver()
if name == "glibc" and tuple(map(int, have.split(".")[:2])) < tuple(map(int, "@GLIBC@".split("."))):
    sys.exit(f"edgechat: glibc @GLIBC@ or newer is required; this system has {have}. Use a newer system or build from source.")
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
    sys.exit(f"edgechat: This bundle is damaged: {', '.join(wrong[:3])}. Nothing was installed. Copy the bundle again.")
CHECK

mkdir -p "$prefix" 2> /dev/null && [ -w "$prefix" ] && prefix=$(CDPATH='' cd -- "$prefix" && pwd) ||
    fail "Cannot write to $prefix. Set EDGECHAT_PREFIX to another directory."
needed=$(du -sk "$here" | cut -f1)
free=$(df -Pk "$prefix" | awk 'NR == 2 { print $4 }')
[ "$free" -gt $((needed * 2)) ] || fail "Not enough disk space in $prefix: $((needed * 2 / 1024)) MB needed, $((free / 1024)) MB free."

# Keep pip offline and ignore the user's settings for it.
for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\)=.*/\1/p'); do
    unset "$name"
done
wheels=$("$python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1], "wheels").as_uri())' "$here") # a URI, because pip splits paths at spaces
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONFIG_FILE=/dev/null PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV 2> /dev/null || :
home=$prefix/share/edgechat
echo "installing (less than a minute)"
if [ "$use_pipx" = yes ] && command -v pipx > /dev/null 2>&1; then
    pipx install --force --python "$python" "edgechat[starter,serve,documents]" || fail "pipx could not install edgechat. Try again with --no-pipx."
    for wheel in "$here"/wheels/edgechat_cuda*.whl "$here"/wheels/edgechat_vulkan*.whl; do
        [ ! -f "$wheel" ] || pipx inject edgechat "$wheel" || fail "pipx could not add ${wheel##*/}. Try again with --no-pipx."
    done
    command=$(pipx environment --value PIPX_BIN_DIR)/edgechat
else
    old=$home/venv
    new=$home/venv-new
    mkdir -p "$home" "$prefix/bin"
    rm -rf "$new"
    trap 'rm -rf "$new"' EXIT
    trap 'exit 130' HUP INT TERM
    # The new environment replaces the old one only when complete.
    "$python" -m venv --without-pip "$new" || fail "$python cannot create virtual environments. Install its venv module."
    pip=$(ls "$here"/wheels/pip-*.whl | tail -n 1)
    "$new/bin/python" "$pip/pip" install --quiet --no-deps --require-hashes -r "$here/requirements-$version.txt" ||
        fail "The installation failed. An earlier installation is unchanged."
    "$new/bin/python" -m edgechat --version > /dev/null || fail "The installed program does not start. An earlier installation is unchanged."
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
        *) printf '%s is not in your PATH. To add it: export PATH="%s:$PATH"\n' "$prefix/bin" "$prefix/bin" ;;
    esac
fi

if [ -n "$(ls "$here/models")" ]; then
    models=$home/bundle-models # separate from the user's own models directory
    mkdir -p "$models"
    cp "$here"/models/*.gguf "$models"
    "$command" models add "$models" > /dev/null || printf 'The models of this bundle are in %s. Choose one with -m.\n' "$models" >&2
fi
version=$("$command" --version)
printf 'Installed edgechat %s: %s\n' "${version##* }" "$command"
