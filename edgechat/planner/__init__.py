"""Plans how to load a model: pure functions from a machine and a model profile to a load plan."""
