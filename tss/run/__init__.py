"""From a configuration to a filled run folder: the sequence of tasks, their training, evaluation, and state on disk."""
