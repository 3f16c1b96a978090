"""The command line: one file per command with `register` and `run`; nothing else imports this package."""
