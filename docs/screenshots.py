#!/usr/bin/env python3
"""Take pictures of the chat in a terminal window: seven for docs/images, or all situations with `--all FOLDER`.

`make screenshots` runs it. It needs Xvfb, xterm, xdotool and ImageMagick. The replies are those of the starter model,
and of the development model (`python -m tests.development_model`) in llama-server (`make peers`); the other
conversations are written here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parent.parent
IMAGES = Path(__file__).parent / "images"
PROGRAM: Final = [sys.executable, "-c", "from edgechat.cli.main import main; main()"]
SCRIPTED_PROGRAM: Final = [sys.executable, "-m", "tests.tui.scripted_program"]
SIZES: Final = {"80x24": (80, 24), "120x36": (120, 36), "200x60": (200, 60)}
IMAGE_SIZE: Final = (100, 30)
IMAGE_SIZES: Final = {"compare": (120, 36)}
REMOTE_SITUATIONS: Final = ("remote", "compare")
REMOTE_MODEL: Final = "qwen2.5-coder-0.5b"
REMOTE_PORT: Final = 8080
COLOURS: Final = {"dark": ("#121212", "#e0e0e0"), "light": ("#ffffff", "#202020")}
DAY_MS: Final = 86_400_000
STABLE_S: Final = 0.6
DEADLINE_S: Final = 30.0
START_S: Final = 120.0

SORT_REPLY = """Merge sort splits the list, sorts both halves, and merges them:

```python
def merge_sort(values: list[int]) -> list[int]:
    if len(values) < 2:
        return values
    middle = len(values) // 2
    left, right = merge_sort(values[:middle]), merge_sort(values[middle:])
    return list(heapq.merge(left, right))  # both halves are sorted
```

| algorithm | average | worst | stable |
|---|---|---|---|
| merge sort | $O(n \\log n)$ | $O(n \\log n)$ | yes |
| quick sort | $O(n \\log n)$ | $O(n^2)$ | no |

- [x] sorted halves
- [ ] equal elements keep their *order*

> Use `sorted()` in real code: it is **Timsort**.
"""
CONVERSATIONS: Final = [
    ("Sorting in Python", 0, [("How does merge sort work? Show me code and compare it to quick sort.", SORT_REPLY)]),
    ("Bread without a mixer", 1, [("How long do I knead by hand?", "About ten minutes, until a thin film holds."),
                                  ("And how warm should it rise?", "At 24 to 26 °C; colder takes longer.")]),
    ("Sorting photos by date", 3, [("How do I sort photos by date?", "Use `exiftool`, which reads the date.")]),
    ("Trip to Lisbon", 9, [("Three days in Lisbon with a child?", "Day 1: Belém and the boats. Day 2: the aquarium.")]),
    ("日本語の文法", 40, [("「は」と「が」の違いは", "「は」は主題を、「が」は主語を示します。")]),
]  # fmt: skip
STREAMED: Final = SORT_REPLY.partition("    return list(")[0] + "    return"

SITUATIONS: Final[dict[str, list[str]]] = {
    "first-run": [],
    "chat": [],
    "streaming": ["type How does merge sort work?", "key Return"],
    "statistics": ["type What is gravity?", "key Return", "key ctrl+t"],
    "message": ["key Escape", "key Up"],
    "conversations": ["key ctrl+b"],
    "search": ["key ctrl+f", "type sort"],
    "palette": ["key ctrl+p", "type sort"],
    "models": ["key ctrl+o", "wait 4", "key Right"],
    "settings": ["key F2"],
    "help": ["key F1"],
    "plan": ["key F3"],
    "attachments": ["type /attach README.md", "key Return", "type /attach missing.txt", "key Return"],
    "completion": ["type /te"],
    "remote": ["type Write a Python function that reverses a string.", "key Return", "wait 60"],
    "compare": [
        "type Write a Python function that reverses a string.",
        "key Return",
        "wait 10",
        f"type /also box/{REMOTE_MODEL}",
        "key Return",
        "type /compare",
        "key Return",
        "wait 80",
    ],
}
"""Steps from the start of the chat to the picture of each situation."""


class Window:
    """Terminal window on a virtual display."""

    def __init__(self, display: str, command: list[str], size: tuple[int, int], look: str, home: Path) -> None:
        """Start `command` in xterm; `look` is a key of `COLOURS`."""
        background, foreground = COLOURS[look]
        self._environment = {
            **os.environ, "DISPLAY": display, "EDGECHAT_HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self._environment.pop("TMUX", None)
        options = [
            "-geometry", f"{size[0]}x{size[1]}+0+0", "-fa", "DejaVu Sans Mono", "-fs", "10", "-u8", "+sb", "-b", "6",
            "-bg", background, "-fg", foreground, "-xrm", "XTerm*cursorBlink: false", "-title", "edgechat",
            "-tn", "xterm-256color",
        ]  # fmt: skip
        command = ["env", "COLORTERM=truecolor", *command]  # xterm removes the variable from its environment
        terminal = ["xterm", *options, "-e", shlex.join(command)]
        self._process = subprocess.Popen(terminal, env=self._environment, cwd=ROOT)
        self._id = self._run("xdotool", "search", "--sync", "--pid", str(self._process.pid)).split()[-1]

    def _run(self, *command: str) -> str:
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True).stdout

    def do(self, step: str) -> bytes:
        """Press a key (`key ctrl+b`), type text (`type hello`) or wait (`wait 3`); return the picture after it."""
        kind, _, argument = step.partition(" ")
        self._run("xdotool", "windowfocus", self._id)
        if kind == "wait":
            time.sleep(float(argument))
        elif kind == "key":
            self._run("xdotool", "key", argument)
        else:
            self._run("xdotool", "type", "--delay", "30", argument)
        return self.settle()

    def settle(self) -> bytes:
        """Wait until the window stops changing, at most `DEADLINE_S` seconds, and return its picture."""
        deadline = time.monotonic() + DEADLINE_S
        image, since = b"", time.monotonic()
        while time.monotonic() < deadline and (not image or time.monotonic() - since < STABLE_S):
            last, image = image, self.picture()
            since = since if last == image else time.monotonic()
            time.sleep(0.1)
        return image

    def picture(self) -> bytes:
        """Return the window as a PNG without times, so that equal windows give equal bytes."""
        command = ["import", "-window", self._id, "-define", "png:exclude-chunks=date,time", "-strip", "png:-"]
        return subprocess.run(command, env=self._environment, check=True, capture_output=True).stdout

    def close(self) -> None:
        """End the program and the window."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def virtual_display() -> Iterator[str]:
    """Start Xvfb on a free display, and yield the name of the display."""
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "2200x1300x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL) as server:
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            yield f":{pipe.readline().strip()}"
        server.terminate()


