"""Sources of a configuration: presets, YAML files, and overrides of single keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tss.errors import ConfigError
from tss.io import parse_reason
from tss.presets import study_names
from tss.run.config_errors import nearest

DEFAULT_VARIANT = "quick"
MAX_BYTES, MAX_VALUES = 2**20, 100_000
"""Maximum bytes of a configuration file, and maximum number of values in it."""
SECTIONS, SPECIFIC = ("training", "generation", "limits"), ("families", "overrides")
"""Sections for every task, and sections for single families or tasks."""


class Layer(NamedTuple):
    """Values of one preset, file or mapping, without the preset that it extends, and its name for messages."""

    values: dict[str, Any]
    origin: str


def preset_names() -> list[str]:
    """Return the sorted names of all preset files without `.yaml`: "demo", "mixed.quick", "mixed.paper", and so on."""
    folder = resources.files("tss") / "presets"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_source(source: str | Path | Mapping[str, Any] | None, variant: str | None) -> tuple[list[Layer], str]:
    """Read a preset, a YAML file or a mapping; return its layers, with extended presets first, and its name."""
    if source is None:
        return [], "configuration"
    if isinstance(source, Mapping):
        return _extended(dict(source), "configuration", ()), "configuration"
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if variant is not None:
            raise ConfigError(f"{path}: a variant ({variant!r}) belongs to a preset, not to a file; leave it out")
        return _extended(_parse(read_text(path), str(path)), str(path), ()), str(path)
    name = find_preset(str(source), variant)
    return _preset(name, ()), f"preset {name}"


def find_preset(name: str, variant: str | None = None) -> str:
    """Return a preset's file name (without `.yaml`): NAME.VARIANT, or without a variant NAME, else NAME.quick."""
    names = preset_names()
    wanted = [f"{name}.{variant}"] if variant else [name, f"{name}.{DEFAULT_VARIANT}"]
    for candidate in wanted:
        if candidate in names:
            return candidate
    variants = [entry.split(".", 1)[1] for entry in names if entry.startswith(f"{name}.")]
    if variants:
        raise ConfigError(f"preset {name!r} has no variant {variant!r}; it has: {', '.join(variants)}")
    if name in study_names():
        raise ConfigError(f"{name!r} is a study, not a preset: tss study {name} runs it, tss presets {name} prints it")
    known = list(dict.fromkeys((*(entry.split(".", 1)[0] for entry in names), *study_names())))
    raise ConfigError(f"no preset and no file {name!r}; {nearest(name, known, 'presets and studies', 0.6)}")


def apply_override(values: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a copy of `values` with `a.b=value` applied, its value read as YAML ("null", "[a, b]", "3e-4")."""
    key, separator, raw = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {shown(text)} is not of the form key=value, for example training.epochs=3")
    change = read_yaml(raw, f"override {shown(text)}")
    for part in reversed(parts):
        change = {part: change}
    return lay_over(values, change)


def apply_overrides(values: dict[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """Apply each override in turn."""
    for text in texts:
        values = apply_override(values, text)
    return values


def read_text(path: Path, kind: str = "configuration") -> str:
    """Return the text of a configuration file; `kind` is what messages call its content.

    Raises:
        ConfigError: it cannot be read, is not UTF-8, or has more than `MAX_BYTES`.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} allowed for a {kind}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def read_yaml(text: str, origin: str) -> Any:
    """Parse YAML text.

    Raises:
        ConfigError: it is not valid, has a key twice, is nested too deeply, or has too many values for a configuration,
            counting what aliases repeat.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply for a configuration") from error
    except ValueError as error:  # invalid dates, numbers of thousands of digits
        raise ConfigError(
            f"{origin}: a value that cannot be read ({parse_reason(error)}); quote it to keep it as text"
        ) from error
    if _values(value, MAX_VALUES) > MAX_VALUES:
        raise ConfigError(
            f"{origin}: more than {MAX_VALUES:,} values, counting what aliases repeat: too many for a configuration"
        )
    return value


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys, whose first value would otherwise be dropped silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _values(value: Any, most: int) -> int:
    """Count a document's values with aliases expanded; stop above `most`, since a document can contain itself."""
    count, rest = 0, [value]
    while rest and count <= most:
        current = rest.pop()
        count += 1
        if isinstance(current, Mapping):
            rest += current.values()
        elif isinstance(current, list | tuple | set):
            rest += current
    return count


def shown(text: str) -> str:
    """Return a user's text for a message, shortened if it is long."""
    return repr(text if len(text) <= 80 else f"{text[:70]}...")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `changes`; mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def lay_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with a later layer: a file that extends a preset, or an override of a file.

    What the layer sets for every task also replaces what `base` sets for a family or a single task, and what it sets
    for a family replaces what `base` sets for a task of it. Otherwise the earlier layer would silently take precedence.
    """
    general = {key: changes[key] for key in SECTIONS if isinstance(changes.get(key), Mapping)}
    general = {**_mapping(general.pop("training", None)), **general}
    families = _mapping(changes.get("families"))
    lower = dict(base)
    for section in SPECIFIC:
        for name, settings in _mapping(base.get(section)).items():
            family = families.get(str(name).split("/", 1)[0]) if section == "overrides" else None
            left = without(without(_mapping(settings), general), _mapping(family))
            if left != settings and isinstance(settings, Mapping):
                lower[section] = {**lower[section], name: left}
    return merge(lower, changes)


def without(settings: Mapping[str, Any], replaced: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that `replaced` sets; mappings are compared key by key."""
    left = {}
    for key, value in settings.items():
        if key not in replaced:
            left[key] = value
        elif (
            isinstance(value, Mapping)
            and isinstance(replaced[key], Mapping)
            and (inner := without(value, replaced[key]))
        ):
            left[key] = inner
    return left


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _preset(name: str, seen: tuple[str, ...]) -> list[Layer]:
    text = (resources.files("tss") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return _extended(_parse(text, f"preset {name}"), f"preset {name}", (*seen, name))


def _extended(values: dict[str, Any], origin: str, seen: tuple[str, ...]) -> list[Layer]:
    """Return the layers of the preset that the key `extends` names, then the layer of `values`."""
    base = values.pop("extends", None)
    layer = Layer(values, origin)
    if base is None:
        return [layer]
    if base not in preset_names():
        raise ConfigError(f"{origin}: extends {base!r}, but {nearest(str(base), preset_names(), 'presets')}")
    if base in seen:
        raise ConfigError(f"{origin}: extends {base!r}, which extends it in turn")
    return [*_preset(base, seen), layer]


def _parse(text: str, origin: str) -> dict[str, Any]:
    values = read_yaml(text, origin)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected a mapping of keys to values, found a {type(values).__name__}")
    if foreign := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{origin}: the key {foreign[0]!r} is not a string; keys are names such as seed")
    return values
