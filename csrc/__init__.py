"""Native sources of tss_kernels and the code that builds them; nothing here is installed."""
