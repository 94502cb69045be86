"""MobileSAM on real CT that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest

from polycl.errors import InputError
from polycl.metrics import dice
from polycl.sam import Embedding, Engine, Prompts, load_engine, mask_prompt, slice_image, to_image
from polycl.settings import Settings
from polycl.volume import read_volume
from polycl.window import Window

pytestmark = [pytest.mark.data, pytest.mark.slow]

Liver = tuple[np.ndarray, Embedding]


@pytest.fixture(scope="module")
def mobile_sam(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    weights = real_data.parent / "weights"
    if not (weights / "mobile_sam").is_dir():
        pytest.skip("needs MobileSAM in ../shared/weights, which is not part of the repository")
    return load_engine("mobile-sam", Settings(weights=weights, state=tmp_path_factory.mktemp("state"), device="cpu"))


@pytest.fixture(scope="module")
def liver(mobile_sam: Engine, real_data: Path) -> Liver:
    """The reference mask as an image, and the embedding, of the slice with most liver."""
    labels = read_volume(real_data / "chaos" / "labels" / "chaos_03.nii.gz", kind="label").canonical()
    image = read_volume(real_data / "chaos" / "images" / "chaos_03.nii.gz").canonical()
    index = int((labels.voxels == 1).sum(axis=(0, 1)).argmax())
    seen = slice_image(image, index, Window.named("soft-tissue"))
    return to_image(labels.voxels[:, :, index] == 1), mobile_sam.encode(seen)


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1], rows[-1]]


def agreement(mobile_sam: Engine, liver: Liver, prompts: Prompts) -> float:
    reference, embedding = liver
    masks = mobile_sam.decode(embedding, prompts)
    assert masks.logits.shape == (1, *reference.shape)
    assert masks.low.shape == (1, 256, 256)
    assert 0 < masks.scores[0] < 1.1
    result = dice(masks.logits[0] > 0, reference)
    assert result is not None
    return result


def test_a_box_outlines_the_liver(mobile_sam: Engine, liver: Liver) -> None:
    assert agreement(mobile_sam, liver, Prompts(box=box_of(liver[0]))) > 0.85


def test_a_mask_prompt_and_a_point_add_to_the_box(mobile_sam: Engine, liver: Liver) -> None:
    rows, columns = np.nonzero(liver[0])
    middle = [[np.median(columns), np.median(rows)]]
    assert agreement(mobile_sam, liver, Prompts(middle, [1], box_of(liver[0]), mask_prompt(liver[0]))) > 0.85


def test_a_point_outside_takes_what_was_there_away(mobile_sam: Engine, liver: Liver) -> None:
    reference, embedding = liver
    rows, columns = np.nonzero(reference)
    point = [columns[0], rows[0]]
    inside = Prompts([[np.median(columns), np.median(rows)], point], [1, 1])
    without = Prompts(inside.points, [1, 0])
    with_it, less = (mobile_sam.decode(embedding, one).logits[0] for one in (inside, without))
    assert with_it[rows[0], columns[0]] > less[rows[0], columns[0]]


def test_a_point_beside_the_image_is_refused(mobile_sam: Engine, liver: Liver) -> None:
    with pytest.raises(InputError, match="outside the image"):
        mobile_sam.decode(liver[1], Prompts([[512, 10]], [1]))
