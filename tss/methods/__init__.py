"""The ways to learn a sequence: one method, one file, the same few hooks."""

from tss.methods.base import Method
from tss.methods.ncl import Ncl
from tss.methods.tss import Tss

METHODS: dict[str, type[Method]] = {"tss": Tss, "ncl": Ncl}

__all__ = ["METHODS", "Method", "Ncl", "Tss"]
