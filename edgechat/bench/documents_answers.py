"""Replies of a chat model to questions about the synthetic corpus: correct, cited, or false.

A reply is correct if it contains the planted value. A question without an answer in the documents has a false claim as
its reply, unless the reply says in one of the usual phrases that nothing was found.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.documents_corpus import Question
from edgechat.bench.documents_report import AnswerScores
from edgechat.bench.documents_values import contains_value
from edgechat.chat.events import TurnFinished
from edgechat.chat.message_passages import find_readable_passages
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.documents.citations import find_citations
from edgechat.documents.passages import Passage
from edgechat.errors import EngineError
from edgechat.store import open_ephemeral_store

_MAX_TOKENS: Final = 160
_NOT_FOUND: Final = re.compile(
    r"\bnot (?:\w+ )?(?:found|mentioned|specified|provided|contained|stated|available|included|given|listed|known)\b"
    r"|\bnot in (?:these|the) (?:documents|passages)\b"
    r"|\b(?:do|does|did)(?: not|n't) (?:\w+ )?(?:contain|mention|specify|provide|say|state|include|list|give|know)\b"
    r"|\bno (?:\w+ )?(?:information|mention|passage|answer|data|record)\b"
    r"|\b(?:cannot|can't|could not|couldn't|unable to) (?:be )?(?:\w+ )?(?:find|found|answer|determine)"
)


class ReplyJudgement(msgspec.Struct, frozen=True, kw_only=True):
    """What is right and wrong in one reply."""

    is_answerable: bool
    is_correct: bool
    says_not_found: bool
    is_retrieved: bool
    """Whether a passage with the evidence was in the prompt."""
    is_cited: bool
    """Whether the reply cites a passage that exists."""
    is_cited_right: bool
    """Whether the reply cites a passage with the evidence."""
    n_suspicious: int
    """Number of citations whose sentence has numbers or names that the cited passages do not contain."""


def says_not_found(reply: str) -> bool:
    """Return whether a reply says that the documents do not have the answer."""
    return _NOT_FOUND.search(reply.casefold().replace("\u2019", "'")) is not None


def judge_reply(question: Question, reply: str, passages: Sequence[Passage]) -> ReplyJudgement:
    """Compare a reply with the answer to its question; `passages` are those of the prompt."""
    right = {passage.number for passage in passages if _has_evidence(passage, question)}
    citations = find_citations(reply, passages)
    cited = {passage.number for citation in citations for passage in citation.passages}
    return ReplyJudgement(
        is_answerable=question.is_answerable,
        is_correct=question.is_answerable and contains_value(reply, question.spellings),
        says_not_found=says_not_found(reply),
        is_retrieved=bool(right),
        is_cited=bool(cited),
        is_cited_right=bool(cited & right),
        n_suspicious=sum(bool(citation.missing_terms) for citation in citations),
    )


def _has_evidence(passage: Passage, question: Question) -> bool:
    if not question.is_answerable or passage.document.replace("\\", "/") != question.document:
        return False
    text = " ".join(passage.text.split())
    return all(" ".join(evidence.split()) in text for evidence in question.evidence)


def summarize_judgements(
    model: str, judgements: Sequence[ReplyJudgement], seconds_per_answer: float
) -> AnswerScores:  # fmt: skip
    """Count what is right and wrong in all replies."""
    answerable = [judgement for judgement in judgements if judgement.is_answerable]
    absent = [judgement for judgement in judgements if not judgement.is_answerable]
    return AnswerScores(
        model=model,
        n_answerable=len(answerable),
        n_absent=len(absent),
        n_correct=sum(judgement.is_correct for judgement in answerable),
        n_retrieved=sum(judgement.is_retrieved for judgement in answerable),
        n_not_found=sum(judgement.says_not_found and not judgement.is_correct for judgement in answerable),
        n_false_claims=sum(not judgement.says_not_found for judgement in absent),
        n_cited=sum(judgement.is_cited for judgement in answerable),
        n_cited_right=sum(judgement.is_cited_right for judgement in answerable),
        n_suspicious=sum(judgement.n_suspicious for judgement in judgements),
        seconds_per_answer=seconds_per_answer,
    )


def measure_answers(
    model: Path, collection: str, questions: Sequence[Question], on_progress: Callable[[str], None]
) -> AnswerScores:
    """Ask a model all questions about a collection, each in a new conversation. Raises EdgechatError."""
    settings = Settings(docs=(collection,), temperature=0.0, max_tokens=_MAX_TOKENS)
    judgements: list[ReplyJudgement] = []
    session = Session(open_ephemeral_store(), settings, model)
    try:
        session.open(lambda event: on_progress(event.message))
        started_at = time.monotonic()
        for i, question in enumerate(questions):
            on_progress(
                f"Answering: question {i + 1} of {len(questions)}, correct: {sum(j.is_correct for j in judgements)}"
            )
            if i:
                session.switch_conversation()
            reply, passages = _ask(session, question.text)
            judgements.append(judge_reply(question, reply, passages))
        elapsed_s = time.monotonic() - started_at
    finally:
        session.close()
    return summarize_judgements(model.name, judgements, elapsed_s / max(1, len(questions)))


def _ask(session: Session, text: str) -> tuple[str, tuple[Passage, ...]]:
    for event in session.send(text):
        if isinstance(event, TurnFinished):
            path = session.tree.path_to(event.reply.id)
            sets = find_readable_passages(path, session.store.read_attachment)
            return event.reply.text, tuple(p for passages in sets if passages is not None for p in passages.passages)
    raise EngineError("The model returned no reply.")
