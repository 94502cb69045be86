"""Refinement of a coarse label map by SAM, slice by slice, that keeps the coarse mask wherever SAM is not trusted."""

from polycl.refinement.parameters import RefineParameters
from polycl.refinement.report import RefineReport
from polycl.refinement.stage import refine

__all__ = ["RefineParameters", "RefineReport", "refine"]
