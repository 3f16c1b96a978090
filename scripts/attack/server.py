"""Run command lines in forked processes with all imports done: reads one JSON line per order, writes one per answer.

{"do": "backbone", "folder"} -> {"code"}: create the backbone that all command lines use
{"do": "warm", "words"} -> {"code"}: run in the server itself, so that later processes have everything imported
{"do": "start", "words", "out", "err", "arm": [folder, what, at] or null, "report": bool} -> {"pid"}
{"do": "wait", "pid"} -> {"code"}, negative for the signal that ended it
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

import tss.report
from scripts.attack.scene import STORY
from tss.cli.main import main
from tss.report import Report, bars, curves, heatmaps
from tss.report.style import Picture

WORDS = (
    "the a is good bad poor battery screen phone camera Alice Bob Carol visits Paris London Berlin buys likes"
).split()


def child(order: dict[str, Any]) -> int:
    """Run one command line, with its output in files."""
    for name, descriptor in (("out", 1), ("err", 2)):
        opened = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    if not order["report"]:
        tss.report.build = lambda runs, output, **_: Report(Path(output) / "report.html", [])
    for module in (bars, curves, heatmaps):  # figures show the same values as tables
        vars(module)["picture"] = lambda figure, name, caption, cells=(): Picture(name, "<svg></svg>", 100, caption)
    if order["arm"]:
        folder, what, at = order["arm"]
        ctypes.CDLL(None).attack_arm(folder.encode(), what, ctypes.c_long(at))
    code = main(order["words"])
    if order["arm"] and order["arm"][1] == 0:
        story = ctypes.CDLL(None).attack_story
        story.restype = ctypes.c_char_p
        print(f"{STORY}{story().decode()}", end="")
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def make_backbone(folder: str) -> None:
    """Save a BART of one layer and width 16 with random weights, and a whole-word tokenizer."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rules.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=rules, model_max_length=64,
        bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(vocabulary), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, bos_token_id=0,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)


def serve() -> None:
    """Process orders from standard input until it ends."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in orders:
        order = json.loads(line)
        if order["do"] == "start":
            pid = os.fork()
            if pid == 0:
                code = 99
                try:
                    code = child(order)
                finally:
                    os._exit(code)
            answer: dict[str, int] = {"pid": pid}
        elif order["do"] == "backbone":
            make_backbone(order["folder"])
            answer = {"code": 0}
        elif order["do"] == "warm":
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                answer = {"code": main(order["words"])}
        else:
            _, status = os.waitpid(order["pid"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
