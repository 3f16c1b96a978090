"""Metrics: pure functions of predictions and references, or of a matrix of results."""
