"""Volumes filled by propagation from the reference on one slice, kept on disk: strategies often ask for the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.experiments.annotator import Pool
from polycl.files import replacing
from polycl.propagate.engine import VideoEngine
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation


class Filling:
    """As `polycl.experiments.annotator.Fill` has it, by `engine`; results are kept in `folder`."""

    def __init__(self, pool: Pool, engine: VideoEngine, folder: Path) -> None:
        self._pool, self._engine, self._folder = pool, engine, folder / engine.sha256[:16]

    def __call__(self, case: str, z: int) -> NDArray[np.uint8]:
        """Class ids `[X, Y, Z]`; slice `z` is as the reference has it."""
        file = self._folder / f"{case}-{z}.npz"
        if file.is_file():
            with np.load(file) as kept:
                return np.asarray(kept["classes"], dtype=np.uint8)
        session = Propagation(self._pool.images[case], self._engine)
        classes = self._pool.slices[case][z].classes
        for index in np.unique(classes[classes > 0]):
            session.put(int(index), {z: Seed(classes == index)})
        found = np.ascontiguousarray(session.run().canonical().voxels, dtype=np.uint8)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.savez_compressed(stream, classes=found)
        return found
