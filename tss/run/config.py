"""The run configuration and the settings of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from tss.adapters.config import AdapterConfig
from tss.errors import ConfigError
from tss.methods import METHODS
from tss.run.config_errors import explain, nearest
from tss.run.config_files import Layer, apply_override, apply_overrides, lay_over, merge, read_source

MAX_BOTTLENECK = 2**16
CHOICES = {"backbones": "backbone", "methods": "method"}
"""Section of a layer, with the settings that differ for values of a key -> that key."""
Rate = Annotated[float, Field(gt=0, le=3e38)]  # about the largest float32
Count = Annotated[int, Field(ge=1, le=10**6)]
Length = Annotated[int, Field(ge=8, le=10**6)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a boolean where a number is expected: it would count as 0 or 1."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (wanted, *get_args(wanted)):
            said = str(value).lower()
            raise ValueError(f"expected a number or a name, got {said}, which is also what YAML makes of yes or no")
        return value


class Training(_Section):
    """Training settings of each task; `families` and `overrides` change any of them for a family or a task."""

    epochs: Count = 10
    batch_size: Count = 32
    eval_batch_size: Count = 32
    source_length: Length = 128
    target_length: Length = 128
    score_lr: Rate = 5e-4
    """Learning rate of the scores (gated adapters)."""
    adapter_lr: Rate = 1e-3
    """Learning rate of plain adapters' weights (methods without gates)."""
    head_lr: Rate = 2.75e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """"sgd" has neither momentum nor weight decay and needs far larger rates; only for methods with gates."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: Rate = 1e-6
    warmup_ratio: float = Field(default=0.5, ge=0, le=1)
    patience: Count | None = None
    """Epochs without a strictly better validation value after which a task stops early; None: never."""
    grad_accumulation: Count = 1
    """Batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping what it computed: less memory, about a third more
    time, the same results."""
    metric: str | None = None
    """Main metric of the task's kind; None: the kind's default."""
    features: str | None = None
    """Hidden states that the head reads; None: the kind's default."""
    head: str | None = None
    """Head of labelled tasks, "dense" or "linear"; None: the kind's default."""
    validate_by: Literal["auto", "metric", "loss"] = "auto"
    """What selects the best epoch; auto: the main metric, but for generation the loss, because decoding is slow."""


class Generation(_Section):
    """Decoding settings of generation tasks; None keeps the task kind's default."""

    num_beams: int | None = Field(default=None, ge=1, le=256)
    min_new_tokens: int | None = Field(default=None, ge=0, le=10**6)
    max_new_tokens: Count | None = None
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=10**6)


class Limits(_Section):
    """Maximum number of examples per split; None: all."""

    train: PositiveInt | None = None
    validation: PositiveInt | None = None
    test: PositiveInt | None = None


class TaskSettings(Training):
    """All settings for training and evaluating one task."""

    generation: Generation = Generation()
    limits: Limits = Limits()


