"""`TssModel`: a backbone with adapters and tasks. A `PreTrainedModel` in name, it passes everything on to the backbone.

Nothing of the backbone is swapped: forward hooks at the sites run the adapters for the call that is going on. So what
others do to either (a `forward` on the instance, `torch.compile`, PEFT inside) composes.
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
from transformers import PreTrainedModel

from tss.adapters import task_forward
from tss.adapters.checkpointing import remember_calls
from tss.adapters.config import AdapterConfig, TssOptions
from tss.adapters.float32 import keeping_dtype
from tss.adapters.handle import Task, TssHandle
from tss.adapters.learning import TasksLearned, tasks_in
from tss.adapters.site_adapter import SiteAdapter
from tss.adapters.site_kinds import make_adapters
from tss.adapters.sites import check_backbone
from tss.adapters.task_call import TaskCall, calling
from tss.adapters.task_store import TaskStore
from tss.adapters.task_tensors import TaskTensors
from tss.errors import StateError
from tss.io import write_bytes

BACKBONE, ADAPTERS, LEARNING = "backbone.", "adapters.", "learning."
WEIGHTS = "model.safetensors"  # where Trainer looks for a checkpoint's weights
# What a call may name besides what the backbone's forward takes.
ADDED = ("labels", "num_items_in_batch", "task")
# Names that the wrapper keeps for itself though the backbone has them too.
KEPT = {"forward", "generate", "training"}


class TssModel(PreTrainedModel):
    """A backbone with adapters and tasks; `tss` is their handle. Made by `tss.attach` and `tss.load`.

    It runs, trains, generates, saves and moves as the backbone does, and what it does not define is the backbone's.
    `model(**batch, task=...)` runs a task for this call: a name, or one name per row; without, the one that is active
    on this thread. `state_dict` holds what is being learned, and no sealed task: those are values that nothing loads,
    casts or trains, and `save_pretrained` writes them beside it, never the backbone.
    """

    config_class = None  # type: ignore[assignment]
    wraps: type[nn.Module]
    tss: TssHandle

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Not here: the backbone comes from its own class."""
        raise TypeError("load the backbone with its own class, then tss.load(backbone, folder)")

    def _wrap(self, backbone: Any, config: AdapterConfig, options: TssOptions) -> None:
        """Put adapters on a backbone; the caller has made the object without calling `__init__`."""
        nn.Module.__init__(self)
        core, store = task_forward.core_of(backbone), TaskStore()
        adapters = make_adapters(core, config, options, store)
        self.backbone = backbone
        self.adapters, self.learning = nn.ModuleList(list(adapters.values())), TasksLearned()
        self.__dict__["tss"] = TssHandle(self, backbone, config, options, adapters, store, self.learning)
        self.__dict__["_task_config"] = (None, None)
        backbone.requires_grad_(False)
        for name, adapter in adapters.items():
            core.get_submodule(name).register_forward_hook(adapter.hook)
        self.training = backbone.training
        self.adapters.train(self.training)
        self.learning.train(self.training)
        self.register_forward_pre_hook(_resolve_task, with_kwargs=True)
        self.register_load_state_dict_pre_hook(_check_state)
        self.register_load_state_dict_post_hook(_forgive_missing_backbone)
        remember_calls(core)

    @property
    def core(self) -> Any:
        """The transformers model inside what was attached to: without PEFT's and the compiler's wrappers."""
        return task_forward.core_of(self.backbone)

    # A call.

    def _run(self, kwargs: dict[str, Any]) -> Any:
        if kwargs.pop("_generate", False):
            return self.backbone.generate(**kwargs)
        call = self.tss.resolve(kwargs.pop("task", None))
        with calling(call):
            if not call.active:
                return self._run_backbone(kwargs)
            if call.rows is not None:
                _check_rows(call, kwargs)
            if call.labelled or (call.rows is not None and any(of_task.labelled for of_task, _ in call.rows)):
                return task_forward.answer(self.backbone, call, kwargs)
            return self._run_backbone(kwargs)

    def _run_backbone(self, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("labels", 0) is None:
            del kwargs["labels"]  # a base model has none
        return self.backbone(**kwargs)

    def generate(self, *args: Any, task: Task = None, **kwargs: Any) -> Any:
        """The backbone's own `generate`, for `task` (one, or one per row), or for the active task if it is None.

        Raises:
            ValueError: a task that answers with a head of its own.
        """
        call = self.tss.resolve(task)
        for of_task in [call] if call.rows is None else [one for one, _ in call.rows]:
            if of_task.labelled:
                name = of_task.names[0]
                raise ValueError(
                    f"task {name!r} is of kind {self.tss.tasks[name].kind.kind} and cannot generate text: call the "
                    "model for its logits, or generate with a generation task or with no task active"
                )
        if call.rows is not None:
            _check_rows(call, {"inputs": args[0], **kwargs} if args else kwargs)
            call.copies = (1, self._expansion(kwargs))
        with calling(call):
            # What others put around this model's forward (accelerate's autocast) is around its generation too; what
            # compiles it would compile the loop.
            around = vars(self).get("forward")
            if around is None or hasattr(around, "_torchdynamo_orig_callable"):
                return self.backbone.generate(*args, **kwargs)
            positional = inspect.signature(self.backbone.generate).parameters
            return around(**dict(zip(positional, args, strict=False)), **kwargs, _generate=True)

    def _expansion(self, kwargs: dict[str, Any]) -> int:
        """How often `generate` repeats each row."""
        config = kwargs.get("generation_config") or self.core.generation_config
        asked = (kwargs.get(key) or getattr(config, key, None) or 1 for key in ("num_beams", "num_return_sequences"))
        return max(asked)

    # What depends on the task that is active.

    def _active_labelled(self) -> bool:
        active = self.tss.active
        return active is not None and self.tss.store.record(active).kind.kind != "generation"

    @property
    def config(self) -> Any:  # type: ignore[override]
        """The backbone's; while a labelled task is active a copy with the task's label names."""
        base, active = self.backbone.config, self.tss.active
        if active is None or not (labels := getattr(self.tss.store.record(active).kind, "labels", ())):
            return base
        key = (active, labels, repr(base.__dict__))
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
        """Whether the loss is divided by `num_items_in_batch`, so that Trainer need not average over accumulation."""
        if self._active_labelled():
            return True
        core = self.core
        if hasattr(core, "accepts_loss_kwargs"):
            return core.accepts_loss_kwargs
        # A forward with **kwargs promises nothing: BART's takes them and averages all the same.
        return "loss_function" in inspect.getsource(inspect.unwrap(type(core).forward))

    @property
    def loss_type(self) -> Any:
        """None for a task with a head: its labels are not shifted."""
        return None if self._active_labelled() else getattr(self.core, "loss_type", None)

    @property
    def _keys_to_ignore_on_save(self) -> None:  # type: ignore[override]
        return None

    def _get_name(self) -> str:
        # Label smoothing of Trainer shifts labels by this name, which is right for the backbone's own head alone.
        return type(self).__name__ if self._active_labelled() else self.core._get_name()

    def can_generate(self) -> bool:  # type: ignore[override]
        """Whether the active task, or the backbone, generates."""
        return not self._active_labelled() and bool(getattr(self.core, "can_generate", lambda: False)())

    # Modes, places and names.

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The backbone's; layers that run again see the task of their forward pass."""
        self.core.activation_checkpointing_enable(*args, **kwargs)
        remember_calls(self.core)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The backbone's older name for the same, whose argument has another name too."""
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
        # What callers write on a model, such as generation_config, is the backbone's where it has the name.
        if own or not hasattr(self.backbone, name):
            super().__setattr__(name, value)
        else:
            setattr(self.backbone, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by way of the backbone's class: nobody can look this one up by its name."""
        return _rebuild, (type(self).wraps,), self.__dict__

    # On disk.

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write what `model.tss.save` writes, and what is being learned for Trainer to resume from; no backbone."""
        if not is_main_process:
            return
        directory = Path(save_directory)
        self.tss.save(directory)
        state = self.state_dict() if state_dict is None else state_dict
        own = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(BACKBONE)}
        write_bytes(directory / WEIGHTS, safetensors.torch.save(own, metadata={"format": "pt"}))

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:  # type: ignore[override]
        """`model.tss.push_to_hub`: the tasks, never the backbone."""
        return self.tss.push_to_hub(repo_id, **settings)


def attach(model: Any, config: AdapterConfig | None = None, options: TssOptions | None = None) -> TssModel:
    """Freeze a Hugging Face model, put an adapter on each of its sites and return the model around it.

    With no active task it answers exactly as before. `model.tss.detach()` undoes everything.

    Args:
        model: a transformers model, also one with PEFT's adapters in it.
        config: where the adapters go and what they look like; `AdapterConfig()` if None.
        options: how tasks are learned in them; `TssOptions()` if None.

    Raises:
        StateError: the model has adapters already.
        ValueError: no site, a site of unknown width, or a model that tasks could not be learned or kept on.
        TypeError: settings of another type.
    """
    for name, given, kind in (("config", config, AdapterConfig), ("options", options, TssOptions)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"attach: {name} must be a tss.{kind.__name__} or None, got {given!r}")
    core = task_forward.core_of(model)
    if isinstance(model, TssModel) or any(
        isinstance(getattr(hook, "__self__", None), SiteAdapter)
        for module in core.modules()
        for hook in module._forward_hooks.values()
    ):
        raise StateError(f"this {type(core).__name__} has adapters already; call model.tss.detach() first")
    check_backbone(model, core)
    if (model is not core and hasattr(model, "_orig_mod")) or model._compiled_call_impl is not None:
        torch.compiler.reset()  # what was compiled without hooks would go on without them
    wrapped = _rebuild(type(core))
    wrapped._wrap(model, config or AdapterConfig(), options or TssOptions())
    return wrapped


def _check_rows(call: TaskCall, inputs: dict[str, Any]) -> None:
    """Raise ValueError unless there is one name for each row of the inputs."""
    for name in ("input_ids", "inputs", "inputs_embeds", "pixel_values"):
        if isinstance(value := inputs.get(name), torch.Tensor):
            if len(value) != len(call.names):
                raise ValueError(
                    f"a batch of {len(value)} rows for {len(call.names)} task names: give one name per row"
                )
            return


class _Passed:
    """A name that PreTrainedModel defines: read and written on the backbone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: Any) -> Any:
        return getattr(PreTrainedModel, self.name) if model is None else getattr(model.backbone, self.name)

    def __set__(self, model: Any, value: Any) -> None:
        setattr(model.backbone, self.name, value)


# What these do to all modules alike, the wrapper does itself.
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
    """The subclass for a backbone's class: its forward has that one's signature, which Trainer reads, and `task`."""
    signature = inspect.signature(wraps.forward)
    own, *given = signature.parameters.values()
    positional = [p.name for p in given if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    def forward(self: TssModel, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(f"{type(self).__name__} takes {len(positional)} positional inputs, got {len(args)}")
        return self._run({**dict(zip(positional, args, strict=False)), **kwargs})

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(x, keyword, default=None) for x in ADDED if x not in signature.parameters]
    rest = [p for p in given if p.kind is inspect.Parameter.VAR_KEYWORD]
    named = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    forward.__signature__ = signature.replace(parameters=[own, *named, *added, *rest])  # type: ignore[attr-defined]
    forward.__doc__ = wraps.forward.__doc__
    namespace = {"forward": forward, "wraps": wraps, "__module__": __name__, "__doc__": TssModel.__doc__}
    return type(f"Tss{wraps.__name__}", (TssModel,), namespace)


def _rebuild(wraps: type[nn.Module]) -> TssModel:
    made = _class_for(wraps)
    return made.__new__(made)


def _resolve_task(model: TssModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before the forward pass: the name becomes a `TaskCall`, so that a traced forward sees tensors and no names."""
    return args, {**kwargs, "task": model.tss.resolve(kwargs.get("task"))}


def _keep_from_compiler(*functions: Any) -> None:
    """Frames of these are never compiled on their own: names would be guarded on, and each task compiled anew."""
    try:
        from torch._C._dynamo.eval_frame import skip_code  # type: ignore[attr-defined]
    except ImportError:  # then each task compiles once
        return
    codes = [function.__code__ for function in functions]
    while codes:
        code = codes.pop()
        skip_code(code)
        codes += [constant for constant in code.co_consts if isinstance(constant, type(code))]


_keep_from_compiler(
    _resolve_task, TssHandle.resolve, TssHandle._call_of, TssHandle._runnable, TssHandle._checked_rows,
    TssHandle._check_attached, TssHandle.chosen.fget, TssHandle.trainable.fget, TaskCall.__init__, TaskStore.record,
    TaskStore.sealed, TaskStore.site_gates, TaskStore.learning.fget, TaskTensors.head_of, TasksLearned.of,
    TssModel.__getattr__,
)  # fmt: skip


def _check_state(
    model: TssModel, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """Before `load_state_dict`: a checkpoint of another task would train on from the wrong scores."""
    start = prefix + LEARNING
    stored = tasks_in(key.removeprefix(start) for key in state if key.startswith(start))
    here = set(model.tss.store.learners)
    adapters = {key for key in state if key.startswith(prefix + ADAPTERS)}
    if (stored or adapters) and stored != here:
        there = ", ".join(map(repr, sorted(stored))) or "no task"
        now = ", ".join(map(repr, here)) or "no task"
        raise StateError(
            f"this checkpoint was made while {there} was being learned, and now {now} is: call add_task and train_task "
            "as before it was made, or open the folder with tss.load, which brings sealed tasks too"
        )
    for name, buffer in model.adapters.named_buffers():
        if not adapters:
            state[f"{prefix}{ADAPTERS}{name}"] = buffer  # importance stays, where a checkpoint is of the backbone alone


def _forgive_missing_backbone(model: TssModel, result: Any) -> None:
    """A checkpoint without any of the backbone, as `save_pretrained` writes them, lacks nothing."""
    theirs = [key for key in result.missing_keys if BACKBONE in key]
    if len(theirs) == len(model.backbone.state_dict()):
        result.missing_keys[:] = [key for key in result.missing_keys if BACKBONE not in key]
