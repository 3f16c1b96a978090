"""Export of run folders to TensorBoard and Weights & Biases, with those packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tss.errors import ConfigError
from tss.report.run import Run

Scalars = tuple[int, dict[str, float]]


def scalars(run: Run) -> Iterator[Scalars]:
    """Yield the curves of a run: (optimizer steps of the whole run so far, name -> value), in the order of the events.

    `train/loss` and `train/score_lr` for steps, `validation/<task>` for epochs, and `test/<task>` after every task.
    """
    before, made = 0, 0  # steps of finished tasks, and of the current task
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
    """Write a run's curves to a TensorBoard log directory.

    Args:
        run: a finished or unfinished run.
        directory: TensorBoard's log directory; the run gets a folder in it, named after its label.

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
    """Upload a run's configuration, curves and summary to Weights & Biases, with the settings of its client.

    Args:
        run: a finished or unfinished run.
        project: name of the project.

    Returns:
        The URL of the run, or the folder for `wandb sync` if the client is offline.

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
