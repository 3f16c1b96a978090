"""Requests and responses of the HTTP API, from which FastAPI generates the OpenAPI schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0, le=10**6)]


class Parameters(BaseModel):
    """Decoding parameters that replace a generation task's own, within the server's limits."""

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
    """Request for predictions of one task: either `input` or `inputs`.

    `parameters` is for generation tasks. `stream` sends the text for one `input` as it is generated, as lines of JSON;
    it is for generation with `num_beams` 1.
    """

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
    """Prediction for one input: a label, a tag for each word, or a text.

    `confidence` is the softmax probability of the predicted label, or of each word's tag (null for words that were cut
    off); `scores` has the probability of every label (classification only). They are not calibrated; generated text
    has neither. `truncated` marks an input that was longer than the task's maximum length: its end was cut off.
    """

    prediction: str | list[str]
    confidence: float | list[float | None] | None = None
    scores: dict[str, float] | None = None
    truncated: Literal[True] | None = None


class OneAnswer(Prediction):
    """Response to a request with `input`: the task and its prediction."""

    task: str


class ManyAnswers(BaseModel):
    """Response to a request with `inputs`: the task and its predictions, in the order of the inputs."""

    task: str
    predictions: list[Prediction]


class TaskDescription(BaseModel):
    """A task: its kind, its required and optional input fields, and its labels or decoding parameters."""

    task: str
    kind: Literal["classification", "extraction", "generation"]
    fields: list[str]
    optional_fields: list[str]
    labels: list[str] | None = None
    parameters: dict[str, int] | None = None


class Tasks(BaseModel):
    """All tasks that are served."""

    tasks: list[TaskDescription]


class Reloaded(BaseModel):
    """Names of the tasks that were added, and of all tasks that are served now."""

    added: list[str]
    tasks: list[str]


class Health(BaseModel):
    """Whether the process is alive, and whether it accepts requests."""

    live: bool
    ready: bool


class ErrorDetail(BaseModel):
    """Machine-readable code, a message with the condition and the values, and a remedy."""

    code: str
    message: str
    remedy: str


class ErrorReply(BaseModel):
    """Response to a request that was rejected or failed."""

    error: ErrorDetail
