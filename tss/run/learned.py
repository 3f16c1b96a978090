"""The learned tasks of a run folder, ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.adapters import attach
from tss.errors import ConfigError, StateError
from tss.run.backbone import Backbone, load_backbone, resolve_device
from tss.run.config import RunConfig, load_config, settings_for
from tss.run.evaluate import predict
from tss.run.examples import encode_split
from tss.run.prepare import make_method, restore
from tss.run.runtime import Runtime
from tss.run.state import Layout, load_state
from tss.tasks.base import Example, TaskKind

if TYPE_CHECKING:
    from tss.adapters import TssHandle


@dataclass(frozen=True)
class Learned:
    """A backbone with the sealed tasks of a run on it."""

    config: RunConfig
    backbone: Backbone
    handle: TssHandle
    runtime: Runtime

    @property
    def tasks(self) -> dict[str, TaskKind]:
        """Sealed tasks and their kinds, in the order in which they were learned."""
        return {name: record.kind for name, record in self.handle.tasks.items()}

    def predict(self, task: str, examples: Sequence[Example]) -> list[Any]:
        """Predictions in the order of the examples; these need the fields of the task's kind but no answer.

        Raises:
            ConfigError: if there is no such task; the message lists those there are.
        """
        if task not in self.tasks:
            raise ConfigError(f"no learned task {task!r} in this run; there are: {', '.join(self.tasks)}")
        kind, settings = self.tasks[task], settings_for(self.config, task)
        split = encode_split(examples, kind, self.backbone.tokenizer, settings)
        with self.handle.using(task):
            return predict(
                self.backbone.model,
                kind,
                split,
                self.backbone.tokenizer,
                batch_size=settings.eval_batch_size,
                runtime=self.runtime,
            )


def load_learned(folder: Path | str, *, device: str = "auto") -> Learned:
    """Load what a run has learned so far, also of a run that has not ended.

    Raises:
        StateError: if the folder holds no run, or a file of it is damaged.
        ConfigError: if its backbone or the device cannot be had.
    """
    layout = Layout(Path(folder))
    if not layout.state.is_file():
        raise StateError(f"{layout.folder} holds no run ({layout.state} is missing)")
    config, state = load_config(layout.config), load_state(layout.state)
    runtime = Runtime(resolve_device(device), config.precision)
    backbone = load_backbone(
        config.backbone, tokenizer=config.tokenizer, precision=config.precision, device=runtime.device, seed=config.seed
    )
    method = make_method(config)
    handle = attach(backbone.model, config.adapters, method.layer_options())
    restore(state, layout, handle, method)
    return Learned(config, backbone, handle, runtime)
