"""Selection, planning and loading of models, for the chat, the server and the command line."""
