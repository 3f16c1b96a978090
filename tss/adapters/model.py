"""`TssModel`: a backbone with adapters and tasks. A `PreTrainedModel` only in name, it delegates to the backbone.

No module of the backbone is replaced: forward hooks at the sites run the adapters for the current call. So other
changes to the wrapper or the backbone (a `forward` on the instance, `torch.compile`, PEFT inside) combine with it.
"""

from __future__ import annotations

import copy
import inspect
import os
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch._dynamo.eval_frame import skip_code  # no public API marks a frame but lets callers be compiled through it
from transformers import PreTrainedModel

from tss.adapters import task_forward
from tss.adapters.checkpointing import remember_calls
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.float32 import keeping_dtype
from tss.adapters.handle import TssHandle
from tss.adapters.learning import TasksLearned, module_name
from tss.adapters.sealed_task import SealedTask, part_of_block
from tss.adapters.site_kinds import make_adapters
from tss.adapters.state_dicts import BACKBONE, check_state, forgive_missing_backbone
from tss.adapters.task_cache import TaskCache
from tss.adapters.task_call import TaskCall, calling
from tss.adapters.task_choice import ACTIVE, Task, TaskChoice
from tss.adapters.task_store import TaskStore
from tss.errors import StateError
from tss.io import write_bytes

WEIGHTS = "model.safetensors"  # where Trainer looks for a checkpoint's weights
# Arguments of a call in addition to those of the backbone's forward, with their defaults.
ADDED = {"labels": None, "num_items_in_batch": None, "task": ACTIVE}
# Attributes that are set on the wrapper itself, although the backbone has them too.
KEPT = {"forward", "generate", "training"}


