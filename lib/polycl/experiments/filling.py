"""Volumes filled by propagation from the reference on one slice, kept on disk: strategies often ask for the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.experiments.annotator import Ends, Pool
from polycl.files import replacing
from polycl.propagate.engine import VideoEngine
from polycl.propagate.seeds import Seed, with_ends
from polycl.propagate.session import Propagation


class Filling:
    """As `polycl.experiments.annotator.Fill` has it, by `engine`; results are kept in `folder`."""

    def __init__(self, pool: Pool, engine: VideoEngine, folder: Path) -> None:
        self._pool, self._engine = pool, engine
        self._folder = folder / engine.sha256[:16]

    def __call__(self, case: str, z: int, ends: Ends) -> NDArray[np.uint8]:
        """Slice `z` is as the reference has it."""
        file = self._folder / f"{case}-{z}{'-bounded' if ends else ''}.npz"
        if file.is_file():
            with np.load(file) as kept:
                return np.asarray(kept["classes"], dtype=np.uint8)
        image = self._pool.images[case]
        session = Propagation(image, self._engine)
        classes = self._pool.slices[case][z].classes
        for index in np.unique(classes[classes > 0]).tolist():
            first, last = ends.get(index, (None, None))
            session.put(index, with_ends({z: Seed(classes == index)}, image, first, last))
        found = np.ascontiguousarray(session.run().canonical().voxels, dtype=np.uint8)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.savez_compressed(stream, classes=found)
        return found
