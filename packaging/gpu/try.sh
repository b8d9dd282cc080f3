#!/bin/sh
# Try edgechat on a machine with a GPU, in less than 8 minutes and without a network.
#
#   sh try.sh cuda|vulkan WHEELS OUTPUT MODEL.gguf... [-- LLAMA_BENCH]
#
# WHEELS is a directory with a wheelhouse (`make wheels`) and the package with the GPU's kernels (`make cuda`,
# `make vulkan`). LLAMA_BENCH is llama-bench of the same llama.cpp (`make peers`); it uses the module of the package.
# Results are written to OUTPUT: summary.txt has a line PASS, FAIL, CUT (the time was over) or SKIP (does not apply to
# this GPU) for each check, platforms.md the same for docs/platforms.md, and report.md all output.
# The exit code is 0 only if no check failed and none was cut.
set -eu

[ $# -ge 4 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
exec "${EDGECHAT_PYTHON:-python3}" -X utf8 "$(dirname "$0")/try.py" "$@"
