"""GGUF model files: bounded header parsing, tensor types, split files and content hashes."""
