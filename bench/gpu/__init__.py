"""Everything that needs a GPU in one command: environment, tests, memory and race checks, measurements."""
