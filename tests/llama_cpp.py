"""Parts of the pinned llama.cpp's source that tests use: chat templates, and the cases of its own chat tests."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgechat.files import FileLock
from tests.archives import unpack
from tests.conftest import ROOT

_COMPILE_TIMEOUT_S = 3600
_DUMP = """
static void dump_case(const common_chat_templates * templates, const peg_test_case & test) {
    json messages = json::array();
    for (const auto & message : test.params.messages) {
        messages.push_back(message.to_json_oaicompat());
    }
    json calls = json::array();
    for (const auto & call : test.expect.tool_calls) {
        calls.push_back({ { "name", call.name }, { "arguments", call.arguments } });
    }
    const auto & params = test.params;
    std::cout << json{
        { "template", common_chat_templates_source(templates) }, { "messages", messages },
        { "tools", params.tools.empty() ? json::array() : common_chat_tools_to_json_oaicompat(params.tools) },
        { "tool_choice", (int) params.tool_choice }, { "allow_parallel", params.parallel_tool_calls },
        { "splits_reasoning", params.reasoning_format != COMMON_REASONING_FORMAT_NONE },
        { "think", params.enable_thinking }, { "json_schema", params.json_schema },
        { "continues_reply", params.continue_final_message != COMMON_CHAT_CONTINUATION_NONE },
        { "variables", params.chat_template_kwargs }, { "output", test.input }, { "is_partial", test.is_partial },
        { "content", test.expect.content }, { "reasoning", test.expect.reasoning_content }, { "tool_calls", calls },
    }.dump_safe() << std::endl;
}

static void test_peg_parser("""


def sdist() -> Path:
    """Return the archive of the pinned source."""
    sys.path.insert(0, str(ROOT / "native"))
    import sources

    return sources.sdist()


def find_llama_server() -> Path:
    """Return the path of llama-server, built from the pinned source. Skips if the build is not in the cache."""
    sys.path.insert(0, str(ROOT / "native"))
    import build

    program = Path(build.locate(variants="none", peers=True)[0]) / "bin" / "llama-server"
    if not program.exists():
        pytest.skip("llama-server is not in the build cache; `python native/build.py peers` builds it")
    return program


@functools.cache
def read_templates() -> dict[str, str]:
    """Return the chat templates that llama.cpp collects, by name."""
    with tarfile.open(sdist()) as archive:
        members = [m for m in archive.getmembers() if "/models/templates/" in m.name and m.name.endswith(".jinja")]
        files = {Path(m.name).stem: archive.extractfile(m) for m in members}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


@functools.cache
def read_chat_cases() -> list[dict[str, Any]]:
    """Return the cases of llama.cpp's `tests/test-chat.cpp`, which is compiled to print them. Skips without a compiler.

    The cases are kept in the build cache.
    """
    sys.path.insert(0, str(ROOT / "native"))
    import sources
    import toolchain

    key = hashlib.sha256((sources.PIN_SHA256 + _DUMP).encode()).hexdigest()[:16]
    cache = toolchain.cache_dir() / "chat-cases" / f"{key}.jsonl"
    if not cache.exists():
        compiler = shutil.which("c++")
        if compiler is None:
            pytest.skip("llama.cpp's chat cases need a C++ compiler")
        cache.parent.mkdir(parents=True, exist_ok=True)
        # The processes of pytest-xdist need the cases at the same time, and one of them compiles.
        with contextlib.closing(FileLock(cache.with_suffix(".lock"))) as lock:
            assert lock.acquire(_COMPILE_TIMEOUT_S)
            if not cache.exists():
                with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
                    temporary = Path(scratch) / "cases.jsonl"
                    temporary.write_text(_print_cases(compiler, Path(scratch)), encoding="utf-8")
                    temporary.replace(cache)
    return [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]


def _print_cases(compiler: str, scratch: Path) -> str:
    unpack(sdist(), scratch)
    source = next(scratch.glob("*/vendor/llama.cpp"))
    test = source / "tests" / "test-chat.cpp"
    text = test.read_text(encoding="utf-8").replace("static void test_peg_parser(", _DUMP, 1)
    start = text.index("    auto parser = make_peg_parser(tmpls, tc.params, detailed_debug);")
    text = f"{text[:start]}    dump_case(tmpls, tc);\n    return;\n{text[start:]}"
    text = text[: text.index("int main(")] + "int main() { test_template_output_peg_parsers(false); }\n"
    test.write_text(text, encoding="utf-8")
    common, chat = source / "common", ROOT / "native" / "src" / "chat"
    patterns = ("chat*.cpp", "json*.cpp", "jinja/*.cpp", "parsers/*.cpp", "peg-parser.cpp", "trie.cpp", "unicode.cpp")
    files = [test, chat / "stubs.cpp", *(path for pattern in patterns for path in common.glob(pattern))]
    includes = [f"-I{source / name}" for name in ("common", "include", "ggml/include", "vendor", "tools/mtmd")]

    def compile_file(numbered: tuple[int, Path]) -> str:
        number, path = numbered
        target = str(scratch / f"{number}.o")
        options = ["-std=c++17", "-O1", "-w", "-ffunction-sections", f"-I{chat}", *includes]
        subprocess.run([compiler, *options, "-c", "-o", target, str(path)], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_file, enumerate(files)))
    program = str(scratch / "cases")
    subprocess.run([compiler, "-Wl,--gc-sections", "-o", program, *objects], check=True)
    return subprocess.run([program], cwd=source, check=True, capture_output=True, text=True).stdout
