"""Segmentation models as MONAI Label inference tasks.

Concurrency: requests come from several threads. The models of one app share a `Runtime`: images are read outside any
lock, and one network at a time computes on a device. A model is loaded at its first request, once.
"""

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from polycl.catalogue import Entry
from polycl.errors import InputError, PolyclError
from polycl.labels.record import ModelVersion
from polycl.labels.replies import ReplyLog
from polycl.monailabel import jobs
from polycl.monailabel.ahead import Ahead
from polycl.monailabel.courtesy import Courtesy
from polycl.monailabel.current import CurrentModel, Loaded
from polycl.monailabel.engines import Engines
from polycl.monailabel.images import VolumeCache
from polycl.monailabel.request import NO_REFINEMENT, SegmentRequest, refine_parameters
from polycl.monailabel.segmented import Found, Segmentations
from polycl.monailabel.work import owner
from polycl.serving import serving
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume
from polycl.window import seen_through

IMAGE_CACHE_BYTES = 1 << 30
"""Twice a 512x512x1000 series in 16 bits: the images of the people who work at once, on a small machine."""


class Stopping(PolyclError):
    """The server is going down; the client may ask again later."""

    status = 503
    retry_after = 10


class Runtime:
    """What the tasks of one app share: settings, images, SAM engines, one lock for each device, the order to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.images = VolumeCache(self._read, IMAGE_CACHE_BYTES)
        self.engines = Engines(settings)
        self.ahead = Ahead(self.images, self.engines, settings.embed_ahead)
        self.replies = ReplyLog(settings.cache / "replies")
        self.segmentations = Segmentations()
        self.courtesy = Courtesy()
        self.stopping, self.giving_up = threading.Event(), threading.Event()
        self.results = settings.cache / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self._serving = serving(settings.state)  # held as long as this is in use
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def stop(self) -> None:
        """The server goes down: nothing is computed ahead any more, what was asked for goes on."""
        self.stopping.set()
        self.ahead.stop()

    def give_up(self) -> None:
        """There is no more time: what still runs ends at its next slice."""
        self.giving_up.set()

    def image(self, path: Path) -> Volume:
        """An image of the store whatever its values are, from memory where it was used just before."""
        try:
            return self.images.get(path)
        except InputError:
            return self.images.get(path, allow_any_values=True)

    def device_lock(self, device: str) -> threading.Lock:
        """Held while a network computes on `device`."""
        return self._locks[device]

    def result_file(self, extension: str) -> Path:
        """A new file for a result; MONAI Label deletes it once sent."""
        with tempfile.NamedTemporaryFile(dir=self.results, suffix=extension, delete=False) as file:
            return Path(file.name)

    def write(self, mask: Volume, extension: str, compress: bool) -> str:
        """The path of a new file with the label map `mask`; nothing is left of one that fails."""
        path = self.result_file(extension)
        try:
            write_volume(mask, path, compress=compress)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return str(path)

    def progress(self, done: int, total: int) -> None:
        """Called between slices, to let clicks pass.

        Raises Stopping when the server cannot wait any longer, Cancelled when the client is gone.
        """
        if self.giving_up.is_set():
            raise Stopping("the server is shutting down")
        jobs.check()
        self.courtesy.let_pass()

    def _read(self, path: Path, allow_any_values: bool) -> Volume:
        return read_volume(path, allow_any_values=allow_any_values, max_voxels=self.settings.max_voxels)


class SegmentTask(InferTask):  # type: ignore[misc, unused-ignore]
    """One segmenter of the catalogue, in its live version, for the Auto Segmentation panels of 3D Slicer and OHIF.

    `entry` is its version 0. Raises ModelError if the checkpoint is missing or none of ours.
    """

    def __init__(self, entry: Entry, runtime: Runtime) -> None:
        self._model = CurrentModel(entry, runtime.settings)
        labels = self._model.labels()
        engine = runtime.engines.default()
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=labels,
            dimension=3,
            description=entry.summary or f"outlines {', '.join(labels)}",
            config={"refine": [NO_REFINEMENT, engine]} if engine else None,
        )
        self.entry = entry
        self._runtime = runtime

    def is_valid(self) -> bool:
        """Whether the model can be offered; the constructor refuses one that cannot."""
        return True

    def model(self) -> Loaded:
        """The version to answer with, loaded at the first call and after a switch. ModelError if none can be used."""
        loaded = self._model.get()
        self.labels = dict(loaded.segmenter.header.labels)
        return loaded

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`. Returns the label file, in the image's own voxel order, and the reply's params.

        Label values are the model's ids, also where only some were asked for: OHIF maps them back by id. `label_names`
        lists all of them, 1..N without gaps, because Slicer takes value v as the v-th name. Where `refine` was
        asked for, the reply says whether the result is `refined`, and what was done or why not.
        """
        model = self.model()
        labels = model.segmenter.header.labels
        wanted = SegmentRequest.parse(request, labels)
        how = refine_parameters(request) if wanted.refine else None
        if wanted.refine:
            self._runtime.engines.check_name(wanted.refine)
        clock = [time.perf_counter()]
        image = self._runtime.images.get(wanted.image, wanted.allow_any_values)
        if how and how.window is not None:
            seen_through(how.window, image.window)  # refused now, not after the segmentation
        clock.append(time.perf_counter())
        asked = {name: index for name, index in labels.items() if wanted.labels is None or name in wanted.labels}
        found = self._found(image, model)
        mask = found.on(image, asked.values())
        clock.append(time.perf_counter())
        notes: dict[str, Any] = {}
        if wanted.refine and how:
            mask, notes = self._runtime.engines.refined(image, mask, wanted.refine, how, self._runtime.progress)
            found = Found.of(mask)
            clock.append(time.perf_counter())
        path = self._runtime.write(mask, wanted.extension, wanted.compress)
        clock.append(time.perf_counter())
        self._runtime.replies.note(image, mask, labels, ModelVersion(name=model.name, sha256=model.sha256))
        self._runtime.segmentations.show(owner(), image, found, asked)
        self._runtime.ahead.opened(wanted.image, middle_slice(mask))
        stages = ("read", "segment", *(("refine",) if how else ()), "write")
        seconds = {stage: round(end - start, 3) for stage, start, end in zip(stages, clock, clock[1:], strict=False)}
        return path, {
            "label_names": dict(labels),
            "volumes_ml": organ_volumes(mask, asked),
            "model": model.described(),
            "seconds": seconds | {"total": round(clock[-1] - clock[0], 3)},
            **notes,
        }

    def _found(self, image: Volume, model: Loaded) -> Found:
        """All that the model finds, computed only if it was not just before."""
        known, sha256 = self._runtime.segmentations, model.sha256
        if (found := known.get(image, sha256)) is not None:
            return found
        with self._runtime.device_lock(str(model.segmenter.where.device)):
            found = known.get(image, sha256)  # by who asked for the same meanwhile
            if found is None:
                found = Found.of(model.segmenter.segment(image, progress=self._runtime.progress))
                known.keep(image, sha256, found)
        return found


def middle_slice(mask: Volume) -> int | None:
    """The canonical axial slice with as many labelled slices above as below; None where nothing is labelled."""
    labelled = np.flatnonzero(mask.canonical().voxels.any(axis=(0, 1)))
    return int(labelled[len(labelled) // 2]) if len(labelled) else None


def organ_volumes(mask: Volume, labels: Mapping[str, int]) -> dict[str, float]:
    """Millilitres of each label of a uint8 label map, rounded to a thousandth."""
    counts = np.zeros(256, dtype=np.int64)
    for index in range(mask.shape[2]):
        counts += np.bincount(mask.voxels[:, :, index].ravel(), minlength=256)
    return {name: round(int(counts[value]) * mask.voxel_ml, 3) for name, value in labels.items()}
