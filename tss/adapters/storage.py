"""Tensors on disk: safetensors, byte-identical for equal content, written atomically, checked when read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from tss.errors import StateError
from tss.io import from_json, sha256, write_bytes

KEY = "tss"
Tensors = dict[str, torch.Tensor]


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # Viewing as bytes works for every dtype; NumPy has no bfloat16.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _seal(tensors: Mapping[str, torch.Tensor], metadata: Any) -> str:
    """Return the SHA-256 of tensors and metadata."""
    return sha256(f"{digest(tensors)} {json.dumps(metadata, sort_keys=True, allow_nan=False)}")


def encode_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Encode tensors and JSON-serializable metadata as one safetensors file.

    All metadata goes into one entry: the format keeps no order among several, and equal content must give equal bytes.
    """
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # as it is read back: string keys, lists in place of tuples
    plain = json.loads(json.dumps(metadata, allow_nan=False))
    document = json.dumps({"sha256": _seal(ready, plain), "metadata": plain}, sort_keys=True)
    return save_bytes(ready, metadata={KEY: document})


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write the result of `encode_tensors`; a crash leaves the old file or the new one.

    Raises:
        OSError: for example, the disk is full; the old file is still there.
    """
    write_bytes(path, encode_tensors(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a file that `write_tensors` wrote.

    Raises:
        StateError: the file is missing, truncated, edited, or not from `write_tensors`; the message says which.
    """
    return decode_tensors(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; raise StateError if it is missing."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise StateError(f"{path} is missing") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a file that `write_tensors` wrote, without its tensors and without checking its content.

    Raises:
        StateError: the file is missing, truncated, or not from `write_tensors`.
    """
    size = 0
    try:
        with Path(path).open("rb") as file:
            size = Path(path).stat().st_size
            metadata = _document(file.read(min(size, _header_size(file.read(8)))))["metadata"]
        if not isinstance(metadata, dict):
            raise TypeError(f"its metadata is a {type(metadata).__name__}")
    except FileNotFoundError:
        raise StateError(f"{path} is missing") from None
    except DAMAGE as error:
        raise _damaged(path, size, error) from error
    return metadata


def decode_tensors(data: bytes, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and metadata of a result of `encode_tensors`; raises as `read_tensors` does, naming `path`."""
    try:
        document = _document(data[8 : 8 + _header_size(data[:8])])
        tensors = load_bytes(data)
        stored, metadata = document["sha256"], document["metadata"]
    except DAMAGE as error:
        raise _damaged(path, len(data), error) from error
    found = _seal(tensors, metadata)
    if found != stored:
        raise StateError(
            f"{path} was changed after it was written: its content has sha256 {found}, expected {stored}; "
            "restore it from a copy or run the task again"
        )
    return tensors, metadata


DAMAGE = (SafetensorError, struct.error, ValueError, KeyError, TypeError)
"""Exceptions from reading bytes that are not a file of tss."""


def _header_size(first: bytes) -> int:
    return struct.unpack("<Q", first)[0]


def _document(header: bytes) -> dict[str, Any]:
    return from_json(from_json(header)["__metadata__"][KEY])


def _damaged(path: Path, size: int, error: Exception) -> StateError:
    return StateError(
        f"{path} cannot be read ({size} bytes; {type(error).__name__}: {error}): it is truncated, edited or not a file "
        "of tss; restore it from a copy or run the task again"
    )


@torch.no_grad()
def load_exactly(targets: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy stored tensors into targets with the same names, shapes and kinds of dtype (floating-point or not).

    Raises:
        StateError: a tensor is missing or does not fit; the message names the first one, and nothing is copied.
    """
    for name, target in targets.items():
        fits = name in stored and stored[name].is_floating_point() == target.is_floating_point()
        found = f"{stored[name].dtype} {tuple(stored[name].shape)}" if name in stored else "missing"
        if not fits or stored[name].shape != target.shape:
            raise StateError(
                f"{what}: stored tensor {name} is {found}, expected {target.dtype} {tuple(target.shape)}; "
                "use the model and configuration that it was trained with"
            )
    for name, target in targets.items():
        target.copy_(stored[name])
