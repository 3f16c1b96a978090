"""How `run` and `check` turn words and options into a configuration."""

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
    """The arguments that choose a configuration."""
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
    """Whether the command line says what to run."""
    return bool(args.words or args.preset or args.variant) or any(getattr(args, key) is not None for key in SHORTCUTS)


def configuration(args: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> tuple[RunConfig, str]:
    """The configuration and a short name for it.

    Args:
        args: of the command line.
        saved: what to change where no preset and no file is named; None: the defaults.

    Raises:
        ConfigError: two presets, an unknown preset or key, or a value that does not fit.
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
    # JSON is YAML: quoting keeps a path or a name from being read as anything else
    overrides += [f"{key}={json.dumps(getattr(args, key))}" for key in SHORTCUTS if getattr(args, key) is not None]
    if args.available_only:
        overrides.append("missing_tasks=skip")
    config = load_config(saved if source is None else source, overrides, variant=args.variant)
    name = "run" if source is None else Path(source).stem if Path(source).suffix in (".yaml", ".yml") else source
    return config, name.replace(".quick", "") + ("" if args.variant in (None, "quick") else f".{args.variant}")


def sequence(config: RunConfig) -> Order:
    """The tasks of the sequence by their names in the data, and the names that the data lacks."""
    from tss.run import resolve

    return resolve.sequence(config)


def tell_missing(config: RunConfig) -> None:
    """Says on standard error what is left out of the sequence.

    Raises:
        ConfigError: tasks are missing and not to be left out, or none is there; with the remedy.
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
    rest = f"; --available-only runs the {len(there)} that are there" if there else ""
    raise ConfigError(message + rest)


def tell_damage(damage: Sequence[str]) -> int:
    """Says on standard error what of a run is damaged; the exit code."""
    for line in damage:
        print(f"tss: {line}", file=sys.stderr)
    return 1 if damage else 0
