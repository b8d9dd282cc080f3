"""Downloads: resumable HTTP transfers, hashed while they arrive."""
