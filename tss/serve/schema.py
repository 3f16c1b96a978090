"""Requests and responses of the HTTP API, from which FastAPI generates the OpenAPI schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0, le=10**6)]


class Parameters(BaseModel):
    """Decoding of a generation task in place of what it was learned with, within the server's limits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    num_beams: Annotated[int, Field(ge=1, le=256)] | None = None
    min_new_tokens: Count | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=10**6)] | None = None
    no_repeat_ngram_size: Count | None = None


Input = Annotated[
    dict[str, Any],
    Field(
        description='What the kind of the task reads: {"text", "aspect"?}, {"tokens"} or {"source"}.',
        examples=[{"text": "the battery lasts"}, {"tokens": ["Alice", "visits", "Paris"]}, {"source": "I need a taxi"}],
    ),
]


class PredictRequest(BaseModel):
    """One input of a task, or several; `stream`: text of one input as it is found, as lines of JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str
    input: Input | None = None
    inputs: Annotated[list[Input], Field(min_length=1)] | None = None
    parameters: Parameters | None = None
    stream: bool = False

    @model_validator(mode="after")
    def _check(self) -> PredictRequest:
        if (self.input is None) == (self.inputs is None):
            raise ValueError("give either input or inputs")
        if self.stream and self.input is None:
            raise ValueError("stream is for one input")
        return self


class Prediction(BaseModel):
    """The answer to an input: a label, a tag for each word, or a text.

    `confidence` is the softmax probability of the prediction, for each word where there are several (null for words
    that were cut off), and not calibrated; `scores` that of each label; text has neither. `truncated` marks an input
    that is longer than what the task reads, so that its end was cut off.
    """

    prediction: str | list[str]
    confidence: float | list[float | None] | None = None
    scores: dict[str, float] | None = None
    truncated: Literal[True] | None = None


class OneAnswer(Prediction):
    """The answer to `input`."""

    task: str


class ManyAnswers(BaseModel):
    """The answers to `inputs`, in their order."""

    task: str
    predictions: list[Prediction]


class TaskDescription(BaseModel):
    """A task: the fields that it reads, and its labels, or its decoding."""

    task: str
    kind: Literal["classification", "extraction", "generation"]
    fields: list[str]
    optional_fields: list[str]
    labels: list[str] | None = None
    parameters: dict[str, int] | None = None


class Tasks(BaseModel):
    """All tasks that answer."""

    tasks: list[TaskDescription]


class Reloaded(BaseModel):
    """Names of the tasks that were added, and of all that answer now."""

    added: list[str]
    tasks: list[str]


class Health(BaseModel):
    """Whether the process lives, and whether it takes requests."""

    live: bool
    ready: bool


class ErrorDetail(BaseModel):
    """A code for programs, the condition and the values, and what to do."""

    code: str
    message: str
    remedy: str


class ErrorReply(BaseModel):
    """What every refused request gets."""

    error: ErrorDetail
