"""Saved tasks on the Hugging Face hub, with a model card; the client is imported only when it is used."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tss.adapters import saving
from tss.errors import StateError
from tss.io import write_text
from tss.tasks.base import kind_from_dict

CARD = "README.md"
Scores = Mapping[str, Mapping[str, float]]
HUB_TASKS = {
    "classification": "text-classification", "extraction": "token-classification", "generation": "text2text-generation"
}  # fmt: skip


def card(saved: saving.SavedTasks, repository: str, scores: Scores | None = None) -> str:
    """Return the model card: base model, how to load, and each task with its kind, metric, density and size.

    Args:
        saved: the tasks.
        repository: "owner/name".
        scores: task -> metric -> value, 0 to 100; known values go into the table and the hub's model index.

    Raises:
        StateError: `scores` has a task that is not in `saved`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores = scores or {}
    kinds = {about["name"]: kind_from_dict(about["kind"]) for _, about in saved.tasks}
    if unknown := sorted(set(scores) - set(kinds)):
        raise StateError(f"scores of {unknown[0]!r}, which is not among the tasks: {', '.join(kinds)}")
    results = [
        EvalResult(HUB_TASKS[kinds[task].kind], task, task, metric, value)
        for task, values in scores.items()
        for metric, value in values.items()
    ]
    name = saved.backbone.get("name")
    data = ModelCardData(
        library_name="tss", tags=["continual-learning", "adapters"], base_model=name or None,
        model_name=repository.rpartition("/")[2], eval_results=results or None,
    )  # fmt: skip
    base = name or saved.backbone["class"]
    lines = ["---", data.to_yaml(), "---", "", f"# Tasks on {base}", ""]
    lines += ["Gates for a frozen model; the model itself is not included.", "", "```python"]
    lines += [f'model = tss.load(backbone, "{repository}")', 'model(**batch, task="a name")', "```", ""]
    lines += ["| task | kind | main metric | value | gates on | bytes |", "|---|---|---|---:|---:|---:|"]
    for _, about in saved.tasks:
        kind = kinds[about["name"]]
        value = scores.get(about["name"], {}).get(kind.main_metric)
        share = "-" if about["density"] is None else f"{100 * about['density']:.1f} %"
        cells = (about["name"], kind.kind, kind.main_metric, "-" if value is None else f"{value:.2f}", share)
        lines.append(f"| {' | '.join(cells)} | {about['bytes']['total']:,} |")
    return "\n".join([*lines, ""])


def push(
    saved: saving.SavedTasks, repository: str, scores: Scores | None = None, *, replace: bool = False, **settings: Any
) -> str:
    """Upload what `model.tss.save` would write, and a model card; return the address.

    Args:
        saved: the tasks.
        repository: "owner/name".
        scores: as in `card`.
        replace: upload even if the repository has tasks that are not in `saved`.
        settings: arguments for the client's `create_repo`: private, token.

    Raises:
        StateError: `scores` has a task that is not in `saved`, or tasks of the repository would be lost.
        OSError, and what the client raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    text = card(saved, repository, scores)
    token = settings.pop("token", None)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saving.save(folder, saved)
        write_text(folder / CARD, text)
        created = api.create_repo(repository, exist_ok=True, **settings)
        if not replace:
            there = snapshot_download(created.repo_id, allow_patterns=[saving.MANIFEST, "tasks/*"], token=token)
            saving.check_kept(Path(there), saved, "push to another repository")
        patterns = [saving.MANIFEST, CARD, "adapters/*", "tasks/*"]
        api.upload_folder(
            repo_id=created.repo_id, folder_path=folder, allow_patterns=patterns,
            delete_patterns=["adapters/*", "tasks/*"], commit_message="Tasks",
        )  # fmt: skip
    return str(created)


def download(repository: str) -> Path:
    """Return the local folder of a repository, from the client's cache if it is there already.

    Raises:
        StateError: the client failed; the message has its reason.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[saving.MANIFEST, "adapters/*", "tasks/*"]))
    except Exception as error:  # the client raises dozens of types: no network, no such name, no access
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise StateError(
            f"{repository!r} is not a folder, and cannot be loaded from the hub by this name ({type(error).__name__}: "
            f"{reason[0]})"
        ) from error