class TaskSource(_Section):
    """Source of one task's data."""

    source: str
    """A data folder, "generated", or "hub:NAME[:CONFIG][@REVISION]"."""
    fields: dict[str, str] | None = None
    """Field map of hub data: field of the task kind -> column."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Any) -> Any:
        return {"source": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _check_fields(self) -> TaskSource:
        if self.fields and not self.source.startswith("hub:"):
            raise ValueError(f"fields: a field map is for hub data sets, and {self.source} is not one; leave it out")
        return self


class RunConfig(_Section):
    """Configuration of a run. Unknown keys are errors. `resolved()` gives plain values that load to an equal one."""

    method: str = "tss"
    method_options: dict[str, Any] = {}
    """Options of the method; for tss the fields of `TssOptions`."""
    backbone: str = "embedded"
    """"embedded", "embedded-random", "bart-large", "bart-large-random", a model folder, or a hub name."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; None: the backbone's own."""
    adapters: AdapterConfig = AdapterConfig()
    data: str = "generated"
    """A data folder, "generated", or "hub:NAME[:CONFIG][@REVISION]"."""
    fields: dict[str, str] | None = None
    """Field map of hub data: field of the task kind -> column."""
    sources: dict[str, TaskSource] = {}
    """Task -> its own source, a string like `data` or {source, fields}; the other tasks come from `data`."""
    tasks: list[str] = []
    """The sequence; empty: every task of `sources`, or of `data` if that is empty, in the order listed there."""
    missing_tasks: Literal["error", "skip"] = "error"
    """What to do if the data lacks tasks of the sequence."""
    shuffle: bool = False
    """Shuffle the sequence, seeded by `seed`."""
    training: Training = Training()
    generation: Generation = Generation()
    limits: Limits = Limits()
    families: dict[str, dict[str, Any]] = {}
    """Family -> keys of `training`, `generation` and `limits` that differ for it. They are replaced by what a later
    layer, such as an override, sets for every task."""
    overrides: dict[str, dict[str, Any]] = {}
    """Task -> keys that differ for it; they take precedence over its family's."""
    seed: int = Field(default=2021, ge=0, le=2**63 - 1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    shard_backbone: bool = False
    """Divide the backbone among the processes of a run (FSDP); for backbones that do not fit on one device."""
    checkpoint_steps: Count = 200
    """Optimizer steps between two checkpoints inside a task."""
    probe_size: Count = 8
    """Test inputs per task whose logits are compared bit for bit after every later task."""
    zero_shot: bool = False
    """Also evaluate each task before it is learned, untrained and right before its turn; gives fwt."""
    reevaluate: Literal["each", "last"] = "each"
    """After which later tasks the test scores of sealed tasks are measured again, for methods that never forget. With
    "last", the rows between repeat the score, after everything that it depends on is verified. Other methods always
    measure."""
    log_seconds: float = Field(default=1.0, ge=0)
    """Minimum seconds between two `step` events; 0: every step."""
    label: str = ""
    """Free text for reports."""

    @model_validator(mode="before")
    @classmethod
    def _follow_method(cls, data: Any) -> Any:
        """Fill in and check what depends on the method: its options, and whether adapters are gated."""
        if not isinstance(data, Mapping):
            return data
        name, seed = data.get("method", "tss"), data.get("seed", 2021)
        if not isinstance(name, str) or name not in METHODS:
            raise ConfigError(f"method: no method {name!r}; there are: {', '.join(METHODS)}")
        given = data.get("method_options") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"method_options: expected a mapping of names to values, got {given!r}")
        options = _method_options(METHODS[name].options_type, given)
        adapters = data.get("adapters") or {}
        if isinstance(adapters, Mapping):
            gated = METHODS[name].gated
            if adapters.get("gated", gated) != gated:
                raise ConfigError(f"adapters.gated: method {name} needs {gated}, got {not gated}; leave the key out")
            adapters = {"seed": seed, **adapters, "gated": gated}
            if isinstance(width := adapters.get("bottleneck"), int) and width > MAX_BOTTLENECK:
                raise ConfigError(f"adapters.bottleneck: {width} is more than {MAX_BOTTLENECK:,}; the paper's is 64")
        return {**data, "method_options": options, "adapters": adapters}

    @model_validator(mode="after")
    def _task_settings(self) -> RunConfig:
        """Check the changes of every family and task, merged into the run's settings."""
        for section in ("families", "overrides"):
            for name, changes in getattr(self, section).items():
                try:
                    settings = TaskSettings.model_validate(merge(_base_settings(self), changes))
                except ValidationError as error:
                    raise ConfigError("\n".join(explain(error, TaskSettings, (section, name)))) from error
                self._check_optimizer(f"{section}.{name}", settings.optimizer)
        self._check_optimizer("training", self.training.optimizer)
        return self

    def _check_optimizer(self, place: str, optimizer: str) -> None:
        if optimizer == "adamw":
            return
        if not METHODS[self.method].gated:
            raise ConfigError(
                f"{place}.optimizer: {optimizer} trains scores, but method {self.method} has no gates: leave it out"
            )
        if self.method_options.get("soft_mask") == "update":
            raise ConfigError(
                f"{place}.optimizer: {optimizer} does not apply the mask that method_options.soft_mask=update leaves "
                "to the optimizer; with soft_mask=gradient it makes the same steps"
            )

    def source_of(self, task: str) -> TaskSource:
        """Return the source of a task's data.

        Args:
            task: its name in the data, "family/task".
        """
        return self.sources.get(task) or TaskSource(source=self.data, fields=self.fields)

    def resolved(self) -> dict[str, Any]:
        """Return plain values (for YAML or JSON) that load to an equal configuration."""
        values = self.model_dump(mode="json")
        del values["adapters"]["gated"]  # follows from the method
        return values


def known_model(values: Mapping[str, Any]) -> type[BaseModel]:
    """Return `RunConfig` with the options of its method as keys, for finding the key that was meant."""
    method = METHODS.get(str(values.get("method", "tss")), METHODS["tss"])
    return create_model("RunKeys", __base__=RunConfig, method_options=(method.options_type, method.options_type()))


def _method_options(options_type: type, values: Mapping[str, Any]) -> dict[str, Any]:
    model = create_model(
        "MethodOptions", __config__=ConfigDict(extra="forbid"), method_options=(options_type, options_type())
    )
    try:
        checked = model.model_validate({"method_options": values})
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model))) from error
    return dataclasses.asdict(checked.method_options)  # type: ignore[attr-defined]


