"""Sources that a reply of `edgechat ask` cites: lines on standard error, and fields of its JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from edgechat.cli.progress import StderrStatus
from edgechat.documents.descriptions import list_cited_passages
from edgechat.documents.passages import PassageSet
from edgechat.documents.prompt_text import NOT_FOUND

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.chat.session import Session
    from edgechat.documents.citations import Citation

# Number of passages that are named if a reply cites none.
_MAX_SHOWN_PASSAGES: Final = 3


def print_sources(session: Session, reply: Message, status: StderrStatus) -> None:
    """Print a line for each passage that a reply cites, such as "[2] report.pdf, page 3"."""
    sets = _read_sets(session, reply)
    if not any(sets):
        return
    citations = _find_citations(reply, sets)
    if not citations and reply.text and NOT_FOUND not in reply.text:
        status.note(f"The reply cites no passage.{_describe_best(_find_own_set(sets))}")
    for passage in list_cited_passages(citations):
        problems = _list_problems(citations, passage.number)
        status.note(f"[{passage.number}] {passage.place}" + (f" ({'; '.join(problems)})" if problems else ""))
    unknown_numbers = sorted({number for citation in citations for number in citation.unknown_numbers})
    if unknown_numbers:
        status.note(f"There is no passage {', '.join(f'[{n}]' for n in unknown_numbers)}.")


def make_source_fields(session: Session, reply: Message) -> dict[str, Any]:
    """Return the JSON fields of a reply about documents: passages, cited passages, and what was searched.

    There are no fields if the conversation has no documents.
    """
    sets = _read_sets(session, reply)
    if not any(sets):
        return {}
    own_set = _find_own_set(sets)
    citations = _find_citations(reply, sets)
    return {
        "passages": own_set.passages if own_set is not None else (),
        "cited": [
            {
                "number": passage.number, "place": passage.place, "document": passage.document, "path": passage.path,
                "problems": _list_problems(citations, passage.number),
            }
            for passage in list_cited_passages(citations)
        ],
        "searched": _make_searched(own_set),
    }  # fmt: skip


def _find_own_set(sets: list[PassageSet | None]) -> PassageSet | None:
    """Return the passages of the message that the reply answers, the last of `sets`; None if no message has any."""
    return next((s for s in reversed(sets) if s is not None), None)


def _describe_best(passages: PassageSet | None) -> str:
    """Return a sentence with the places of the best passages that a search found; "" for whole documents."""
    if passages is None or passages.is_whole or not passages.passages:
        return ""
    places = [f"[{p.number}] {p.place}" for p in passages.passages[:_MAX_SHOWN_PASSAGES]]
    return f" The best passages in the prompt: {'; '.join(places)}."


def _make_searched(passages: PassageSet | None) -> dict[str, Any]:
    import msgspec

    if passages is None:
        return {}
    return {
        "collections": passages.collections, "is_whole": passages.is_whole, "query": passages.query,
        **msgspec.structs.asdict(passages.searched),
    }  # fmt: skip


def _read_sets(session: Session, reply: Message) -> list[PassageSet | None]:
    """Return the passages of the messages before a reply; None for messages without passages."""
    path = session.tree.path_to(reply.id)
    if not any(a.is_passages for message in path for a in message.attachments):
        return []
    from edgechat.chat.message_passages import find_readable_passages

    return find_readable_passages(path, session.store.read_attachment)


def _find_citations(reply: Message, sets: list[PassageSet | None]) -> list[Citation]:
    from edgechat.documents.citations import find_citations

    return find_citations(reply.text, [p for s in sets if s is not None for p in s.passages])


def _list_problems(citations: list[Citation], number: int) -> list[str]:
    """Return what the claims with a citation say that the cited passages do not contain, each once."""
    problems = [
        f"not in the passage: {', '.join(c.missing_terms)}"
        for c in citations
        if c.missing_terms and number in [p.number for p in c.passages]
    ]
    return list(dict.fromkeys(problems))
