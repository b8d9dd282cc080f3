"""What the screen shows, to the letter. `UPDATE_SNAPSHOTS=1` writes the files anew: look at them before you commit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from textual.widgets import Static

from edgechat.chat import events
from edgechat.chat.loading import Listener
from edgechat.chat.messages import Message
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.engine.protocol import GenerationStats, Loaded
from edgechat.errors import EngineDiedError
from edgechat.store import ephemeral_store
from edgechat.tui.app import ChatApp
from edgechat.tui.prompt import Prompt

SNAPSHOTS = Path(__file__).parent / "snapshots"
ANSWER = """Here is a function:

```python
def add(a, b):
    return a + b
```

| a | b | sum |
|---|---|-----|
| 1 | 2 | 3   |

- short
- *clear*, and **to the point**
"""


class ScriptedSession(Session):
    """A session whose engine is a script."""

    def __init__(self, *, dies: bool = False) -> None:
        super().__init__(ephemeral_store(), Settings(titles=False), Path("scripted.gguf"))
        self._dies = dies

    def open(self, listen: Listener = lambda event: None) -> Loaded:
        listen(events.LoadProgressed(phase="loading", words="loading the model: 50%", fraction=0.5))
        self.warnings.append("scripted.gguf has no chat template: using the format 'plain'")
        self.engine.loaded = Loaded(
            id=1, backend="cpu", n_ctx=2048, n_ctx_train=2048, n_threads=1, n_params=1, size_bytes=1,
            chat_template=None, bos="", eos="", control_tokens=[], can_rewind=True, load_s=0.0,
        )  # fmt: skip
        return self.engine.loaded

    def send(self, text: str, attachments: Sequence[Path] = (), n_answers: int = 1) -> Iterator[events.SessionEvent]:
        assert text
        assert (attachments, n_answers) == ((), 1)
        yield events.PrefillProgressed(done_tokens=5, total_tokens=5)
        for start in range(0, len(ANSWER), 16):
            yield events.TokensGenerated(text=ANSWER[start : start + 16], reasoning="", n_tokens=4)
            if self._dies and start > 40:
                raise EngineDiedError("the engine process died by SIGSEGV (signal 11)")
        stats = GenerationStats(
            prompt_tokens=5, cached_tokens=0, completion_tokens=50, ttft_s=0.1, prefill_tps=100.0, decode_tps=42.0
        )
        answer = Message(id="a", role="assistant", text=ANSWER, finish_reason="stop", stats=stats)
        yield events.TurnFinished(answer=answer, context_tokens=55)


def screen_text(app: ChatApp) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (40, 16)])
@pytest.mark.parametrize("dies", [False, True])
async def test_a_conversation(size: tuple[int, int], *, dies: bool) -> None:
    app = ChatApp(lambda: ScriptedSession(dies=dies), ["config.toml: top_k: Expected `int`"])
    async with app.run_test(size=size) as pilot:
        live = app.query_one("#live", Static)
        for _ in range(200):
            if str(live.content).startswith("ready"):
                break
            await asyncio.sleep(0.02)
        app.query_one(Prompt).text = "Write a function that adds.\nKeep it short."
        await pilot.press("enter")
        for _ in range(200):
            if str(live.content).startswith("ready"):
                break
            await asyncio.sleep(0.02)
        await pilot.pause(0.3)
        text = screen_text(app)
    name = SNAPSHOTS / f"conversation-{'dies-' if dies else ''}{size[0]}x{size[1]}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        name.parent.mkdir(exist_ok=True)
        name.write_text(text, encoding="utf-8")
    assert text == name.read_text(encoding="utf-8")
