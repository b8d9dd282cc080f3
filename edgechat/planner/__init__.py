"""Memory and speed planning: pure functions that turn a machine and a model profile into a load plan."""
