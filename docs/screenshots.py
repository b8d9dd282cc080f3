#!/usr/bin/env python3
"""Draw the pictures in docs/images with the real program and the starter model. `make screenshots` runs it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
SIZE = (100, 28)
QUESTION = "Write a short Python function that adds two numbers."


async def main() -> None:
    """Chat with the starter model and draw each screen."""
    from edgechat import config
    from edgechat.catalogue.library import starter_model
    from edgechat.chat.session import Session
    from edgechat.cli.chat import export
    from edgechat.engine.cancellation import Cancellation
    from edgechat.models import selection
    from edgechat.store import open_store
    from edgechat.tui.app import ChatApp

    store = open_store()
    settings = config.Settings(temperature=0.0, max_tokens=160, figures=True)
    app = ChatApp(lambda: Session(store, settings, starter_model()), [], settings, export)

    def draw(name: str) -> None:
        (IMAGES / f"{name}.svg").write_text(app.export_screenshot(title="edgechat"), encoding="utf-8")
        print(f"docs/images/{name}.svg")

    async def idle() -> None:
        while app.return_code is None and (  # noqa: ASYNC110
            app.pane.is_busy or app.worker.session is None or app.worker.session.model_properties is None
        ):
            await asyncio.sleep(0.05)

    async def ask(text: str) -> None:
        app.pane.prompt.load(text)
        app.pane.prompt.action_send()
        await asyncio.sleep(0.3)
        await idle()

    async with app.run_test(size=SIZE) as pilot:
        await idle()
        await ask("What is gravity?")
        await pilot.press("ctrl+n")
        await ask(QUESTION)
        await ask("/retry")
        await pilot.pause(1.5)  # the model generates a title
        await idle()
        draw("chat")
        await pilot.press("ctrl+b")
        await pilot.pause(0.5)
        draw("conversations")
        await pilot.press("escape", "ctrl+f", *"gravity")
        await pilot.pause(0.8)
        draw("search")
        await pilot.press("escape")
        await asyncio.to_thread(selection.measure_speeds, Cancellation())
        await pilot.press("ctrl+o")
        await pilot.pause(3)
        draw("models")
        await pilot.press("escape", "f3")
        await pilot.pause(0.3)
        draw("plan")
    app.worker.close()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["EDGECHAT_HOME"] = home
        asyncio.run(main())
