"""Pure functions from predictions and references, or from a matrix of results, to numbers."""
