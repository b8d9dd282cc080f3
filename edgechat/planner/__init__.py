"""What fits: pure functions from memory and a model's header to a LoadPlan."""
