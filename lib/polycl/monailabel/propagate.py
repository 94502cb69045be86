"""The tasks that carry an object from a few slices through the volume.

`polycl-propagate` starts from clicks and boxes: 3D Slicer's Smart Edit and OHIF's Point Prompts. A client sends all
points of the object each time; those on other slices are further seeds. `polycl-propagate-painted` starts from painted
slices: 3D Slicer's Scribbles, which sends all segments each time, OHIF with our script, or a label in the store. What
differs from our last reply to the same client, a segmenter's too, is a correction; see `polycl.propagate.painted`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from polycl.clicks import canonical_box
from polycl.errors import InputError
from polycl.labels.record import ModelVersion
from polycl.monailabel.click import ClickRequest, roi_of
from polycl.monailabel.drawings import MAX_TEXT, read_drawing, saved_whole
from polycl.monailabel.infer import middle_slice, organ_volumes
from polycl.monailabel.propagations import ANY_GUIDE, NO_GUIDE, Choices, Propagations, Session
from polycl.monailabel.request import ImageRequest
from polycl.monailabel.work import Running, owner
from polycl.propagate.clicked import corrected, from_click
from polycl.propagate.engine import VideoEngine
from polycl.propagate.painted import OBJECT
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Found, Seed, bounded
from polycl.propagate.session import Roi
from polycl.volume import Volume
from polycl.window import HEADER, WINDOWS, window_from

CLICKED, PAINTED = "polycl-propagate", "polycl-propagate-painted"
AS_TRAINED = "as trained"
SIZES = range(64, 1025)
UNKNOWN = -1
"""For a slice that is not known."""


@dataclass(frozen=True)
class Asked(ImageRequest):
    """What both tasks are asked: for whom, of what label, and how."""

    client: str = ""
    label: str = ""
    choices: Choices = field(default_factory=Choices)

    @classmethod
    def parse(cls, request: Mapping[str, Any], label: str) -> "Asked":
        """The request as MONAI Label hands it to a task; InputError or NotFoundError for what cannot be used."""
        client = request.get("client_id") or ""
        if not isinstance(client, str) or len(client) > MAX_TEXT:
            raise InputError(f"client_id must be a text of at most {MAX_TEXT} characters")
        return cls(**vars(ImageRequest.read(request)), client=client, label=label, choices=_choices(request))


@dataclass(frozen=True)
class Answer:
    """A result, and what the reply says beside it."""

    mask: Volume
    told: dict[str, Any]


Carry = Callable[[Volume, VideoEngine, Running], Answer]


class PropagateTask(InferTask):  # type: ignore[misc, unused-ignore]
    """What both tasks have in common."""

    def __init__(self, name: str, kind: InferType, what: str, shared: Propagations, config: dict[str, Any]) -> None:
        offered = {
            "engine": list(shared.engines.names),
            "guide": [ANY_GUIDE, NO_GUIDE, *shared.segmenters],
            "window": [AS_TRAINED, *WINDOWS, HEADER],
            "size": 0,
            "first_slice": UNKNOWN,
            "last_slice": UNKNOWN,
        }
        super().__init__(type=kind, labels=[], dimension=3, description=what, config=offered | config)
        self.name, self._shared, self._runtime = name, shared, shared.runtime

    def is_valid(self) -> bool:
        """Whether it can be offered; the app registers it only where there are weights."""
        return True

    def _answered(self, asked: Asked, started: float, carry: Carry) -> tuple[str, dict[str, Any]]:
        """A file of 0 and 1 in the image's own voxel order, and the reply's params."""
        running = Running(owner(), asked.client, self.name, asked.label)
        with self._shared.work.run(running):
            engine = self._shared.prepare(asked.choices)
            loaded = time.perf_counter()
            image = self._runtime.images.get(asked.image, asked.allow_any_values)
            read = time.perf_counter()
            answer = carry(image, engine, running)
        carried = time.perf_counter()
        file = self._runtime.write(answer.mask, asked.extension, asked.compress)
        names = {asked.label: OBJECT}
        middle = middle_slice(answer.mask)
        if middle is not None:
            version = ModelVersion(name=engine.name, sha256=engine.sha256)
            self._runtime.replies.note(image, answer.mask, names, version)
        self._runtime.ahead.opened(asked.image, middle)
        clock = {"load": loaded - started, "read": read - loaded, "propagate": carried - read}
        clock |= {"write": time.perf_counter() - carried, "total": time.perf_counter() - started}
        return file, {
            "label_names": names,
            "volumes_ml": organ_volumes(answer.mask, names),
            "model": {"name": engine.name, "sha256": engine.sha256},
            "size": engine.size,
            **answer.told,
            "seconds": {stage: round(seconds, 3) for stage, seconds in clock.items()},
        }

    def _session(self, running: Running, image: Volume) -> AbstractContextManager[Session]:
        return self._shared.session((self.name, running.owner, running.client), image, running.label, running)


class PropagateClicksTask(PropagateTask):
    """Points in and out of an object, or a box, on some slices, to the whole object."""

    def __init__(self, shared: Propagations) -> None:
        what = "carries what is clicked on some slices through the volume"
        super().__init__(CLICKED, InferType.DEEPGROW, what, shared, {})

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Propagate what `request` points at. Returns a file of 0 and 1 in the image's voxel order, and params."""
        started = time.perf_counter()
        clicks = ClickRequest.parse({**request, "window": None})
        asked = Asked.parse(request, clicks.label)

        def carry(image: Volume, engine: VideoEngine, running: Running) -> Answer:
            clicked = from_click(clicks.click, image)
            seeds = clicked.seeds
            with self._session(running, image) as session:

                def carried(seeds: Mapping[int, Seed]) -> Volume:
                    bounds = asked.choices.first, asked.choices.last
                    found = bounded(Found({OBJECT: dict(seeds)}, {}), OBJECT, image, *bounds)
                    return self._shared.carry(session, asked.choices, engine, running, found)

                found = carried(seeds)
                if more := corrected(found, clicked.outside):
                    seeds = seeds | more
                    found = carried(seeds)
                known = told_of(session)
            return Answer(found, {"seed_slices": sorted(seeds), "recognised": known, "notes": []})

        return self._answered(asked, started, carry)


