"""The engine: one process that runs llama.cpp and generates text or embeddings.

The client process imports `client`, `protocol` and `pipe`. The engine process runs `server`, which loads native code.
"""
