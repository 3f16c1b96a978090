"""Runs for TensorBoard and Weights & Biases, written by their own packages from what a run folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tss.errors import ConfigError
from tss.report.run import Run

Scalars = tuple[int, dict[str, float]]


def scalars(run: Run) -> Iterator[Scalars]:
    """The curves of a run: (optimizer steps of the whole run so far, name -> value), in the order of the events.

    `train/loss` and `train/score_lr` of steps, `validation/<task>` of epochs, and `test/<task>` after every task.
    """
    before, made = 0, 0  # steps of finished tasks, and of the one that is being learned
    per_epoch: dict[str, int] = {}
    for event in run.events:
        match event.get("event"):
            case "task_begin":
                per_epoch[event["task"]] = event["steps"] // max(1, event["epochs"])
            case "step":
                made = event["epoch"] * per_epoch.get(event["task"], 0) + event["step"] + 1
                yield before + made, {"train/loss": event["loss"], "train/score_lr": event["score_lr"]}
            case "epoch":
                made = (event["epoch"] + 1) * per_epoch.get(event["task"], 0)
                yield before + made, {f"validation/{event['task']}": event["validation"]}
            case "task_end":
                before, made = before + made, 0
            case "evaluated":
                yield before, {f"test/{event['task']}": event["value"]}


def to_tensorboard(run: Run, directory: Path) -> Path:
    """Write a run's curves where TensorBoard finds them.

    Args:
        run: any, finished or not.
        directory: TensorBoard's log directory; the run gets a folder in it, by its label.

    Returns:
        The run's folder.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    folder = directory / run.label.replace("/", "-")
    writer = SummaryWriter(str(folder))
    for step, values in scalars(run):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    writer.close()
    return folder


def to_wandb(run: Run, project: str) -> str:
    """Upload a run's configuration, curves and summary to Weights & Biases, as its own client is set up to do.

    Args:
        run: any, finished or not.
        project: name of the project.

    Returns:
        The address of the run there, or the folder that `wandb sync` takes where the client is offline.

    Raises:
        ConfigError: the package wandb is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--wandb needs the package wandb: pip install wandb") from error
    upload: Any = wandb.init(project=project, name=run.label, config=run.config, reinit="create_new")
    for step, values in scalars(run):
        upload.log(values, step=step)
    upload.summary.update({name: value for name, value in run.own_summary.items() if isinstance(value, (int, float))})
    where = upload.url or upload.dir
    upload.finish()
    return str(where)
