"""A study: the same tasks by several methods, in several orders, with several seeds; each cell is a run of its own."""
