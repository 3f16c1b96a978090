"""Other people's tools around the model and inside it: accelerate, Trainer, PEFT, the compiler, processes."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.distributed as distributed
import transformers as hf

import tss

from .conftest import (
    ARCHITECTURES,
    NAMES,
    REPLIES,
    TOPICS,
    gradients_of,
    inputs_of,
    learn,
    logits,
    make_bart,
    make_batch,
    run_processes,
)
from .test_trainer import rows_of, train


def attached(name="bart", **settings):
    return tss.attach(ARCHITECTURES[name][0](), tss.AdapterConfig(bottleneck=4, **settings))


@pytest.fixture
def accelerator():
    """One that computes in bfloat16; its state, which is the process's, is taken back."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # A Trainer of another test in this process may have left them.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.parametrize("name", ["bart", "bert", "llama", "base"])
def test_prepared_by_accelerate_before_or_after_the_task_answers_in_bfloat16(name, accelerator):
    batch, answers = make_batch(TOPICS), []
    exact = attached(name)
    learn(exact.tss, "topics", TOPICS)
    expected = logits(exact, batch, "topics")
    for before in (True, False):
        backbone = ARCHITECTURES[name][0]()
        model = tss.attach(accelerator.prepare(backbone) if before else backbone, tss.AdapterConfig(bottleneck=4))
        model.tss.load_shared_state(exact.tss.shared_state())
        model.tss.load_task_state("topics", *exact.tss.task_state("topics"))
        model = model if before else accelerator.prepare(model)
        answers.append(logits(model, batch, "topics"))
        assert answers[-1].shape == (4, 2)
        assert not torch.is_autocast_enabled("cpu")
        with torch.no_grad(), model.tss.using("topics"):
            assert torch.equal(model.tss.loss(**batch), model(**batch).loss)
    for answer in answers:
        assert 0 < (answer.float() - expected).abs().max() < 2**-5


@pytest.mark.parametrize("name", ["bart", "t5", "llama", "gpt2"])
@pytest.mark.parametrize("before", [True, False])
def test_prepared_by_accelerate_generates_in_bfloat16(name, before, accelerator):
    backbone, seen, settings = ARCHITECTURES[name][0](), [], {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    model = tss.attach(accelerator.prepare(backbone) if before else backbone, tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "replies", REPLIES)
    if not before:
        model = accelerator.prepare(model)
    inputs = inputs_of(make_batch(REPLIES))
    last = backbone.get_output_embeddings()
    hook = last.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    mixed = model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], task=["replies"] * 4, **settings
    )
    assert torch.equal(mixed, model.generate(**inputs, task="replies", **settings))
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="a batch of 4 rows for 3 task names"):
        model.generate(**inputs, task=["replies"] * 3)


def test_a_forward_compiled_on_the_instance_still_generates():
    model = attached()
    learn(model.tss, "replies", REPLIES)
    inputs = inputs_of(make_batch(REPLIES))
    expected = model.generate(**inputs, max_new_tokens=3)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)


def test_offloaded_by_accelerate_with_hooks_on_every_layer(tmp_path):
    from accelerate import cpu_offload, dispatch_model

    model = attached(weight_init="signed_constant")
    learn(model.tss, "topics", TOPICS)
    learn(model.tss, "replies", REPLIES)
    batch = make_batch(TOPICS)
    expected = [logits(model, batch, name) for name in model.tss.tasks]
    hooked = copy.deepcopy(model)
    dispatch_model(hooked, {"": "cpu"}, force_hooks=True)
    assert all(torch.equal(logits(hooked, batch, n), e) for n, e in zip(model.tss.tasks, expected, strict=True))
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(torch.equal(logits(model, batch, n), e) for n, e in zip(model.tss.tasks, expected, strict=True))


