"""Documents: collections of files, their text in chunks with page and line, and the search in them."""
