"""Catalog of the forty tasks: the source of each, and which examples are drawn from it (`catalog.yaml`)."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tss.data.jsonl import SPLITS
from tss.errors import DataError

Split = Annotated[str, Field(pattern=f"^({'|'.join(SPLITS)})$")]
Counts = dict[Split, Annotated[int, Field(gt=0)]]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]

PLACES = ("hub", "github", "folder")
COMMIT = re.compile(r"[0-9a-f]{40}")
TABLES = ("columns", "multiwoz")
"""Formats whose files are tables that `datasets` reads; tss itself reads those of the other formats."""


class Draw(BaseModel):
    """Examples to draw from a source; see the comment at the top of `catalog.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_class: Counts = {}
    hold_out: Counts = {}
    per_label: int | None = Field(default=None, gt=0)


class Entry(BaseModel):
    """One task of the catalog; the comment at the top of `catalog.yaml` explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    files: dict[Split, Names]
    format: Literal["columns", "absa", "conll", "meetings", "parallel", "multiwoz"]
    fields: dict[str, Names] = {}
    labels: dict[str, str] = {}
    domain: str | None = None
    draw: Draw = Draw()
    rows: Counts = {}
    sizes: Counts = {}
    licence: str
    note: str | None = None
    checked: Literal["converted", "described"]

    @model_validator(mode="before")
    @classmethod
    def _expand_files(cls, values: Any) -> Any:
        """Expand a single pattern with {split} to one pattern per split, and expand braces."""
        values = dict(values)
        names, files = values.pop("split_names", {}), values.get("files")
        if isinstance(files, str):
            files = {split: files.replace("{split}", names.get(split, split)) for split in SPLITS}
        if isinstance(files, Mapping):
            groups = {split: [group] if isinstance(group, str) else group for split, group in files.items()}
            values["files"] = {
                split: [name for each in group for name in expand(each)] for split, group in groups.items()
            }
        return values

    @model_validator(mode="after")
    def _check(self) -> Entry:
        if self.place not in PLACES:
            raise ValueError(f"source {self.source!r} is not one of {', '.join(PLACES)}")
        if self.place != "folder" and not (self.name and self.revision):
            raise ValueError(f"source {self.source!r} is not of the form {self.place}:NAME@REVISION")
        if "train" not in self.files or not ("test" in self.files or "test" in self.draw.hold_out):
            raise ValueError("files: a task needs a training and a test split")
        if (self.format == "columns") != bool(self.fields) or (self.format == "multiwoz") != bool(self.domain):
            raise ValueError("columns needs fields, and only columns; multiwoz needs a domain, and only multiwoz")
        return self

    @property
    def place(self) -> str:
        """ "hub", "github" or "folder"."""
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """OWNER/NAME of the dataset or repository; empty for a folder."""
        return self.source.partition(":")[2].partition("@")[0]

    @property
    def revision(self) -> str:
        """Branch or commit; empty for a folder."""
        return self.source.partition("@")[2]

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, so that the source cannot change."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def page(self) -> str:
        """URL of the source's web page; empty for a folder."""
        site = {"hub": "https://huggingface.co/datasets/", "github": "https://github.com/"}
        return site[self.place] + self.name if self.place in site else ""

    def folder(self, task: str) -> str:
        """Return the name of the folder inside --from that contains the files of this source."""
        return PurePosixPath(self.name).name if self.name else task


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern expands to: three for "x{0..2}", two for "x.{a,b}", "x" itself for "x"."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    middle = words.split(",") if words is not None else [str(i) for i in range(int(first), int(last) + 1)]
    return [name for part in middle for name in expand(pattern[: match.start()] + part + pattern[match.end() :])]


@functools.cache
def catalog() -> Mapping[str, Entry]:
    """Return the catalog as task -> entry, in the order of the file."""
    text = (resources.files("tss.data") / "catalog.yaml").read_text(encoding="utf-8")
    return {name: Entry.model_validate(values) for name, values in yaml.safe_load(text)["tasks"].items()}


def select(words: Sequence[str]) -> list[str]:
    """Return the tasks that `words` name, without duplicates; all tasks if `words` is empty.

    Each word is "family/task", a family, or a short name that only one family has.

    Raises:
        DataError: a word matches no task, or is a short name in several families.
    """
    return list(dict.fromkeys(name for word in words for name in _named(word))) if words else list(catalog())


def _named(word: str) -> list[str]:
    names = list(catalog())
    if word in names:
        return [word]
    if family := [name for name in names if name.startswith(f"{word}/")]:
        return family
    short = [name for name in names if name.endswith(f"/{word}")]
    if len(short) > 1:
        raise DataError(f"{word!r} is a task of several families; write {' or '.join(short)}")
    if not short:
        choices = [*names, *dict.fromkeys(part for name in names for part in name.split("/", 1))]
        near = difflib.get_close_matches(word, choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`tss data list` shows all"
        raise DataError(f"no task or family {word!r} in the table; {hint}")
    return short
