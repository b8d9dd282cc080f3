"""Model files with mutated headers: refused with code 3 and one sentence, or loaded, but never a crash."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgechat import paths
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, EngineDiedError, ModelFileError
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from tests.conftest import Cli, remove_notes
from tests.engine.conftest import load_request
from tests.fuzzing import scale
from tests.gguf_file import ARRAY, BOOL, F32, I32, STRING, U32, RawGguf, RawTensor, tensor_bytes
from tests.models import KINDS, write_parrot, write_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
N_MUTATIONS = scale(2500)
INTEGERS = (0, 1, 2, 3, 5, 7, 8, 16, 63, 64, 65, 128, 512, 513, 65535, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3e38, 1e10, -1e-5)
TEXTS = (b"", b"evil", b"x" * 2000, b"\xff\xfe", b"none", b"yarn", b"llama", b"bert", b"gpt2", b"t5", b"rwkv")
NEW_KEYS = (
    "ARCH.nextn_predict_layers", "ARCH.expert_count", "ARCH.expert_used_count", "ARCH.expert_group_count",
    "ARCH.expert_group_used_count", "ARCH.rope.scaling.type", "ARCH.rope.scaling.factor", "ARCH.rope.freq_base",
    "ARCH.rope.dimension_sections", "ARCH.attention.key_length", "ARCH.attention.value_length",
    "ARCH.attention.sliding_window", "ARCH.attention.sliding_window_pattern", "ARCH.attention.layer_norm_epsilon",
    "ARCH.attention.causal", "ARCH.pooling_type", "ARCH.logit_scale", "ARCH.attn_logit_softcapping", "split.count",
    "general.alignment", "general.file_type", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.pre", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.chat_template",
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "type_id", "value", "message"),
    [
        ("ARCH.block_count", U32, 0, "claims 0 layers"),
        ("ARCH.rope.scaling.type", STRING, b"evil", "has the RoPE scaling 'evil'"),
        ("ARCH.attention.layer_norm_rms_epsilon", F32, math.nan, "has the value nan"),
        ("ARCH.expert_count", U32, 5, "claims to use 0 of 5 experts"),
        ("ARCH.nextn_predict_layers", U32, 3, "claims 3 prediction layers"),
        ("general.alignment", U32, 1, "has an alignment of 1 bytes"),
        ("tokenizer.ggml.model", STRING, b"bert", "has byte tokens in its vocabulary"),
        ("ARCH.expert_count", U32, 1025, "claims 1025 experts; llama.cpp reads at most 1024"),
        ("ARCH.expert_used_count", U32, 2, "claims to use 2 of 0 experts"),
    ],
)
def test_ask_refuses_the_file_with_one_sentence(
    tmp_path: Path, run_here: Cli, key: str, type_id: int, value: object, message: str
) -> None:
    good = RawGguf.read(write_parrot(tmp_path / "good.gguf", "Hi"))
    bad = good.with_value(key, type_id, value).write(tmp_path / "bad.gguf")
    result = run_here("ask", "Hi", "-m", str(bad))
    assert (result.returncode, len(remove_notes(result.stderr).splitlines())) == (3, 1), result.stderr
    assert f"edgechat: {bad} {message}" in result.stderr


def test_ask_refuses_a_token_that_occurs_twice(tmp_path: Path, run_here: Cli) -> None:
    good = RawGguf.read(write_parrot(tmp_path / "good.gguf", "Hi"))
    element_type, tokens = good.metadata["tokenizer.ggml.tokens"][1]
    value = element_type, [*tokens[:-1], tokens[5]]
    bad = good.with_value("tokenizer.ggml.tokens", ARRAY, value).write(tmp_path / "bad.gguf")
    result = run_here("ask", "Hi", "-m", str(bad))
    assert (result.returncode, len(remove_notes(result.stderr).splitlines())) == (3, 1), result.stderr
    assert f"edgechat: {bad} has the token {tokens[5].decode()!r} twice in its vocabulary" in result.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ARCH.expert_count", 8, "blk.0.ffn"),
        ("ARCH.expert_count", 2, "claims to use 4 of 2 experts"),
        ("ARCH.expert_used_count", 5, "claims to use 5 of 4 experts"),
    ],
)
def test_ask_refuses_numbers_of_experts_that_the_weights_do_not_have(
    tmp_path: Path, run_here: Cli, key: str, value: int, message: str
) -> None:
    good = RawGguf.read(write_tiny(tmp_path / "good.gguf", "moe"))
    bad = good.with_value(key, U32, value).write(tmp_path / "bad.gguf")
    result = run_here("ask", "Hi", "-m", str(bad))
    assert (result.returncode, len(remove_notes(result.stderr).splitlines())) == (3, 1), result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("type_id", [24, 26, 28])
def test_weights_of_an_unusable_type_are_refused_before_the_engine_starts(
    tmp_path: Path, run_here: Cli, type_id: int
) -> None:
    good = RawGguf.read(write_parrot(tmp_path / "good.gguf", "Hi"))
    bad = good.with_type("blk.0.attn_k.weight", type_id).write(tmp_path / "bad.gguf")
    for arguments in (["ask", "Hi", "-m", str(bad)], ["plan", "-m", str(bad)]):
        result = run_here(*arguments)
        assert result.returncode == 3
        assert f"has the weights 'blk.0.attn_k.weight' of type {TENSOR_TYPES[type_id].name}" in result.stderr
    assert not paths.log_file().exists() or "attn_k" not in paths.log_file().read_text()


@pytest.fixture
def client() -> Iterator[EngineClient]:
    engine = EngineClient()
    yield engine
    engine.close()


@pytest.mark.long
def test_mutated_headers_never_crash_a_computation(tmp_path: Path, client: EngineClient) -> None:
    models = [RawGguf.read(write_tiny(tmp_path / f"{kind}.gguf", kind)) for kind in KINDS]
    rng, outcomes = random.Random(1), dict.fromkeys(("refused", "rejected", "loaded"), 0)
    path = tmp_path / "mutated.gguf"
    for _ in range(N_MUTATIONS):
        description, model = mutate(rng.choice(models), rng)
        print(description)  # noqa: T201  (pytest shows it after a failure)
        model.write(path)
        outcome, message = load(client, path)
        outcomes[outcome] += 1
        assert "\n" not in message, f"{description}: {message}"
    print(outcomes)  # noqa: T201  (a figure for the report)
    assert min(outcomes.values()) > N_MUTATIONS // 20


def load(client: EngineClient, path: Path) -> tuple[str, str]:
    """Check and load a model file, and generate two tokens. Return the outcome and the error message."""
    try:
        check_header(read_gguf_header(path))
    except ModelFileError as error:
        return "refused", str(error)
    try:
        client.load(load_request(client, path, 256))
        list(client.generate(protocol.Generate(id=client.next_id(), text="Hello", max_tokens=2)))
    except EngineDiedError:
        raise
    except EdgechatError as error:
        return "rejected", str(error)
    return "loaded", ""


def mutate(model: RawGguf, rng: random.Random) -> tuple[str, RawGguf]:
    """Return a description and a copy of a model with one changed, added or deleted value or tensor."""
    changed, action = model.copy(), rng.randrange(5)
    if action == 0:
        key = rng.choice(list(model.metadata))
        del changed.metadata[key]
        return f"without {key}", changed
    if action <= 2:
        key = rng.choice(list(model.metadata)) if action == 1 else rng.choice(NEW_KEYS)
        type_id, value = random_value(rng, model.metadata.get(key))
        return f"{key} = {repr(value)[:80]}", model.with_value(key, type_id, value)
    index = rng.randrange(len(model.tensors))
    name, shape, type_id, _ = model.tensors[index]
    if action == 3:
        type_id = rng.choice([t for t, kind in TENSOR_TYPES.items() if shape[0] % kind.block_size == 0])
        return f"{name} of type {TENSOR_TYPES[type_id].name}", model.with_type(name, type_id)
    shape = rng.choice([shape[::-1], (*shape, 2), (*shape[:-1], 1), (shape[0] * 2, *shape[1:]), (32,)])
    changed.tensors[index] = RawTensor(name, shape, type_id, bytes(tensor_bytes(shape, type_id)))
    return f"{name} of shape {shape}", changed


def random_value(rng: random.Random, old_value: tuple[int, Any] | None) -> tuple[int, Any]:
    if old_value is not None and old_value[0] == ARRAY and rng.random() < 0.8:
        element_type, elements = old_value[1]
        choice = rng.randrange(6)
        if choice == 0:
            elements = elements[: rng.randrange(len(elements) + 1)]
        elif choice == 1:
            elements = elements + elements[-1:]
        elif choice == 2 and elements:
            elements = [rng.choice(elements)] * len(elements)
        elif choice == 3 and elements:
            elements = rng.sample(elements, len(elements))
        elif choice == 4 and element_type in (U32, I32):
            elements = [rng.choice((0, 1, 3, 6, 99, 2**31 - 1)) for _ in elements]
        elif element_type == STRING:
            elements = [rng.choice((b"", b"a", b"\xff", element)) for element in elements]
        return ARRAY, (element_type, elements)
    kind = rng.choice((U32, U32, U32, I32, F32, F32, BOOL, STRING, STRING, ARRAY))
    if kind == ARRAY:
        return ARRAY, (U32, [rng.choice(INTEGERS) for _ in range(rng.randrange(4))])
    values: Any = {U32: INTEGERS, I32: (-1, 0, 1, -(2**31)), F32: FLOATS, BOOL: (True, False), STRING: TEXTS}[kind]
    return kind, rng.choice(values)
