"""Step costs of two machines, for tests of the controller and the speculator."""

from __future__ import annotations

from edgechat.speculation.step_costs import StepCosts

# t(n) / t(1) of a model of 0.5B weights on two cores, as measured.
STAIRCASE = {1: 1.0, 2: 1.07, 3: 1.27, 4: 1.42, 8: 2.29, 12: 3.01, 16: 3.71, 24: 5.25, 32: 6.76}
# A machine on which every further token costs nearly as much as the first.
STEEP = {n: 1 + 0.9 * (n - 1) for n in STAIRCASE}


def costs_of(ratios: dict[int, float]) -> StepCosts:
    """Return costs that have measured `ratios` five times at position 100, without credit for trials."""
    costs = StepCosts()
    for _ in range(5):
        for n, ratio in ratios.items():
            costs.record(1, 100, 0.01)
            costs.record(n, 100, 0.01 * ratio)
    spend_all_trials(costs)
    return costs


def spend_all_trials(costs: StepCosts) -> None:
    """Spend the credit for trials of larger steps, so that the next choices follow the measured costs."""
    while costs.spend_trial(0.0):
        pass
