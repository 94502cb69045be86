"""The command line: what it prints, what it writes, and how it says no."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from polycl.phantom import LABELS, liver_mask, make_phantom, write_dicom_series
from polycl.picture import COLOURS, EXTRA, HEIGHT, MISSED
from polycl.segmenter import Segmenter
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
PHANTOM = make_phantom(1, shape=(40, 36, 5), spacing=(9.0, 10.0, 40.0), axcodes="SRA", oblique_degrees=12.0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "ct.nii.gz"
    write_volume(PHANTOM.image, path)
    return path


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit 1, nothing printed, one line on stderr that holds `words`."""
    code, out, err = result
    assert code == 1, err
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("polycl: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_segment_writes_on_the_images_grid(run: Run, image: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "out.nii.gz"
    code, text, _ = run("segment", image, "-o", out, "--model", "tiny", "--json")
    assert code == 0
    written, asked = nib.load(out), nib.load(image)
    assert written.shape == asked.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, asked.affine, atol=1e-4)
    direct = Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32").segment(read_volume(image))
    np.testing.assert_array_equal(np.asarray(written.dataobj), direct.voxels)
    report = json.loads(text)
    assert report["labels"] == {"liver": 1, "spleen": 2}
    voxel = abs(np.linalg.det(asked.affine[:3, :3])) / 1000
    assert report["volumes_ml"]["liver"] == pytest.approx(np.count_nonzero(direct.voxels == 1) * voxel, abs=0.01)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".seg.nrrd"])
def test_segment_writes_every_format(run: Run, image: Path, tmp_path: Path, suffix: str) -> None:
    first, other = tmp_path / "a.nii.gz", tmp_path / f"b{suffix}"
    assert run("segment", image, "-o", first, "--model", "tiny")[0] == 0
    assert run("segment", image, "-o", other, "--model", "tiny")[0] == 0
    np.testing.assert_array_equal(
        read_volume(first, kind="label").canonical().voxels, read_volume(other, kind="label").canonical().voxels
    )