@pytest.mark.parametrize("when", ["backbone before", "backbone after", "model"])
def test_compiled_before_or_after(when):
    """It answers and learns as the plain one, whose tasks it gets: learning those compiled would prove no more."""
    torch.compiler.reset()
    batch, config = make_batch(TOPICS), tss.AdapterConfig(bottleneck=4, weight_init="signed_constant")
    small = {"encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    plain, backbone = tss.attach(make_bart(**small), config), make_bart(**small).eval()
    for name, kind in (("topics", TOPICS), ("replies", REPLIES)):
        learn(plain.tss, name, kind)
    if when == "backbone before":
        backbone = torch.compile(backbone, backend="eager")
        backbone(**inputs_of(batch), decoder_input_ids=batch["input_ids"])
    model = tss.attach(backbone, config)
    for name in plain.tss.tasks:
        model.tss.load_task_state(name, *plain.tss.task_state(name))
    model.tss.load_shared_state(plain.tss.shared_state())
    if when == "backbone after":
        model.backbone.compile(backend="eager")
    called = torch.compile(model, backend="eager") if when == "model" else model
    for name in ("topics", "replies"):
        assert torch.allclose(logits(called, batch, name), logits(plain, batch, name), atol=1e-5)
    losses = []
    for one in (called, plain):
        one.tss.add_task("more", TOPICS)
        one.tss.train_task("more")
        losses.append(one(**batch).loss)
        losses[-1].backward()
    assert torch.allclose(*losses, atol=1e-5)
    for found, expected in zip(gradients_of(model.tss), gradients_of(plain.tss), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_label_smoothing_does_not_shift_a_labelled_tasks_labels(name, tmp_path):
    model = attached(name).eval()
    learn(model.tss, "topics", TOPICS, seal=False)
    data = rows_of(TOPICS)
    arguments = hf.TrainingArguments(
        str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[], per_device_train_batch_size=4
    )
    trainer = hf.Trainer(model=model, args=arguments, train_dataset=data)
    batch = make_batch(TOPICS)
    found = trainer.compute_loss(model, dict(batch))
    expected = torch.nn.functional.cross_entropy(model(**inputs_of(batch)).logits, batch["labels"], label_smoothing=0.1)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bart", TOPICS), ("bart", NAMES), ("llama", TOPICS), ("llama", NAMES), ("llama", REPLIES)],
)
def test_accumulated_steps_of_trainer_are_one_step(name, kind, tmp_path):
    """Generation on BART is left out: transformers itself gives a bare BART four times the gradient."""
    ends = []
    for size, parts in ((4, 1), (1, 4)):
        model = attached(name, weight_init="signed_constant")
        model.tss.add_task("task", kind)
        model.tss.train_task("task")
        for module in model.modules():
            if hasattr(module, "dropout"):
                module.dropout = torch.nn.Identity() if isinstance(module.dropout, torch.nn.Module) else 0.0
        arguments = hf.TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, max_grad_norm=0,
        )  # fmt: skip
        trained = [p for group in model.tss.trainable_parameters().values() for p in group]
        before = [p.detach().clone() for p in trained]
        optimizer = torch.optim.SGD(trained, lr=1.0)
        hf.Trainer(model, arguments, train_dataset=rows_of(kind, 4), optimizers=(optimizer, None)).train()
        ends.append([p.detach() - b for p, b in zip(trained, before, strict=True)])
    for one, other in zip(*ends, strict=True):
        assert (one - other).abs().max() <= 1e-3 * one.abs().max() + 1e-7


