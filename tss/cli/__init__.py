"""Command line: one file per command with `register` and `run`; no other package imports this one."""
