"""Events that a session yields while it runs a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgechat.chat.messages import Message
from edgechat.documents.descriptions import describe_omitted
from edgechat.documents.passages import PassageSet
from edgechat.humanize import format_count, format_duration
from edgechat.models.events import CpuFallback, ModelLoadProgressed

if TYPE_CHECKING:
    from edgechat.prompt.agreement.picker import ReplyPick


class TurnStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A turn started. The message and an empty reply are saved; generation has not started yet."""

    message: Message
    """Message that the model replies to."""
    reply: Message


class CollectionProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """A collection of a folder in the message is being updated."""

    name: str
    progress: str

    @property
    def message(self) -> str:
        return f"{self.name}: {self.progress}"


class CollectionUpdated(msgspec.Struct, frozen=True, kw_only=True):
    """A folder or document in the message is now a collection of the conversation."""

    name: str
    n_documents: int
    is_new: bool
    n_changes: int
    """Number of documents that were added, changed or removed."""
    n_failed: int
    """Number of files that could not be read."""

    @property
    def notice(self) -> str:
        """Describe the update; "" if nothing has changed."""
        if not self.is_new and not self.n_changes:
            return ""
        state = f"with {format_count(self.n_documents, 'document')}"
        failed = f" {format_count(self.n_failed, 'file')} could not be read (`edgechat docs list --json`)."
        text = f"Collection {self.name} {state} {'added' if self.is_new else 'updated'}."
        return text + (failed if self.n_failed else "")


class DocumentSearchStarted(msgspec.Struct, frozen=True, kw_only=True):
    """Documents are searched for a message, which is not saved yet."""

    n_documents: int

    @property
    def message(self) -> str:
        return f"Searching {format_count(self.n_documents, 'document')}"


class DocumentsSearched(msgspec.Struct, frozen=True, kw_only=True):
    """Passages of documents were found for a message, or nothing was found."""

    passages: PassageSet
    n_tokens: int
    """Number of tokens of the passages in the prompt."""
    is_new: bool = True
    """False if these are whole documents that an earlier message has, too."""
    hint: str = ""
    """Sentence about a limitation of the search; "" if there is none."""

    @property
    def notice(self) -> str:
        """What was read or searched, and how many passages were found; "" for documents that were read before."""
        passages = self.passages
        if passages.is_whole:
            n_documents = len({(p.collection, p.document) for p in passages.passages})
            nouns = {1: "The document is", 2: "Both documents are"}
            noun = nouns.get(n_documents, f"All {n_documents:,} documents are")
            return f"{noun} in the prompt ({format_count(self.n_tokens, 'token')})." if self.is_new else ""
        searched = passages.searched.describe()
        n_found = len(passages.passages)
        text = f"{format_count(n_found, 'passage')} found in {searched}" if n_found else f"Nothing found in {searched}"
        if not n_found and passages.n_omitted:
            text = describe_omitted(passages)
        return " ".join(filter(None, (f"{text}.", self.hint)))


