"""Choice of the backend of an operation, its basis, and how its kernels are launched."""
