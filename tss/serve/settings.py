"""What a server allows, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tss.errors import ConfigError

LEAST = {"max_wait_ms": 0, "body_seconds": 0.01}


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a server.

    Attributes:
        max_batch: inputs that are answered by one pass at most.
        max_wait_ms: how long the oldest input waits for others while the model is free.
        max_queue: inputs that wait at most; a request that would be over it is refused.
        max_inputs: of one request.
        max_body: bytes of a request.
        max_tokens: of an input.
        max_new_tokens, max_beams: that a request may ask for; a task's own settings hold whatever they are.
        body_seconds: until a request's body must be there.
        max_connections: at a time.
        grace_seconds: that requests have to be answered in after the server was told to stop.
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 1024
    max_inputs: int = 256
    max_body: int = 2**18
    max_tokens: int = 4096
    max_new_tokens: int = 256
    max_beams: int = 8
    body_seconds: float = 10.0
    max_connections: int = 1000
    grace_seconds: int = 60

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least = getattr(self, one.name), LEAST.get(one.name, 1)
            if not value >= least:
                raise ConfigError(f"{one.name}={value} must be at least {least}")
        if self.max_inputs > self.max_queue:
            raise ConfigError(f"max_inputs={self.max_inputs} exceeds max_queue={self.max_queue}; lower it")
