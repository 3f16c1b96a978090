"""File format that `model.tss.save` writes, `tss.load` reads and every run folder contains; without the backbone.

The manifest `tss.json` lists the files in use with their checksums. Files are named by checksum too, and a file
is overwritten only if its content does not have that checksum: new files are written beside the old ones, then
`tss.json` is replaced, which is the only moment of change.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tss.adapters.storage import Tensors, decode_tensors, encode_tensors, read_bytes, read_metadata
from tss.errors import StateError
from tss.io import PARTIAL, from_json, locked, make_directory, safe_name, sha256, to_json, write_bytes, write_text

MANIFEST = "tss.json"
OLD_MANIFEST = "manifest.json"  # of format 1
RUN = "state/run.json"  # exists in the folder of a run, which needs the files of its manifest
FORMAT = 2
KEYS = {"format", "config", "options", "frozen", "shared", "tasks"}
OURS = re.compile(r"(adapters/(frozen|shared)|tasks/\d+-[\w.-]+)-[0-9a-f]{12}\.safetensors")
MOST_NAMES = 10
"""Maximum number of tasks that a message lists."""
DESCRIPTION = {"name": str, "kind": dict, "state": str, "bytes": dict}
Manifest = dict[str, Any]


@dataclass
class SavedTasks:
    """Saved content of a model's tasks.

    Attributes:
        config, options: settings of the adapters and of training.
        backbone: description of the backbone that tasks were trained on: class, sites, checksums of every tensor.
        frozen: the adapters' frozen tensors.
        shared: state passed on from task to task.
        tasks: tensors and metadata of each task, in order.
        kept: for sealed tasks that were not read: a function that reads the tensors, and the metadata.
        extra: additional tensors of a continual learning method.
    """

    config: dict[str, Any]
    options: dict[str, Any]
    backbone: dict[str, Any]
    frozen: Tensors
    shared: Tensors
    tasks: list[tuple[Tensors, dict[str, Any]]]
    extra: Tensors = field(default_factory=dict)
    kept: list[tuple[Callable[[], Tensors], dict[str, Any]]] = field(default_factory=list)


def save(directory: Path, saved: SavedTasks, *, replace: bool = False) -> None:
    """Write a folder or replace its content; after a failure it has either the old or the new content.

    Args:
        directory: the folder.
        saved: the content.
        replace: replace the folder even if it has tasks that are not in `saved`.

    Raises:
        StateError: tasks would be lost, the folder is a run's, or a file is in its place. Nothing is replaced; `saved`
            is written to another folder beside it, which the message names.
        OSError: for example, the disk is full.
    """
    if (refused := _save_or_refuse(directory, saved, replace)) is None:
        return
    place = next((path for path in _files_in_the_way(directory)), directory).resolve()
    for number in itertools.count(2):
        beside = place.with_name(f"{place.name}-{number}")
        if _save_or_refuse(beside, saved, replace=False) is None:
            raise StateError(f"{refused}. This save was written to {beside} instead")


def _save_or_refuse(directory: Path, saved: SavedTasks, replace: bool) -> str | None:
    """Write a folder and return None, or return the reason why it is not written."""
    if in_the_way := _files_in_the_way(directory):
        return f"{in_the_way[0]} is a file, and tasks are saved into a folder: give another name"
    make_directory(directory)
    with locked(directory, wait=True):
        if (directory / RUN).exists():
            return f"{directory} has a run, which could not be continued after this: save into another folder"
        try:
            if not replace:
                check_kept(directory, saved, "save into another folder")
        except StateError as error:
            return str(error)
        commit(directory, stage(directory, saved))
    return None


def _files_in_the_way(directory: Path) -> list[Path]:
    return [path for path in (directory, *directory.parents) if path.exists() and not path.is_dir()]


def check_kept(directory: Path, saved: SavedTasks, remedy: str) -> None:
    """Raise StateError naming the tasks of a folder that `saved` lacks: they would be lost with their files.

    A sealed task is identified by its gates and head, whatever its current name; a task being trained by its name.
    """
    if not (directory / MANIFEST).exists():
        return
    remedy = f"{remedy}, add its tasks to this model first with tss.load(model, folder), or give replace=True"
    hashes, names = ({about.get(key) for _, about in saved.tasks} for key in ("hash", "name"))
    try:
        manifest = read_manifest(directory)
        _check_manifest(directory, manifest)
        held = [read_metadata(directory / entry["file"]) for entry in manifest["tasks"]]
    except StateError as error:
        raise StateError(f"{error}; its tasks would be lost: {remedy}") from error
    lost = [
        about.get("name")
        for about in held
        if (about.get("state") == "sealed" and about.get("hash") not in hashes)
        or (about.get("state") == "learning" and about.get("name") not in names)
    ]  # fmt: skip
    if lost:
        raise StateError(
            f"{directory} has {', '.join(map(repr, lost))}, which this save does not contain in the same form and "
            f"would remove: {remedy}"
        )


def stage(directory: Path, saved: SavedTasks) -> Manifest:
    """Write the files of `saved` beside those in use; return the manifest with which `commit` puts them into use."""
    shared = {f"shared.{k}": v for k, v in saved.shared.items()} | {f"extra.{k}": v for k, v in saved.extra.items()}
    tasks = [
        _put(directory, f"tasks/{i:02d}-{safe_name(about['name'])}", tensors, about)
        for i, (tensors, about) in enumerate(saved.tasks, start=1)
    ]
    return {
        "format": FORMAT,
        "config": saved.config,
        "options": saved.options,
        "frozen": _put(directory, "adapters/frozen", saved.frozen, {"backbone": saved.backbone}),
        "shared": _put(directory, "adapters/shared", shared, {}),
        "tasks": tasks,
    }


def commit(directory: Path, manifest: Manifest) -> None:
    """Put the files of a manifest into use, and remove other files that `stage` wrote, complete or not."""
    write_text(directory / MANIFEST, to_json(manifest, indent=1) + "\n")
    counts = {entry["file"] for entry in (manifest["frozen"], manifest["shared"], *manifest["tasks"])}
    for folder in ("adapters", "tasks"):
        for path in (directory / folder).glob("*.safetensors"):
            name = f"{folder}/{path.name}"
            if OURS.fullmatch(name) and name not in counts:
                path.unlink(missing_ok=True)
    for path in (*directory.glob("*/*.partial"), *directory.glob("*.partial")):
        whole = PARTIAL.fullmatch(path.relative_to(directory).as_posix())
        if whole and (whole[1] == MANIFEST or OURS.fullmatch(whole[1])):
            path.unlink(missing_ok=True)  # left by a killed process: live ones wait


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        StateError: there is none, it is damaged, or it has another format.
    """
    path = directory / MANIFEST
    try:
        manifest = from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if (directory / OLD_MANIFEST).is_file():
            raise StateError(
                f"{directory} was saved in format 1, which kept its tasks as ordinary state; this version reads "
                f"format {FORMAT}: open it with the version that wrote it, or train the tasks again"
            ) from None
        raise StateError(
            f"{directory} has no {MANIFEST}: give a folder that model.tss.save wrote, or a run folder with a trained "
            "task"
        ) from None
    except ValueError as error:
        raise StateError(
            f"{path} is not a complete manifest ({error}): it was truncated or edited; save again"
        ) from error
    if not isinstance(manifest, dict) or set(manifest) != KEYS or manifest["format"] != FORMAT:
        raise StateError(f"{path} is not a manifest of format {FORMAT} with {', '.join(sorted(KEYS))}; save again")
    return manifest