def _base_settings(config: RunConfig) -> dict[str, Any]:
    return {
        **config.training.model_dump(),
        "generation": config.generation.model_dump(),
        "limits": config.limits.model_dump(),
    }


def settings_for(config: RunConfig, task: str) -> TaskSettings:
    """Return the settings of one task: `training`, `generation` and `limits`, changed by its family's, then its own.

    Args:
        config: configuration of the run.
        task: its name, "family/task".
    """
    family = task.split("/", 1)[0]
    settings = merge(_base_settings(config), config.families.get(family, {}))
    return TaskSettings.model_validate(merge(settings, config.overrides.get(task, {})))


def load_config(
    source: str | Path | Mapping[str, Any] | None = None, overrides: list[str] | None = None, variant: str | None = None
) -> RunConfig:
    """Load the configuration of a preset or a YAML file and apply `a.b=value` overrides (values are YAML).

    Args:
        source: name of a preset, path of a YAML file, a mapping of plain values, or None for the defaults.
        overrides: for example `["training.epochs=3", "families.sum.batch_size=4", "tasks=[asc/cameras]"]`, applied in
            order. What an override sets for every task applies to every task, whatever the source sets for a family.
        variant: variant of the preset, for example "quick" or "paper".

    Raises:
        ConfigError: with one line for each problem; for an unknown key, it names the nearest known one. Lines begin
            with the source that has the problem; lines about overrides begin with the key.
    """
    layers, origin = read_source(source, variant)
    values = combine(layers, apply_overrides({}, overrides or []))
    config, found = _checked(values)
    origins = dict.fromkeys(found, f"{origin}: ")
    for text in overrides or []:
        values = apply_override(values, text)
        config, found = _checked(values)
        origins = {line: origins.get(line, "") for line in found}  # an override's problem is not the file's
    if config is None:
        raise ConfigError("\n".join(prefix + line for line, prefix in origins.items()))
    return config


def _checked(values: Mapping[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """Return the configuration of plain values, or the problems in them."""
    try:
        return RunConfig.model_validate(values), []
    except ValidationError as error:
        return None, explain(error, known_model(values))
    except ConfigError as error:
        return None, str(error).splitlines()


def combine(layers: Sequence[Layer], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Combine the layers of a configuration for the chosen backbone and method.

    Later layers take precedence. Within a layer, the section `backbones` takes precedence over the other keys, and
    `methods` over both.

    Args:
        layers: the layers that `read_source` returns.
        changes: values of later layers, of which only the keys `backbone` and `method` are read.

    Raises:
        ConfigError: a section has the wrong form, names an unknown method, or has a setting that no run can have, even
            for a backbone or a method that is not chosen.
    """
    choice = {key: RunConfig.model_fields[key].default for key in CHOICES.values()}
    for values in (*(layer.values for layer in layers), changes):
        choice |= {key: values[key] for key in choice if key in values}
    combined: dict[str, Any] = {}
    for values, origin in layers:
        combined = lay_over(combined, {key: value for key, value in values.items() if key not in CHOICES})
        for section, key in CHOICES.items():
            settings = {} if values.get(section) is None else values[section]
            _check_section(settings, section, combined, origin)
            chosen = choice[key]
            combined = lay_over(combined, settings.get(chosen, {}) if isinstance(chosen, str) else {})
    return combined


def _check_section(settings: Any, section: str, combined: Mapping[str, Any], origin: str) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{origin}: {section}: expected names of {section} with the keys that differ for them")
    if section == "methods" and (unknown := [name for name in settings if name not in METHODS]):
        raise ConfigError(
            f"{origin}: methods: no method {unknown[0]!r}; {nearest(str(unknown[0]), list(METHODS), 'methods')}"
        )
    for name, given in settings.items():
        where = f"{origin}: {section}.{name}"
        if not isinstance(name, str) or not isinstance(given, Mapping):
            raise ConfigError(f"{where}: expected a name with the keys that differ for it")
        if fixed := [key for key in ("extends", *CHOICES, *CHOICES.values()) if key in given]:
            raise ConfigError(f"{where}: {fixed[0]} cannot differ here, as it is already chosen; leave it out")
        chosen = {**combined, CHOICES[section]: name}
        before = _checked(chosen)[1]
        if found := [line for line in _checked(lay_over(chosen, given))[1] if line not in before]:
            raise ConfigError("\n".join(f"{where}: {line}" for line in found))


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML text, which `load_config` loads to an equal configuration."""
    return yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True, width=100)
