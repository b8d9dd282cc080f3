#!/usr/bin/env python3
"""Build the chat library with the address and undefined-behaviour sanitizers, and print its path.

The compilation takes several minutes and 1 GB of memory for each of `--jobs`; it is kept in the build cache.
CONTRIBUTING.md describes the use. Needs GCC on Linux.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sources import PIN, PIN_SHA256, sdist, unpack
from toolchain import BuildError, cache_dir, compiler_identity, identity, run, tool

FUZZ = Path(__file__).resolve().parent / "fuzz"


def main() -> int:
    """Build the library. Its path goes to standard output, everything else to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="number of files that are compiled at the same time")
    options = parser.parse_args()
    try:
        print(build(options.jobs))
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def build(jobs: int) -> Path:
    """Configure and compile in the build cache; unchanged files are not compiled again. Raises BuildError."""
    tree = cache_dir() / "fuzz" / identity({"pin": PIN_SHA256, "compiler": compiler_identity(), "clone": str(FUZZ)})
    tree.mkdir(parents=True, exist_ok=True)
    source = tree / f"llama_cpp_python-{PIN}"
    if not source.exists():
        unpack(sdist(), tree)
    cmake, llama_cpp = tool("cmake"), source / "vendor" / "llama.cpp"
    run(
        [cmake, "-S", str(FUZZ), "-B", str(tree / "build"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
         f"-DEDGECHAT_LLAMA_DIR={llama_cpp}"],
        what="configuring the chat library",
    )  # fmt: skip
    run([cmake, "--build", str(tree / "build"), "--parallel", str(jobs)], what="compiling the chat library")
    return tree / "build" / "libedgechat-chat.so"


if __name__ == "__main__":
    sys.exit(main())
