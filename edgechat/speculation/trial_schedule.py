"""Schedule of trials of a model drafter whose drafts do not pay: ever more rarely, until one succeeds."""

from __future__ import annotations

from typing import Final

import msgspec

# Bounds of the interval between two trials, in generated tokens, and number of drafts of a trial.
MIN_INTERVAL: Final = 64
MAX_INTERVAL: Final = 1 << 16
_TRIAL_DRAFTS: Final = 4
# Interval from which the memory of the drafter is freed between two trials.
_SLEEP_INTERVAL: Final = 1024
# Number of drafts that paid after which the interval is short again.
_RECOVERY_DRAFTS: Final = 32


class TrialSchedule(msgspec.Struct):
    """Decides when a model drafter is asked although its drafts are not expected to pay."""

    interval: int = MIN_INTERVAL
    """Number of generated tokens until the next trial."""
    n_waited: int = 0
    """Number of tokens generated since the last draft of the model."""
    n_trial_drafts: int = 0
    """Number of drafts left in the current trial."""
    n_paid: int = 0
    """Number of drafts since the last trial that were expected to pay."""

    @property
    def is_due(self) -> bool:
        """True if the next draft of the model belongs to a trial."""
        return self.n_trial_drafts > 0 or self.n_waited >= self.interval

    @property
    def is_rare(self) -> bool:
        """True if trials are so rare that the drafter has no memory between them."""
        return self.interval >= _SLEEP_INTERVAL

    @property
    def should_sleep(self) -> bool:
        """True if the memory of the drafter can be freed, because the next trial is far away."""
        return self.is_rare and not self.is_due and self.n_waited >= MIN_INTERVAL

    def wait(self, n_tokens: int) -> None:
        """Count tokens that were generated without the model.

        A trial whose next draft has to wait as long as the trial itself had to ends without success: these replies are
        too short for another draft, or its first drafts cost too much.
        """
        self.n_waited = min(self.n_waited + n_tokens, MAX_INTERVAL)
        if self.n_trial_drafts and self.n_waited >= self.interval:
            self.postpone()

    def record_draft(self, *, pays: bool) -> None:
        """Record a draft of the model; `pays` is whether it was expected to be worth its time."""
        self.n_waited = 0
        if pays:
            self.n_trial_drafts = 0
            self.n_paid = min(self.n_paid + 1, _RECOVERY_DRAFTS)
            if self.n_paid >= _RECOVERY_DRAFTS:
                self.interval = MIN_INTERVAL
            return
        if not self.n_trial_drafts:
            self.n_trial_drafts = _TRIAL_DRAFTS
            self.n_paid = 0
        self.n_trial_drafts -= 1
        if not self.n_trial_drafts:
            self.postpone()

    def postpone(self) -> None:
        """End the current trial without success: the next one is twice as far away."""
        self.n_trial_drafts = self.n_waited = 0
        self.interval = min(2 * self.interval, MAX_INTERVAL)

    def defer(self, n_earlier: int = 0) -> None:
        """Wait for a long time before the next draft, although drafts may pay: their memory is needed.

        The time doubles with each of `n_earlier` times, so that a drafter is not loaded again and again.
        """
        self.n_trial_drafts = self.n_waited = 0
        self.interval = max(self.interval, min(_SLEEP_INTERVAL << min(n_earlier, 16), MAX_INTERVAL))
