"""Crashes of the engine: whose fault they are, and that one bad model changes nothing for others."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineDiedError, ModelCrashError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.memory import LoadOptions
from tests.conftest import Cli, remove_notes
from tests.engine.conftest import load_request
from tests.gguf_file import ARRAY, F32, STRING, U32, RawGguf
from tests.models import write_parrot, write_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
I32_TYPE = 26


@pytest.fixture
def client() -> Iterator[EngineClient]:
    engine = EngineClient()
    yield engine
    engine.close()


@pytest.fixture
def parrot(tmp_path: Path) -> Path:
    return write_parrot(tmp_path / "parrot.gguf", "Hi")


@pytest.fixture
def bad(parrot: Path, tmp_path: Path) -> Path:
    """A model whose first matrix product crashes every CPU module; `edgechat ask` refuses it before."""
    return RawGguf.read(parrot).with_type("blk.0.attn_k.weight", I32_TYPE).write(tmp_path / "bad.gguf")


def generate(client: EngineClient, path: Path) -> str:
    """Load a model, generate one token, and return the backend."""
    loaded = client.load(load_request(client, path, 256))
    for _ in client.generate(protocol.Generate(id=client.next_id(), text="Hello", max_tokens=1)):
        pass
    return loaded.backend


def read_crashes() -> list[dict[str, object]]:
    return list(json.loads(paths.verdicts_file().read_text()).get("crashes", {}).values())


def test_crashes_of_one_model_change_the_backend_only_for_this_model(
    client: EngineClient, bad: Path, parrot: Path, cli: Cli
) -> None:
    best = generate(client, parrot)
    for _ in range(2):
        with pytest.raises(EngineDiedError, match=r"died while computing: SIGSEGV \(signal 11\)"):
            generate(client, bad)
    assert [(r["module"], r["model"], r["n_crashes"]) for r in read_crashes()] == [(best, "bad.gguf", 2)]
    assert generate(client, parrot) == best
    loaded = client.load(load_request(client, bad, 256))  # in a new process, because the module is another
    assert loaded.backend != best
    assert generate(client, parrot) == best
    doctor = json.loads(cli("doctor", "--json").stdout)
    assert doctor["backend"] == best
    assert [d["model"] for d in doctor["distrusted"]] == ["bad.gguf"]
    text = cli("doctor").stdout
    assert f"{best}" in text
    assert "not used with bad.gguf: the engine failed on it 2 times, most recently with SIGSEGV (signal 11) on" in text
    assert json.loads(cli("doctor", "--json", "--retest").stdout)["distrusted"] == []


def test_model_that_crashes_on_every_module_does_not_affect_other_models(
    client: EngineClient, bad: Path, parrot: Path
) -> None:
    best = generate(client, parrot)
    backends = []
    for _ in range(40):
        backends.append(client.load(load_request(client, bad, 256)).backend)
        with pytest.raises(EngineDiedError):
            list(client.generate(protocol.Generate(id=client.next_id(), text="Hello", max_tokens=1)))
        if len(backends) > 2 and backends[-1] == best:
            break
    assert backends[0] == backends[1] == backends[-1] == best  # all modules were tried, the best one twice
    assert len(set(backends)) == len(backends) - 2
    assert generate(client, parrot) == best


def test_file_that_shrinks_while_it_is_used_is_not_held_against_the_module(
    client: EngineClient, parrot: Path, tmp_path: Path
) -> None:
    best = generate(client, parrot)
    for _ in range(3):
        model = Path(shutil.copy(parrot, tmp_path / "shrinking.gguf"))
        client.load(load_request(client, model, 256))
        with model.open("r+b") as file:
            file.truncate(4096)
        with pytest.raises(EngineDiedError, match="a model file was truncated or became unreadable"):
            list(client.generate(protocol.Generate(id=client.next_id(), text="Hello", max_tokens=1)))
    assert read_crashes() == []
    assert generate(client, parrot) == best


@pytest.mark.parametrize(
    ("key", "type_id", "value", "assertion"),
    [
        ("ARCH.block_count", U32, 0, "llama-model.cpp"),
        ("ARCH.attention.sliding_window_pattern", U32, 1, "GGML_ASSERT(hparams.is_swa_any()) failed"),
        ("tokenizer.ggml.model", STRING, b"bert", "llama-vocab.cpp"),
        ("ARCH.attention.layer_norm_rms_epsilon", F32, -1.0, "GGML_ASSERT(eps >= 0.0f) failed"),
    ],
)
def test_failed_assertion_is_an_error_of_the_model_file(
    client: EngineClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, type_id: int, value: object,
    assertion: str,
) -> None:  # fmt: skip
    good = write_tiny(tmp_path / "good.gguf", "sliding")
    bad = RawGguf.read(good).with_value(key, type_id, value).write(tmp_path / "bad.gguf")
    for name in ("gdb", "lldb"):
        debugger = tmp_path / "programs" / name
        debugger.parent.mkdir(exist_ok=True)
        debugger.write_text(f"#!/bin/sh\ntouch '{tmp_path}/attached'\n")
        debugger.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "programs"), prepend=os.pathsep)
    generate(client, good)
    with pytest.raises(ModelCrashError) as caught:
        generate(client, bad)
    assert not (tmp_path / "attached").exists(), "ggml attached a debugger, which takes up to 10 s"
    assert str(caught.value).startswith(f"{bad} cannot be used: llama.cpp stopped with '")
    assert assertion in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_crashes() == []
    assert generate(client, good)


def test_failed_assertion_during_a_memory_probe_is_an_error_of_the_model_file(
    client: EngineClient, parrot: Path, tmp_path: Path
) -> None:
    bad = RawGguf.read(parrot).with_value("ARCH.block_count", U32, 0).write(tmp_path / "bad.gguf")
    client.load(load_request(client, parrot, 256))
    options = LoadOptions(n_ctx=256, n_seqs=1)
    with pytest.raises(ModelCrashError, match=r"bad\.gguf cannot be used: llama\.cpp stopped with"):
        client.probe_memory(protocol.ProbeMemory(id=client.next_id(), model_path=str(bad), options=options))
    assert generate(client, parrot)


def test_crash_in_a_new_context_is_an_error_of_the_model_file(client: EngineClient, tmp_path: Path) -> None:
    good = write_tiny(tmp_path / "good.gguf", "moe")
    experts_used = (U32, [2, 0])
    bad = RawGguf.read(good).with_value("ARCH.expert_used_count", ARRAY, experts_used).write(tmp_path / "bad.gguf")
    plan = make_manual_plan(str(bad), n_threads=1, n_ctx=256)
    with pytest.raises(ModelCrashError, match=r"llama\.cpp stopped with 'SIGSEGV \(signal 11\)'"):
        client.load(protocol.Load(id=client.next_id(), plan=plan))
    assert read_crashes() == []


def test_repeated_token_is_refused_by_ask_with_code_3(tmp_path: Path, cli: Cli, parrot: Path) -> None:
    model = RawGguf.read(parrot)
    tokens = list(model.metadata["tokenizer.ggml.tokens"][1][1])
    tokens[300] = tokens[301]
    bad = model.with_value("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)).write(tmp_path / "bad.gguf")
    result = cli("ask", "-m", str(bad), "Hi")
    assert result.returncode == 3
    assert f"edgechat: {bad} has the token" in result.stderr
    assert len(remove_notes(result.stderr).splitlines()) == 1
