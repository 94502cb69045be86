"""The series that a segmentation is of: its grid, and the instance behind each slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polycl.errors import InputError
from polycl.volume import Volume, read_stack
from polycl.volume.dicom import Source
from polycl.volume.dicom_frames import Frame


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """A CT series without its pixels. `frames` are in the order of `grid`'s third axis; `grid` has no values."""

    uid: str
    study_uid: str
    frame_of_reference: str
    grid: Volume
    frames: tuple[Frame, ...]

    @classmethod
    def read(cls, source: Source, series_uid: str | None = None) -> SourceSeries:
        """The series in a folder, or among files. Raises what `polycl.volume.read_series` does."""
        stack = read_stack(source, series_uid=series_uid)
        first = stack.frames[0]
        header = read_headers([first.path])[0]
        shape = (first.columns, first.rows, len(stack.frames))
        return cls(
            uid=str(header.SeriesInstanceUID),
            study_uid=str(header.get("StudyInstanceUID", "")),
            frame_of_reference=str(header.get("FrameOfReferenceUID", "")),
            grid=Volume(np.broadcast_to(np.uint8(0), shape), stack.affine),
            frames=tuple(stack.frames),
        )

    def paths(self) -> list[Path]:
        """The files in the order of slices, each once."""
        return list(dict.fromkeys(frame.path for frame in self.frames))


def read_headers(paths: list[Path]) -> list[Any]:
    """All attributes of DICOM files but the pixels; InputError if one cannot be read."""
    from pydicom import dcmread

    try:
        return [dcmread(path, stop_before_pixels=True) for path in paths]
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise InputError("the series holds a truncated or corrupt DICOM file") from error
