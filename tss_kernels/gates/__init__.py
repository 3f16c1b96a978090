"""Gates at one bit each: packing, unpacking and the product with packed gates."""
