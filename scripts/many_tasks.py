"""Measure what a batch of rows of many tasks costs over one of a single task, beside PEFT's mixed batches of LoRAs.

python scripts/many_tasks.py [--figure FILE.svg] [--backbone embedded|d256]

Every row of a batch of 32 belongs to one of 1 to 256 tasks. Both run on the same backbone, by turns in one process;
times are of the processor, so that other work on the machine counts little. PEFT's LoRAs have rank 8 on queries and
values.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

import tss
from tss.run.backbone import load_backbone

ROWS, TASKS = 32, 256
COUNTS = (1, 2, 8, 32, 128, 256)
LENGTHS = ((24, 4), (64, 16))
Batch = dict[str, torch.Tensor]


def backbone_of(name: str) -> transformers.PreTrainedModel:
    """Return the embedded backbone, or a BART of six layers and width 256 with random weights."""
    if name == "embedded":
        return load_backbone("embedded").model
    torch.manual_seed(0)
    stacks: dict[str, Any] = {f"{stack}_{key}": value for stack in ("encoder", "decoder")
              for key, value in {"layers": 6, "attention_heads": 8, "ffn_dim": 1024}.items()}  # fmt: skip
    return transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=8000, d_model=256, **stacks))


def ours(name: str) -> tss.TssModel:
    """Return a model with `TASKS` sealed generation tasks with random gates."""
    model = tss.attach(backbone_of(name), tss.AdapterConfig(bottleneck=64))
    for i in range(TASKS):
        model.tss.add_task(f"task {i}", tss.Generation())
        model.tss.train_task(f"task {i}")
        with torch.no_grad():
            for layer in model.tss.layers.values():
                layer.scores.normal_()
        model.tss.seal_task()
    return model.eval()


def theirs(name: str) -> torch.nn.Module:
    """Return the same backbone with `TASKS` LoRAs."""
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(backbone_of(name), config, adapter_name="task 0")
    for i in range(1, TASKS):
        model.add_adapter(f"task {i}", config)
    return model.eval()


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of each call, with calls made in turn."""
    times: dict[str, list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for key, call in calls.items():
                started = time.process_time()
                call()
                if turn:  # the first turn is a warm-up
                    times[key].append(time.process_time() - started)
    return {key: statistics.median(values) for key, values in times.items()}


def calls_of(models: dict[str, Any], source: int, target: int, generate: bool) -> dict[str, Callable]:
    """Return one call for each system and number of tasks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 5000, (ROWS, source), generator=generator)
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    decoder = {"decoder_input_ids": torch.randint(10, 5000, (ROWS, target), generator=generator)}
    length = {"max_new_tokens": target, "min_new_tokens": target, "num_beams": 1, "do_sample": False}

    def call(system: str, rows: Sequence[str]) -> Callable[[], object]:
        which = {"task": list(rows)} if system == "tss" else {"adapter_names": list(rows)}
        if generate:
            return lambda: models[system].generate(**batch, **length, **which)
        return lambda: models[system](**batch, **decoder, **which)

    counts = [count for count in COUNTS if count <= ROWS]
    calls = {f"{system} {count}": call(system, [f"task {i % count}" for i in range(ROWS)])
             for system in models for count in counts}  # fmt: skip
    for count in COUNTS[len(counts) :]:  # 32 tasks, evenly spaced among `count`
        rows = [f"task {i * count // ROWS}" for i in range(ROWS)]
        calls |= {f"{system} {count}": call(system, rows) for system in models}
    single = models["tss"]
    if generate:
        calls["one"] = lambda: single.generate(**batch, **length, task="task 0")
    else:
        calls["one"] = lambda: single(**batch, **decoder, task="task 0")
    return calls


def main() -> None:
    """Print a table of milliseconds, and draw the figure if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded", choices=["embedded", "d256"])
    parser.add_argument("--figure", metavar="FILE.svg")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    models: dict[str, Any] = {"tss": ours(arguments.backbone), "peft": theirs(arguments.backbone)}
    if arguments.bfloat16:
        models = {system: model.bfloat16() for system, model in models.items()}
    precision = "bfloat16" if arguments.bfloat16 else "float32"
    print(f"{arguments.backbone}, {precision}, torch {torch.__version__}, one thread; milliseconds")
    heads = [f"{system} {count}" for system in models for count in COUNTS]
    print(" ".join(f"{head:>9s}" for head in [" " * 18, "one task", *heads]))
    curves: dict[str, list[float]] = {}
    for source, target in LENGTHS:
        for generate in (False, True):
            what = f"{'generate' if generate else 'forward'} {source} + {target}"
            found = medians(calls_of(models, source, target, generate), arguments.repeats)
            keys = ["one", *(f"{system} {count}" for system in models for count in COUNTS)]
            print(f"{what:18s} " + " ".join(f"{1000 * found[key]:9.1f}" for key in keys), flush=True)
            for system in models:
                curves[f"{system}, {what}"] = [found[f"{system} {c}"] / found[f"{system} 1"] for c in COUNTS]
    if arguments.figure:
        draw(curves, arguments.figure)


def draw(curves: dict[str, list[float]], file: str) -> None:
    """Plot the time of a batch relative to the same batch with one task, against the number of tasks."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tss"
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, values in curves.items():
        ours_, longer = name.startswith("tss"), "64" in name
        axes.plot(COUNTS, values, marker="o", label=name, color="#1f6f8b" if ours_ else "#c0392b",
                  linestyle="-" if longer else "--", alpha=1.0 if "generate" in name else 0.5)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_xlabel("tasks; a batch has 32 rows")
    axes.set_ylabel("time over that of one task")
    axes.set_ylim(bottom=0.9)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
