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
from polycl.errors import PolyclError
from polycl.monailabel.engines import Engines
from polycl.monailabel.images import VolumeCache
from polycl.monailabel.request import NO_REFINEMENT, SegmentRequest, refine_parameters
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

IMAGE_CACHE_BYTES = 1 << 30
"""Twice a 512x512x1000 series in 16 bits: the images of the people who work at once, on a small machine."""


class Stopping(PolyclError):
    """The server is going down; the client may ask again later."""

    status = 503


class Runtime:
    """What the tasks of one app share: settings, images, SAM engines, one lock for each device, the order to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.images = VolumeCache(self._read, IMAGE_CACHE_BYTES)
        self.engines = Engines(settings)
        self.stopping = threading.Event()
        self.results = settings.cache / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

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
        """Called between slices; raises Stopping when the server goes down."""
        if self.stopping.is_set():
            raise Stopping("the server is shutting down")

    def _read(self, path: Path, allow_any_values: bool) -> Volume:
        return read_volume(path, allow_any_values=allow_any_values, max_voxels=self.settings.max_voxels)


class SegmentTask(InferTask):  # type: ignore[misc, unused-ignore]
    """One segmenter of the catalogue, for the Auto Segmentation panels of 3D Slicer and OHIF.

    Raises ModelError if the checkpoint is missing or none of ours.
    """

    def __init__(self, entry: Entry, runtime: Runtime) -> None:
        labels = dict(entry.header().labels)
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
        self._loaded: tuple[Segmenter, str] | None = None
        self._load_lock = threading.Lock()

    def is_valid(self) -> bool:
        """Whether the model can be offered; the constructor refuses one that cannot."""
        return True

    def model(self) -> tuple[Segmenter, str]:
        """The model and the sha256 of its file, loaded at the first call. ModelError if it is not what it should be."""
        with self._load_lock:
            if self._loaded is None:
                settings, sha256 = self._runtime.settings, self.entry.verify()
                segmenter = Segmenter.load(
                    self.entry.path, sha256=sha256, device=settings.device, precision=settings.precision
                )
                self._loaded = segmenter, sha256
            return self._loaded

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`. Returns the label file, in the image's own voxel order, and the reply's params.

        Label values are the model's ids, also where only some were asked for: OHIF maps them back by id. `label_names`
        lists all of them, 1..N without gaps, because Slicer takes value v as the v-th name. Where `refine` was
        asked for, the reply says whether the result is `refined`, and what was done or why not.
        """
        wanted = SegmentRequest.parse(request, self.labels)
        segmenter, sha256 = self.model()
        window = segmenter.header.preprocessing.window
        how = refine_parameters(request, window) if wanted.refine else None
        if wanted.refine:
            self._runtime.engines.check_name(wanted.refine)
        clock = [time.perf_counter()]
        image = self._runtime.images.get(wanted.image, wanted.allow_any_values)
        clock.append(time.perf_counter())
        ahead = self._runtime.engines.cache.serving()  # nothing is embedded ahead while somebody waits
        with ahead, self._runtime.device_lock(str(segmenter.where.device)):
            mask = segmenter.segment(image, labels=wanted.labels, progress=self._runtime.progress)
        clock.append(time.perf_counter())
        notes: dict[str, Any] = {}
        if wanted.refine and how:
            mask, notes = self._runtime.engines.refined(image, mask, wanted.refine, how, self._runtime.progress)
            clock.append(time.perf_counter())
        path = self._runtime.write(mask, wanted.extension, wanted.compress)
        clock.append(time.perf_counter())
        stages = ("read", "segment", *(("refine",) if how else ()), "write")
        seconds = {stage: round(end - start, 3) for stage, start, end in zip(stages, clock, clock[1:], strict=False)}
        return path, {
            "label_names": dict(self.labels),
            "volumes_ml": organ_volumes(mask, self._asked(wanted)),
            "model": {"name": self.entry.name, "sha256": sha256},
            "seconds": seconds | {"total": round(clock[-1] - clock[0], 3)},
            **notes,
        }

    def _asked(self, wanted: SegmentRequest) -> dict[str, int]:
        return {name: index for name, index in self.labels.items() if wanted.labels is None or name in wanted.labels}


def organ_volumes(mask: Volume, labels: Mapping[str, int]) -> dict[str, float]:
    """Millilitres of each label of a uint8 label map, rounded to a thousandth."""
    counts = np.zeros(256, dtype=np.int64)
    for index in range(mask.shape[2]):
        counts += np.bincount(mask.voxels[:, :, index].ravel(), minlength=256)
    return {name: round(int(counts[value]) * mask.voxel_ml, 3) for name, value in labels.items()}
