"""Messages for pydantic errors: one readable line for each problem, with the spelling that was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

MOST = 10
"""Maximum number of problems reported; one wrong file can have hundreds."""
SWITCH_WORDS = {False: "off, no and false", True: "on, yes and true"}


def explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[str]:
    """Return a line for each problem: the key, what was found and expected; for unknown keys, the nearest known one.

    After `MOST` problems, a last line says how many more there are.

    Args:
        error: error from the validation of `model`.
        model: the model whose keys are the known ones.
        prefix: location of the validated values in the whole configuration.
    """
    problems = error.errors()
    lines = [_line(problem, model, prefix) for problem in problems[:MOST]]
    return lines + ([f"and {len(problems) - MOST} more problems"] if len(problems) > MOST else [])


def _line(problem: Any, model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    location = tuple(str(part) for part in problem["loc"])
    key, value = ".".join((*prefix, *location)), problem["input"]
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key!r}; {meant(location, model, prefix)}"
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    found = repr(value)
    line = f"{key}: {problem['msg']}, got {found if len(found) <= 80 else found[:77] + '...'}"
    if problem["type"] == "list_type" and isinstance(value, str):
        return f"{line}; write {key}=[{value}]"
    if problem["type"] == "string_type" and isinstance(value, bool):
        return (
            f"{line}, since YAML reads {SWITCH_WORDS[value]} as booleans; quote a text, or write 'none' to switch off"
        )
    if problem["type"] == "int_parsing" and isinstance(value, str) and _is_whole(value):
        return f"{line}; write it out: {key}={int(float(value))}"
    return line


def meant(location: tuple[str, ...], model: type[BaseModel], prefix: tuple[str, ...] = ()) -> str:
    """Return the hint for an unknown key: the nearest in its section or in another one, in dotted form, or all here."""
    name, here = location[-1], known_keys(model, location[:-1])
    leaves = {path.rsplit(".", 1)[-1]: path for path in reversed(all_keys(model))}
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.75)
    elsewhere = [name] if name in leaves else difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
    if not close and elsewhere and leaves[elsewhere[0]] not in here:
        return f"did you mean {'.'.join((*prefix, leaves[elsewhere[0]]))!r}?"
    return nearest(name, here, section=(*prefix, *location[:-1]))


def all_keys(model: type, prefix: str = "") -> list[str]:
    """Return every key of a model and of its sections, in dotted form."""
    keys = []
    for name, annotation in _hints(model).items():
        keys.append(prefix + name)
        if (section := _section_type(annotation)) is not None:
            keys += all_keys(section, f"{prefix}{name}.")
    return keys


def nearest(
    name: str, known: Sequence[str], kind: str = "keys", cutoff: float = 0.5, section: Sequence[str] = ()
) -> str:
    """Return the hint for an unknown name: the nearest known one in dotted form, or all if none is near."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if matches:
        return f"did you mean {'.'.join((*section, matches[0]))!r}?"
    return f"known {kind} here: {', '.join(known) or 'none'}"


def known_keys(model: type, location: tuple[str, ...]) -> list[str]:
    """Return the keys that a model (pydantic or dataclass) has at a location inside it."""
    current: Any = model
    for part in location:
        current = _section_type(_hints(current).get(part))
        if current is None:
            return []
    return list(_hints(current))


def _is_whole(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return abs(number) < 1e15 and number == int(number)


def _hints(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _section_type(annotation: Any) -> Any:
    """Return the model or dataclass in an annotation, with or without `| None`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and (issubclass(candidate, BaseModel) or dataclasses.is_dataclass(candidate)):
            return candidate
    return None
