"""Reads result files: tables, figures, the numbers in the documents, and one file against another."""
