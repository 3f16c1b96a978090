"""Fields of each kind of task, and validation of single examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Example = dict[str, Any]

# kind -> (fields that an example must have, fields that it may have)
FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classification": (("text", "label"), ("aspect",)),
    "extraction": (("tokens", "ner_tags"), ()),
    "generation": (("source", "target"), ("context",)),
}


ANSWERS = {"classification": "label", "extraction": "ner_tags", "generation": "target"}
"""Kind -> the field that its tasks predict."""


class Malformed(ValueError):
    """Raised for an invalid example; callers that know the file and line add them."""


def forms() -> str:
    """Return the three forms of an example, for messages."""
    return " or ".join(
        f"{kind} {{{', '.join(f'{chr(34)}{name}{chr(34)}' for name in needed)}}}"
        for kind, (needed, _) in FIELDS.items()
    )


def infer_kind(example: object) -> str:
    """Return the kind whose required fields an example has.

    Raises:
        Malformed: no kind fits, or more than one.
    """
    if not isinstance(example, Mapping):
        raise Malformed(f"expected a JSON object with the fields of a task, found {describe(example)}")
    fitting = [kind for kind, (needed, _) in FIELDS.items() if all(name in example for name in needed)]
    if len(fitting) != 1:
        found = ", ".join(map(str, example)) or "none"
        problem = f"fit {' and '.join(fitting)} at once" if fitting else "fit no kind of task"
        raise Malformed(f"the fields ({found}) {problem}; expected {forms()}")
    return fitting[0]


def check_example(example: object, kind: str, *, answered: bool = True) -> Example:
    """Check an example and return it reduced to the fields of its kind.

    Args:
        example: the example as read.
        kind: kind of its task.
        answered: whether the example comes with its answer; if False, messages do not mention the answer's field.

    Raises:
        Malformed: not an object; a field is missing, belongs to another kind, has a wrong type or is empty; or the tags
            are not a BIO sequence with one tag per word.
    """
    if not isinstance(example, Mapping):
        raise Malformed(f"expected a JSON object with the fields of {kind}, found {describe(example)}")
    needed, optional = FIELDS[kind]
    if missing := [name for name in needed if name not in example]:
        found = [str(name) for name in example if answered or name != ANSWERS[kind]]
        asked = [name for name in needed if answered or name != ANSWERS[kind]]
        reads = f"{kind} needs" if answered else f"prediction of {kind} needs"
        raise Malformed(
            f'field "{missing[0]}" is missing: {reads} {", ".join(asked)}; found {", ".join(found) or "no field"}'
        )
    foreign = {name for other, (names, _) in FIELDS.items() if other != kind for name in names} - {*needed, *optional}
    if mixed := sorted(foreign & set(example)):
        why = "by its first training line" if answered else "as the run learned it"
        raise Malformed(f'field "{mixed[0]}" belongs to another kind: the task is {kind} {why}')
    kept = {name: example[name] for name in (*needed, *optional) if example.get(name) is not None or name in needed}
    CHECKS[kind](kept)
    return kept


def check_input(example: object, kind: str) -> Example:
    """Check the fields of an example that prediction reads, as in training, and return them without the answer.

    Raises:
        Malformed: as in `check_example`.
    """
    if not isinstance(example, Mapping):
        raise Malformed(f"expected a JSON object with the fields of {kind}, found {describe(example)}")
    answer = ANSWERS[kind]
    if kind == "extraction":
        tokens = example.get("tokens")
        filler: Any = ["O"] * len(tokens) if isinstance(tokens, list) else []
    else:
        filler = "-"
    checked = check_example({**example, answer: filler}, kind, answered=False)
    del checked[answer]
    return checked


def unknown_field(example: Mapping[str, Any], kind: str) -> str | None:
    """Return the first field of an example that no task of its kind reads or predicts, or None.

    Args:
        example: the example as given.
        kind: kind of its task.
    """
    needed, optional = FIELDS[kind]
    return next((str(name) for name in example if name not in (*needed, *optional)), None)


def is_text(value: str) -> bool:
    """Return whether a string can be encoded as UTF-8: JSON can contain a lone surrogate, on which tokenizers fail."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(value: object) -> str:
    """Return a value and its type, short enough for a message."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _check_text(example: Example, name: str, *, may_be_empty: bool = False) -> None:
    value = example[name]
    if not isinstance(value, str):
        raise Malformed(f'field "{name}" must be a string, found {describe(value)}')
    if not is_text(value):
        raise Malformed(f'field "{name}" contains half of a surrogate pair, not a character: {describe(value)}')
    if not may_be_empty and not value.strip():
        raise Malformed(f'field "{name}" is empty: it must contain at least one character that is not blank')


def _check_classification(example: Example) -> None:
    for name in example:
        _check_text(example, name)


def _check_generation(example: Example) -> None:
    for name in example:
        _check_text(example, name, may_be_empty=name == "context")


def _check_extraction(example: Example) -> None:
    for name in ("tokens", "ner_tags"):
        if not isinstance(example[name], list):
            raise Malformed(f'field "{name}" must be a list of strings, found {describe(example[name])}')
        for i, item in enumerate(example[name]):
            if not isinstance(item, str) or not item.strip() or not is_text(item):
                raise Malformed(f'field "{name}": item {i} must be a string that is not blank, found {describe(item)}')
    words, tags = example["tokens"], example["ner_tags"]
    if not words:
        raise Malformed('field "tokens" is empty: a sentence has at least one word')
    if len(words) != len(tags):
        raise Malformed(f"{len(words)} tokens but {len(tags)} ner_tags: expected one tag per token")
    check_bio(tags)


def check_bio(tags: list[str]) -> None:
    """Raise Malformed unless tags are O, B-TYPE or I-TYPE, and every I-TYPE continues a B-TYPE or I-TYPE."""
    before = "O"
    for i, tag in enumerate(tags):
        if tag != "O" and not (tag[:2] in ("B-", "I-") and len(tag) > 2):
            raise Malformed(f"ner_tags: item {i} is {tag!r}, expected O, B-TYPE or I-TYPE")
        if tag.startswith("I-") and before[2:] != tag[2:]:
            raise Malformed(f"ner_tags: item {i} is {tag!r} after {before!r}; an entity begins with B-{tag[2:]}")
        before = tag


CHECKS: dict[str, Callable[[Example], None]] = {
    "classification": _check_classification,
    "extraction": _check_extraction,
    "generation": _check_generation,
}
