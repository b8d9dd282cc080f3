"""llama.cpp runtime: bindings, model, context, sampler, grammars and logs. Only this package imports llama_cpp.

`backends` is safe to import in any process. `bindings` and the modules that build on it load native code and belong in
the engine process.
"""
