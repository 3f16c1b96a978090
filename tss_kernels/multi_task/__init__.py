"""Products whose rows belong to different tasks."""
