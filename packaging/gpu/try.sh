#!/bin/sh
# Try edgechat on a machine with a GPU, in less than 8 minutes and without a network.
#
#   sh try.sh cuda|vulkan WHEELS OUTPUT MODEL.gguf... [-- LLAMA_BENCH]
#
# WHEELS is a directory with a wheelhouse (`make wheels`) and the package with the GPU's kernels (`make cuda`,
# `make vulkan`). All results are written to OUTPUT; report.md sums them up. LLAMA_BENCH is llama-bench of the same
# llama.cpp with the same kernels.
set -eu

[ $# -ge 4 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
kind=$1
wheels=$(cd "$2" && pwd)
output=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$output"
output=$(cd "$output" && pwd)
export EDGECHAT_HOME="$output/home" EDGECHAT_KEEP_ALIVE=0 EDGECHAT_ENGINE=private PIP_DISABLE_PIP_VERSION_CHECK=1

if [ -n "${EDGECHAT_TRY_PYTHON:-}" ]; then # an environment that is ready
    python=$EDGECHAT_TRY_PYTHON
else
    "${EDGECHAT_PYTHON:-python3}" -m venv "$output/venv"
    python=$output/venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$wheels" "edgechat[starter]" ||
        { echo "try: edgechat cannot be installed from $wheels" >&2; exit 1; }
    for wheel in "$wheels"/edgechat_"$kind"*.whl; do
        [ -f "$wheel" ] || { echo "try: $wheels has no package edgechat_$kind" >&2; exit 1; }
        "$python" -m pip install --quiet --no-index --find-links "$wheels" "$wheel" ||
            "$python" -m pip install --quiet --no-index --no-deps "$wheel"
    done
fi
"$python" -X utf8 "$here/try.py" "$output" "$@" 2> "$output/errors.log" || echo "try: ended with code $?; see $output/errors.log" >&2
cat "$output/report.md"