def _check_manifest(directory: Path, manifest: Manifest) -> None:
    """Raise StateError unless a manifest has the form that `stage` returns: no file outside the folder is ever read."""
    wrong = [key for key in ("config", "options") if not isinstance(manifest[key], dict)]
    tasks = manifest["tasks"] if isinstance(manifest["tasks"], list) else [None]
    named = [("frozen", manifest["frozen"]), ("shared", manifest["shared"]), *(("tasks", entry) for entry in tasks)]
    for key, entry in named:
        texts = isinstance(entry, dict) and all(isinstance(entry.get(part), str) for part in ("file", "sha256"))
        if not texts or not OURS.fullmatch(entry["file"]):
            wrong.append(key)
    if wrong:
        raise StateError(
            f"{directory / MANIFEST}: {', '.join(dict.fromkeys(wrong))} is not what tss writes (files are in adapters/ "
            "and tasks/ and their names contain a checksum); save again"
        )


def read(
    directory: Path, manifest: Manifest | None = None, *, names: Collection[str] | None = None, keep: bool = False
) -> SavedTasks:
    """Read and check the content of a folder, or the part of it that `manifest` lists.

    Args:
        directory: the folder.
        manifest: manifest of an earlier state of the folder; None for the current one.
        names: names of the tasks to read; None for all.
        keep: leave the tensors of sealed tasks on disk; they are read and checked when they are needed.

    Raises:
        StateError: a file is missing, damaged or from another save, or there is no task with one of the names.
    """
    if manifest is not None:
        return _read(directory, manifest, names, keep)
    manifest = read_manifest(directory)
    while True:
        try:
            return _read(directory, manifest, names, keep)
        except StateError:
            before, manifest = manifest, read_manifest(directory)
            if manifest == before:
                raise
            # another process has saved here meanwhile


