"""polycl-abdomen on real CT of other hospitals: with contrast medium, and without."""

from pathlib import Path

import numpy as np
import pytest

from polycl.catalogue import SHIPPED, Catalogue
from polycl.metrics import dice
from polycl.segmenter import Segmenter
from polycl.volume import read_volume

pytestmark = [pytest.mark.data, pytest.mark.slow]


@pytest.fixture(scope="module")
def abdomen() -> Segmenter:
    entry = Catalogue.read(SHIPPED).entry("polycl-abdomen")
    return Segmenter.load(entry.path, sha256=entry.sha256)


@pytest.mark.parametrize(
    ("name", "ids", "least"),
    [
        ("ircad_01", {"liver": (1, 6), "spleen": (2,), "left kidney": (3,)}, 0.88),
        ("ircad_01", {"right kidney": (4,)}, 0.77),
        ("totalseg_example", {"liver": (40,), "spleen": (77,), "right kidney": (39,)}, 0.84),
        ("totalseg_example", {"left kidney": (38,)}, 0.76),
        ("chaos_03", {"liver": (1,)}, 0.94),
    ],
)
def test_another_hospital(
    abdomen: Segmenter, real_data: Path, name: str, ids: dict[str, tuple[int, ...]], least: float
) -> None:
    folder = real_data / name.split("_", maxsplit=1)[0]
    reference = read_volume(folder / "labels" / f"{name}.nii.gz", kind="label").voxels
    found = abdomen.segment(read_volume(folder / "images" / f"{name}.nii.gz"), list(ids)).voxels
    scores = {one: dice(found == abdomen.header.labels[one], np.isin(reference, some)) for one, some in ids.items()}
    assert {one: score for one, score in scores.items() if score is None or score < least} == {}
