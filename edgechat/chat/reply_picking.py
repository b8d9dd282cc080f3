"""Turns with several replies of which one is picked: rounds of parallel replies, comparisons, and the choice."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator
from typing import Final

import msgspec

from edgechat.chat import events
from edgechat.chat.conversation import StoredConversation
from edgechat.chat.messages import Message, new_reply
from edgechat.chat.reply_source import ReplySource
from edgechat.chat.turn_runner import Turn, TurnRunner
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.errors import ContextOverflowError, EdgechatError, StoreError, UsageError
from edgechat.models.loaded_model import LoadedModel
from edgechat.prompt.agreement.judge import make_verdict_request
from edgechat.prompt.agreement.picker import MAX_PICKED_REPLIES, PickMethod, ReplyPick, ReplyPicker
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.runtime.grammar import require_llguidance

DEFAULT_N_REPLIES: Final = 5
"""Number of replies of `/best` without a number: enough for a majority of three."""


def check_pick(n_replies: int, settings: Settings) -> None:
    """Raise UsageError if picking one of `n_replies` makes no sense with `settings`."""
    if not 2 <= n_replies <= MAX_PICKED_REPLIES:  # noqa: PLR2004  (two replies can be compared)
        raise UsageError(f"Picking a reply needs 2 to {MAX_PICKED_REPLIES} replies, not {n_replies}.")
    if settings.temperature <= 0:
        raise UsageError("The temperature is 0, so all replies would be the same. Set a temperature such as 0.7.")


class PickedTurn:
    """One turn whose reply is picked from several. Call `run` once."""

    def __init__(
        self, runner: TurnRunner, conversation: StoredConversation, model: LoadedModel, settings: Settings,
        source: ReplySource, method: PickMethod, n_replies: int,
    ) -> None:  # fmt: skip
        """Prepare to pick one of up to `n_replies` replies of `source` by `method`. `model` judges local replies.

        Raises UsageError and GrammarError.
        """
        check_pick(n_replies, settings)
        if source.is_remote and method != "agree":
            raise UsageError(
                "Replies of a remote model can only be picked by agreement, because servers do not report how likely a "
                "reply is. Use agree."
            )
        if method == "judge":
            require_llguidance()  # a verdict has a grammar
        self._runner = runner
        self._conversation = conversation
        self._model = model
        self._settings = settings
        self._picker = ReplyPicker(method, n_replies, source.max_replies)
        self._replies: list[Message] = []
        self._context_tokens = 0
        self._n_tokens = 0
        self._is_picked = False

    def run(self, first_turn: Turn, parent_id: str, model_name: str) -> Iterator[events.SessionEvent]:
        """Generate replies to the message `parent_id`, which can be new in `first_turn`, and pick one.

        The picked reply becomes the head, and the others stay as alternatives. A stop picks from the complete replies
        so far. Yields the events of a turn with the text of the first reply only. Raises EdgechatError.
        """
        started_at = time.monotonic()
        picker, n_finished = self._picker, 0
        try:
            while indexes := picker.start_round():
                replies = [new_reply(parent_id, model_name) for _ in indexes]
                turn = (first_turn if not indexes.start else Turn([], output_rule=first_turn.output_rule))._replace(
                    replies=replies, picker=picker, indexes=indexes
                )
                for event in self._runner.run(self._conversation, turn, self._settings):
                    if isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                        self._add_round(event)
                    elif not indexes.start or not isinstance(event, (events.TurnStarted, events.ReplyTextGenerated)):
                        yield event
                    if isinstance(event, events.TurnStarted) and not indexes.start:
                        yield events.PickStarted(
                            n_replies=picker.n_replies, costs=self._estimate_costs(), compares=picker.method == "judge"
                        )
                    if picker.n_finished > n_finished:
                        n_finished = picker.n_finished
                        yield events.PickProgressed(n_finished=n_finished, n_replies=picker.n_replies)
                if self._runner.was_stopped:
                    break
            winner = None if self._runner.was_stopped else (yield from self._judge(parent_id))
            yield from self._finish(picker.pick(winner), time.monotonic() - started_at)
        finally:
            if not self._is_picked and self._replies:
                index = picker.pick().index
                with contextlib.suppress(StoreError):  # `_replies` lacks those of a round that failed
                    self._conversation.select_branch(self._replies[index if index < len(self._replies) else 0].id)

    def _add_round(self, event: events.TurnFinished | events.TurnInterrupted) -> None:
        self._replies += [event.reply, *event.alternatives]
        self._context_tokens = event.context_tokens or self._context_tokens
        self._n_tokens += event.reply.stats.completion_tokens if event.reply.stats is not None else 0

    def _estimate_costs(self) -> tuple[float, float] | None:
        """Return the least and the greatest time of all replies, relative to one reply; None if it was not measured.

        The replies of a round share the steps of the decoder, and the rounds follow one another.
        """
        if not self._model.is_open:
            return None
        try:
            costs = self._model.engine.stats().step_costs
        except EdgechatError:
            return None
        if not costs:
            return None
        low, high = (sum(_interpolate(costs, n) for n in self._picker.plan_rounds(votes)) for votes in ("1", "12"))
        return low, high

    def _judge(self, parent_id: str) -> Generator[events.SessionEvent, None, int | None]:
        """Let the model compare the complete replies; return the winner among them.

        Returns None if there is nothing to compare, a comparison does not fit into the context, or after a stop.
        """
        tournament = self._picker.start_tournament(self._conversation.tree[parent_id].text)
        with contextlib.suppress(ContextOverflowError):
            for number, messages in enumerate(tournament, 1):
                yield events.PickProgressed(n_finished=number, n_replies=tournament.max_comparisons, is_judging=True)
                verdict = self._compare(messages)
                if verdict is None:
                    break
                tournament.verdict = verdict
        return tournament.winner

    def _compare(self, messages: list[PromptMessage]) -> str | None:
        """Ask the model which of two replies is better; return its verdict, or None after a stop."""
        prompt = self._model.builder.build(messages, PromptOptions(think=False))
        request = make_verdict_request(self._model.engine.next_id(), prompt.tokens)
        engine_events = self._runner.run_ephemeral_request(request)
        if engine_events is None:
            return None
        for event in engine_events:
            if isinstance(event, protocol.RequestFinished):
                self._n_tokens += event.stats.completion_tokens
        return "".join(event.text for event in engine_events if isinstance(event, protocol.TokensGenerated))

    def _finish(self, pick: ReplyPick, elapsed_s: float) -> Iterator[events.SessionEvent]:
        """Make the picked reply the head, save how it was picked, and yield the last events of the turn."""
        conversation, replies = self._conversation, self._replies
        reply = replies[pick.index]
        if reply.stats is not None:
            reply = msgspec.structs.replace(reply, stats=msgspec.structs.replace(reply.stats, pick=pick.describe()))
        self._is_picked = True
        try:
            conversation.save_reply(reply)
            conversation.select_branch(reply.id)
        except StoreError as error:
            yield events.ReplySaveFailed(reason=str(error))
        answers = {
            message.id: candidate.answer.value
            for message, candidate in zip(replies, self._picker.candidates, strict=True)
            if candidate is not None and candidate.answer is not None
        }
        picked = events.ReplyPicked(pick=pick, answers=answers, n_tokens=self._n_tokens, elapsed_s=elapsed_s)
        yield picked
        final_event = events.TurnInterrupted if reply.is_interrupted else events.TurnFinished
        alternatives = tuple(message for message in replies if message.id != reply.id)
        yield final_event(reply=reply, context_tokens=self._context_tokens, alternatives=alternatives, picked=picked)


def _interpolate(costs: dict[int, float], n: int) -> float:
    """Return the cost of a step of `n` tokens relative to one token, from the measured costs of other numbers.

    Beyond the largest measured number, each token costs as much as between the last two numbers.
    """
    points = sorted({1: 1.0, **costs}.items())
    (n_before, before), (n_after, after) = next(
        ((low, high) for low, high in itertools.pairwise(points) if n <= high[0]), points[-2:]
    )
    return before + (after - before) * (n - n_before) / (n_after - n_before)
