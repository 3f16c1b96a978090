"""Methods for learning a sequence of tasks: one file per method, all with the same few hooks."""

from tss.methods.base import Method
from tss.methods.ewc import Ewc
from tss.methods.full import Full
from tss.methods.hat import Hat
from tss.methods.lora import Lora
from tss.methods.lwf import Lwf
from tss.methods.mtl import Mtl
from tss.methods.ncl import Ncl
from tss.methods.one import One
from tss.methods.piggyback import Piggyback
from tss.methods.supsup import SupSup
from tss.methods.tss import Tss

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Tss, One, Lora, SupSup, Piggyback, Hat, Ewc, Lwf, Ncl, Full, Mtl)
}

__all__ = ["METHODS", "Method"]