class PropagatePaintedTask(PropagateTask):
    """Painted slices to the whole structure; later, corrected slices to the rest."""

    def __init__(self, shared: Propagations) -> None:
        what = "carries painted slices through the volume"
        super().__init__(PAINTED, InferType.SCRIBBLES, what, shared, {"propagates": True})

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Propagate what is painted. Returns a file of 0 and 1 in the image's voxel order, and params.

        `selected_label_name`, or `label`, says which structure; it need not where there is but one.
        """
        started = time.perf_counter()
        settings = self._runtime.settings
        asked = Asked.parse(request, "")
        drawing = read_drawing(request, settings.max_voxels)
        asked = replace(asked, label=drawing.name)

        def carry(image: Volume, engine: VideoEngine, running: Running) -> Answer:
            image.require_same_grid(drawing.labels, "the label")
            painted, limits = drawing.painted(), _limits(request, image)
            with self._session(running, image) as session:
                segmented = self._runtime.segmentations.shown(running.owner, image, asked.label)
                saved = partial(saved_whole, request, asked.label, image, settings.max_voxels)
                meant = session.history.seeds(painted, image, segmented, saved)
                bounds = asked.choices.first, asked.choices.last
                said = bounded(meant.found, OBJECT, image, *bounds, meant.kept)
                result = self._shared.carry(session, asked.choices, engine, running, said, limits)
                session.history.replied(painted, meant, result.canonical().voxels == OBJECT)
                known = told_of(session)
            notes = [note.replace(f"label {OBJECT}", asked.label) for note in meant.found.notes]
            seeds = sorted(meant.found.seeds[OBJECT])
            told = {"seed_slices": seeds, "corrected_slices": meant.changed, "recognised": known, "notes": notes}
            return Answer(result, told)

        return self._answered(asked, started, carry)


def told_of(session: Session) -> dict[str, str] | None:
    """Which segmenter recognised the object, and as what; None if none did."""
    known = session.propagation.recognised.get(OBJECT) if session.propagation else None
    return None if known is None else {"by": known.guide, "as": known.label}


def _choices(request: Mapping[str, Any]) -> Choices:
    """What the request chooses: the network and how it sees, who helps, where the object ends, and parameters."""
    given = request.get("propagate_parameters") or {}
    if not isinstance(given, dict):
        known = ", ".join(PropagateParameters.model_fields)
        raise InputError(f"propagate_parameters must be an object; its keys are {known}")
    window = request.get("window")
    return Choices(
        engine=_name(request, "engine", ""),
        size=_size(request.get("size")),
        window=None if window in (None, "", AS_TRAINED) else window_from(window),
        guide=_name(request, "guide", "") or ANY_GUIDE,
        first=_slice(request, "first_slice"),
        last=_slice(request, "last_slice"),
        how=PropagateParameters(**given),
    )


def _name(request: Mapping[str, Any], key: str, nothing: str) -> str | None:
    """A name in the request, of a list (as our own offer) the first; None for `nothing`."""
    value = request.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    if value is None or value in ("", nothing):
        return None
    if not isinstance(value, str):
        raise InputError(f"{key} must be a name, not {value!r}")
    return value


def _size(value: object) -> int | None:
    if not value:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value not in SIZES:
        raise InputError(f"size {value!r} does not fit; give {SIZES[0]} to {SIZES[-1]} pixels, a multiple of 32, or 0")
    return value


def _slice(request: Mapping[str, Any], key: str) -> int | None:
    """An axial slice in the request, counted from the feet; None for `UNKNOWN`."""
    value = request.get(key)
    if value in (None, "", UNKNOWN):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key} {value!r} is no slice: give its number from the feet, from 0 on, or {UNKNOWN}")
    return value


def _limits(request: Mapping[str, Any], image: Volume) -> Roi | None:
    """The request's `roi`: nothing is looked at or found outside of it."""
    roi = roi_of(request.get("roi"))
    if roi is None:
        return None
    low, high = canonical_box(roi, image)
    x0, y0, z0 = low.tolist()
    x1, y1, z1 = (high + 1).tolist()
    return x0, x1, y0, y1, z0, z1
