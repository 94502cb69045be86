"""A generated abdominal CT in HU with labels: for tests, the demonstration and PACS work. It needs no torch.

Portal-venous phase, patients by seed, any grid. It is made of formulas and holds no one's data. Never train on it.
"""

from polycl.phantom.dicom import write_dicom_series
from polycl.phantom.labels import LABELS
from polycl.phantom.scanner import Phantom, liver_mask, make_phantom, merge_lesion
from polycl.phantom.store import write_study

__all__ = ["LABELS", "Phantom", "liver_mask", "make_phantom", "merge_lesion", "write_dicom_series", "write_study"]
