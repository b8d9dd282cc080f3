"""What a GGUF file says: a bounded walk of its header, which refuses what C++ should never see."""
