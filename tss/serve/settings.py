"""Limits and timeouts of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tss.errors import ConfigError

LEAST = {"max_wait_ms": 0, "body_seconds": 0.01}


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a server.

    Attributes:
        max_batch: maximum number of inputs in a batch.
        max_wait_ms: maximum time in milliseconds that the oldest input waits for others while the model is idle.
        max_queue: maximum number of waiting inputs; a request that would exceed it is rejected.
        max_inputs: maximum number of inputs in a request.
        max_body: maximum size of a request in bytes.
        max_tokens: maximum number of tokens of an input.
        max_new_tokens, max_beams: maximum that a request can set; a task's own parameters are always allowed.
        body_seconds: time in seconds within which the body of a request must arrive.
        max_connections: maximum number of open connections.
        grace_seconds: time in seconds to answer accepted requests after the server is told to stop.
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
