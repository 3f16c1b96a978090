"""`tss presets`: list the presets and studies, or print a preset with all defaults, or a study."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from tss.cli import console
from tss.presets import study_file, study_names


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "presets",
        parents=parents,
        help="list presets and studies, or print one",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this preset, with all defaults, or study")
    parser.add_argument("--variant", metavar="quick|paper", help="which variant of the preset")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.name is None:
        from tss.run.config_files import preset_names

        console.print_table(["preset", "what"], [[name, description(name)] for name in preset_names()])
        print()
        console.print_table(["study", "what"], [[name, description(f"studies/{name}")] for name in study_names()])
        return 0
    from tss.run.config import dump_config, load_config
    from tss.run.config_files import find_preset, preset_names

    if args.variant is None and args.name in set(study_names()) - set(preset_names()) and not Path(args.name).is_file():
        print(f"# study {args.name}: `tss study {args.name}` runs it, `tss study FILE` a changed copy")
        print(study_file(args.name).read_text(encoding="utf-8"), end="")
        return 0
    config = load_config(args.name, variant=args.variant)
    is_file = Path(args.name).is_file()
    name = args.name if is_file else find_preset(args.name, args.variant)
    print(f"# {name} for backbone {config.backbone} and method {config.method}")
    if not is_file:
        print(f"# a file with `extends: {name}` also gets the preset's settings for other backbones and methods")
    print(dump_config(config), end="")
    return 0


def description(name: str) -> str:
    """Return the comment in the first line of the file of a preset, or of a study: "studies/NAME"."""
    text = (resources.files("tss") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip() if first.startswith("#") else ""
