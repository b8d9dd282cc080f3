"""Memory and speed planning: pure functions that compute a load plan from a machine and a model profile."""
