"""`polycl refine` and `polycl segment --refine` with an engine that needs no weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from polycl.errors import ModelError
from polycl.phantom import make_phantom
from polycl.propagate.loading import follower
from polycl.refinement import RefineParameters, refine
from polycl.sam import Embedding, Masks, Prompts
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
SETTINGS = ("box_margin=0", "min_depth=0", "min_agreement=0.5", "band=null", "hold=0", "max_pixel=100")
EASY = [part for setting in SETTINGS for part in ("--set", setting)]
HOW = RefineParameters(box_margin=0, min_depth=0, min_agreement=0.5, band=None, hold=0, max_pixel=100)
PHANTOM = make_phantom(1, shape=(40, 36, 5), spacing=(9.0, 10.0, 40.0), axcodes="LPS", oblique_degrees=12.0)


class Boxes:
    """A SAM that fills every box, but for the row at its top."""

    name, sha256, size = "mobile-sam", "0" * 64, 64
    sight = None

    def encode(self, image: NDArray[np.floating]) -> Embedding:
        size = (image.shape[0], image.shape[1])
        return Embedding(np.zeros((1, 1, *size), np.float32), size, size)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        logits = np.full(embedding.original, -3.0, np.float32)
        assert prompts.box is not None
        left, top, right, bottom = prompts.box.astype(int)
        logits[top + 1 : bottom + 1, left : right + 1] = 3.0
        return Masks(logits[None], np.ones(1, np.float32), np.zeros((1, 256, 256), np.float32))

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        return [self.decode(embedding, one) for one in prompts]


@pytest.fixture
def sam(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mobile-sam` is at hand, other engines are not."""

    def load(name: str, settings: Settings) -> Boxes:
        if name != "mobile-sam":
            raise ModelError(f"the weights of {name} are missing", hint="they are looked for in a folder")
        return Boxes()

    monkeypatch.setattr("polycl.sam.load_engine", load)
    monkeypatch.setattr("polycl.sam.default_engine", lambda settings: "mobile-sam")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Image, mask with two labels, output."""
    image, mask = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(PHANTOM.image, image)
    write_volume(coarse(), mask)
    return image, mask, tmp_path / "out.nii.gz"


def coarse() -> Volume:
    labels = PHANTOM.image.with_voxels(np.zeros(PHANTOM.image.shape, np.uint8))
    labels.canonical().voxels[8:18, 8:20, 1:4] = 1
    labels.canonical().voxels[22:30, 8:20, 1:4] = 2
    return labels


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert (code, out) == (1, ""), err
    assert err.count("\n") == 1
    assert err.startswith("polycl: ")
    for word in words:
        assert word in err


@pytest.mark.usefixtures("sam")
def test_refine_writes_what_the_stage_makes_of_the_mask(run: Run, files: tuple[Path, Path, Path]) -> None:
    image, mask, out = files
    code, text, _ = run("refine", image, "--mask", mask, "-o", out, "--json", *EASY)
    assert code == 0
    report = json.loads(text)
    expected, done = refine(PHANTOM.image, coarse(), Boxes(), None, HOW)
    np.testing.assert_array_equal(read_volume(out, kind="label").voxels, expected.voxels)
    assert report["refinement"]["accepted"] == done.accepted > 0
    assert report["model"] == "mobile-sam"
    plain = run("refine", image, "--mask", mask, "-o", out, *EASY)[1]
    assert plain.startswith(f"{out}: {done.accepted} outlines refined")


@pytest.mark.usefixtures("sam")
def test_a_ragged_label_is_followed_by_the_model_that_ships(run: Run, tmp_path: Path) -> None:
    columns, rows, slices = np.ogrid[:64, :64, :12]
    from_middle = np.hypot(columns - 32, rows - 32)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    inside = (slices > 0) & (slices < 11)
    image, mask, out = (tmp_path / f"{name}.nii.gz" for name in ("ct", "mask", "out"))
    write_volume(Volume(np.where(inside & (from_middle < 12), 100.0, -50.0).astype(np.float32), affine), image)
    write_volume(Volume((inside & (from_middle < 10 + slices % 2)).astype(np.uint8), affine), mask)
    code, text, _ = run("refine", image, "--mask", mask, "-o", out, "--set", "max_pixel=1", "--json")
    assert code == 0
    assert json.loads(text)["refinement"]["followed"] == 1
    plain = run("refine", image, "--mask", mask, "-o", out, "--set", "max_pixel=1", "--set", "follow=null")[1]
    assert "0 followed" in plain


@pytest.mark.usefixtures("sam")
def test_refine_only_some_labels(run: Run, files: tuple[Path, Path, Path]) -> None:
    image, mask, out = files
    assert run("refine", image, "--mask", mask, "-o", out, "--label", 2, *EASY)[0] == 0
    written = read_volume(out, kind="label").voxels
    np.testing.assert_array_equal(written == 1, coarse().voxels == 1)
    assert ((written == 2) != (coarse().voxels == 2)).any()


@pytest.mark.usefixtures("sam")
def test_refine_says_no_in_one_line(run: Run, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image, mask, out = files
    other = tmp_path / "other.nii.gz"
    write_volume(Volume(coarse().voxels[:-1], coarse().affine), other)
    refused(run("refine", image, "--mask", other, "-o", out), "other.nii.gz", "not on the grid")
    refused(run("refine", image, "--mask", mask, "-o", out, "--label", 5), "no label 5", "1, 2")
    refused(run("refine", image, "--mask", mask, "-o", out, "--model", "sam-vit-b"), "sam-vit-b", "missing")
    refused(run("refine", image, "--mask", mask, "-o", out, "--set", "margin=2"), "margin", "box_margin")
    refused(run("refine", image, "--mask", mask, "-o", out, "--set", "stride"), "NAME=VALUE")
    refused(run("refine", image, "--mask", mask, "-o", out, "--window", "liver"), "soft-tissue")
    refused(run("refine", image, "--mask", mask, "-o", out, "--window", "40,x"), "soft-tissue")
    refused(run("refine", image, "--mask", tmp_path / "none.nii.gz", "-o", out), "none.nii.gz")
    assert not out.exists()


def test_refine_without_weights_fails_and_says_how_to_get_them(
    run: Run, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask, out = files
    monkeypatch.setattr("polycl.sam.default_engine", lambda settings: None)  # as if nothing shipped
    refused(run("refine", image, "--mask", mask, "-o", out), "polycl models fetch")
    refused(run("refine", image, "--mask", mask, "-o", out, "--model", "mobile-sam"), "mobile-sam", "missing")
    refused(run("refine", image, "--mask", mask, "-o", out, "--model", "sam9"), "sam9", "mobile-sam")


def segmented(tiny_checkpoint: Path, image: Volume) -> Volume:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32").segment(image)


@pytest.mark.usefixtures("sam")
def test_segment_refines_where_asked(run: Run, files: tuple[Path, Path, Path], tiny_checkpoint: Path) -> None:
    image, _, out = files
    code, text, _ = run("segment", image, "-o", out, "--model", "tiny", "--refine", "mobile-sam", "--json", *EASY)
    assert code == 0
    report = json.loads(text)
    whole = follower(Settings(device="cpu", precision="fp32"))
    coarse_mask = segmented(tiny_checkpoint, read_volume(image))
    expected, done = refine(read_volume(image), coarse_mask, Boxes(), None, HOW, follower=whole)
    assert report["refinement"]["followed"] == done.followed
    np.testing.assert_array_equal(read_volume(out, kind="label").voxels, expected.voxels)
    assert report["refined"] is True
    assert report["refinement"]["slices"] > 0
    assert set(report["seconds"]) == {"read", "load", "segment", "refine", "write"}


def test_segment_comes_unrefined_without_weights(
    run: Run, files: tuple[Path, Path, Path], tiny_checkpoint: Path
) -> None:
    image, _, out = files
    code, text, err = run("segment", image, "-o", out, "--model", "tiny", "--refine", "mobile-sam", "--json")
    assert code == 0
    assert "not refined" in err
    report = json.loads(text)
    assert report["refined"] is False
    assert "mobile-sam" in report["reason"]
    np.testing.assert_array_equal(
        read_volume(out, kind="label").voxels, segmented(tiny_checkpoint, read_volume(image)).voxels
    )


def test_segment_refuses_an_engine_that_does_not_exist(run: Run, files: tuple[Path, Path, Path]) -> None:
    image, _, out = files
    segment = ("segment", image, "-o", out, "--model", "tiny", "--refine")
    refused(run(*segment, "sam9"), "sam9", "mobile-sam")
    refused(run(*segment, "mobile-sam", "--set", "margin=2"), "margin", "box_margin")
    assert not out.exists()
