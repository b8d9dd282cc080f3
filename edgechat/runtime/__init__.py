"""The only door to llama.cpp: native bundle, backend probe, bindings, model, context, sampler, logs.

`bundle`, `probe` and `verdicts` are safe to import anywhere; `bindings` and what stands on it load native
code and belong in the engine process.
"""