class TssModel(PreTrainedModel):
    """A backbone with adapters and tasks, created by `tss.attach` or `tss.load`; `tss` is its `TssHandle`.

    It can be called, trained, moved and saved like the backbone, and forwards other attributes to it.
    `model(**batch, task=...)` runs one task, one task per row, or the original model (None); without `task`, the active
    task of this thread. For one task per row with heads, `logits` is a list with one tensor per row, since heads differ
    in size. `state_dict` has the state of training but no sealed tasks, which cannot be cast or trained;
    `save_pretrained` saves both, without the backbone.
    """

    config_class = None  # type: ignore[assignment]
    wraps: type[nn.Module]
    tss: TssHandle
    _divides_loss: bool

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Not supported: load the backbone with its own class."""
        raise TypeError("load the backbone with its own class, then tss.load(backbone, folder)")

    def wrap(self, backbone: Any, config: AdapterConfig, options: TssOptions) -> None:
        """Add adapters to a backbone; called once, in place of `__init__`."""
        nn.Module.__init__(self)
        core, store = task_forward.core_of(backbone), TaskStore()
        adapters = make_adapters(core, config, options, store)
        self.backbone = backbone
        self.adapters, self.learning = nn.ModuleList(list(adapters.values())), TasksLearned()
        self.__dict__["tss"] = TssHandle(self, backbone, config, options, adapters, store, self.learning)
        self.__dict__["_task_config"] = (None, None)
        self.__dict__["_divides_loss"] = task_forward.divides_loss(core)
        backbone.requires_grad_(False)
        for name, adapter in adapters.items():
            core.get_submodule(name).register_forward_hook(adapter.hook)
        self.training = backbone.training
        self.adapters.train(self.training)
        self.learning.train(self.training)
        self.register_forward_pre_hook(_resolve_task, with_kwargs=True)
        self.register_load_state_dict_pre_hook(check_state)
        self.register_load_state_dict_post_hook(forgive_missing_backbone)
        remember_calls(core)

    def _replicate_for_data_parallel(self) -> Any:
        """Called by `nn.DataParallel`, whose threads and copies of modules know no active task and no own adapters."""
        raise StateError(
            "nn.DataParallel, which Trainer uses for several GPUs in one process, cannot run a TssModel: start one "
            "process per GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU"
        )

    @property
    def core(self) -> Any:
        """The transformers model inside the backbone, without wrappers of PEFT and `torch.compile`."""
        return task_forward.core_of(self.backbone)

    # Calls.

    def _run(self, kwargs: dict[str, Any]) -> Any:
        if kwargs.pop("_generate", False):
            return self.backbone.generate(**kwargs)
        call = self.tss.resolve(kwargs.pop("task") if "task" in kwargs else ACTIVE)
        with calling(call):
            if not call.active:
                return self._run_backbone(call, kwargs)
            if call.count is not None:
                _check_rows(call.count, kwargs)
            if call.labelled or call.labelled_rows:
                return task_forward.answer(self.backbone, call, kwargs)
            return self._run_backbone(call, kwargs)

    def _run_backbone(self, call: TaskCall, kwargs: dict[str, Any]) -> Any:
        if "labels" in kwargs and (labels := kwargs.pop("labels")) is not None:  # a base model has none
            kwargs["labels"] = task_forward.check_token_labels(self.core, call, kwargs, labels)
        if self._divides_loss:
            return self.backbone(**kwargs)
        items = kwargs.pop("num_items_in_batch", None)
        output = self.backbone(**kwargs)
        return output if items is None else task_forward.divided(self.core, output, kwargs.get("labels"), items)

    def get_encoder(self, *args: Any, **kwargs: Any) -> Any:
        """Return the backbone's encoder as a function that runs for the active task, or for `task=...`."""
        return task_forward.Part(self.tss.resolve, self.core.get_encoder(*args, **kwargs))

    def get_decoder(self, *args: Any, **kwargs: Any) -> Any:
        """Return the backbone's decoder as a function that runs for the active task, or for `task=...`."""
        return task_forward.Part(self.tss.resolve, self.core.get_decoder(*args, **kwargs))

    def generate(self, *args: Any, task: Task = ACTIVE, **kwargs: Any) -> Any:
        """Generate with the backbone's `generate`, for one task, one task per row, or None (the original model).

        Raises:
            ValueError: the task has a head.
        """
        call = self.tss.resolve(task)
        for of_task in [call] if call.rows is None else [one for one, _ in call.rows]:
            if of_task.labelled:
                name = of_task.names[0]
                raise ValueError(
                    f"task {name!r} is of kind {self.tss.tasks[name].kind.kind} and cannot generate text: call the "
                    "model for its logits, or generate with a generation task or with no task active"
                )
        if call.count is not None:
            _check_rows(call.count, {"inputs": args[0], **kwargs} if args else kwargs)
            call.copies = (1, self._expansion(kwargs))
        with calling(call):
            # Wrappers of this model's forward (accelerate's autocast) apply to generation too, except torch.compile,
            # which would compile the generation loop.
            around = vars(self).get("forward")
            if around is None or hasattr(around, "_torchdynamo_orig_callable"):
                return self.backbone.generate(*args, **kwargs)
            positional = inspect.signature(self.backbone.generate).parameters
            return around(**dict(zip(positional, args, strict=False)), **kwargs, _generate=True)

    def _expansion(self, kwargs: dict[str, Any]) -> int:
        """Return how many times `generate` repeats each row."""
        config = kwargs.get("generation_config") or self.core.generation_config
        asked = (kwargs.get(key) or getattr(config, key, None) or 1 for key in ("num_beams", "num_return_sequences"))
        return max(asked)

    # Attributes that depend on the active task.

    def _active_labelled(self) -> bool:
        kind = self.tss.choice.kind()
        return kind is not None and kind.kind != "generation"

    @property
    def config(self) -> Any:  # type: ignore[override]
        """The backbone's config; while a task with labels is active, a copy with the task's label names."""
        base, labels = self.backbone.config, getattr(self.tss.choice.kind(), "labels", ())
        if not labels:
            return base
        key = (labels, repr(base.__dict__))
        known, made = self.__dict__["_task_config"]
        if known != key:
            made = copy.copy(base)
            made.id2label = dict(enumerate(labels))
            made.label2id = {label: i for i, label in enumerate(labels)}
            made.problem_type = "single_label_classification"
            self.__dict__["_task_config"] = (key, made)
        return made

    @property
    def accepts_loss_kwargs(self) -> bool:
        """True: the loss is divided by `num_items_in_batch`, so that Trainer need not average accumulated steps."""
        return True

    @property
    def loss_type(self) -> Any:
        """The backbone's loss type; None where labels are not shifted: for heads, and BART's decoder."""
        if self._active_labelled() or (self.core.config.is_encoder_decoder and not self._divides_loss):
            return None
        return getattr(self.core, "loss_type", None)

    @property
    def _keys_to_ignore_on_save(self) -> None:  # type: ignore[override]
        return None

    def _get_name(self) -> str:
        # Trainer's label smoothing shifts labels based on this name, which is right for the backbone's own head only.
        labelled = self.tss.active is not None and self._active_labelled()  # printing must work without an active task
        return type(self).__name__ if labelled else self.core._get_name()

    def can_generate(self) -> bool:  # type: ignore[override]
        """Return whether the active task, or else the backbone, can generate."""
        return not self._active_labelled() and bool(getattr(self.core, "can_generate", lambda: False)())

    # Gradient checkpointing, device moves, attribute access and pickling.

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Enable activation checkpointing on the backbone; recomputed layers run for the task of their forward pass."""
        self.core.activation_checkpointing_enable(*args, **kwargs)
        remember_calls(self.core)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Do the same as `activation_checkpointing_enable`, by an older method with another argument name."""
        self.core.gradient_checkpointing_enable(*args, **kwargs)
        remember_calls(self.core)

    def _apply(self, fn: Any, recurse: bool = True) -> TssModel:
        super()._apply(fn, recurse)

        def place(tensor: torch.Tensor) -> torch.Tensor:
            moved = keeping_dtype(fn)(tensor)
            return tensor if moved.is_meta else moved.detach()

        self.tss.store.move(place)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "backbone" or name.startswith("__"):
                raise
            return getattr(self.backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = (
            name.startswith("_")
            or name in KEPT
            or name in self.__dict__
            or "backbone" not in self.__dict__.get("_modules", ())
            or name in self._modules
            or isinstance(value, (nn.Module, nn.Parameter))
        )
        # Attributes that the backbone has, such as generation_config, are set on the backbone.
        if own or not hasattr(self.backbone, name):
            super().__setattr__(name, value)
        else:
            setattr(self.backbone, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle through the backbone's class, because this class cannot be looked up by name."""
        return make_model, (type(self).wraps,), self.__dict__

    # On disk.

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write what `model.tss.save` writes, and the state of training for Trainer to resume from; no backbone.

        Replaces the content of the folder, as `save_pretrained` of every model does.
        """
        if not is_main_process:
            return
        directory = Path(save_directory)
        self.tss.save(directory, replace=True)
        state = self.state_dict() if state_dict is None else state_dict
        own = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(BACKBONE)}
        write_bytes(directory / WEIGHTS, safetensors.torch.save(own, metadata={"format": "pt"}))

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:  # type: ignore[override]
        """Upload the tasks, never the backbone, with `model.tss.push_to_hub`."""
        return self.tss.push_to_hub(repo_id, **settings)


def _check_rows(count: int, inputs: dict[str, Any]) -> None:
    """Raise ValueError unless the inputs have `count` rows, one for each task name."""
    for name in task_forward.MAIN_INPUTS:
        if isinstance(value := inputs.get(name), torch.Tensor):
            if len(value) != count:
                raise ValueError(f"a batch of {len(value)} rows for {count} task names: give one name per row")
            return


class _Passed:
    """Descriptor for an attribute that PreTrainedModel defines: reads and writes it on the backbone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: Any) -> Any:
        return getattr(PreTrainedModel, self.name) if model is None else getattr(model.backbone, self.name)

    def __set__(self, model: Any, value: Any) -> None:
        setattr(model.backbone, self.name, value)


# Not delegated: these act on all modules alike, so the wrapper runs them itself.
STRUCTURAL = {
    "num_parameters", "get_memory_footprint", "to", "cuda", "half", "float", "train", "eval",
    "is_activation_checkpointing", "is_gradient_checkpointing", "_upload_modified_files", "_get_files_timestamps",
    "_create_repo", "get_parameter_or_buffer", "named_non_persistent_buffers",
}  # fmt: skip
for _class in PreTrainedModel.__mro__:
    if _class is PreTrainedModel or _class not in nn.Module.__mro__:
        for _name in vars(_class):
            if not _name.startswith("__") and _name not in STRUCTURAL and _name not in vars(TssModel):
                setattr(TssModel, _name, _Passed(_name))


@cache
def _class_for(wraps: type[nn.Module]) -> type[TssModel]:
    """Return the subclass for a backbone's class: `forward` has the same signature, which Trainer reads, and `task`."""
    signature = inspect.signature(wraps.forward)
    own, *given = signature.parameters.values()
    positional = [p.name for p in given if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    def forward(self: TssModel, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(f"{type(self).__name__} takes {len(positional)} positional inputs, got {len(args)}")
        return self._run({**dict(zip(positional, args, strict=False)), **kwargs})

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=default)
        for name, default in ADDED.items()
        if name not in signature.parameters
    ]
    rest = [p for p in given if p.kind is inspect.Parameter.VAR_KEYWORD]
    # Trainer takes every argument that is named like these for labels, and looks for all of them in each batch.
    others = {p.name for p in given if "label" in p.name} - {"labels"} | {"start_positions", "end_positions"}
    named = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD and p.name not in others]
    forward.__signature__ = signature.replace(parameters=[own, *named, *added, *rest])  # type: ignore[attr-defined]
    forward.__doc__ = wraps.forward.__doc__
    namespace = {"forward": forward, "wraps": wraps, "__module__": __name__, "__doc__": TssModel.__doc__}
    return type(f"Tss{wraps.__name__}", (TssModel,), namespace)


