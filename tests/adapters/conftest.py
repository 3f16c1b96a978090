"""Tiny models of every architecture, batches for them, and one short way to learn a task."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
import torch.multiprocessing
import transformers as hf

import tss

VOCABULARY, WIDTH = 64, 16
TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def make_bart(**settings):
    torch.manual_seed(0)
    sizes = {f"{stack}_{key}": value for stack in ("encoder", "decoder")
             for key, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    config = hf.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, max_position_embeddings=64, decoder_start_token_id=2,
        forced_eos_token_id=2, **{**sizes, **TOKENS, **settings},
    )  # fmt: skip
    return hf.BartForConditionalGeneration(config)


def make_t5():
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, num_heads=2, num_layers=2, d_ff=32, decoder_start_token_id=1,
        **TOKENS,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def _stack(config_class, model_class, **settings):
    def make():
        torch.manual_seed(0)
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 66, **SIZES, **TOKENS, **settings}
        return model_class(config_class(**sizes))

    return make


def make_gpt2():
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, **TOKENS)
    return hf.GPT2LMHeadModel(config)


# name -> (how to make the model, settings of its adapters); "regex" names its sites, "base" is its own base model.
ARCHITECTURES = {
    "bart": (make_bart, {}),
    "t5": (make_t5, {}),
    "bert": (_stack(hf.BertConfig, hf.BertForMaskedLM), {}),
    "roberta": (_stack(hf.RobertaConfig, hf.RobertaForMaskedLM), {}),
    "llama": (_stack(hf.LlamaConfig, hf.LlamaForCausalLM), {}),
    "gpt2": (make_gpt2, {}),
    "regex": (make_gpt2, {"sites": r"transformer\.h\.\d+\.mlp"}),
    "base": (_stack(hf.BertConfig, hf.BertModel), {}),
}

TOPICS = tss.Classification(labels=("no", "yes"))
NAMES = tss.Extraction(labels=("O", "B-per", "I-per"))
REPLIES = tss.Generation()


def make_batch(kind, seed=0, rows=4, length=8):
    """A batch of a kind with random tokens and labels; of a generation task, labels that suit causal models too."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    ids[:, -1] = 2
    high, shape = {"classification": (2, (rows,)), "extraction": (3, ids.shape), "generation": (60, ids.shape)}[
        kind.kind
    ]
    labels = torch.randint(0, high, shape, generator=generator)
    if kind.kind == "generation":
        labels = ids.clone()  # causal models predict their own input
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def make_batches(kind, count=3, seed=0):
    return [make_batch(kind, seed=100 * seed + i) for i in range(count)]


def step(handle, batch, optimizer):
    handle.model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def learn(handle, name, kind, *, seed=0, seal=True, lr=0.05):
    """Train a task on three batches with the handle's optimizer, and seal it on the same."""
    handle.add_task(name, kind)
    handle.train_task(name)
    optimizer = handle.optimizer(score_lr=lr, head_lr=lr)
    handle.model.train()
    torch.manual_seed(seed)
    for batch in make_batches(kind, seed=seed):
        step(handle, batch, optimizer)
    if seal:
        handle.seal_task(make_batches(kind, seed=seed) if handle.config.gated else None)
    handle.model.eval()


def run_processes(function, *args):
    """Call function(rank, *args) in two processes, which come of one that has imported what they need already."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch.distributed", "tss.adapters"])
    torch.multiprocessing.start_processes(function, args, nprocs=2, start_method="forkserver")


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def gradients_of(handle):
    """Of what is being learned: scores, then head."""
    return [p.grad.clone() for group in handle.trainable_parameters().values() for p in group]


def has_head(model, task):
    """Whether the task, or that of the first row, or the active one, answers with a head of its own."""
    if not hasattr(model, "tss"):
        return False
    name = model.tss.active if task is None else task if isinstance(task, str) else task[0]
    return name is not None and model.tss.tasks[name].kind.kind != "generation"


@torch.no_grad()
def logits(model, batch, task=None):
    """What a model in evaluation mode says to a batch."""
    model.eval()
    inputs = inputs_of(batch)
    if model.config.is_encoder_decoder and not has_head(model, task):
        inputs["decoder_input_ids"] = batch["input_ids"].flip(1)
    output = model(**inputs) if task is None else model(**inputs, task=task)
    return (output.logits if "logits" in output else output.last_hidden_state).clone()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    """Names of the tensors that are not bit for bit what they were."""
    now = model.state_dict()
    assert set(before) == set(now)
    return {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}


@pytest.fixture
def bart():
    return make_bart()


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request):
    """(a tiny model, its AdapterConfig), for every architecture."""
    make, settings = ARCHITECTURES[request.param]
    return make().eval(), tss.AdapterConfig(bottleneck=4, **settings)
