"""Clicks with MobileSAM: milliseconds on a slice seen before and on a new one, in one warm process.

The image is loaded, and has 512 x 512 pixels. A click is what the server does for one: look the slice up or encode it,
then decode the clicks so far. Re-encoding for each click, as is done where nothing is kept, is the comparison.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from polycl.errors import ModelError
from polycl.phantom import make_phantom
from polycl.sam import EmbeddingCache, EmbeddingKey, Engine, Prompts, content_hash, load_engine, slice_image
from polycl.settings import Settings
from polycl.volume import Volume
from polycl.window import Window

SHAPE, SPACING = (512, 512, 8), (0.75, 0.75, 5.0)
ENGINE = "mobile-sam"
CLICKS = 20


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line each and return the figures; no figures where the weights are missing."""
    try:
        engine = load_engine(ENGINE, settings)
    except ModelError as error:
        print(f"clicks: not measured, {error.in_full()}")  # noqa: T201
        return {}
    volume = make_phantom(0, shape=SHAPE, spacing=SPACING).image.canonical()
    content_hash(volume)
    cold, cached = _clicks(engine, volume)
    figures = {
        "engine": ENGINE,
        "cold_ms": statistics.median(cold) * 1e3,
        "cached_ms": statistics.median(cached) * 1e3,
        "cached_worst_ms": max(cached) * 1e3,
        "times_faster_than_encoding_each_click": statistics.median(cold) / statistics.median(cached),
    }
    print(  # noqa: T201
        f"clicks on {SHAPE[0]} x {SHAPE[1]}, {ENGINE}: new slice {figures['cold_ms']:.0f} ms, "
        f"slice seen before {figures['cached_ms']:.0f} ms (worst of {CLICKS} {figures['cached_worst_ms']:.0f} ms); "
        f"encoding on each click would take {figures['times_faster_than_encoding_each_click']:.0f} times as long"
    )
    return figures


def _clicks(engine: Engine, volume: Volume) -> tuple[list[float], list[float]]:
    """Seconds of first clicks on new slices, and of `CLICKS` more on one of them."""
    window = Window.named("soft-tissue")
    cache = EmbeddingCache(256 * 2**20)

    def click(index: int, number: int) -> None:
        key = EmbeddingKey(content_hash(volume), index, window, engine.name, engine.sha256, engine.size)
        embedding = cache.get(key, lambda: engine.encode(slice_image(volume, index, window)))
        points = [[200 + 5 * n, 220] for n in range(1 + number % 3)]
        engine.decode(embedding, Prompts(points, [1] * len(points)))

    click(0, 0)  # warm
    cold = [_seconds(lambda i=index: click(i, 0)) for index in range(1, SHAPE[2])]
    return cold, [_seconds(lambda n=number: click(1, n)) for number in range(CLICKS)]


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