def make_model(wraps: type[nn.Module]) -> TssModel:
    """Return an empty `TssModel` for backbones of this class, to be filled by `wrap` or by unpickling."""
    made = _class_for(wraps)
    return made.__new__(made)


def _resolve_task(model: TssModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Resolve the name to a `TaskCall` before the forward pass, so that a traced forward sees tensors and no names."""
    return args, {**kwargs, "task": model.tss.resolve(kwargs.get("task", ACTIVE))}


def _keep_from_compiler(*functions: Any) -> None:
    """Never compile frames of these functions on their own: guards on names would recompile them for each task."""
    codes = [function.__code__ for function in functions]
    while codes:
        code = codes.pop()
        skip_code(code)
        codes += [constant for constant in code.co_consts if isinstance(constant, type(code))]


_keep_from_compiler(
    _resolve_task, TssHandle.resolve, TssHandle._check_attached, TaskChoice.resolve, TaskChoice._call_of,
    TaskChoice._call_of_one, TaskChoice._checked, TaskChoice._runnable, TaskChoice.chosen.fget, TaskChoice._sealed,
    TaskChoice._value, TaskChoice._add_banks, TaskCall.__init__, TaskStore.record, TaskStore.sealed,
    TaskStore.learning.fget, TaskCache.get, SealedTask.banks, part_of_block, TasksLearned.of,
    module_name, TssModel.__getattr__,
)  # fmt: skip
