"""Labels as they are saved: their values, their grid, their versions, and what is known of each."""

from polycl.labels.record import LabelRecord, SavedLabel

__all__ = ["LabelRecord", "SavedLabel"]
