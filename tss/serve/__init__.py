"""Serve learned tasks over HTTP: one thread owns the model and runs rows of many tasks in shared batches."""
