"""Teach a causal language model two kinds of questions, one after the other: python examples/causal.py

The model is a tiny Llama that is first trained on a few sentences, so that nothing is downloaded; replace it with one
from the hub. Only the answer counts in the loss, and the prompt's format is a setting of the task.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tss
from tss.run.backbone import load_backbone

QUESTIONS = {
    "capital": [("France", "Paris"), ("Norway", "Oslo"), ("Japan", "Tokyo")],
    "opposite": [("warm", "cold"), ("early", "late"), ("full", "empty")],
}
TEXT = (
    "Paris , Oslo and Tokyo are cities in France , Norway and Japan .",
    "It is cold and late , and the glass is empty .",
    "A warm and early day with a full glass .",
)
PROMPTS = {"capital": "The capital of {source} is", "opposite": "Not {source} but"}


def language_model(tokenizer: Any) -> LlamaForCausalLM:
    """Return a model trained on TEXT."""
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer(list(TEXT), padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(30):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    """Learn both tasks, then check that both give the same loss as when they were learned."""
    torch.manual_seed(0)
    tokenizer = load_backbone("embedded").tokenizer
    model = tss.attach(language_model(tokenizer), tss.AdapterConfig(bottleneck=64))
    answers = {}
    for name, pairs in QUESTIONS.items():
        kind = tss.Generation(prompt=PROMPTS[name], num_beams=1, min_new_tokens=0, max_new_tokens=6)
        model.tss.add_task(name, kind)
        kind = model.tss.tasks[name].kind  # with the settings for a causal model
        rows = kind.encode_all(
            [{"source": source, "target": target} for source, target in pairs],
            tokenizer,
            source_length=32,
            target_length=8,
        )
        batch = kind.collate(rows, pad_id=tokenizer.pad_token_id)
        model.tss.train_task(name)
        optimizer = model.tss.optimizer(score_lr=4e-2)
        loss = torch.zeros(())
        for _ in range(30):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.tss.seal_task([batch])
        print(f"{name}: loss {loss.item():.3f}")
        with torch.no_grad():
            answers[name] = (batch, model(**batch, task=name).loss)
    with torch.no_grad():
        for name, (batch, loss) in answers.items():
            assert torch.equal(model(**batch, task=name).loss, loss)
    print(model.tss)


if __name__ == "__main__":
    main()
