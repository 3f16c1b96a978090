"""Builds csrc into extension modules: compilers are found, a ninja file is written and run. Knows no torch."""