def test_a_checkpoint_of_another_task_is_refused_and_one_of_the_same_is_taken(tmp_path):
    """Trainer(resume_from_checkpoint=True) in the previous task's folder."""
    model = attached()
    model.tss.add_task("old", TOPICS)
    model.tss.train_task("old")
    train(model, TOPICS, tmp_path / "old", save=True)
    model.tss.seal_task(rows_of(TOPICS))
    first, importance = model.tss.fingerprint("old"), copy.deepcopy(model.tss.shared_state())
    model.tss.add_task("new", TOPICS)
    model.tss.train_task("new")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        tss.StateError, match="this checkpoint was made while 'old' was being trained, and now 'new' is"
    ):
        train(model, TOPICS, tmp_path / "old", resume=True)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    assert model.tss.fingerprint("old") == first
    assert all(torch.equal(tensor, importance[name]) for name, tensor in model.tss.shared_state().items())
    train(model, TOPICS, tmp_path / "new", save=True)
    learned = {name: tensor.clone() for name, tensor in model.tss.learning_state().items()}
    fresh = tss.load(make_bart(), tmp_path / "new" / "checkpoint-3")  # a checkpoint is a saved folder
    assert list(fresh.tss.tasks) == ["old", "new"]
    assert fresh.tss.fingerprint("old") == first
    assert all(torch.equal(tensor, learned[name]) for name, tensor in fresh.tss.learning_state().items())
    other = attached()
    with pytest.raises(tss.StateError, match="'new' was being trained, and now no task is"):
        other.load_state_dict(state, strict=False)
    model.load_state_dict({n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")},
                          strict=False)  # fmt: skip
    assert all(layer.importance is not None for layer in model.tss.layers.values())


def test_peft_under_and_over():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj", "fc2"], r=2, init_lora_weights=False)
    model = tss.attach(get_peft_model(make_bart(), lora), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    batch = make_batch(TOPICS)
    answer = logits(model, batch, "topics")
    assert not torch.equal(answer, logits(_with(attached(), model), batch, "topics"))
    merged = model.backbone.merge_and_unload()  # adapters stay bound to calls of the model
    assert torch.equal(logits(merged, batch), logits(merged, batch))
    outer = attached()
    learn(outer.tss, "topics", TOPICS)
    first = logits(outer, batch, "topics")
    peft = get_peft_model(outer, LoraConfig(target_modules=["q_proj"], r=2))
    assert torch.equal(logits(peft, batch, "topics"), first)
    outer.tss.verify()
    prompts = get_peft_model(make_bart(), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PEFT adapter 'default' trains prompts"):
        tss.attach(prompts, tss.AdapterConfig(bottleneck=4))


def _with(model, other):
    model.tss.load_task_state("topics", *other.tss.task_state("topics"))
    return model


def test_a_peft_model_underneath_is_saved_and_loaded(tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)

    def under():
        torch.manual_seed(3)
        return get_peft_model(make_bart(), lora)

    model = tss.attach(under(), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    model.tss.save(tmp_path)
    again = tss.load(under(), tmp_path)
    assert torch.equal(logits(again, make_batch(TOPICS), "topics"), logits(model, make_batch(TOPICS), "topics"))


@pytest.mark.parametrize("change", ["another adapter", "none", "a scaling", "a scaling of one layer"])
def test_other_adapters_of_peft_underneath_are_noticed(change, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)

    def under():
        torch.manual_seed(3)
        peft = get_peft_model(make_bart(), lora)
        peft.add_adapter("other", lora)
        return peft

    def differ(peft):
        if change == "another adapter":
            peft.set_adapter("other")
        elif change == "none":
            peft.base_model.disable_adapter_layers()
        else:
            for module in peft.modules():
                if hasattr(module, "set_scale"):
                    module.set_scale("default", 3.0)
                    if change != "a scaling":
                        break
        peft.requires_grad_(False)

    model = tss.attach(under(), tss.AdapterConfig(bottleneck=4))
    learn(model.tss, "topics", TOPICS)
    model.tss.verify()
    model.tss.save(tmp_path)
    other = under()
    differ(other)
    with pytest.raises(tss.StateError, match="saved with other adapters of PEFT"):
        tss.load(other, tmp_path)
    differ(model.backbone)
    with pytest.raises(tss.ForgettingError, match="PEFT in the backbone changed since the first task was sealed"):
        model.tss.verify()


def test_a_pipeline_names_the_tasks_labels(tiny_tokenizer):
    model = attached()
    learn(model.tss, "topics", TOPICS)
    with model.tss.using("topics"):
        pipe = hf.pipeline("text-classification", model=model, tokenizer=tiny_tokenizer, device="cpu")
        answers = pipe(["good phone", "bad battery"])
    assert {answer["label"] for answer in answers} <= {"no", "yes"}


def _process(rank, count, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=count)
    model = attached(weight_init="signed_constant").eval()
    model.tss.add_task("topics", TOPICS)
    model.tss.train_task("topics")
    batches = [make_batch(TOPICS, seed=seed) for seed in range(2)]
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(**batches[rank]).loss.backward()
    gradients = gradients_of(model.tss)
    model.tss.seal_task([batches[rank]])
    torch.save((gradients, model.tss.shared_state(), model.tss.fingerprint("topics")), f"{folder}/{rank}.pt")
    del parallel  # freed after its process group, it holds the GIL while it waits for gloo's threads
    distributed.destroy_process_group()


def test_two_processes_train_as_one_and_seal_the_same_importance(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_processes(_process, 2, port, str(tmp_path))
    (gradients, shared, hash_), (_, other, other_hash) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert hash_ == other_hash
    assert shared.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in shared.items())
    model = attached(weight_init="signed_constant").eval()
    model.tss.add_task("topics", TOPICS)
    model.tss.train_task("topics")
    batches = [make_batch(TOPICS, seed=seed) for seed in range(2)]
    (sum(model(**batch).loss for batch in batches) / 2).backward()
    for own, found in zip(gradients_of(model.tss), gradients, strict=True):
        assert (own - found).abs().max() <= 1e-5 * own.abs().max()
    model.tss.seal_task(batches)
    for name, tensor in model.tss.shared_state().items():
        assert torch.allclose(tensor, shared[name], atol=1e-5), name


def test_data_parallel_is_refused_with_what_to_start_instead():
    """Trainer wraps a model in it where one process sees several GPUs."""
    model = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4))
    with pytest.raises(tss.StateError, match=r"torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"):
        model._replicate_for_data_parallel()  # what torch.nn.parallel.replicate calls, once it has copied the weights
