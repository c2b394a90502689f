"""The command line: a module per command, its flags (``add``) and its action (``run``) together."""
