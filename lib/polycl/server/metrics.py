"""`/metrics`: what `polycl.telemetry` counted, and how things stand at this moment."""

from collections.abc import Iterator, Mapping
from typing import Any

from anyio.to_thread import run_sync
from monailabel.interfaces.utils.app import app_instance
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from polycl.learning.runs import follow
from polycl.monailabel.train import NAME
from polycl.room import free_bytes
from polycl.server.lanes import lanes
from polycl.telemetry import REGISTRY

Depths = Mapping[str, tuple[int, int]]
COUNTED = ("hits", "misses", "shared", "disk_hits", "prefetched", "evictions")
"""Of the embedding cache, since the start; its other figures are of this moment."""


class _Now:
    """How things stand, as a collector that is asked once. `depths`: how many wait and work in each queue."""

    def __init__(self, depths: Depths) -> None:
        self._depths = depths

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        app = app_instance()
        waiting = GaugeMetricFamily("polycl_queue_waiting", "Requests that wait.", labels=["queue"])
        running = GaugeMetricFamily("polycl_queue_running", "Requests that are worked on.", labels=["queue"])
        for name, (how_many, at_work) in self._depths.items():
            waiting.add_metric([name], how_many)
            running.add_metric([name], at_work)
        yield waiting
        yield running
        yield from _cache(app.runtime.engines.cache.statistics())
        free = GaugeMetricFamily("polycl_disk_free_bytes", "Free on the disk of a folder.", labels=["folder"])
        free.add_metric(["state"], free_bytes(app.runtime.settings.state))
        free.add_metric(["store"], free_bytes(app.datastore().folder))
        yield free
        yield from _training(app)
        yield from _gpu()


async def metrics(request: Request) -> Response:
    """`GET /metrics`."""
    open_lanes = lanes()  # of this event loop
    queues = {**open_lanes.devices, "long": open_lanes.long, "pages": open_lanes.pages}
    depths = {name: (queue.waiting, queue.running) for name, queue in queues.items()}
    text = await run_sync(_text, depths)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _text(depths: Depths) -> bytes:
    now = CollectorRegistry()
    now.register(_Now(depths))
    return generate_latest(REGISTRY) + generate_latest(now)


def _cache(figures: Mapping[str, Any]) -> Iterator[Metric]:
    for name, value in figures.items():
        if isinstance(value, int | float):
            family = CounterMetricFamily if name in COUNTED else GaugeMetricFamily
            yield family(f"polycl_embedding_cache_{name}", f"Embeddings of slices: {name}.", value=value)


def _training(app: Any) -> Iterator[Metric]:
    task = app._trainers.get(NAME)
    newest = task.trainer.runs.all()[-1:] if task else []
    events = list(follow(newest[0].events())) if newest else []
    state = GaugeMetricFamily("polycl_training", "1 for the state of the newest training run.", labels=["state"])
    state.add_metric([events[-1].state if events else "none"], 1)
    yield state
    if events and events[-1].steps:
        done = (events[-1].step or 0) / events[-1].steps
        yield GaugeMetricFamily("polycl_training_progress", "Share of its steps that are done.", value=done)


def _gpu() -> Iterator[Metric]:
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call, unused-ignore]
        return
    free = GaugeMetricFamily("polycl_gpu_free_bytes", "Free memory of a GPU.", labels=["gpu"])
    total = GaugeMetricFamily("polycl_gpu_total_bytes", "Memory of a GPU.", labels=["gpu"])
    for number in range(torch.cuda.device_count()):
        for family, value in zip((free, total), torch.cuda.mem_get_info(number), strict=True):
            family.add_metric([str(number)], value)
    yield free
    yield total
