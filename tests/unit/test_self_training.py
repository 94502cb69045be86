"""Slices outlined by a segmenter that is told which classes are there."""

from pathlib import Path

import numpy as np
import pytest

from polycl.dataset import LabelledSlice
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.segmenter.self_training import outlined
from polycl.volume import Volume

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def segmenter(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def slices() -> list[LabelledSlice]:
    ct = make_phantom(0, shape=(48, 40, 6), spacing=(8.0, 9.0, 30.0)).image
    unlabelled = np.zeros(ct.shape[:2], np.uint8)
    return [LabelledSlice(ct.voxels[:, :, z], unlabelled, (8.0, 9.0), "p", z) for z in range(ct.shape[2])]


def test_told_of_all_classes_the_outlines_are_the_segmenters(segmenter: Segmenter, slices: list[LabelledSlice]) -> None:
    found = outlined(segmenter, [(one, {1, 2}) for one in slices])
    for one in found:
        alone = Volume(one.hu[:, :, None], np.diag([*one.spacing, 30.0, 1.0]))
        np.testing.assert_array_equal(one.classes, segmenter.segment(alone, only=range(1)).voxels[:, :, 0])
    assert any(one.classes.any() for one in found)


def test_a_class_that_is_not_there_is_outlined_nowhere_and_known(
    segmenter: Segmenter, slices: list[LabelledSlice]
) -> None:
    for one in outlined(segmenter, [(one, {2}) for one in slices]):
        assert not (one.classes == 1).any()
        assert one.known is not None
        assert 1 in one.known


def test_a_class_that_is_there_and_was_not_found_stays_unknown(
    segmenter: Segmenter, slices: list[LabelledSlice]
) -> None:
    air = [LabelledSlice(np.full_like(one.hu, -1000), one.classes, one.spacing, "air", one.index) for one in slices]
    for one in outlined(segmenter, [(one, {1, 2}) for one in (*slices, *air)]):
        found = set(np.unique(one.classes).tolist()) - {0}
        assert set(one.known or ()) == found
    assert any(one.known != (1, 2) for one in outlined(segmenter, [(one, {1, 2}) for one in air]))
