"""Cost of many tasks: switching, learning one more, saving and loading; nothing may grow with their number."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import itertools
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from bench.cases.models import Setting, backbone, batch_for, kind_of_task
from bench.cases.sizes import Sizes
from bench.cases.step import one_step
from bench.core.case import Case, Inputs, Outputs, Variant

COUNTS = (1, 10, 100, 1000)
KEPT = 10  # tasks that are saved and loaded
MANY = 50  # new tasks from which on the process's memory shows what one task takes
ROWS, MIXED = 32, (1, 8, 32)  # rows of a batch, and the numbers of tasks among them


class Learned:
    """A model with a growing number of tasks; those between the measured ones get random scores instead of training."""

    def __init__(self, setting: Setting) -> None:
        import tss

        self.setting = setting
        self.model = tss.attach(
            backbone(setting), tss.AdapterConfig(bottleneck=4 if setting.backbone == "tiny" else 64)
        )
        self.words: int = self.model.config.vocab_size
        self.resident: dict[str, int] = {}
        self.batch = batch_for(setting, self.words)

    @property
    def names(self) -> list[str]:
        """Names of all tasks, which are sealed."""
        return list(self.model.tss.tasks)

    def learn_one(self) -> None:
        """Add one more task, train one step, compute importance over one batch, and seal it."""
        handle, name = self.model.tss, f"task {len(self.names)}"
        handle.add_task(name, kind_of_task(self.setting))
        handle.train_task(name)
        self.model.train()
        one_step(self.model, handle.optimizer(score_lr=1e-2, head_lr=1e-3), self.batch)
        handle.seal_task([self.batch])

    def _fill_one(self) -> None:
        """Add one more task and seal it with its own random gates."""
        handle, name = self.model.tss, f"task {len(self.names)}"
        handle.add_task(name, kind_of_task(self.setting))
        handle.train_task(name)
        with torch.no_grad():
            for layer in handle.layers.values():
                layer.scores.normal_()
        handle.seal_task()

    def extend(self, count: int) -> Inputs:
        """Extend to at least `count` tasks; measure the memory that each new one took."""
        before, known = _resident(), len(self.names)
        while len(self.names) < count:
            self._fill_one()
        if (new := len(self.names) - known) >= MANY:
            self.resident = {f"resident bytes per task, {known} to {count}": round((_resident() - before) / new)}
        kept = self.model.tss.bytes_per_task(self.names[-1])
        return {
            "learned": self,
            "facts": {f"kept bytes per task: {key}": value for key, value in kept.items()} | self.resident,
        }


def _resident() -> int:
    """Return the resident bytes of this process, without freed memory that the allocator keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def _done(call: Callable[[], object]) -> Callable[[], Outputs]:
    def run() -> Outputs:
        call()
        return {}

    return run


def _by_name(names: list[str], use: Callable[[str], object]) -> Callable[[], Outputs]:
    """Use another task in every call, far from the previous one."""
    order = itertools.cycle(names[i * 37 % len(names)] for i in range(len(names)))
    return _done(lambda: use(next(order)))


def _bind_switch(t: Inputs) -> Callable[[], Outputs]:
    return _by_name(t["learned"].names, t["learned"].model.tss.use)


def _bind_copy(t: Inputs) -> Callable[[], Outputs]:
    """Bind a switch of plain adapters: copy their float32 weights into the layers."""
    layers: Mapping[str, Any] = t["learned"].model.tss.layers
    live = {name: torch.empty(layer.weight.shape) for name, layer in layers.items()}
    kept = [{name: torch.randn_like(one) for name, one in live.items()} for _ in range(3)]
    tasks = {str(i): kept[i % 3] for i in range(len(t["learned"].names))}

    def use(name: str) -> None:
        for key, tensor in tasks[name].items():
            live[key].copy_(tensor)

    return _by_name(list(tasks), use)


def _check_switch(learned: Callable[[], Learned], variant: Variant) -> str | None:
    handle = learned().model.tss
    for name in (learned().names[0], learned().names[-1]):
        handle.use(name)
        kept, _ = handle.task_state(name)
        for layer, packed in handle.packed().items():
            if not torch.equal(packed, kept[f"gates.{layer}"]):
                return f"after use({name!r}) the gates of {layer} are not those that were sealed"
    return None


def _check_learning(learned: Callable[[], Learned], variant: Variant) -> str | None:
    """Check that one more task leaves the first one's fingerprint unchanged."""
    handle, first = learned().model.tss, learned().names[0]
    before = handle.fingerprint(first)
    learned().learn_one()
    return None if handle.fingerprint(first) == before else f"learning one more task changed {first!r}"


def _bind_rows(count: int, t: Inputs) -> Callable[[], Outputs]:
    learned = t["learned"]
    names, batch = learned.names, batch_for(learned.setting, learned.words, rows=ROWS)
    rows = [names[i % count] for i in range(ROWS)]

    def call() -> None:
        learned.model.eval()
        with torch.no_grad(), learned.model.tss.using(rows):
            learned.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    return _done(call)


