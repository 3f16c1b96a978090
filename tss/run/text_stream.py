"""Text of a greedy search as it is found, for the rows of a batch that have a listener."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    import torch

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of an incomplete character are decoded to


class TextStream(BaseStreamer):
    """Streamer that passes each listener its row's text so far, which only grows; trailing blanks are held back.

    Args:
        tokenizer: tokenizer of the backbone.
        listeners: one for each row of the batch, None for rows without a listener.
    """

    def __init__(self, tokenizer: Any, listeners: Sequence[Callable[[str], object] | None]) -> None:
        self._tokenizer = tokenizer
        self._rows = {row: (listener, []) for row, listener in enumerate(listeners) if listener is not None}
        self._told: dict[int, str] = {}
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        """Receive the next token of each row, (rows,); ignore the first call, with what the decoder begins with."""
        if not self._begun:
            self._begun = True
            return
        tokens = value.tolist()
        for row, (listener, ids) in self._rows.items():
            ids.append(tokens[row])
            text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
            told = self._told.get(row, "")
            if text != told and text.startswith(told) and not text.endswith(UNFINISHED):
                self._told[row] = text
                listener(text)

    def end(self) -> None:
        """Do nothing: listeners get the whole answer separately."""
