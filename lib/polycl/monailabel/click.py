"""The click task: 3D Slicer's Smart Edit and OHIF's Point Prompts, one axial slice at a time.

Clicks are not kept between requests: a client sends all points of the object each time, so undo is sending one less.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from polycl.clicks import Click, Index, best_mask, decode_seen, locate, on_slice, seen_region
from polycl.errors import InputError
from polycl.monailabel.ahead import SOFT_TISSUE
from polycl.monailabel.infer import Runtime
from polycl.monailabel.request import ImageRequest
from polycl.sam.slices import SliceEncoder
from polycl.window import HEADER, WINDOWS, FromHeader, Window, seen_through, window_from

NAME = "polycl-click"
REACH = 6
"""Slices embedded ahead on each side of the one clicked, before the rest of the study."""


@dataclass(frozen=True)
class ClickRequest(ImageRequest):
    """What a client asks of the click task."""

    click: Click = field(default_factory=Click)
    label: str = "object"
    window: Window | FromHeader = SOFT_TISSUE

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> "ClickRequest":
        """The request as MONAI Label hands it to a task; InputError or NotFoundError for what cannot be used."""
        label = request.get("label") or "object"
        if not isinstance(label, str):
            raise InputError("label must be the name of what the clicks outline")
        window = request.get("window")
        return cls(
            **vars(ImageRequest.read(request)),
            click=Click(
                inside=_points(request, "foreground"),
                outside=_points(request, "background"),
                roi=roi_of(request.get("roi")),
                slice_hint=_slice(request.get("slice")),
            ),
            label=label,
            window=SOFT_TISSUE if window is None else window_from(window),
        )


class ClickTask(InferTask):  # type: ignore[misc, unused-ignore]
    """Points in and out of an object, or a box, to its outline on one slice. It has no labels: it outlines anything."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(
            type=InferType.DEEPGROW,
            labels=[],
            dimension=2,
            description="outlines what is clicked, on one axial slice",
            config={"window": [*WINDOWS, HEADER]} if runtime.engines.windowed() else None,
        )
        self._runtime = runtime

    def is_valid(self) -> bool:
        """Whether it can be offered; the app registers it only where there are weights."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Outline what `request` points at. Returns a file of 0 and 1 in the image's own voxel order, and params."""
        with self._runtime.courtesy.first():
            return self._answered(ClickRequest.parse(request))

    def _answered(self, wanted: ClickRequest) -> tuple[str, dict[str, Any]]:
        started = time.perf_counter()
        engines = self._runtime.engines
        engine = engines.named()
        image = self._runtime.images.get(wanted.image, wanted.allow_any_values)
        read = time.perf_counter()
        z, prompts = locate(wanted.click, image)
        seen = seen_region(engine, prompts, image)
        encoder = SliceEncoder(image, engine, seen_through(wanted.window, image.window), engines.cache, seen)
        cached = encoder.key(z) in engines.cache
        embedding = encoder.embedding(z)
        encoded = time.perf_counter()
        masks = decode_seen(engine, embedding, prompts, image, seen)
        mask = best_mask(masks, prompts)
        decoded = time.perf_counter()
        path = self._runtime.write(on_slice(mask, z, image), wanted.extension, wanted.compress)
        written = time.perf_counter()
        self._runtime.ahead.opened(wanted.image, z, encoder.window)
        self._look_ahead(encoder, z)
        return path, {
            "label_names": {wanted.label: 1},
            "axial_slice": z,
            "area_mm2": round(float(mask.sum()) * image.canonical().spacing[0] * image.canonical().spacing[1], 2),
            "score": round(float(masks.scores.max()), 3),
            "cached": cached,
            "model": {"name": engine.name, "sha256": engine.sha256},
            "seconds": {
                "read": round(read - started, 4),
                "encode": round(encoded - read, 4),
                "decode": round(decoded - encoded, 4),
                "write": round(written - decoded, 4),
                "total": round(written - started, 4),
            },
        }

    def _look_ahead(self, encoder: SliceEncoder, z: int) -> None:
        """Embed the slices beside `z` soon, even if the study is one too many or of another window."""
        if near := [other for other in encoder.around(z, REACH) if encoder.key(other) not in encoder.cache]:
            encoder.prefetch(near, urgent=True)


def _points(request: Mapping[str, Any], key: str) -> tuple[Index, ...]:
    value = request.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 3 for point in value):
        raise InputError(f"{key} must be a list of voxel indices [i, j, k]")
    whole = [[_whole(part, f"an index in {key}") for part in point] for point in value]
    return tuple((i, j, k) for i, j, k in whole)


def roi_of(value: object) -> tuple[int, int, int, int, int, int] | None:
    """A request's `roi`, None if it is empty; InputError unless it is six whole numbers."""
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 6:
        raise InputError("roi must be six voxel indices: i0, i1, j0, j1, k0, k1")
    i0, i1, j0, j1, k0, k1 = (_whole(part, "an index in roi") for part in value)
    return i0, i1, j0, j1, k0, k1


def _slice(value: object) -> int | None:
    return None if value is None else _whole(value, "slice")


def _whole(value: object, what: str) -> int:
    """A number that a client sent, rounded to a voxel."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or abs(value) > 1e9:
        raise InputError(f"{what} is {value!r}; it must be a whole number")
    return round(value)