def _check_rows(learned: Callable[[], Learned], count: int, variant: Variant) -> str | None:
    """Check that rows' outputs are those of their tasks alone, up to the rounding of other groups of rows."""
    made = learned()
    model, names = made.model.eval(), made.names
    batch = batch_for(made.setting, made.words, rows=ROWS)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    rows = [names[i % count] for i in range(ROWS)]
    with torch.no_grad(), model.tss.using(rows):
        mixed = model(**inputs).logits
    for row, name in list(enumerate(rows))[:: ROWS // 4]:
        with torch.no_grad(), model.tss.using(name):
            alone = model(**{key: value[row : row + 1] for key, value in inputs.items()}).logits
        apart = (mixed[row].double() - alone[0].double()).norm() / alone.double().norm()
        if not apart <= 64 * torch.finfo(made.setting.dtype).eps:
            return f"row {row} of task {name!r} differs from the task alone by {apart:.3g} of its norm"
    return None


def _plain_file(learned: Learned) -> bytes:
    """Return what plain adapters would save of the same tasks: every weight in float32, and the heads."""
    tasks = {}
    for name in learned.names[:KEPT]:
        state, _ = learned.model.tss.task_state(name)
        heads = {key: tensor for key, tensor in state.items() if key.startswith("head.")}
        tasks[name] = heads | {key: layer.weight.float() for key, layer in learned.model.tss.layers.items()}
    file = io.BytesIO()
    torch.save(tasks, file)
    return file.getvalue()


def _bind_save(t: Inputs) -> Callable[[], Outputs]:
    folder = t.setdefault("folder", tempfile.TemporaryDirectory(prefix="bench-tasks-"))
    return _done(lambda: t["learned"].model.tss.save(folder.name))


def _bind_save_plain(t: Inputs) -> Callable[[], Outputs]:
    return _done(lambda: _plain_file(t["learned"]))


def _bind_load(t: Inputs) -> Callable[[], Outputs]:
    import tss

    _bind_save(t)()
    other = backbone(t["learned"].setting)

    def call() -> None:
        tss.load(other, t["folder"].name).tss.detach()

    return _done(call)


def _bind_load_plain(t: Inputs) -> Callable[[], Outputs]:
    kept = _plain_file(t["learned"])
    return _done(lambda: torch.load(io.BytesIO(kept)))


def _check_kept(learned: Callable[[], Learned], variant: Variant) -> str | None:
    """Check that loaded tasks have the same fingerprints on another copy of the backbone."""
    import tss

    made = learned()
    with tempfile.TemporaryDirectory(prefix="bench-tasks-") as folder:
        made.model.tss.save(folder)
        other = tss.load(backbone(made.setting), folder)
    for name in made.names:
        if other.tss.fingerprint(name) != made.model.tss.fingerprint(name):
            return f"task {name!r} has another fingerprint after saving and loading"
    return None


def _setting(sizes: Sizes) -> Setting:
    if sizes.tiny:
        return Setting("tiny", torch.float32, sizes.device, 2, 8)
    return Setting("embedded", torch.float32, sizes.device, 4, 32)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Yield the cases from few tasks to many, on one model that keeps learning."""
    setting, mixed, few = _setting(sizes), (1, 4) if sizes.tiny else MIXED, 3 if sizes.tiny else KEPT
    learned = cache(lambda: Learned(setting))

    def case(operation: str, count: int, variants: tuple[Variant, ...], check: Any, checked: str, **shape: int) -> Case:
        return Case(
            f"{operation}, {setting.backbone}", {"tasks": count} | shape, setting.dtype,
            lambda seed: learned().extend(shape.get("learned", count)), None, variants,
            check=check, sets=1, cold=False, checked=checked,
        )  # fmt: skip

    kept = (
        ("save tasks", _bind_save, _bind_save_plain), ("load tasks, attach, detach", _bind_load, _bind_load_plain),
    )  # fmt: skip
    for operation, ours, plain in kept:
        variants = (
            Variant("tss", "ours", ours),
            Variant("plain adapters, torch.save", "floor", plain, differs="float32 weights in memory, without digests"),
        )
        yield case(operation, few, variants, _ready(learned, few, _check_kept), "fingerprints after loading")
    for count in mixed:
        variants = (
            Variant("tss", "ours", partial(_bind_rows, count)),
            Variant("rows of one task", "floor", partial(_bind_rows, 1), differs="one task for all rows"),
        )
        check = _ready(learned, max(mixed), partial(_check_rows, count=count))
        yield case(
            f"forward of {ROWS} rows", count, variants, check, "each row against its task alone", learned=max(mixed)
        )
    for count in (1, 3) if sizes.tiny else COUNTS:
        copy = Variant("plain adapters copied", "floor", _bind_copy, differs="float32 weights copied into the layers")
        yield case(
            "switch of tasks", count, (Variant("tss", "ours", _bind_switch), copy),
            _ready(learned, count, _check_switch), "the gates that run are those that were sealed",
        )  # fmt: skip
        learn = Variant("tss", "ours", lambda t: _done(t["learned"].learn_one))
        yield case(
            "learn one more task", count, (learn,), _ready(learned, count, _check_learning),
            "the first task's fingerprint stays",
        )  # fmt: skip


def _ready(learned: Callable[[], Learned], count: int, check: Callable[..., str | None]) -> Any:
    """Return the check on a model with at least `count` tasks."""

    def run(variant: Variant) -> str | None:
        learned().extend(count)
        return check(learned, variant=variant)

    return run
