"""What this machine is: cores, instruction sets, memory really available. The only importer of psutil."""
