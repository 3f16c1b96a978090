"""Runs command lines in processes that have imported everything already: one JSON line in for each order, one out.

{"do": "warm", "words"} -> {"code"}: run in the server itself, so that later processes find all imported
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

import tss.report
from tss.cli.main import main
from tss.report import Report, bars, curves, heatmaps
from tss.report.style import Picture


def child(order: dict[str, Any]) -> int:
    """One command line, with its output in files."""
    for name, descriptor in (("out", 1), ("err", 2)):
        opened = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    if not order["report"]:
        tss.report.build = lambda runs, output, **_: Report(Path(output) / "report.html", [])
    for module in (bars, curves, heatmaps):  # what is drawn comes from what is tabled
        vars(module)["picture"] = lambda figure, name, caption: Picture(name, "<svg></svg>", 100, caption)
    if order["arm"]:
        folder, what, at = order["arm"]
        ctypes.CDLL(None).attack_arm(folder.encode(), what, ctypes.c_long(at))
    code = main(order["words"])
    if order["arm"] and order["arm"][1] == 0:
        print(f"operations {ctypes.CDLL(None).attack_count()}")
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def serve() -> None:
    """Orders from standard input until it ends."""
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
        elif order["do"] == "warm":
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                answer = {"code": main(order["words"])}
        else:
            _, status = os.waitpid(order["pid"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
