"""The shipped liver model on real CT that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest

from polycl.catalogue import SHIPPED, Catalogue
from polycl.metrics import dice
from polycl.phantom import liver_mask, make_phantom
from polycl.segmenter import Segmenter
from polycl.volume import read_volume


@pytest.fixture(scope="module")
def liver() -> Segmenter:
    entry = Catalogue.read(SHIPPED).entry("polycl-liver")
    return Segmenter.load(entry.path, sha256=entry.sha256)


def score(liver: Segmenter, data: Path, name: str, ids: tuple[int, ...]) -> float:
    folder = data / name.split("_", maxsplit=1)[0]
    reference = read_volume(folder / "labels" / f"{name}.nii.gz", kind="label")
    predicted = liver.segment(read_volume(folder / "images" / f"{name}.nii.gz"))
    result = dice(predicted.voxels == 1, np.isin(reference.voxels, ids))
    assert result is not None
    return result


@pytest.mark.data
@pytest.mark.slow
def test_validation_cases(liver: Segmenter, real_data: Path) -> None:
    assert np.mean([score(liver, real_data, f"lits_{n:02d}", (1, 2)) for n in (8, 9, 10)]) > 0.92


@pytest.mark.data
@pytest.mark.slow
def test_another_hospital(liver: Segmenter, real_data: Path) -> None:
    assert score(liver, real_data, "chaos_03", (1,)) > 0.90


@pytest.mark.data
@pytest.mark.slow
def test_a_head_holds_next_to_no_liver(liver: Segmenter, real_data: Path) -> None:
    held_out = sorted((real_data / "openkbp" / "images").iterdir())[-30]
    mask = liver.segment(read_volume(held_out))
    assert mask.millilitres(mask.voxels) < 20


@pytest.mark.unit
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_phantom_which_no_model_has_seen(liver: Segmenter, seed: int) -> None:
    phantom = make_phantom(seed, shape=(200, 200, 24), spacing=(2.0, 2.0, 10.0))
    result = dice(liver.segment(phantom.image).voxels == 1, liver_mask(phantom.labels).voxels > 0)
    assert result is not None
    assert result > 0.90
