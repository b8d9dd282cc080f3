"""`--draft-model`: replies with a draft model and with heads equal those without, and unfit ones are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.draft_models import make_llama, make_qwen35, turn_into_chain
from tests.tiny_files import make_other_vocabularies

pytestmark = pytest.mark.usefixtures("warm")


def ask(cli: Cli, model: Path, *arguments: str) -> dict[str, Any]:
    flags = ("--temperature", "0", "--max-tokens", "60", "--ctx", "1024", "--threads", "1", "--json")
    output = cli("ask", "-m", str(model), *flags, *arguments, "Hello")
    assert output.returncode == 0, output.stderr
    reply: dict[str, Any] = json.loads(output.stdout)
    return reply


@pytest.mark.slow
def test_replies_do_not_depend_on_the_draft_model(cli: Cli, tmp_path: Path) -> None:
    target = turn_into_chain(make_llama(n_layer=4)).write(tmp_path / "target.gguf")
    draft = turn_into_chain(make_llama(seed=1)).write(tmp_path / "draft.gguf")
    hybrid = make_qwen35().write(tmp_path / "hybrid.gguf")
    for model, name in ((target, str(draft)), (target, str(target)), (hybrid, "auto")):
        plain, drafted = ask(cli, model, "--draft-model", "off"), ask(cli, model, "--draft-model", name)
        assert drafted["text"] == plain["text"]
        assert plain["text"]


def test_replies_are_decoded_without_a_model_that_cannot_draft(cli: Cli, tmp_path: Path) -> None:
    target = make_llama().write(tmp_path / "target.gguf")
    vocabulary, _ = make_other_vocabularies()["200 more tokens"]
    other = make_llama(vocabulary=vocabulary).write(tmp_path / "other.gguf")
    flags = ("--max-tokens", "4", "--ctx", "1024", "--threads", "1")
    for name, reason in ((other, "other cannot draft for target.gguf: it has a vocabulary of"), ("missing", "missing")):
        output = cli("ask", "-m", str(target), "--draft-model", str(name), *flags, "Hello")
        assert output.returncode == 0
        assert output.stdout
        assert "Decoding without the drafter: " in output.stderr
        assert reason in output.stderr
    hybrid = make_qwen35().write(tmp_path / "hybrid.gguf")
    output = cli("ask", "-m", str(hybrid), "--draft-model", "missing", *flags, "Hello")
    assert output.returncode == 0
    notice = "Drafting with the MTP heads of the model, not with the named drafter: No model with the name 'missing'."
    assert notice in output.stderr
    assert cli("ask", "-m", str(target), "--draft-model", "", "Hello").returncode == 2
