"""A handle on disk: the adapters once, one file per task, and a manifest; never the backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tss.adapters.attaching import attach
from tss.adapters.bank import load_exactly
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.state import HEADS
from tss.adapters.storage import read_tensors, write_tensors
from tss.errors import StateError
from tss.io import safe_name, sha256, write_text

if TYPE_CHECKING:
    from tss.adapters.handle import TssHandle

MANIFEST = "manifest.json"
ADAPTERS = "adapters.safetensors"
FORMAT = 1
# How much of the backbone a manifest shows, and how far, of the largest value, a cast to 16 bits may move one.
MATRICES, VALUES, CAST = 32, 8, 2**-7


def save(handle: TssHandle, directory: Path) -> None:
    """Write `adapters.safetensors`, `tasks/NN-name.safetensors` and, last, the manifest that names them by content.

    Every file is replaced at once; a save that was interrupted is noticed by `load`.
    """
    files = {}
    for i, name in enumerate(handle.tasks):
        files[f"tasks/{i + 1:02d}-{safe_name(name)}.safetensors"] = handle.task_state(name)
    files[ADAPTERS] = (_adapter_tensors(handle), {"format": FORMAT})
    for file, (tensors, metadata) in files.items():
        write_tensors(directory / file, tensors, metadata)
    manifest = {
        "format": FORMAT,
        "config": asdict(handle.config),
        "options": asdict(handle.options),
        "backbone": _geometry(handle) | {"values": _values(handle)},
        "sha256": {file: sha256(directory / file) for file in files},
    }
    write_text(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def load(model: Any, directory: str | Path) -> TssHandle:
    """Put what `model.tss.save(directory)` wrote on a model of the same architecture, attaching to it if need be.

    Tasks come back as they were, sealed or not, with the scores and the importance that the next one starts from.

    Raises:
        StateError: a file is missing, damaged or of another save; another backbone; or the model has tasks already.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    config, options = AdapterConfig(**manifest["config"]), TssOptions(**manifest["options"])
    handle: TssHandle | None = getattr(model, "tss", None)
    if handle is not None and (handle.tasks or handle.config != config or handle.options != options):
        raise StateError(
            f"{directory}: the model has tasks ({', '.join(handle.tasks) or 'none'}) or adapters of other settings; "
            "call model.tss.detach() first"
        )
    contents = {file: _read_checked(directory / file, expected) for file, expected in manifest["sha256"].items()}
    attached_here = handle is None
    handle = attach(model, config, options) if handle is None else handle
    try:
        _check_geometry(directory, manifest["backbone"], _geometry(handle))
        _check_values(directory, manifest["backbone"].get("values", {}), _values(handle))
        _load_adapters(handle, contents.pop(ADAPTERS)[0], directory)
        for tensors, metadata in contents.values():
            handle.load_task_state(metadata["name"], tensors, metadata)
    except Exception:
        if attached_here:
            handle.detach()
        raise
    return handle


def _adapter_tensors(handle: TssHandle) -> dict[str, torch.Tensor]:
    frozen = {f"frozen.{k}": t for bank in handle.banks.values() for k, t in bank.frozen().items()}
    return frozen | {f"shared.{key}": tensor for key, tensor in handle.shared_state().items()}


def _load_adapters(handle: TssHandle, tensors: Mapping[str, torch.Tensor], directory: Path) -> None:
    frozen = {f"frozen.{k}": t for bank in handle.banks.values() for k, t in bank.frozen().items()}
    load_exactly(frozen, tensors, str(directory / ADAPTERS))
    handle.load_shared_state({k.removeprefix("shared."): t for k, t in tensors.items() if k.startswith("shared.")})


def _backbone(handle: TssHandle) -> dict[str, torch.nn.Parameter]:
    """The parameters that are neither adapters nor heads, in the order of their names."""
    adapters = tuple(f"{site}.tss_adapter." for site in handle.banks)
    named = sorted(handle.model.named_parameters())
    return {name: parameter for name, parameter in named if not name.startswith((*adapters, f"{HEADS}."))}


def _geometry(handle: TssHandle) -> dict[str, Any]:
    """What a backbone must share with the one that tasks were learned on: class, sites, parameter names and shapes."""
    own = [f"{name} {tuple(parameter.shape)}" for name, parameter in _backbone(handle).items()]
    return {
        "class": type(handle.model).__name__,
        "parameters": sum(1 for _ in own),
        "shapes_sha256": sha256("\n".join(own)),
        "sites": {site: bank.width for site, bank in handle.banks.items()},
    }


def _check_geometry(directory: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key, now in here.items():
        then = saved.get(key)
        if then == now:
            continue
        if isinstance(then, dict) and isinstance(now, dict):
            differ = sorted(set(then.items()) ^ set(now.items()))[0][0]
            then, now = (f"{differ}: {widths.get(differ, 'none')}" for widths in (then, now))
        raise StateError(
            f"{directory} was saved from another backbone: {key} {then} there, {now} in this {here['class']}; "
            "load it on the model that it was learned on"
        )


def _values(handle: TssHandle) -> dict[str, dict[str, Any]]:
    """A few values of some of the backbone's matrices, by which other weights of the same shapes are told apart."""
    matrices = [
        (name, parameter.detach().flatten())
        for name, parameter in _backbone(handle).items()
        if parameter.dim() > 1 and parameter.numel() and parameter.is_floating_point() and not parameter.is_meta
    ]
    return {
        name: {"dtype": str(flat.dtype), "values": flat[:: max(1, flat.numel() // VALUES)][:VALUES].tolist()}
        for name, flat in matrices[:: max(1, len(matrices) // MATRICES)]
    }


def _check_values(directory: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """The same values where the dtype is the same; in another one, values that a cast may have made of them."""
    for name, now in here.items():
        then = saved.get(name)
        if then is None:  # saved before this was looked at, or while the matrix lay elsewhere
            continue
        old, new = (torch.tensor(side["values"], dtype=torch.float64) for side in (then, now))
        slack = 0.0 if then["dtype"] == now["dtype"] else CAST * float(old.abs().max())
        if not bool(((old - new).abs() <= slack).all()):
            at = int((old - new).abs().argmax())
            raise StateError(
                f"{directory} was saved from another backbone, of these sizes but other weights: {name} held "
                f"{old[at]:.6g} there, {new[at]:.6g} in this model; load it on the weights that it was learned on"
            )


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise StateError(f"{directory} holds no {MANIFEST}: give the folder that model.tss.save wrote") from None
    except ValueError as error:
        raise StateError(f"{path} is no whole manifest ({error}): it was truncated or edited; save again") from error
    keys = {"format", "config", "options", "backbone", "sha256"}
    if not isinstance(manifest, dict) or set(manifest) != keys or manifest["format"] != FORMAT:
        raise StateError(f"{path} is no manifest of format {FORMAT} with {', '.join(sorted(keys))}; save again")
    return manifest


def _read_checked(path: Path, expected: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, metadata = read_tensors(path)
    if (found := sha256(path)) != expected:
        raise StateError(f"{path} is of another save: sha256 {found}, the manifest expects {expected}; save again")
    return tensors, metadata
