"""Which backend runs an operation, why, and how its kernels are launched."""
