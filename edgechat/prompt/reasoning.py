"""What a model thinks aloud before it answers: recognised as it streams, and put back as the model wrote it."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from edgechat.engine.stop_strings import partial_match_length


class ReasoningFormat(msgspec.Struct, frozen=True):
    """How a family of models marks its reasoning."""

    opening: str
    closing: str
    answer: str = ""
    """What stands before every answer, with reasoning or without it."""
    inside: str = "\n"
    """What sets reasoning off from its marks."""
    after: str = "\n\n"
    """What sets the answer off from the closing mark."""

    @property
    def control_tokens(self) -> list[str]:
        """Control tokens that marks are made of: the engine leaves such tokens out of a text unless asked."""
        return control_tokens_in(self.opening + self.closing + self.answer)


_MARK: Final = re.compile(r"<\|?/?[\w:]+\|?>|\[/?[A-Z_]+\]")


def control_tokens_in(marks: str) -> list[str]:
    """What in the marks of a family may be a control token."""
    return _MARK.findall(marks)


# Marks read from the templates of the families, which llama.cpp collects; the more particular ones first.
FORMATS: Final = (
    ReasoningFormat(
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>", "", ""
    ),  # gpt-oss
    ReasoningFormat("<|channel>thought", "<channel|>", after=""),  # Gemma 4
    ReasoningFormat("[THINK]", "[/THINK]", inside="", after=""),  # Ministral, Magistral
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>", inside="", after=""),  # Command
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<mm:think>", "</mm:think>"),
    ReasoningFormat("<thinking>", "</thinking>"),  # Apriel
    ReasoningFormat("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM, Granite, LFM, GLM, Nemotron, Kimi and most others
)

# Names by which templates ask whether to think.
SWITCHES: Final = ("enable_thinking", "thinking", "reasoning_effort")


def detect(template: str) -> ReasoningFormat | None:
    """The format of a model, by its chat template; None if it knows no reasoning."""
    return next((f for f in FORMATS if f.closing in template or f.opening in template), None)


def switchable(template: str) -> bool:
    """True if the template can be told not to have the model think."""
    return detect(template) is not None and any(name in template for name in SWITCHES)


def switches(template: str, *, on: bool) -> dict[str, bool | str]:
    """Variables for a template; those that know degrees get a middle one, or the least."""
    degrees = ("medium", "high") if on else ("no_think", "low")
    effort = next((d for d in degrees if d in template), degrees[-1])
    return {"enable_thinking": on, "thinking": on, "reasoning_effort": effort}


Place = Literal["start", "reasoning", "gap", "answer"]
"""Before any mark, in the reasoning, between reasoning and answer, or in the answer."""


def place_after(form: ReasoningFormat | None, prompt: str) -> Place:
    """Where a text begins that a model writes after a prompt: some templates open the reasoning themselves."""
    if form is None:
        return "answer"
    return "reasoning" if prompt.rstrip().endswith(form.opening) else "start"


class ReasoningSplitter:
    """Parts a stream of text into reasoning and answer; a mark that is cut in two is held back until it is whole."""

    def __init__(self, form: ReasoningFormat | None, place: Place, *, fresh: bool = True) -> None:
        """`place` is where the text begins; `fresh` False if it goes on with what stopped there."""
        self._form = form
        self._place: Place = place
        self._held = ""
        self._matched = False
        self._trim = fresh and place == "reasoning"

    @property
    def thinking(self) -> bool:
        """True while what comes is reasoning."""
        return self._place == "reasoning"

    def feed(self, text: str) -> tuple[str, str]:
        """More text; returns the reasoning and the answer in it that are certain."""
        self._held += text
        return self._take(final=False)

    def finish(self) -> tuple[str, str]:
        """The end of the text: what was held back was no mark."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> tuple[str, str]:
        reasoning = ""
        form = self._form
        if form is None:
            answer, self._held = self._held, ""
            return "", answer
        if self._place == "start" and self._past(form.opening, final=final):
            self._place = "reasoning" if self._matched else "gap"
            self._trim = self._matched
        if self._place == "reasoning":
            reasoning = self._reasoning(form.closing, final=final)
        if self._place == "gap" and self._past(form.answer, final=final):
            self._place = "answer"
        answer = ""
        if self._place == "answer":
            answer, self._held = self._untrimmed(self._held), ""
        return reasoning, answer

    def _past(self, mark: str, *, final: bool) -> bool:
        """Drop `mark` if the text begins with it; False if that is not known yet. Blank text before it goes too."""
        begin = self._held.lstrip()
        self._matched = bool(mark) and begin.startswith(mark)
        if self._matched:
            self._held = begin[len(mark) :]
        return self._matched or final or not mark or not mark.startswith(begin)

    def _reasoning(self, closing: str, *, final: bool) -> str:
        self._held = self._untrimmed(self._held)
        found = self._held.find(closing)
        if found >= 0:
            reasoning, self._held = self._held[:found], self._held[found + len(closing) :]
            self._place, self._trim = "gap", True
            return reasoning
        keep = 0 if final else partial_match_length(self._held, closing)
        reasoning = self._held[: len(self._held) - keep]
        self._held = self._held[len(reasoning) :]
        return reasoning

    def _untrimmed(self, text: str) -> str:
        """`text` without the newlines that only set it off from a mark."""
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return text


def joined(form: ReasoningFormat | None, reasoning: str, text: str, prompt: str = "") -> str:
    """What the model wrote after `prompt`; reasoning without a text is taken as not at its end yet."""
    if form is None:
        return text
    ended = prompt.rstrip()
    if not reasoning or ended.endswith(form.closing):
        return form.answer + text
    opening = "" if ended.endswith(form.opening) else form.opening + form.inside
    if not text:
        return opening + reasoning
    return f"{opening}{reasoning}{form.inside}{form.closing}{form.answer}{form.after}{text}"