def test_segment_keeps_the_labels_asked_for(run: Run, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    assert run("segment", image, "-o", out, "--model", "tiny", "--label", "spleen")[0] == 0
    assert set(np.unique(read_volume(out, kind="label").voxels)) == {0, 2}


def test_segment_reads_a_dicom_folder_and_import_converts_it(run: Run, tmp_path: Path) -> None:
    patient = make_phantom(1, shape=(32, 32, 5), spacing=(12.0, 12.0, 40.0)).image
    write_dicom_series(patient, tmp_path / "dicom", seed=1)
    first, second, store = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "store"
    assert run("segment", tmp_path / "dicom", "-o", first, "--model", "tiny")[0] == 0
    code, text, _ = run("import", tmp_path / "dicom", "-o", store, "--json")
    assert code == 0
    (uid,) = json.loads(text)["imported"]
    assert run("segment", store / f"{uid}.nii.gz", "-o", second, "--model", "tiny")[0] == 0
    np.testing.assert_array_equal(
        read_volume(first, kind="label").canonical().voxels, read_volume(second, kind="label").canonical().voxels
    )
    assert json.loads(run("import", tmp_path / "dicom", "-o", store, "--json")[1])["present"] == [uid]


def test_what_cannot_be_used_is_one_line_and_exit_1(run: Run, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    truncated = tmp_path / "cut.nii.gz"
    truncated.write_bytes(image.read_bytes()[:-500])
    refused(run("segment", tmp_path / "none.nii.gz", "-o", out, "--model", "tiny"), "none.nii.gz")
    refused(run("segment", truncated, "-o", out, "--model", "tiny"), "cut.nii.gz")
    refused(run("segment", image, "-o", out, "--model", "kidney"), "kidney", "tiny")
    refused(run("segment", image, "-o", out, "--model", "tiny", "--label", "aorta"), "aorta", "liver, spleen")
    refused(run("segment", image, "-o", tmp_path / "out.png", "--model", "tiny"), ".nii.gz")
    refused(run("segment", image, "-o", out, "--model", "tiny", "--refine", "sam"), "sam", "none")
    refused(run("segment", image, "-o", out, "--model", "tiny", "--device", "abacus"), "abacus")
    assert not out.exists()


def test_a_pickle_is_refused(run: Run, image: Path, tmp_path: Path) -> None:
    import torch

    torch.save({}, tmp_path / "evil.safetensors")
    refused(run("segment", image, "-o", tmp_path / "o.nii.gz", "--model", tmp_path / "evil.safetensors"), "pickle")


def test_what_is_no_ct_is_refused_and_can_be_overridden(run: Run, tmp_path: Path) -> None:
    picture = PHANTOM.image.with_voxels(np.clip(PHANTOM.image.voxels // 8 + 128, 0, 255).astype(np.uint8))
    path = tmp_path / "picture.nii.gz"
    write_volume(picture, path)
    refused(run("segment", path, "-o", tmp_path / "o.nii.gz", "--model", "tiny"), "--any-values")
    assert run("segment", path, "-o", tmp_path / "o.nii.gz", "--model", "tiny", "--any-values")[0] == 0


def test_bad_usage_is_exit_2(run: Run, image: Path) -> None:
    assert run("segment", image)[0] == 2
    assert run("nonsense")[0] == 2


def test_evaluate_prints_the_figures(run: Run, tmp_path: Path) -> None:
    liver, organs = tmp_path / "liver.nii.gz", tmp_path / "organs.nii.gz"
    write_volume(liver_mask(PHANTOM.labels), liver)
    write_volume(PHANTOM.labels, organs)
    code, text, _ = run("evaluate", liver, organs, "--label", "1=1,9", "--json")
    assert code == 0
    assert json.loads(text)["labels"]["1"]["dice"] == 1.0
    code, table, _ = run("evaluate", organs, organs)
    assert code == 0
    assert table.count("1.0000") >= 2 * 8


def test_evaluate_draws_what_is_wrong(run: Run, image: Path, tmp_path: Path) -> None:
    organs, picture = tmp_path / "organs.nii.gz", tmp_path / "errors.png"
    write_volume(PHANTOM.labels, organs)
    less = tmp_path / "less.nii.gz"
    voxels = PHANTOM.labels.voxels.copy()
    voxels[voxels == LABELS["liver"]] = 0
    write_volume(PHANTOM.labels.with_voxels(voxels), less)
    liver, spleen = LABELS["liver"], LABELS["spleen"]
    labels = ["--label", f"{spleen}={spleen},{liver}", "--image", image]
    missed, extra = np.array(COLOURS[MISSED - 1]), np.array(COLOURS[EXTRA - 1])
    for found in (less, organs):
        assert run("evaluate", found, organs, *labels, "--picture", picture)[0] == 0
        below = np.asarray(Image.open(picture))[HEIGHT : 2 * HEIGHT].astype(int)
        assert (np.abs(below - missed).sum(axis=2) < 30).any()
        assert not (np.abs(below - extra).sum(axis=2) < 30).any()
    assert run("evaluate", organs, organs, "--image", image, "--picture", picture)[0] == 0
    below = np.asarray(Image.open(picture))[HEIGHT : 2 * HEIGHT].astype(int)
    assert np.ptp(below, axis=2).max() == 0, "nothing is wrong, so nothing is coloured"
    twice = ["--label", "1", "--label", "2=1", "--image", image, "--picture", picture]
    refused(run("evaluate", organs, organs, *twice), "twice")
    mr = tmp_path / "mr.nii.gz"
    write_volume(PHANTOM.image.with_voxels(np.clip(PHANTOM.image.voxels // 8 + 128, 0, 255).astype(np.uint8)), mr)
    refused(run("evaluate", organs, organs, "--image", mr, "--picture", picture), "--any-values")
    assert run("evaluate", organs, organs, "--image", mr, "--picture", picture, "--any-values")[0] == 0
    refused(run("evaluate", organs, organs, "--picture", picture), "--image")
    refused(run("evaluate", organs, organs, "--image", image, "--picture", tmp_path / "errors.jpg"), ".png")
    shifted = tmp_path / "shifted.nii.gz"
    write_volume(Volume(PHANTOM.image.voxels, PHANTOM.image.affine + np.diag([0.5, 0, 0, 0])), shifted)
    refused(run("evaluate", organs, organs, "--image", shifted, "--picture", picture), "grid")


def test_figures_are_told_also_where_the_picture_cannot_be_written(run: Run, image: Path, tmp_path: Path) -> None:
    organs = tmp_path / "organs.nii.gz"
    write_volume(PHANTOM.labels, organs)
    (tmp_path / "taken.png").mkdir()
    answer = run("evaluate", organs, organs, "--image", image, "--picture", tmp_path / "taken.png")
    assert answer[1].count("1.0000") >= 2 * 8
    assert answer[0] == 1
    assert "taken.png" in answer[2]


def test_evaluate_refuses_what_does_not_match(run: Run, tmp_path: Path) -> None:
    one, other = tmp_path / "one.nii.gz", tmp_path / "other.nii.gz"
    write_volume(PHANTOM.labels, one)
    write_volume(Volume(PHANTOM.labels.voxels, PHANTOM.labels.affine + np.diag([0.5, 0, 0, 0])), other)
    refused(run("evaluate", one, other), "grid of the reference")
    refused(run("evaluate", one, one, "--label", "liver"), "liver")


def test_models_are_listed_shown_and_verified(run: Run, tiny_checkpoint: Path) -> None:
    code, text, _ = run("models", "list", "--json")
    assert code == 0
    assert {"name": "tiny", "kind": "segmenter", "here": True, "summary": "a checkpoint of this site"} in json.loads(
        text
    )["models"]
    code, text, _ = run("models", "show", "tiny", "--json")
    assert json.loads(text)["header"]["preprocessing"]["spacing"] == 4.0
    assert run("models", "verify", "tiny")[0] == 0
    refused(run("models", "verify", tiny_checkpoint.with_name("gone.safetensors")), "gone.safetensors")
    refused(run("models", "show", "huge"), "huge", "tiny")


def test_a_wrong_setting_names_the_right_ones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCL_DEVIZE", "cpu")
    refused(run("models", "list"), "POLYCL_DEVIZE", "POLYCL_DEVICE")


@pytest.mark.slow
def test_finetune_makes_a_checkpoint_that_segments(run: Run, tmp_path: Path) -> None:
    dataset = tmp_path / "set"
    for folder in ("images", "labels"):
        (dataset / folder).mkdir(parents=True)
    for seed in (0, 1):
        patient = make_phantom(seed, shape=(32, 32, 3), spacing=(12.0, 12.0, 60.0))
        write_volume(patient.image, dataset / "images" / f"p{seed}.nii.gz")
        write_volume(patient.labels, dataset / "labels" / f"p{seed}.nii.gz")
    checkpoint = tmp_path / "m.safetensors"
    options = ("--steps", 3, "--batch", 2, "--size", 32, "--spacing", 12, "--validate", "p1")
    code, text, err = run("finetune", dataset, "--target", "liver=1,9", "-o", checkpoint, *options)
    assert code == 0, err
    assert "validation Dice" in text
    shown = json.loads(run("models", "show", checkpoint, "--json")[1])["header"]
    assert shown["labels"] == {"liver": 1}
    assert shown["provenance"]["data"] == ["p0"]
    image = dataset / "images" / "p1.nii.gz"
    assert run("segment", image, "-o", tmp_path / "o.nii.gz", "--model", checkpoint)[0] == 0
    refused(run("finetune", dataset, "--target", "liver", "-o", checkpoint), "liver=1,2")
    refused(run("finetune", tmp_path / "no", "--target", "liver=1", "-o", checkpoint), "images/")


def test_a_chosen_series_is_checked_as_any_image(run: Run, tmp_path: Path) -> None:
    import pydicom

    patient = make_phantom(1, shape=(24, 24, 4), spacing=(16.0, 16.0, 40.0)).image
    (first, *rest) = write_dicom_series(patient, tmp_path / "dicom", seed=1)
    uid = str(pydicom.dcmread(first).SeriesInstanceUID)
    out = tmp_path / "o.nii.gz"
    assert run("segment", tmp_path / "dicom", "-o", out, "--model", "tiny", "--series", uid)[0] == 0
    for file in (first, *rest):
        stored = pydicom.dcmread(file)
        stored.RescaleIntercept = 0
        stored.save_as(file)
    bad = run("segment", tmp_path / "dicom", "-o", tmp_path / "p.nii.gz", "--model", "tiny", "--series", uid)
    refused(bad, "rescale", "--any-values")
    refused(run("segment", tmp_path / "dicom", "-o", out, "--model", "tiny", "--series", "1.2.3"), "1.2.3", uid)


def test_what_cannot_be_written_is_said_before_the_work(run: Run, image: Path, tmp_path: Path) -> None:
    refused(run("segment", tmp_path / "no.nii.gz", "-o", tmp_path / "out.png", "--model", "tiny"), "out.png")
    refused(run("segment", image, "-o", tmp_path / "none" / "o.nii.gz", "--model", "tiny"), "no folder")
    out = tmp_path / "o.nii.gz"
    refused(run("segment", image, "-o", out, "--model", "tiny", "--picture", tmp_path / "p.zzz"), ".png")
    assert not out.exists()


def test_libraries_add_no_lines_of_their_own(run: Run, image: Path, tmp_path: Path) -> None:
    broken = bytearray(__import__("gzip").decompress(image.read_bytes()))
    broken[70:72] = (777).to_bytes(2, "little")
    (tmp_path / "odd.nii").write_bytes(broken)
    refused(run("segment", tmp_path / "odd.nii", "-o", tmp_path / "o.nii.gz", "--model", "tiny"), "odd.nii")


def test_a_header_in_the_wrong_unit_is_refused(run: Run, tmp_path: Path) -> None:
    tiny = Volume(PHANTOM.image.voxels, PHANTOM.image.affine @ np.diag([1e-4, 1e-4, 1e-4, 1]))
    write_volume(tiny, tmp_path / "t.nii.gz")
    refused(run("segment", tmp_path / "t.nii.gz", "-o", tmp_path / "o.nii.gz", "--model", "tiny"), "mm", "header")


def test_a_folder_of_weights_must_be_there(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYCL_WEIGHTS", str(tmp_path / "none"))
    refused(run("models", "list"), "POLYCL_WEIGHTS", "no such folder")
