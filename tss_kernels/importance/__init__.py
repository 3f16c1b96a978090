"""Importance of scores: from a raw mean gradient to [0, 1], and its maximum over tasks."""