@contextlib.contextmanager
def llama_server() -> Iterator[str]:
    """Start a llama-server with the development model, and yield its URL."""
    sys.path.insert(0, str(ROOT))
    from edgechat.runtime.backends.bundle import find_bundle
    from tests.development_model import model_path
    from tests.llama_cpp import find_llama_server

    module = [m.path for m in find_bundle().modules if m.name.startswith("cpu")][-1]
    command = [
        str(find_llama_server()), "-m", str(model_path()), "--alias", REMOTE_MODEL, "-c", "2048", "--port",
        str(REMOTE_PORT), "--offline", "--jinja",
    ]  # fmt: skip
    environment = {**os.environ, "GGML_BACKEND_PATH": module}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:  # fmt: skip
        url = f"http://127.0.0.1:{REMOTE_PORT}"
        try:
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):  # noqa: S310
                    break
                time.sleep(0.2)
            yield f"{url}/v1"
        finally:
            server.terminate()


def prepare_home(home: Path, look: str, name: str, url: str) -> None:
    """Write the conversations and the settings of a situation; `url` is that of a remote, or ""."""
    home.mkdir(parents=True)
    theme = "textual-dark" if look == "dark" else "textual-light"
    environment = {**os.environ, "EDGECHAT_HOME": str(home), "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> str:
        command = [*PROGRAM, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    settings = Path(run("config", "path"))
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f'theme = "{theme}"\ntemperature = 0.0\nmax_tokens = 120\ntitles = false\n')
    if url:
        run("remotes", "add", "box", url)
    if name == "first-run":
        return
    now_ms = int(time.time() * 1000)
    items = []
    for title, n_days, turns in CONVERSATIONS:
        at_ms, messages, parent = now_ms - n_days * DAY_MS - len(items) * 1000, [], None
        for question, answer in turns:
            for role, text in (("user", question), ("assistant", answer)):
                message_id = f"{len(items):08d}{len(messages):08d}"
                messages.append({
                    "id": message_id, "parent_id": parent, "role": role, "text": text, "created_at_ms": at_ms,
                    "finish_reason": "stop" if role == "assistant" else "",
                })  # fmt: skip
                parent = message_id
        items.append({"conversation": {"id": f"{len(items):016d}", "title": title, "model": "starter",
                                       "created_at_ms": at_ms, "updated_at_ms": at_ms, "head_id": parent},
                      "messages": messages})  # fmt: skip
    file = home / "conversations.json"
    file.write_text(json.dumps({"format": "edgechat", "version": 1, "conversations": items}))
    run("history", "import", str(file))


def take_picture(name: str, size: tuple[int, int], look: str, file: Path) -> None:
    """Start the chat in a window, go to the situation `name` and save its picture."""
    program, arguments = PROGRAM, ["-c"]
    if name == "first-run":
        arguments = []
    elif name == "remote":
        arguments = ["-m", f"box/{REMOTE_MODEL}"]
    elif name == "streaming":
        program, arguments = SCRIPTED_PROGRAM, ["9", STREAMED, str(len(STREAMED) // 4 - 1)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        display = stack.enter_context(virtual_display())
        url = stack.enter_context(llama_server()) if name in REMOTE_SITUATIONS else ""
        home = Path(folder) / "home"
        prepare_home(home, look, name, url)
        window = Window(display, [*program, *arguments], size, look, home)
        try:
            time.sleep(3)
            image = window.settle()
            for step in SITUATIONS[name]:
                image = window.do(step)
            file.write_bytes(image)
        finally:
            window.close()
    print(file)


def main() -> None:
    """Take the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="all situations, sizes and themes, to FOLDER")
    parser.add_argument("names", nargs="*", help="situations; all by default")
    options = parser.parse_args()
    if options.all is None:
        IMAGES.mkdir(exist_ok=True)
        for name in options.names or ("chat", "conversations", "search", "models", "plan", *REMOTE_SITUATIONS):
            take_picture(name, IMAGE_SIZES.get(name, IMAGE_SIZE), "dark", IMAGES / f"{name}.png")
        return
    options.all.mkdir(parents=True, exist_ok=True)
    for name in options.names or SITUATIONS:
        for size_name, size in SIZES.items():
            for look in COLOURS:
                take_picture(name, size, look, options.all / f"{name}-{size_name}-{look}.png")


if __name__ == "__main__":
    main()
