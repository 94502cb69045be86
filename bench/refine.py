"""Refining a liver: what it costs against showing SAM every slice of the volume whole.

The volume is a phantom with the grid of a CHAOS study. Three masks are refined: the phantom's own liver, as a good
model gives it; one as a coarse network gives it, in steps of 6 mm; and one as a model of few labels does, whose outline
jumps forth and back from slice to slice too, so that it is also followed through the plane. The comparison encodes each
of the volume's slices at the encoder's full size; its time is that of a few slices just before and just after the
refinement, times their number.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import ModelError
from polycl.phantom import LABELS, make_phantom
from polycl.propagate.engine import VideoEngine
from polycl.propagate.loading import follower
from polycl.refinement import RefineParameters, refine
from polycl.sam import Engine, load_engine, slice_image
from polycl.settings import Settings
from polycl.volume import Volume
from polycl.window import Window

SHAPE, SPACING = (512, 512, 78), (0.7266, 0.7266, 2.0)
ENGINE = "mobile-sam"
STEP_MM = 6.0
TIMED_SLICES = 3
GOAL = 0.5


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a table and return the figures; no figures where the weights are missing."""
    try:
        engine = load_engine(ENGINE, settings)
    except ModelError as error:
        print(f"refine: not measured, {error.in_full()}")  # noqa: T201
        return {}
    phantom = make_phantom(0, shape=SHAPE, spacing=SPACING)
    image = phantom.image.canonical()
    image = image.with_voxels(np.asfortranarray(image.voxels))  # as files are read
    liver = np.asfortranarray(phantom.labels.canonical().voxels == LABELS["liver"])
    masks = {"good": liver, "coarse": stepped(liver), "ragged": ragged(liver)}
    whole = follower(settings)
    rows = [measure(engine, image, name, mask, whole) for name, mask in masks.items()]
    print(f"refine a liver in {' x '.join(map(str, SHAPE))}, {ENGINE}")  # noqa: T201
    for row in rows:
        print(  # noqa: T201
            f"  {row['mask']} mask: {row['seconds']:.1f} s, {row['share']:.0%} of what encoding every slice takes "
            f"({row['encode_all_seconds']:.1f} s, {row['encode_slice_ms']:.0f} ms a slice; goal {GOAL:.0%}); "
            f"of {row['slices']} slices with liver {row['shown']} shown in {row['encodings']} encodings"
            + (f", followed in {row['follow_seconds']:.1f} s" if row["followed"] else "")
        )
    return {"engine": ENGINE, "rows": rows}


def encoding_ms(engine: Engine, image: Volume) -> list[float]:
    """Milliseconds that the encoder takes for a whole slice, of a few."""
    window, middle = Window.named("soft-tissue"), image.shape[2] // 2
    engine.encode(slice_image(image, middle, window))  # warm
    taken = []
    for index in range(middle, middle + TIMED_SLICES):
        start = time.perf_counter()
        engine.encode(slice_image(image, index, window))
        taken.append(time.perf_counter() - start)
    return [1e3 * seconds for seconds in taken]


def ragged(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """In such blocks, which lie half a block further in both directions on every other slice."""
    half = round(STEP_MM / SPACING[0]) // 2
    moved = np.roll(stepped(np.roll(mask, (half, half), axis=(0, 1))), (-half, -half), axis=(0, 1))
    return np.where(np.arange(mask.shape[2]) % 2 == 0, stepped(mask), moved)


def stepped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask in plane in blocks of `STEP_MM`, each what its middle is."""
    step = round(STEP_MM / SPACING[0])
    blocks = mask[step // 2 :: step, step // 2 :: step]
    large = blocks.repeat(step, axis=0).repeat(step, axis=1)[: mask.shape[0], : mask.shape[1]]
    return np.pad(large, [(0, n - m) for n, m in zip(mask.shape, large.shape, strict=True)])


def measure(
    engine: Engine, image: Volume, name: str, mask: NDArray[np.bool_], whole: VideoEngine | None
) -> dict[str, Any]:
    """One refinement with nothing embedded before."""
    coarse, how = image.with_voxels(mask.astype(np.uint8)), RefineParameters()
    before = encoding_ms(engine, image)
    start = time.perf_counter()
    _, report = refine(image, coarse, engine, None, how, follower=whole)
    seconds = time.perf_counter() - start
    slice_ms = statistics.median(before + encoding_ms(engine, image))
    everything = slice_ms * image.shape[2] / 1e3
    return {
        "mask": name,
        "seconds": seconds,
        "encode_slice_ms": slice_ms,
        "encode_all_seconds": everything,
        "share": seconds / everything,
        "slices": report.slices,
        "shown": report.encoded,
        "encodings": report.encodings,
        "followed": report.followed,
        "follow_seconds": report.seconds["follow"],
        "changed_voxels": report.changed_voxels,
    }