def _read(directory: Path, manifest: Manifest, names: Collection[str] | None, keep: bool) -> SavedTasks:
    _check_manifest(directory, manifest)
    frozen, about = _get(directory, manifest["frozen"])
    backbone = about.get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("checksums"), dict):
        raise StateError(f"{directory / manifest['frozen']['file']} does not describe a backbone; save again")
    both, _ = _get(directory, manifest["shared"])
    parts: dict[str, Tensors] = {"shared": {}, "extra": {}}
    for name, tensor in both.items():
        owner, _, rest = name.partition(".")
        if owner not in parts:
            raise StateError(
                f"{directory / manifest['shared']['file']}: {name} is not part of a save of tss; save again"
            )
        parts[owner][rest] = tensor
    saved = SavedTasks(manifest["config"], manifest["options"], backbone, frozen, parts["shared"], [], parts["extra"])
    known = [_add(saved, directory, entry, names, keep) for entry in manifest["tasks"]]
    if missing := [name for name in names or () if name not in known]:
        rest = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        raise StateError(f"{directory} has no task {missing[0]!r}; it has: {', '.join(known[:MOST_NAMES])}{rest}")
    return saved


def _add(
    saved: SavedTasks, directory: Path, entry: Mapping[str, str], names: Collection[str] | None, keep: bool
) -> str:
    """Read a task's file, or only its metadata if that is enough, and return the task's name."""
    path = directory / entry["file"]
    if names is not None or keep:
        about = read_metadata(path)
        _check_description(path, about)
        if names is not None and about["name"] not in names:
            return about["name"]
        if keep and about["state"] == "sealed":
            saved.kept.append((KeptFile(directory.absolute(), dict(entry), about), about))
            return about["name"]
    tensors, about = _get(directory, entry)
    _check_description(path, about)
    saved.tasks.append((tensors, about))
    return about["name"]


class KeptFile:
    """Reader of a sealed task's tensors from the folder that it was left in, even after other saves to it.

    A save may rename the task's file or change its place in the order, so the task is found by its hash.
    """

    def __init__(self, directory: Path, entry: Mapping[str, str], about: Mapping[str, Any]) -> None:
        self.directory, self.entry, self.about = directory, entry, about

    def __call__(self) -> Tensors:
        """Read and check the tensors.

        Raises:
            StateError: the folder is gone or no longer has the task, or the task's file was changed.
        """
        for _ in range(2):  # a save may come between finding the file and reading it
            if not (self.directory / self.entry["file"]).is_file():
                self.entry = self._find()
            try:
                tensors, about = _get(self.directory, self.entry)
            except StateError:
                if (self.directory / self.entry["file"]).is_file():
                    raise
                continue
            if {**about, "name": None} != {**self.about, "name": None}:
                raise StateError(
                    f"{self.directory / self.entry['file']} describes task {self.about['name']!r} differently than "
                    "when the folder was opened: it was edited then or since; open it again"
                )
            return tensors
        raise StateError(f"{self.directory / self.entry['file']} is missing")

    def _find(self) -> Mapping[str, str]:
        manifest = read_manifest(self.directory)
        _check_manifest(self.directory, manifest)
        for entry in manifest["tasks"]:
            if read_metadata(self.directory / entry["file"]).get("hash") == self.about["hash"]:
                return entry
        raise StateError(
            f"{self.directory} no longer has task {self.about['name']!r}, which was left there when the folder was "
            f"opened: restore {self.entry['file']}, or load the folder without cache_bytes"
        )


def _check_description(path: Path, about: Mapping[str, Any]) -> None:
    if off := [key for key, kind in DESCRIPTION.items() if not isinstance(about.get(key), kind)]:
        raise StateError(f"{path} does not describe a task ({', '.join(off)}); save again")


def _put(directory: Path, stem: str, tensors: Tensors, metadata: Mapping[str, Any]) -> dict[str, str]:
    _check_finite(tensors, str(directory / stem))
    data = encode_tensors(tensors, metadata)
    digest = sha256(data)
    file = f"{stem}-{digest[:12]}.safetensors"
    if not (directory / file).is_file() or sha256(directory / file) != digest:
        write_bytes(directory / file, data)
    return {"file": file, "sha256": digest}


def _get(directory: Path, entry: Mapping[str, str]) -> tuple[Tensors, dict[str, Any]]:
    path = directory / entry["file"]
    data = read_bytes(path)  # only once: another process may remove it meanwhile
    tensors, metadata = decode_tensors(data, path)
    if (found := sha256(data)) != entry["sha256"]:
        raise StateError(
            f"{path} is from another save: sha256 {found}, {MANIFEST} expects {entry['sha256']}; save again"
        )
    if not isinstance(metadata, dict):
        raise StateError(f"{path} has no description; save again")
    _check_finite(tensors, str(path))
    return tensors, metadata


def _check_finite(tensors: Tensors, where: str) -> None:
    """Raise StateError for values that are not finite: a NaN reads as a gate that is off, or in a head as any label."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise StateError(
                f"{where}: {name} holds {count} values that are not finite, so it is neither saved nor used"
            )
