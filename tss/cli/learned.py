"""A run's learned tasks, opened for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.adapters import attach
from tss.errors import StateError
from tss.run.backbone import Backbone, load_backbone, resolve_device
from tss.run.config import RunConfig, load_config, settings_for
from tss.run.evaluate import predict
from tss.run.examples import encode_split
from tss.run.prepare import make_method, restore
from tss.run.runtime import Runtime
from tss.run.state import Layout, load_state
from tss.tasks import TaskKind

if TYPE_CHECKING:
    from tss.adapters import TssHandle


@dataclass(frozen=True)
class Learned:
    """The backbone with the gates (or plain adapters) and heads of a run; `kinds` names its sealed tasks."""

    config: RunConfig
    backbone: Backbone
    handle: TssHandle
    runtime: Runtime
    kinds: dict[str, TaskKind]

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
            return predict(self.backbone.model, kind, split, tokenizer, batch_size=size, runtime=self.runtime)


def open_learned(folder: Path | str) -> Learned:
    """Opens a run folder, finished or not, with the tasks that are sealed in it. Nothing in the folder is changed.

    Raises:
        StateError: not a run folder, nothing learned yet, or a file that is missing, truncated or edited.
        ConfigError: its backbone cannot be loaded here.
    """
    layout = Layout(Path(folder))
    if not layout.state.is_file() or not layout.config.is_file():
        raise StateError(f"{folder}: not a run folder (no {layout.state.relative_to(layout.folder)} and config.yaml)")
    state = load_state(layout.state)
    if not state.sealed:
        raise StateError(f"{folder}: no task is learned yet")
    config = load_config(layout.config)
    runtime = Runtime(resolve_device(config.device), config.precision)
    backbone = load_backbone(
        config.backbone,
        tokenizer=config.tokenizer,
        precision=config.precision,
        device=runtime.device,
        seed=config.seed,
    )
    method = make_method(config)
    handle = attach(backbone.model, config.adapters, method.layer_options())
    restore(state, layout, handle, method)
    backbone.model.eval()
    return Learned(config, backbone, handle, runtime, {name: record.kind for name, record in handle.tasks.items()})
