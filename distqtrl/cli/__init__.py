"""The command line: a file per command, its flags and its action together."""
