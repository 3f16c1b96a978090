"""Gates as bits: packing, unpacking and the linear map from packed gates; see README.md."""

from tss_kernels.gates.api import pack_gates, packed_linear, unpack_gates

__all__ = ["pack_gates", "packed_linear", "unpack_gates"]
