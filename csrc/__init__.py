"""The native sources of tss_kernels and what builds them; nothing here is installed."""
