"""Configuration from the words and options of the `run` and `check` commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.errors import ConfigError

if TYPE_CHECKING:
    from tss.data import Order
    from tss.run.config import RunConfig

SHORTCUTS = ("data", "backbone", "method")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a configuration."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG|PRESET|key=value",
        help="a YAML file or a preset, then changes to it, of which the last one wins: training.epochs=1 for every "
        "task, then families.asc.epochs=3 for one family",
    )
    parser.add_argument("--preset", metavar="NAME", help="preset, for example mixed or mixed.paper (see `tss presets`)")
    parser.add_argument("--variant", metavar="quick|paper", help="variant of the preset")
    parser.add_argument("--data", metavar="DIR", help="folder of <family>/<task>/*.jsonl, `generated`, or hub:NAME")
    parser.add_argument(
        "--backbone", metavar="X", help="embedded, bart-large (either with -random), a model folder or a hub name"
    )
    parser.add_argument(
        "--method",
        metavar="M",
        help="tss, or a baseline: one, lora, supsup, piggyback, hat, ewc, lwf, ncl, full, mtl",
    )
    parser.add_argument(
        "--available-only",
        action="store_true",
        help="skip tasks of the sequence that the data does not have, and list them",
    )


def chosen(args: argparse.Namespace) -> bool:
    """Return whether the command line says what to run."""
    return bool(args.words or args.preset or args.variant) or any(getattr(args, key) is not None for key in SHORTCUTS)


def configuration(args: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> tuple[RunConfig, str]:
    """Return the configuration and a short name for it.

    Args:
        args: parsed arguments of the command line.
        saved: configuration to start from if neither a preset nor a file is named; None: the defaults.

    Raises:
        ConfigError: two presets, an unknown preset or key, or an invalid value.
    """
    from tss.run.config import load_config

    sources = [word for word in args.words if "=" not in word]
    if args.preset is not None:
        sources.insert(0, args.preset)
    if len(sources) > 1:
        raise ConfigError(
            f"one configuration or preset at a time, got {' and '.join(map(repr, sources))}; changes are key=value"
        )
    source = sources[0] if sources else None
    if source is None and args.variant is not None:
        raise ConfigError(f"--variant {args.variant} needs a preset: add --preset NAME")
    overrides = [word for word in args.words if "=" in word]
    # JSON is valid YAML: quotes prevent a path or a name from being parsed as another type
    overrides += [f"{key}={json.dumps(getattr(args, key))}" for key in SHORTCUTS if getattr(args, key) is not None]
    if args.available_only:
        overrides.append("missing_tasks=skip")
    config = load_config(saved if source is None else source, overrides, variant=args.variant)
    name = "run" if source is None else Path(source).stem if Path(source).suffix in (".yaml", ".yml") else source
    return config, name.replace(".quick", "") + ("" if args.variant in (None, "quick") else f".{args.variant}")


def sequence(config: RunConfig) -> Order:
    """Return the tasks of the sequence by their names in the data, and the names missing from the data."""
    from tss.run import resolve

    return resolve.sequence(config)


def tell_missing(config: RunConfig) -> None:
    """Report on standard error which tasks of the sequence are skipped.

    Raises:
        ConfigError: tasks are missing and may not be skipped, or no task exists; the message says how to proceed.
    """
    from tss.run.resolve import missing_message

    order = sequence(config)
    there = order.tasks
    if not order.missing:
        return
    message = missing_message(config, order)
    if config.missing_tasks == "skip" and there:
        print(f"left out: {message}", file=sys.stderr)
        return
    rest = f"; --available-only runs the {len(there)} that are available" if there else ""
    raise ConfigError(message + rest)


def tell_damage(damage: Sequence[str]) -> int:
    """Report damaged files of a run on standard error; return the exit code."""
    for line in damage:
        print(f"tss: {line}", file=sys.stderr)
    return 1 if damage else 0