class TurnsDropped(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation is longer than the context, so the oldest turns are not in the prompt."""

    n_messages: int
    """Number of messages that are not in the prompt."""
    context_start_id: str
    """ID of the first message in the prompt."""


class PromptProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """The engine has processed another part of the prompt (prefill)."""

    done_tokens: int
    total_tokens: int


class RemoteRetryScheduled(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a remote failed before the first token, and will be repeated after a pause."""

    message: str
    """Reason of the failure, and length of the pause."""


class ContextSizeChanging(msgspec.Struct, frozen=True, kw_only=True):
    """The context grows or shrinks, which takes more than a second."""

    n_ctx: int
    """New context length in tokens."""
    is_growing: bool = True


class ContextLimitReached(msgspec.Struct, frozen=True, kw_only=True):
    """The context cannot grow, so the reply can end early, or its prompt is built again without the oldest turns."""

    notice: str


class DrafterFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The model drafter failed in a reply, which went on without it; so do all later replies of this engine."""

    notice: str


class ReplyTextGenerated(msgspec.Struct, frozen=True, kw_only=True):
    """New text or reasoning of a reply was generated."""

    text: str
    reasoning: str
    n_tokens: int
    reply_index: int = 0
    """Index of the reply among parallel replies."""
    drafts: str = ""
    """What the drafts of the reply have gained so far, such as `1.5x by the draft model`; "" without a gain."""


class ThinkingLimited(msgspec.Struct, frozen=True, kw_only=True):
    """The reasoning of the next replies has a limit; the first one that is reached ends the reasoning."""

    max_tokens: int | None = None
    max_s: float | None = None


class ReplySaveFailed(msgspec.Struct, frozen=True, kw_only=True):
    """Saving the reply failed. Generation continues; the next checkpoint repeats the write."""

    reason: str


class PickStarted(msgspec.Struct, frozen=True, kw_only=True):
    """Several replies are generated, of which one will be picked."""

    n_replies: int
    """Maximum number of replies."""
    costs: tuple[float, float] | None = None
    """Least and greatest time that the replies take, relative to one reply; None if it was not measured."""
    compares: bool = False
    """True if the model compares the replies afterwards."""


class PickProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """Another reply has ended, or is being compared."""

    n_finished: int
    """Number of replies that have ended, or number of the comparison."""
    n_replies: int
    """Maximum number of replies or of comparisons."""
    is_judging: bool = False


class ReplyPicked(msgspec.Struct, frozen=True, kw_only=True):
    """One of several replies was picked."""

    pick: ReplyPick
    answers: dict[str, str]
    """Final answers of the complete replies, by message ID, where they can be compared."""
    n_tokens: int
    """Number of tokens that were generated for all replies and comparisons."""
    elapsed_s: float


class RouteChosen(msgspec.Struct, frozen=True, kw_only=True):
    """A route chose the model that replies first."""

    model: str
    reason: str
    """Reason in a few words, such as "rule 2"; "" if no rule applies."""
    may_escalate: bool
    """True if the reply is checked when it is complete, and another model may reply in its place."""


class EscalationStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A reply is doubtful, so the large model of the route replies, too."""

    model: str
    reason: str

    @property
    def message(self) -> str:
        return f"Escalating to {self.model.removesuffix('.gguf')}: {self.reason}"


class EngineReplaced(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a route had to leave memory for the other one."""

    notice: str


class ReplyRouted(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of a route is complete: which model replied, and why."""

    model: str
    reason: str
    """Rule that chose the model, or doubt about the reply of the small model; "" if no rule applied."""
    small_model: str = ""
    """Model of the doubtful reply; "" without a doubt."""
    doubt: str = ""
    """Kind of the doubt; "" without a doubt."""
    mean_logprob: float | None = None
    """Mean natural logprob of the checked reply; None if it was not checked, or if the model is remote."""
    min_logprob: float | None = None
    is_escalated: bool = False
    """True if the large model replied because of the doubt."""

    def describe(self) -> str:
        """Describe the choice in a few words; "" if no rule applied and the reply is not doubtful."""
        return f"escalated: {self.reason}" if self.is_escalated else self.reason

    @property
    def notice(self) -> str:
        """Sentence about the choice; "" if no rule applied and the reply is not doubtful."""
        model, small_model = self.model.removesuffix(".gguf"), self.small_model.removesuffix(".gguf")
        if self.is_escalated:
            return f"Escalated from {small_model} to {model}: {self.reason}."
        return f"{model} replied: {self.reason.rstrip('.')}." if self.reason else ""


class TurnFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The reply is complete: the model ended it, or it reached the length limit."""

    reply: Message
    context_tokens: int
    """Number of tokens in the context after the reply."""
    alternatives: tuple[Message, ...] = ()
    """Other replies that were generated in parallel."""
    picked: ReplyPicked | None = None
    """How `reply` was picked from several; None if it was not."""
    routed: ReplyRouted | None = None
    """Why the model of `reply` was chosen; None without a route."""


class TurnInterrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The reply was stopped. Its text is saved, and the reply can be continued."""

    reply: Message
    context_tokens: int
    """Number of tokens in the context after the reply."""
    alternatives: tuple[Message, ...] = ()
    """Other replies that were generated in parallel."""
    picked: ReplyPicked | None = None
    routed: ReplyRouted | None = None


class SecondReplyEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The reply of a second model is complete or was stopped, and is saved beside the other replies."""

    reply: Message
    number: int
    """Number of the reply among the alternatives; 0 if it was removed, because it ended before its first word."""
    n_alternatives: int

    @property
    def notice(self) -> str:
        """Where the reply is, and how to show it."""
        model = self.reply.model.removesuffix(".gguf")
        if not self.number:
            return f"{model} was stopped before its first word."
        state = "stopped" if self.reply.is_interrupted else "complete"
        return (
            f"Reply {self.number} of {self.n_alternatives}, by {model}, is {state}. "
            f"/switch {self.number} continues with it, /compare shows both."
        )


SessionEvent = (
    ModelLoadProgressed | CpuFallback | CollectionProgressed | CollectionUpdated | DocumentSearchStarted | TurnStarted
    | DocumentsSearched | TurnsDropped | PromptProgressed | RemoteRetryScheduled
    | ContextSizeChanging | ContextLimitReached | DrafterFailed | ThinkingLimited | ReplyTextGenerated | ReplySaveFailed
    | PickStarted | PickProgressed | ReplyPicked | RouteChosen | EscalationStarted | EngineReplaced | ReplyRouted
    | TurnFinished | TurnInterrupted | SecondReplyEnded
)  # fmt: skip


_EVENTS_WITH_MESSAGE = (
    ModelLoadProgressed, CollectionProgressed, DocumentSearchStarted, RemoteRetryScheduled, EscalationStarted,
)  # fmt: skip


def format_progress(event: SessionEvent) -> str:
    """Return a temporary status text for an event; "" for events without a status text."""
    if isinstance(event, _EVENTS_WITH_MESSAGE):
        return event.message
    if isinstance(event, PromptProgressed):
        return f"Reading {event.done_tokens} of {event.total_tokens} tokens"
    if isinstance(event, ContextSizeChanging):
        verb = "Growing" if event.is_growing else "Shrinking"
        return f"{verb} the context to {format_count(event.n_ctx, 'token')}"
    if isinstance(event, PickProgressed) and event.is_judging:
        return f"Comparing the replies ({event.n_finished} of {event.n_replies})"
    if isinstance(event, (PickStarted, PickProgressed)):
        n_finished = event.n_finished if isinstance(event, PickProgressed) else 0
        return f"{n_finished} of up to {event.n_replies} replies finished"
    return ""


def format_notice(event: SessionEvent) -> str:
    """Return a permanent notice for an event; "" for events without a notice."""
    if isinstance(event, TurnsDropped):
        messages = "message" if event.n_messages == 1 else f"{event.n_messages} messages"
        return f"The context is full: the model no longer sees the first {messages}."
    if isinstance(
        event,
        (
            CollectionUpdated, ContextLimitReached, CpuFallback, DocumentsSearched, DrafterFailed, EngineReplaced,
            ReplyRouted, SecondReplyEnded,
        ),
    ):  # fmt: skip
        return event.notice
    if isinstance(event, PickStarted):
        return _describe_pick_costs(event)
    if isinstance(event, ReplyPicked):
        replies = "1 reply" if event.pick.n_started == 1 else f"{event.pick.n_started} replies"
        cost = f"{replies}, {format_count(event.n_tokens, 'token')}, {format_duration(event.elapsed_s)}"
        return f"{event.pick.describe()} ({cost}).".capitalize()
    return f"The reply is not saved: {event.reason}" if isinstance(event, ReplySaveFailed) else ""


def _describe_pick_costs(event: PickStarted) -> str:
    n = event.n_replies
    text = f"Up to {n} replies share the prompt, and take up to {n} times the tokens of one reply"
    if event.costs is not None:
        low, high = (f"{cost:.1f}" for cost in event.costs)
        text += f", in about {low if low == high else f'{low} to {high}'} times the time of one"
    return f"{text}. Then the model compares them." if event.compares else f"{text}."
