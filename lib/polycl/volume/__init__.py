"""Volumes in patient space: the one place that knows axes, affines and file formats.

Importing this package is cheap: nibabel, pynrrd, pydicom and gdcm are imported by the function that needs them.
"""

from polycl.volume.checks import MAX_VOXELS, check_ct
from polycl.volume.core import Volume
from polycl.volume.dicom import SeriesInfo, list_series, read_series, read_stack
from polycl.volume.nrrd import read_segments
from polycl.volume.orientation import canonical_affine, canonical_view, from_canonical_index, to_canonical_index
from polycl.volume.reading import read_volume
from polycl.volume.writing import require_writable, write_volume

__all__ = [
    "MAX_VOXELS",
    "SeriesInfo",
    "Volume",
    "canonical_affine",
    "canonical_view",
    "check_ct",
    "from_canonical_index",
    "list_series",
    "read_segments",
    "read_series",
    "read_stack",
    "read_volume",
    "require_writable",
    "to_canonical_index",
    "write_volume",
]
