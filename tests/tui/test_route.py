"""A route in the chat: both models are in the title line, and a line below the reply says why it was escalated."""

from __future__ import annotations

from pathlib import Path

from tests.tui.app_driver import ask, make_scripted_app, screen_text, session, shown_texts, title_text, wait_until_ready
from tests.waiting import until_async


async def test_escalated_reply_has_a_line_with_the_reason(home: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in ("small", "large")}
    for file in files.values():
        file.write_text("")
    route = {**{name: str(file) for name, file in files.items()}, "min_logprob": -0.5}
    app = make_scripted_app("Small reply.", route=route)
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.actions.run("model", "route")
        await until_async(lambda: "route: small, or large" in title_text(app))
        await until_async(lambda: not app.pane.is_busy)
        await ask(app, "Hi")
        await until_async(lambda: "Escalated from small to large: mean log probability" in screen_text(app))
        assert "Another answer." in " ".join(shown_texts(app, "assistant"))
        assert "Small reply." not in " ".join(shown_texts(app, "assistant"))
        assert "2/2" in screen_text(app)
        assert [m.model for m in session(app).tree.path] == ["", "large.gguf"]
        app.actions.run("switch", "1")
        await until_async(lambda: "Small reply." in " ".join(shown_texts(app, "assistant")))
