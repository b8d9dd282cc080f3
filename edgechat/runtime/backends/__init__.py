"""Compute backends: find the native bundle, self-test its modules, cache verdicts, and benchmark kernels."""
