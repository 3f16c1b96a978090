"""Learned tasks over HTTP: one thread owns the model and answers rows of many tasks in shared batches."""
