"""Studies: the same tasks with several methods, task orders and seeds; each cell is a separate run."""
