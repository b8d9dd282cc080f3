"""Turns of a route: choice of the model, check of its reply, and escalation to the large model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from edgechat.chat import events
from edgechat.chat.conversation import StoredConversation
from edgechat.chat.messages import Message, new_reply
from edgechat.chat.routed_source import RoutedSource
from edgechat.chat.turn_runner import Turn, TurnRunner
from edgechat.config import Settings
from edgechat.errors import EdgechatError, RemoteError, StoreError
from edgechat.prompt.agreement.doubts import Doubt, find_doubt
from edgechat.route_settings import RouteChoice, RoutedMessage, Side, choose_side

FinalEvent = events.TurnFinished | events.TurnInterrupted
# Replies that `agree` compares.
_N_SAMPLES = 2


class RoutedTurn:
    """One turn whose model a route chooses. Call `run` once."""

    def __init__(
        self, runner: TurnRunner, conversation: StoredConversation, source: RoutedSource, settings: Settings,
        *, is_hard: bool,
    ) -> None:  # fmt: skip
        """`is_hard` is True if the user marked the message with `/hard`."""
        self._runner = runner
        self._conversation = conversation
        self._source = source
        self._settings = settings
        self._is_hard = is_hard

    def run(self, turn: Turn) -> Iterator[events.SessionEvent]:
        """Generate the replies of `turn` with the model that the route chooses, and escalate a doubtful reply.

        The escalated reply becomes the head, and the doubtful one stays as an alternative. If the large model fails,
        the doubtful reply stays the head. If a remote small model fails before its first word, the large model replies
        in its place. Yields the events of a turn; TurnStarted occurs twice after an escalation. Raises EdgechatError.
        """
        choice = self._choose(turn)
        is_replaceable = choice.side == "small" and not choice.reason and len(turn.replies) == 1
        checks = is_replaceable and not choice.is_final
        yield events.RouteChosen(model=self._source.model_name(choice.side), reason=choice.reason, may_escalate=checks)
        yield from self._use(choice.side)
        final_event: FinalEvent | None = None
        first_turn = self._prepare(turn, choice, checks=checks)
        try:
            for event in self._runner.run(self._conversation, first_turn, self._settings):
                if isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                    final_event = event
                else:
                    yield event
        except RemoteError as error:
            if not is_replaceable or not self._may_replace(first_turn):
                raise
            yield from self._replace(first_turn, str(error).rstrip("."))
            return
        if final_event is None:
            return
        doubt = self._check(final_event) if checks and isinstance(final_event, events.TurnFinished) else None
        if doubt is not None:
            yield from self._escalate(turn, final_event, doubt)
        else:
            yield from self._finish(final_event, self._make_record(final_event.reply, choice))

    def _choose(self, turn: Turn) -> RouteChoice:
        """Choose the model by the rules and by what the conversation allows. Raises UsageError."""
        source = self._source
        message = turn.message or self._conversation.tree[turn.replies[0].parent_id or ""]
        facts = RoutedMessage(
            n_chars=len(message.text), has_attachments=any(not a.is_passages for a in message.attachments),
            persona=self._find_persona(), is_hard=self._is_hard,
        )  # fmt: skip
        choice = choose_side(source.route.settings, facts)
        side = source.choose_allowed(choice.side)
        if side != choice.side:
            return RouteChoice(side, "this conversation stays on this machine", is_final=True)
        return choice

    def _find_persona(self) -> str:
        if all(rule.persona is None for rule in self._source.route.settings.rules):
            return ""
        from edgechat.chat import personas

        persona = personas.find_by_settings(self._conversation.metadata.settings)
        return persona.name if persona is not None else ""

    def _use(self, side: Side) -> Iterator[events.SessionEvent]:
        with self._runner.idle_gate.block_requests():
            yield from self._source.use(side, self._settings)

    def _prepare(self, turn: Turn, choice: RouteChoice, *, checks: bool) -> Turn:
        """Return the turn with the model of `choice`, and with a second reply if two replies are compared."""
        name = self._source.model_name(choice.side)
        replies = [msgspec.structs.replace(reply, model=name) for reply in turn.replies]
        compares = self._source.route.settings.agree and self._settings.temperature > 0
        if checks and compares and self._source.max_replies >= _N_SAMPLES:
            replies.append(new_reply(replies[0].parent_id or "", name))
        return turn._replace(replies=replies, needs_logprob=checks)

    def _check(self, event: FinalEvent) -> Doubt | None:
        route = self._source.route.settings
        replies = [event.reply, *event.alternatives]
        return find_doubt(
            [reply.text for reply in replies], _read_logprob(event.reply), min_logprob=route.min_logprob,
            dont_know=route.dont_know, agree=route.agree and len(replies) > 1,
        )  # fmt: skip

    def _escalate(self, turn: Turn, small_event: FinalEvent, doubt: Doubt) -> Iterator[events.SessionEvent]:
        """Generate the reply of the large model beside the doubtful one; keep that one if this is not possible."""
        small_reply, source = small_event.reply, self._source
        reason = doubt.describe()
        record = events.ReplyRouted(
            model=source.model_name("large"), reason=reason, small_model=small_reply.model, doubt=doubt.kind,
            mean_logprob=_read_logprob(small_reply), min_logprob=doubt.threshold, is_escalated=True,
        )  # fmt: skip
        kept = msgspec.structs.replace(record, model=small_reply.model, is_escalated=False)
        if not source.may_use("large"):
            text = f"{reason}; not escalated, because this conversation stays on this machine"
            yield from self._finish(small_event, msgspec.structs.replace(kept, reason=text))
            return
        yield events.EscalationStarted(model=record.model, reason=reason)
        reply = new_reply(small_reply.parent_id or "", record.model)
        next_turn = Turn([reply], output_rule=turn.output_rule, output_schema=turn.output_schema)
        final_event: FinalEvent | None = None
        try:
            yield from self._use("large")
            for event in self._runner.run(self._conversation, next_turn, self._settings):
                if isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                    final_event = event
                else:
                    yield event
        except EdgechatError as error:
            self._return_to(small_reply, reply)
            text = f"{reason}; {record.model} failed: {error}"
            yield from self._finish(small_event, msgspec.structs.replace(kept, reason=text))
            return
        if final_event is not None:
            alternatives = (small_reply, *small_event.alternatives)
            yield from self._finish(msgspec.structs.replace(final_event, alternatives=alternatives), record)

    def _may_replace(self, turn: Turn) -> bool:
        """Return whether the large model may reply in place of a small one that failed: only before its first word."""
        tree = self._conversation.tree
        is_empty = all(
            not tree[reply.id].text and not tree[reply.id].reasoning for reply in turn.replies if reply.id in tree
        )
        return is_empty and turn.original_reply is None and self._source.may_use("large")

    def _replace(self, turn: Turn, reason: str) -> Iterator[events.SessionEvent]:
        """Generate the reply of the large model, and remove the empty replies of `turn`, whose model failed."""
        failed_replies, model = turn.replies, self._source.model_name("large")
        yield events.EscalationStarted(model=model, reason=reason)
        yield from self._use("large")
        reply = new_reply(failed_replies[0].parent_id or "", model)
        next_turn = Turn([reply], output_rule=turn.output_rule, output_schema=turn.output_schema)
        record = events.ReplyRouted(
            model=model, reason=reason, small_model=failed_replies[0].model, doubt="failed", is_escalated=True
        )  # fmt: skip
        for event in self._runner.run(self._conversation, next_turn, self._settings):
            if isinstance(event, events.TurnStarted):  # not before: this would undo the title of the conversation
                with contextlib.suppress(EdgechatError):
                    self._conversation.discard([r for r in failed_replies if r.id in self._conversation.tree])
            if isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                yield from self._finish(event, record)
            else:
                yield event

    def _return_to(self, small_reply: Message, failed_reply: Message) -> None:
        """Make the doubtful reply the head again, and remove the failed one if it has no text."""
        conversation = self._conversation
        with contextlib.suppress(EdgechatError):
            if failed_reply.id in conversation.tree:
                saved = conversation.tree[failed_reply.id]
                if not saved.text and not saved.reasoning:
                    conversation.discard([saved])
            conversation.select_branch(small_reply.id)

    def _make_record(self, reply: Message, choice: RouteChoice) -> events.ReplyRouted:
        return events.ReplyRouted(
            model=reply.model, reason=choice.reason, mean_logprob=_read_logprob(reply),
            min_logprob=self._source.route.settings.min_logprob if not choice.is_final else None,
        )  # fmt: skip

    def _finish(self, final_event: FinalEvent, record: events.ReplyRouted) -> Iterator[events.SessionEvent]:
        """Save why this model replied, and yield the last events of the turn."""
        reply = final_event.reply
        if reply.stats is not None and (text := record.describe()):
            reply = msgspec.structs.replace(reply, stats=msgspec.structs.replace(reply.stats, route=text))
            try:
                self._conversation.save_reply(reply)
            except StoreError as error:
                yield events.ReplySaveFailed(reason=str(error))
        yield record
        yield msgspec.structs.replace(final_event, reply=reply, routed=record)


def _read_logprob(reply: Message) -> float | None:
    value = reply.stats.mean_logprob if reply.stats is not None else None
    return value if isinstance(value, float) else None
