"""Model catalogue, Hugging Face hub client, list of installed models, downloads and hash verification."""
