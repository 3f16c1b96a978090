"""Saved tasks on the Hugging Face hub, with a card that says what they are; the client is imported when it is used."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tss.adapters import saving
from tss.errors import StateError
from tss.io import write_text
from tss.tasks.base import kind_from_dict

CARD = "README.md"


def card(saved: saving.Saved) -> str:
    """The model card: base model, how to load, and each task with its kind, metric, density and size."""
    base = saved.backbone.get("name") or saved.backbone["class"]
    lines = ["---", "library_name: tss", "tags:", "- continual-learning", "- adapters"]
    if saved.backbone.get("name"):
        lines.append(f"base_model: {base}")
    lines += ["---", "", f"# Tasks on {base}", "", "Gates over a frozen model; the model itself is not in here.", ""]
    lines += ["```python", 'model = tss.load(backbone, "this repository")', 'model(**batch, task="a name")', "```", ""]
    lines += ["| task | kind | main metric | gates on | bytes |", "|---|---|---|---:|---:|"]
    for _, about in saved.tasks:
        kind = kind_from_dict(about["kind"])
        share = "-" if about["density"] is None else f"{100 * about['density']:.1f} %"
        size = about["bytes"]["total"]
        lines.append(f"| {about['name']} | {kind.kind} | {kind.main_metric} | {share} | {size:,} |")
    return "\n".join([*lines, ""])


def push(saved: saving.Saved, repository: str, **settings: Any) -> str:
    """Upload what `model.tss.save` would write, and a card; gives the address.

    Args:
        saved: the tasks.
        repository: "owner/name".
        settings: of the client's `create_repo`: private, token.

    Raises:
        OSError, and what the client raises.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=settings.pop("token", None))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saving.save(folder, saved)
        write_text(folder / CARD, card(saved))
        created = api.create_repo(repository, exist_ok=True, **settings)
        patterns = [saving.MANIFEST, CARD, "adapters/*", "tasks/*"]
        api.upload_folder(
            repo_id=created.repo_id, folder_path=folder, allow_patterns=patterns,
            delete_patterns=["adapters/*", "tasks/*"], commit_message="Tasks",
        )  # fmt: skip
    return str(created)


def download(repository: str) -> Path:
    """The folder of a repository, from the client's cache where it is there already.

    Raises:
        StateError: with what the client said.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[saving.MANIFEST, "adapters/*", "tasks/*"]))
    except Exception as error:  # the client raises dozens of kinds: no network, no such name, no access
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise StateError(
            f"{repository!r} is no folder, and as a name on the hub it cannot be loaded ({type(error).__name__}: "
            f"{reason[0]})"
        ) from error
