"""Client of the render process: the time limit, and guards inside control tokens of messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt import renderer as renderer_module
from edgechat.prompt.renderer import PromptMessage, Renderer, guard_messages

CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|", "|>", "<|im_end|>x", "ab", "ba"]
FRAGMENTS = st.sampled_from([*CONTROL_TOKENS, "<", "|", ">", "im_end", "a", "b", "x", " ", "\ufdd0"])


def test_endless_template_is_stopped_and_the_next_one_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer_module, "TIMEOUT_S", 1.0)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    messages = [PromptMessage("user", "Hi")]
    renderer = Renderer()
    with pytest.raises(TemplateError, match="took more than 1 s"):
        renderer.render(endless, messages, bos="", eos="", control_tokens=[])
    assert renderer.render("ok", messages, bos="", eos="", control_tokens=[]).text == "ok"  # in a new child process
    renderer.close()


@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_no_control_token_survives_in_guarded_text(content: str) -> None:
    guarded, guard = guard_messages([PromptMessage("user", content)], CONTROL_TOKENS)
    text = guarded[0]["content"]
    assert not any(token in text for token in CONTROL_TOKENS)
    assert (text.replace(guard, "") if guard else text) == content
    assert bool(guard) == any(token in content for token in CONTROL_TOKENS)
    assert not guard or guard not in content


def test_closed_renderer_starts_no_process() -> None:
    closed_renderer = Renderer()
    closed_renderer.close()
    with pytest.raises(EngineDiedError, match="closed"):
        closed_renderer.start()
