"""The command line. The only importer of click; everything else is imported inside the command."""
