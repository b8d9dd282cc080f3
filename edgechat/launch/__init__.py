"""Start of coding agents that use a served model: their settings, the checks of the model, and the processes."""
