"""Text of files: one module for each family of formats, and the child process in which they run."""
