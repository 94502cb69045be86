"""The picture of a result."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polycl import picture as module
from polycl.errors import InputError
from polycl.picture import COLOURS, EXTRA, HEIGHT, MISSED, draw, draw_before_after, draw_errors
from polycl.volume import Volume
from polycl.window import Window

pytestmark = pytest.mark.unit

WINDOW = Window(level=40, width=400)


def patient() -> tuple[Volume, Volume]:
    """Grey tissue with a label at the patient's left, front and top."""
    hu = np.full((20, 16, 12), 40, dtype=np.int16)
    ids = np.zeros(hu.shape, dtype=np.uint8)
    ids[12:18, 10:14, 8:11] = 1
    affine = np.diag([-3.0, 3.0, 4.0, 1.0])
    return Volume(hu, affine), Volume(ids, affine)


def test_the_patients_right_is_on_the_left_and_up_is_up(tmp_path: Path) -> None:
    image, labels = patient()
    assert image.axcodes == "LAS"
    draw(image, labels, {"liver": 1}, tmp_path / "p.png", WINDOW)
    picture = np.asarray(Image.open(tmp_path / "p.png"))[:HEIGHT]
    organ = np.abs(picture.astype(int) - COLOURS[0]).sum(axis=2) < 30
    scale = HEIGHT / max(16 * 3, 12 * 4, 12 * 4)
    axial, coronal, sagittal = np.split(organ, [round(20 * 3 * scale), 2 * round(20 * 3 * scale)], axis=1)
    for view in (axial, coronal, sagittal):
        assert view.any()
    # index 12..17 of an axis that runs to the left is the patient's left: the right half of the view
    assert np.nonzero(axial.any(axis=0))[0].min() > axial.shape[1] * 0.5
    assert np.nonzero(coronal.any(axis=0))[0].min() > coronal.shape[1] * 0.5
    # front is at the top of the axial view and the left of the sagittal one, the head at the top of the others
    assert np.nonzero(axial.any(axis=1))[0].max() < axial.shape[0] * 0.5
    assert np.nonzero(coronal.any(axis=1))[0].max() < coronal.shape[0] * 0.5
    assert np.nonzero(sagittal.any(axis=0))[0].max() < sagittal.shape[1] * 0.5


def test_nothing_labelled_is_still_a_picture(tmp_path: Path) -> None:
    image, labels = patient()
    draw(image, labels.with_voxels(np.zeros_like(labels.voxels)), {"liver": 1}, tmp_path / "p.png", WINDOW)
    assert Image.open(tmp_path / "p.png").height > HEIGHT


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        draw(*patient(), {"liver": 1}, tmp_path / "no" / "p.png", WINDOW)


def test_before_after_and_reference_where_they_differ_most(tmp_path: Path) -> None:
    image, labels = patient()
    after = labels.voxels.copy()
    after[14:, 10:14, 9] = 0
    draw_before_after(image, labels, labels.with_voxels(after), labels, tmp_path / "p.png", WINDOW)
    picture = np.asarray(Image.open(tmp_path / "p.png"))[:HEIGHT]
    organ = np.abs(picture.astype(int) - COLOURS[0]).sum(axis=2) < 30
    extents = [np.flatnonzero(part.any(axis=0)).size for part in np.array_split(organ, 3, axis=1)]
    assert extents[0] == pytest.approx(extents[2], abs=2)
    assert extents[1] < 0.6 * extents[0]
    with pytest.raises(InputError, match="cannot write"):
        draw_before_after(image, labels, labels, labels, tmp_path / "no" / "p.png", WINDOW)


def test_what_is_wrong_is_filled_below_in_three_views(tmp_path: Path) -> None:
    image, labels = patient()
    found = labels.voxels.copy()
    found[12:14], found[10:12, 10:14, 8:11] = 0, 0
    found[18:20, 10:14, 8:11] = 1
    draw_errors(image, labels.with_voxels(found), labels, tmp_path / "p.png", WINDOW)
    rows = np.asarray(Image.open(tmp_path / "p.png"))[: 2 * HEIGHT].astype(int)
    extra, missed = (
        np.abs(rows[HEIGHT:] - (0.9 * np.array(COLOURS[kind - 1]) + 12.75)).sum(axis=2) < 20 for kind in (EXTRA, MISSED)
    )
    width = rows.shape[1]
    axial, sagittal = slice(0, width // 3), slice(width - width // 4, width)
    assert extra.sum() == pytest.approx(missed.sum(), rel=0.3)
    assert np.flatnonzero(extra[:, axial].any(axis=0)).min() > np.flatnonzero(missed[:, axial].any(axis=0)).max()
    assert not extra[:, sagittal].any(), "the view runs through the middle, which is right"
    outlined = np.abs(rows[:HEIGHT] - COLOURS[0]).sum(axis=2) < 30
    assert outlined[:, sagittal].any()
    with pytest.raises(InputError, match="cannot write"):
        draw_errors(image, labels, labels, tmp_path / "no" / "p.png", WINDOW)


def test_what_is_of_another_label_counts_as_found_and_as_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image, labels = patient()
    found = labels.voxels.copy()
    found[labels.voxels == 1] = 2
    found[0, 0, 0] = 1
    told: list[dict[str, float]] = []
    monkeypatch.setattr(module, "_legend", lambda sheet, names, sizes: told.append(sizes))
    draw_errors(image, labels.with_voxels(found), labels, tmp_path / "p.png", WINDOW)
    organ = float((labels.voxels == 1).sum()) * 0.036
    assert list(told[0].values()) == pytest.approx([organ + 0.036, organ])


def test_a_legend_is_never_cut_off(tmp_path: Path) -> None:
    """A tube of 2 x 2 voxels is a narrow picture."""
    shape = (12, 12, 60)
    found = np.zeros(shape, np.uint8)
    found[5:7, 5:7] = 1
    image = Volume(np.zeros(shape, np.int16), np.eye(4))
    draw_errors(image, image.with_voxels(found), image.with_voxels(found * 0), tmp_path / "p.png", WINDOW)
    legend = np.asarray(Image.open(tmp_path / "p.png"))[2 * HEIGHT :].max(axis=2)
    assert np.flatnonzero(legend.any(axis=0))[-1] < legend.shape[1] - 8
    blue = np.asarray(Image.open(tmp_path / "p.png"))[2 * HEIGHT :].astype(int)
    assert (np.abs(blue - COLOURS[MISSED - 1]).sum(axis=2) < 60).any(), "the last entry is there"
