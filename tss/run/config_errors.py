"""Turn what pydantic found into one readable line for each problem."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[str]:
    """One line for each problem: the key, what was found, what is expected; unknown keys name the nearest known one.

    Args:
        error: what the validation of `model` raised.
        model: the model whose keys are the known ones.
        prefix: where the validated values sit in the whole configuration.
    """
    lines = []
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"])
        key = ".".join((*prefix, *location))
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(f"unknown key {key!r}; {nearest(location[-1], known_keys(model, location[:-1]))}")
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: {message}" if key else message)
        else:
            lines.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return lines


def nearest(name: str, known: list[str], kind: str = "keys") -> str:
    """The hint for an unknown name: the nearest known one, or all of that kind if none is near."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}?" if matches else f"known {kind} here: {', '.join(known)}"


def known_keys(model: type, location: tuple[str, ...]) -> list[str]:
    """The keys that a model (pydantic or dataclass) has at a location inside it."""
    current: Any = model
    for part in location:
        current = _section_type(_hints(current).get(part))
        if current is None:
            return []
    return list(_hints(current))


def _hints(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _section_type(annotation: Any) -> Any:
    """The model or dataclass inside an annotation, also behind `| None`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and (issubclass(candidate, BaseModel) or dataclasses.is_dataclass(candidate)):
            return candidate
    return None
