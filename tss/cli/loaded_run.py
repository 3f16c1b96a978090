"""Learned tasks, opened for prediction: those of a run, or those that `model.tss.save` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.adapters import saving
from tss.adapters.loading import restore
from tss.errors import ConfigError, StateError
from tss.run.backbone import Backbone, identity, load_backbone, resolve_device, resolve_precision
from tss.run.config import RunConfig, load_config, settings_for
from tss.run.evaluate import predict
from tss.run.examples import encode_split
from tss.run.folder import RunFolder
from tss.run.run_state import check_same
from tss.run.runtime import Runtime
from tss.tasks import TaskKind

if TYPE_CHECKING:
    from tss.adapters import TssHandle, TssModel


@dataclass(frozen=True)
class Learned:
    """A backbone with gates (or plain adapters) and heads; `kinds` names the sealed tasks."""

    config: RunConfig
    backbone: Backbone
    model: TssModel
    runtime: Runtime
    kinds: dict[str, TaskKind]

    @property
    def handle(self) -> TssHandle:
        """Of the model."""
        return self.model.tss

    def predict(self, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """The prediction for each (task, example), in their order; rows of a task are batched together by length."""
        answers: list[Any] = [None] * len(rows)
        places: dict[str, list[int]] = {}
        for place, (task, _) in enumerate(rows):
            places.setdefault(task, []).append(place)
        for task, where in places.items():
            found = self._predict_task(task, [rows[place][1] for place in where])
            for place, answer in zip(where, found, strict=True):
                answers[place] = answer
        return answers

    def _predict_task(self, task: str, examples: list[dict[str, Any]]) -> list[Any]:
        kind, settings, tokenizer = self.kinds[task], settings_for(self.config, task), self.backbone.tokenizer
        split = encode_split(examples, kind, tokenizer, settings)
        size = settings.eval_batch_size
        with self.handle.using(task):
            return predict(self.model, kind, split, tokenizer, batch_size=size, runtime=self.runtime)


def open_learned(folder: Path | str, *, backbone: str | None = None, tokenizer: str | None = None) -> Learned:
    """Opens a run folder, finished or not, or a folder that `model.tss.save` wrote. Nothing in it is changed.

    Args:
        folder: a run's, or with `tss.json`.
        backbone: model folder or hub name; None: the one that the folder names.
        tokenizer: folder or hub name; None: the backbone's own.

    Raises:
        StateError: neither kind of folder, nothing learned yet, or a file that is missing, truncated or edited.
        ConfigError: its backbone cannot be loaded here, or a saved folder does not say which it is.
    """
    files = RunFolder(folder)
    state = files.load_state() if files.state.is_file() else None
    if state is not None and not state.sealed:
        raise StateError(f"{folder}: no task is learned yet")
    saved = saving.read(files.path, None if state is None else state.saved)
    if not any(about["state"] == "sealed" for _, about in saved.tasks):
        raise StateError(f"{folder}: no task is learned yet")
    if state is not None:  # what is in config.yaml may have been edited since
        config = load_config(state.config)
    else:
        name = backbone or saved.backbone.get("name")
        if not name:
            raise ConfigError(f"{folder} does not say which backbone it was learned on: name it with --backbone")
        config = load_config({"backbone": name})
    device = resolve_device(config.device)
    runtime = Runtime(device, resolve_precision(config.precision, device))
    base = load_backbone(
        backbone or config.backbone,
        tokenizer=tokenizer or config.tokenizer,
        precision=runtime.precision,
        device=runtime.device,
        seed=config.seed,
    )
    if state is not None:
        check_same(f"{folder} cannot be used here: the {{}}", state.backbone, identity(base))
    model = restore(base.model, saved, str(folder))
    model.eval()
    kinds = {name: record.kind for name, record in model.tss.tasks.items() if record.state == "sealed"}
    return Learned(config, base, model, runtime, kinds)
