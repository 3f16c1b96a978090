"""Generation: text to text, with the model's own frozen language-model head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from tss.metrics import generation as metrics
from tss.tasks import base
from tss.tasks.heads import architecture
from tss.tasks.vocabulary import vocabulary_loss

SOURCE = "{source}"
CAUSAL_PROMPT = "{source}\n"


@dataclass(frozen=True)
class Generation(base.TaskKind):
    """Kind with examples {"source", "target"}; only the adapters are trained.

    Args:
        metric: the main metric: "rouge1", "rouge2", "rougeL" or "bleu".
        num_beams: width of the beam search; 1 is greedy.
        min_new_tokens, max_new_tokens: bounds of the generated length, which the model's positions also limit.
        no_repeat_ngram_size: n-grams of this size occur at most once in an output; 0 allows repetition.
        prompt: the model's input, containing "{source}" once; "" is the source only, followed by a line break for a
            causal model.
        causal: whether prompt and answer form one sequence, as for causal models. `add_task` sets it for the model:
            encode examples with the kind that it stores, `model.tss.tasks[name].kind`.
    """

    kind: ClassVar[str] = "generation"
    metric: str = "rouge1"
    num_beams: int = 4
    min_new_tokens: int = 0
    max_new_tokens: int = 128
    no_repeat_ngram_size: int = 0
    prompt: str = ""
    causal: bool = False

    def __post_init__(self) -> None:
        base.check_choice("Generation", "metric", self.metric, metrics.METRICS)
        for key, least in (("num_beams", 1), ("min_new_tokens", 0), ("max_new_tokens", 1), ("no_repeat_ngram_size", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"Generation: {key}={getattr(self, key)} must be at least {least}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"Generation: min_new_tokens={self.min_new_tokens} exceeds max_new_tokens={self.max_new_tokens}"
            )
        if self.prompt and self.prompt.count(SOURCE) != 1:
            raise ValueError(f'Generation: prompt={self.prompt!r} must contain "{SOURCE}" exactly once')

    @property
    def main_metric(self) -> str:
        """The `metric` setting."""
        return self.metric

    def encode_all(
        self, examples: Sequence[base.Example], tokenizer: Any, *, source_length: int, target_length: int
    ) -> list[base.Encoded]:
        """Return input_ids of the prompt; labels are the target's ids, truncated to `target_length`.

        Causal: the answer follows the prompt in input_ids and ends with the end token; labels are -100 at the prompt.
        A source that is too long is truncated at its end; the rest of the prompt is kept.
        """
        before, after = (self.prompt or (CAUSAL_PROMPT if self.causal else SOURCE)).split(SOURCE)
        sources = [before + example["source"] for example in examples]
        if self.causal:
            return self._encode_causal(examples, sources, after, tokenizer, source_length, target_length)
        if after:
            rows = self._encode_around(sources, after, tokenizer, source_length)
        else:
            rows = base.model_inputs(tokenizer(sources, truncation=True, max_length=source_length))
        answered = [i for i, example in enumerate(examples) if "target" in example]
        if answered:
            targets = [examples[i]["target"] for i in answered]
            encoding = tokenizer(text_target=targets, truncation=True, max_length=target_length)
            for i, ids in zip(answered, encoding["input_ids"], strict=True):
                rows[i]["labels"] = ids
        return rows

    def _encode_around(
        self, sources: Sequence[str], after: str, tokenizer: Any, source_length: int
    ) -> list[base.Encoded]:
        rows = base.model_inputs(tokenizer([text + after for text in sources], verbose=False))
        tail = tokenizer(after, add_special_tokens=False)["input_ids"]
        ending = tokenizer.num_special_tokens_to_add() - _has_start(tokenizer)
        return [_cut_source(row, tail, ending, source_length) for row in rows]

    def _encode_causal(
        self,
        examples: Sequence[base.Example],
        sources: Sequence[str],
        after: str,
        tokenizer: Any,
        source_length: int,
        target_length: int,
    ) -> list[base.Encoded]:
        end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
        if end is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no end token: set tokenizer.eos_token, with which a causal model ends "
                "its answers"
            )
        tail = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        begins = _has_start(tokenizer)
        room = max(1, source_length - len(tail) - begins)
        heads = tokenizer(list(sources), truncation=True, max_length=room, add_special_tokens=False)["input_ids"]
        rows: list[base.Encoded] = []
        for example, ids in zip(examples, heads, strict=True):
            prompt = [*([start] if begins else []), *ids, *tail]
            row = {"input_ids": prompt}
            if "target" in example:
                answer = tokenizer(example["target"], add_special_tokens=False)["input_ids"]
                answer = [*answer[: max(0, target_length - 1)], end]
                row = {"input_ids": prompt + answer, "labels": [base.IGNORED] * len(prompt) + answer}
            rows.append(row)
        return rows

    def collate(self, encoded: Sequence[base.Encoded], *, pad_id: int, multiple: int = base.PAD_MULTIPLE) -> base.Batch:
        """Return input_ids and attention_mask (B, L), and labels (B, M); M is L for causal models."""
        batch = base.pad_inputs(encoded, pad_id, multiple)
        if base.all_labelled(encoded):
            batch["labels"] = base.pad_rows([row["labels"] for row in encoded], base.IGNORED, multiple)
        return batch

    def for_model(self, model: Any) -> Generation:
        self.check_model(model)
        return replace(self, causal=not model.config.is_encoder_decoder)

    def check_model(self, model: Any) -> None:
        """Raise ValueError unless the model is an encoder-decoder or causal model with a language-model head."""
        if architecture(model) == "encoder" or model.get_output_embeddings() is None:
            raise ValueError(
                f"generation tasks need a language-model head, which {type(model).__name__} lacks: load the model as "
                "AutoModelForSeq2SeqLM or AutoModelForCausalLM"
            )

    def make_head(self, hidden_size: int, dropout: float, generator: torch.Generator | None = None) -> None:
        """Return None: the model's language-model head is used."""
        return None

    def compute(
        self,
        model: nn.Module,
        head: base.HeadFunction | None,
        inputs: Mapping[str, Any],
        labels: torch.Tensor | None = None,
        *,
        call: Callable[..., Any] | None = None,
        items: base.Items = None,
    ) -> Any:
        """Run the model's own forward pass."""
        extra = {} if items is None else {"num_items_in_batch": items}
        run = call or (lambda module, **named: module(**named))
        return run(model, **inputs, labels=labels, **extra)

    def loss(
        self,
        model: nn.Module,
        head: base.HeadFunction | None,
        inputs: Mapping[str, Any],
        labels: torch.Tensor,
        *,
        call: Callable[..., Any] | None = None,
    ) -> torch.Tensor:
        """Return the same loss, with logits only at labels if the model's head is known to be linear and frozen."""
        loss = vocabulary_loss(model, inputs, labels) if call is None else None
        return super().loss(model, head, inputs, labels, call=call) if loss is None else loss

    @torch.no_grad()
    def predict(
        self,
        model: nn.Module,
        batch: base.Batch,
        tokenizer: Any,
        *,
        examples: Sequence[base.Example] | None = None,
        streamer: Any = None,
    ) -> list[str]:
        """Generate by beam search with this kind's settings; special tokens and surrounding whitespace are removed.

        Args:
            model, batch, tokenizer, examples: as in `TaskKind.predict`.
            streamer: a transformers streamer that receives the tokens of a greedy search (one beam) as generated.

        Raises:
            ValueError: the model has no language-model head, or a prompt leaves no position for an answer.
        """
        network: Any = model
        self.check_model(network)
        if self.causal == network.config.is_encoder_decoder:
            raise ValueError(
                f"this Generation is for {'causal' if self.causal else 'encoder-decoder'} models, which "
                f"{type(network).__name__} is not, and encoded its batch for one: use model.tss.tasks[name].kind, "
                "which add_task made for the model"
            )
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        if self.causal:
            inputs = prompts_of(batch, tokenizer.pad_token_id or 0)
        taken = inputs["input_ids"].shape[1] if self.causal else 1
        # None: relative positions, no bound; LED's decoder has fewer positions than its encoder
        own = None if self.causal else getattr(network.config, "max_decoder_position_embeddings", None)
        positions = own or getattr(network.config, "max_position_embeddings", None)
        most = self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - taken)
        if most < 1:
            raise ValueError(f"a prompt of {taken} tokens fills the model's {positions} positions: shorten the sources")
        ids = network.generate(
            **inputs,
            num_beams=self.num_beams,
            do_sample=False,
            early_stopping=self.num_beams > 1,
            min_new_tokens=min(self.min_new_tokens, most),
            max_new_tokens=most,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            **({"pad_token_id": tokenizer.pad_token_id} if self.causal else {}),
            **({} if streamer is None else {"streamer": streamer}),
        )
        answers = ids[:, taken:] if self.causal else ids
        return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def references(self, examples: Sequence[base.Example]) -> list[str]:
        """Return the targets."""
        return [example["target"] for example in examples]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Return {"rouge1", "rouge2", "rougeL", "bleu"}, 0 to 100."""
        return metrics.score(predictions, references)

    def signature(self) -> str:
        """Return ROUGE's settings and sacrebleu's signature."""
        return metrics.signature()


def prompts_of(batch: Mapping[str, torch.Tensor], pad_id: int) -> base.Batch:
    """Return the prompts of a causal batch, padded left for decoding, without the answers that its labels mark."""
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    if "labels" in batch:
        mask = mask & (batch["labels"] == base.IGNORED)
    # a stable sort of the mask moves a row's padding, and the tokens of its answer, to the front
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    width = int(mask.sum(1).max())
    ids, mask = ids.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:]
    return {"input_ids": ids.masked_fill(~mask, pad_id), "attention_mask": mask.long()}


def _has_start(tokenizer: Any) -> bool:
    """Return whether the tokenizer begins texts with its start token."""
    start = tokenizer.bos_token_id
    return start is not None and tokenizer("a")["input_ids"][:1] == [start]


def _cut_source(row: base.Encoded, tail: list[int], ending: int, most: int) -> base.Encoded:
    """Cut the ids of a prompt that has more than `most` tokens just before its tail.

    Args:
        row: ids of the whole prompt, with special tokens.
        tail: ids of the text after the source.
        ending: number of special tokens at the end.
        most: number of tokens to keep, special tokens included.
    """
    ids = row["input_ids"]
    if len(ids) <= most:
        return row
    kept = max(0, most - len(tail) - ending)
    ids = [*ids[:kept], *tail][: most - ending] + ids[len(ids) - ending :]
    return {key: ids if key == "input_ids" else value[:most] for key, value in row.items()}
