"""Convert the formats of the catalog's sources, files or tables, to examples in this project's format."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tss.data.catalog import Entry
from tss.data.hub import class_names, named
from tss.data.schema import Example
from tss.errors import DataError
from tss.io import from_json


class File(NamedTuple):
    """A file of a source: a name for messages, and its content."""

    name: str
    content: bytes


def read_files(files: Sequence[File], entry: Entry) -> list[Example]:
    """Return the examples of one split, in the order of the files.

    Raises:
        DataError: a file does not have the entry's format; names the file and, where it applies, the line.
    """
    return list(READERS[entry.format](files, entry))


def column_example(row: Mapping[str, Any], entry: Entry, names: Mapping[str, list[str] | None]) -> Example:
    """Return the example of one row of a table.

    Args:
        row: column -> value.
        entry: names the columns of each field; several columns are joined by spaces, without the empty ones.
        names: column -> class names, from `column_names`.

    Raises:
        IndexError: a class number has no name.
    """
    example: Example = {}
    for field, columns in entry.fields.items():
        values = [named(row[column], names[column]) for column in columns]
        if len(values) > 1:
            values = [" ".join(text for value in values if (text := (value or "").strip()))]
        example[field] = _renamed(values[0], entry.labels) if field == "label" else values[0]
    if "ner_tags" in example:
        example["ner_tags"] = to_bio(example["ner_tags"])
    return example


def column_names(table: Any, entry: Entry, where: str) -> dict[str, list[str] | None]:
    """Return the class names of each column that an entry reads; None for a column without class numbers.

    Raises:
        DataError: the table lacks a column.
    """
    columns = [column for group in entry.fields.values() for column in group]
    if missing := [column for column in columns if column not in table.column_names]:
        raise DataError(f"no column {missing[0]!r}; there are: {', '.join(table.column_names)}", where)
    return {column: class_names(table.features[column]) for column in columns}


def dialogue_examples(dialogue: Mapping[str, Any], domain: str) -> Iterator[Example]:
    """Yield the system's replies in a MultiWOZ 2.2 dialogue if `domain` is its only domain; otherwise yield nothing.

    The source of a reply is its acts that carry database results, or the previous turn if there are none. For example
    `hotel_inform(price="cheap",area="north") hotel_recommend(name="the lodge")`.
    """
    if list(dialogue["services"]) != [domain]:
        return
    turns, before = dialogue["turns"], ""
    for speaker, text, acts in zip(turns["speaker"], turns["utterance"], turns["dialogue_acts"], strict=True):
        if speaker in (1, "SYSTEM"):
            source = _acts(acts["dialog_act"]) or before
            if source.strip() and text.strip():
                yield {"source": source, "target": text.strip()}
        before = text.strip()


RESULTS = ("inform", "recommend", "select", "book", "nobook")


def _acts(acts: Mapping[str, Any]) -> str:
    """Return the acts that carry results, written as calls; slots without a value are omitted."""
    calls = []
    for kind, slots in zip(acts["act_type"], acts["act_slots"], strict=True):
        if kind.rpartition("-")[2].lower() in RESULTS:
            pairs = zip(slots["slot_name"], slots["slot_value"], strict=True)
            given = [(name, value.replace('"', "'")) for name, value in pairs if "none" not in (name, value)]
            inside = ",".join(f'{name.lower()}="{value}"' for name, value in given)
            calls.append(f"{kind.lower().replace('-', '_')}({inside})")
    return " ".join(calls)


def to_bio(tags: Sequence[str]) -> list[str]:
    """Return the tags with every entity starting with B: sources write I where no entity of that type precedes."""
    fixed: list[str] = []
    for i, tag in enumerate(tags):
        starts = tag.startswith("I-") and (i == 0 or tags[i - 1][2:] != tag[2:])
        fixed.append(f"B-{tag[2:]}" if starts else tag)
    return fixed


def _renamed(label: str, labels: Mapping[str, str]) -> str:
    return labels.get(label, label)


def _absa(files: Sequence[File], entry: Entry) -> Iterator[Example]:
    for file in files:
        try:
            for row in from_json(file.content).values():
                label = _renamed(row["polarity"], entry.labels)
                yield {"text": row["sentence"].strip(), "aspect": row["term"].strip(), "label": label}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"expected {{id: {{sentence, term, polarity}}}} ({type(error).__name__}: {error})", file.name
            ) from error


def _conll(files: Sequence[File], entry: Entry) -> Iterator[Example]:
    for file in files:
        words: list[tuple[str, str]] = []
        for number, line in _lines(file):
            parts = line.rsplit("\t", 1) if "\t" in line else line.rsplit(" ", 1)
            if not line.strip() or line.startswith("-DOCSTART-"):
                yield from _sentence(words)
                words = []
            elif len(parts) != 2 or not parts[1].strip():
                raise DataError("expected a word and its tag, or a blank line", file.name, number)
            elif parts[0].strip():  # some words consist only of a whitespace character of another script
                words.append((parts[0].strip(), parts[1].strip()))
        yield from _sentence(words)


def _sentence(words: Sequence[tuple[str, str]]) -> Iterator[Example]:
    if words:
        yield {"tokens": [word for word, _ in words], "ner_tags": to_bio([tag for _, tag in words])}


def _meetings(files: Sequence[File], entry: Entry) -> Iterator[Example]:
    for file in files:
        for number, line in _lines(File(file.name, _unpacked(file))):
            try:
                row = json.loads(line)
                said = (f"{turn['role']}: {' '.join(turn['utt']['word'])}" for turn in row["meeting"])
                yield {"source": " ".join(said), "target": " ".join(row["summary"])}
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"expected {{meeting: [{{role, utt: {{word}}}}], summary}} ({type(error).__name__}: {error})",
                    file.name,
                    number,
                ) from error


def _unpacked(file: File) -> bytes:
    try:
        return gzip.decompress(file.content)
    except (OSError, EOFError) as error:
        raise DataError(f"not a complete gzip file: {error}", file.name) from error


def _parallel(files: Sequence[File], entry: Entry) -> Iterator[Example]:
    if len(files) != 2:
        raise DataError(f"expected two files, sources and targets, found {len(files)}", files[0].name)
    sources, targets = (list(_lines(file)) for file in files)
    if len(sources) != len(targets):
        raise DataError(
            f"{len(sources)} sources but {len(targets)} targets in {files[1].name}: expected a line for each",
            files[0].name,
        )
    for (_, source), (_, target) in zip(sources, targets, strict=True):
        yield {"source": " ".join(source.split()), "target": " ".join(target.split())}


def _lines(file: File) -> Iterator[tuple[int, str]]:
    """Yield the lines, numbered from 1; only a line feed ends a line, whatever other separators the texts contain."""
    try:
        text = file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", file.name) from error
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


READERS: dict[str, Callable[[Sequence[File], Entry], Iterable[Example]]] = {
    "absa": _absa,
    "conll": _conll,
    "meetings": _meetings,
    "parallel": _parallel,
}
