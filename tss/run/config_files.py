"""Where a configuration comes from: presets, YAML files, and overrides of single keys."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tss.errors import ConfigError
from tss.run.config_errors import nearest

DEFAULT_VARIANT = "quick"


def preset_names() -> list[str]:
    """Every preset file's name without `.yaml`: "demo", "mixed.quick", "mixed.paper", and so on, sorted."""
    folder = resources.files("tss") / "presets"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_source(source: str | Path | Mapping[str, Any] | None, variant: str | None) -> tuple[dict[str, Any], str]:
    """The values of a preset, a YAML file or a mapping, with what they extend merged in, and a name for messages."""
    if source is None:
        return {}, "configuration"
    if isinstance(source, Mapping):
        return _extended(dict(source), "configuration", ()), "configuration"
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if variant is not None:
            raise ConfigError(f"{path}: a variant ({variant!r}) belongs to a preset, not to a file; leave it out")
        return _extended(_parse(_read(path), str(path)), str(path), ()), str(path)
    name = find_preset(str(source), variant)
    return _preset(name, ()), f"preset {name}"


def find_preset(name: str, variant: str | None = None) -> str:
    """The file (without `.yaml`) of a preset: NAME.VARIANT, else NAME itself, else NAME's quick variant."""
    names = preset_names()
    wanted = [f"{name}.{variant}"] if variant else [name, f"{name}.{DEFAULT_VARIANT}"]
    for candidate in wanted:
        if candidate in names:
            return candidate
    variants = [entry.split(".", 1)[1] for entry in names if entry.startswith(f"{name}.")]
    if variants:
        raise ConfigError(f"preset {name!r} has no variant {variant!r}; it has: {', '.join(variants)}")
    known = list(dict.fromkeys(entry.split(".", 1)[0] for entry in names))
    raise ConfigError(f"no preset and no file {name!r}; {nearest(name, known, 'presets')}")


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=value` set, the value read as YAML ("null", "[a, b]", "3e-4")."""
    for text in overrides:
        key, separator, raw = text.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(f"override {text!r} is not of the form key=value, for example training.epochs=3")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {text!r}: the value {raw!r} is not valid YAML") from error
        change: Any = value
        for part in reversed(parts):
            change = {part: change}
        values = merge(values, change)
    return values


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it; mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _preset(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    text = (resources.files("tss") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return _extended(_parse(text, f"preset {name}"), f"preset {name}", (*seen, name))


def _extended(values: dict[str, Any], origin: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Lay the values over the preset that their key `extends` names."""
    base = values.pop("extends", None)
    if base is None:
        return values
    if base not in preset_names():
        raise ConfigError(f"{origin}: extends {base!r}, but {nearest(str(base), preset_names(), 'presets')}")
    if base in seen:
        raise ConfigError(f"{origin}: extends {base!r}, which extends it in turn")
    return merge(_preset(base, seen), values)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected a mapping of keys to values, found a {type(values).__name__}")
    return values
