"""Complete grammars of replies: rules for the content, with the marks around it, after optional reasoning.

The grammar language is llguidance's variant of Lark, which supports JSON schemas.
"""

from __future__ import annotations

import json

from edgechat.prompt.builder import BuiltPrompt, PromptBuilder
from edgechat.prompt.content_marks import NO_MARKS, ContentMarks
from edgechat.prompt.reasoning import ReasoningFormat, ReplyPhase
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import choose_reasoning_format


def make_output_grammar(builder: PromptBuilder, prompt: BuiltPrompt, options: PromptOptions, rules: str) -> str:
    """Return the grammar of a reply to `prompt` whose content matches `rules`. Raises EngineDiedError.

    `options` are those of the prompt. Without `options.think`, the reply has no reasoning, unless the prompt begins it.
    """
    return add_reasoning_rules(
        rules, choose_reasoning_format(builder.reasoning_format, prompt.reply_format), prompt.phase,
        think=options.think, marks=builder.formats.find_content_marks(options),
    )  # fmt: skip


def add_content_marks(rules: str, marks: ContentMarks) -> str:
    """Surround `rules` with the marks of the content: a start mark and an optional end mark."""
    if not marks.starts:
        return rules
    expression, line_end, definitions = rules.partition("\n")
    end = f" {quote(marks.end)}?" if marks.end else ""
    return f"({' | '.join(map(quote, marks.starts))}) ({expression}){end}{line_end}{definitions}"


def add_reasoning_rules(
    rules: str, reasoning_format: ReasoningFormat | None, phase: ReplyPhase, *, think: bool,
    marks: ContentMarks = NO_MARKS,
) -> str:  # fmt: skip
    """Return a complete grammar: unrestricted reasoning if the reply can contain reasoning, then `rules` for content.

    `marks` are the strings that the model writes before and after the content, if any.
    """
    rules = add_content_marks(rules, marks)
    if reasoning_format is None or phase == "content" or (phase == "start" and not think):
        return f"start: {rules}\n"
    start_tag, end_tag = quote(reasoning_format.start_tag), quote(reasoning_format.end_tag)
    reasoning_rule = "thoughts" if phase == "reasoning" else f"({start_tag} thoughts)?"
    has_prefix = reasoning_format.content_prefix and not marks.starts
    content_prefix = f" {quote(reasoning_format.content_prefix)}" if has_prefix else ""
    return (
        f"start: {reasoning_rule}{content_prefix} body\n"
        f"thoughts: closed /[ \\t\\r\\n]{{0,4}}/\nclosed[lazy]: THOUGHTS {end_tag}\nTHOUGHTS: /(.|\\n)*/\n"
        f"body: {rules}\n"
    )


def quote(text: str) -> str:
    """Return `text` as a string literal of a grammar."""
    return json.dumps(text)
