"""Build csrc into extension modules: find compilers, write a ninja file and run it. Does not use torch."""
