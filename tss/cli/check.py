"""`tss check`: validate a configuration and every line of its data, and estimate memory and time, without training."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tss.cli import config_args, console

if TYPE_CHECKING:
    from tss.cli.estimating import Estimate


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "check", parents=parents, help="validate a configuration and its data", description=__doc__, allow_abbrev=False
    )
    config_args.add_arguments(parser)
    parser.add_argument(
        "--no-steps", action="store_true", help="do not load the backbone, and do not estimate memory and time"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a task cannot be loaded."""
    from tss.cli.tasks import load_all, print_tasks
    from tss.run.backbone import resolve_device
    from tss.run.config import settings_for
    from tss.run.examples import with_settings
    from tss.run.resolve import with_task_names

    config, _ = config_args.configuration(args)
    names = config_args.sequence(config).tasks
    if names:  # otherwise what is missing is reported below
        config = with_task_names(config)
    resolve_device(config.device)
    tasks, errors = [], []
    for name in names:
        settings, source = settings_for(config, name), config.source_of(name)
        limits = settings.limits.model_dump()
        loaded, failed = load_all(source.source, [name], seed=config.seed, limits=limits, fields=source.fields)
        tasks, errors = tasks + loaded, errors + failed
        for task in loaded:
            with_settings(task.kind, settings, name)  # raises for a metric or decoding that the kind does not have
    if tasks:
        print_tasks(tasks)
    for error in errors:
        print(f"tss: {error}", file=sys.stderr)
    config_args.tell_missing(config)
    if errors:
        return 1
    if not args.no_steps:
        from tss.cli.estimating import estimate

        print_estimate(estimate(config))
    print("\nconfiguration and data are valid")
    return 0


def print_estimate(made: Estimate) -> None:
    """Print the time per family and in total, the memory, and how both were measured."""
    from tss.report.names import duration, size

    print()
    rows = [
        [
            row.family,
            row.task,
            f"{row.step_seconds:.3f}",
            str(row.steps),
            duration(row.training),
            duration(row.evaluation),
        ]
        for row in made.families
    ]
    headers = ["family", "timed on", "s per step", "steps", "training", "evaluation"]
    console.print_table(headers, rows, right=(2, 3, 4, 5))
    print(
        f"\nbackbone  {made.backbone} ({made.parameters / 1e6:.1f} million parameters, {made.precision}, {made.device})"
    )
    print(f"memory    {size(made.peak_bytes)} at the peak of the timed steps")
    print(f"time      about {duration(made.seconds)}, if no task stops early")
    print(f"method    {made.how}")
