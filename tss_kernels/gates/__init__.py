"""Gates at one bit each: packing and unpacking."""
