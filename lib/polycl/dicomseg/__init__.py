"""DICOM SEG out and in: label maps as segmentation objects of the series they belong to.

Importing this package is cheap: pydicom and highdicom are imported by the function that needs them.
"""

from polycl.dicomseg.reading import SegLabel, read_seg
from polycl.dicomseg.rtstruct import make_rtstruct, write_rtstruct
from polycl.dicomseg.source import SourceSeries
from polycl.dicomseg.terms import term_of
from polycl.dicomseg.writing import Algorithm, Identity, Segment, make_seg, write_seg

__all__ = [
    "Algorithm",
    "Identity",
    "SegLabel",
    "Segment",
    "SourceSeries",
    "make_rtstruct",
    "make_seg",
    "read_seg",
    "term_of",
    "write_rtstruct",
    "write_seg",
]
