"""Counters for Prometheus: how long requests, stages of tasks and waits took. No label names a person or an image.

One registry for the process, as the server's application is one. What has a value only at the moment of asking, such as
the length of a queue, is added by `polycl.server.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector

Kind = Literal["click", "volume", "other"]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

_requests = Histogram(
    "polycl_request_seconds",
    "From the first byte of a request to the last of its answer, by row of the table of routes.",
    ("method", "route", "status"),
    buckets=SECONDS,
    registry=REGISTRY,
)
_stages = Histogram(
    "polycl_stage_seconds",
    "Stages of inferences, by model, as their replies tell them.",
    ("model", "stage"),
    buckets=SECONDS,
    registry=REGISTRY,
)
_waits = Histogram(
    "polycl_wait_seconds", "Waiting for a turn in the queue.", ("kind",), buckets=SECONDS, registry=REGISTRY
)


def request_took(method: str, route: str | None, status: int, seconds: float) -> None:
    """A request was answered. One that no row of the table is for counts as `?`: clients may invent any."""
    known = method if route is not None else "?"
    _requests.labels(known, route or "?", str(status)).observe(seconds)


def stages_took(model: str, reply: Mapping[str, Any]) -> None:
    """An inference of `model`, one that is served, gave this reply."""
    seconds = reply.get("seconds")
    if isinstance(seconds, Mapping):
        for stage, value in seconds.items():
            if isinstance(value, int | float):
                _stages.labels(model, str(stage)).observe(value)


def waited(kind: Kind, seconds: float) -> None:
    """A request had its turn, or gave up."""
    _waits.labels(kind).observe(seconds)
