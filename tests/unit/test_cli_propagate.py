"""`polycl propagate` with an engine that needs no weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_sam2 import FakeSam2
from polycl.errors import InputError
from polycl.settings import Settings
from polycl.volume import Volume, read_segments, read_volume, write_volume
from two_organs import LIVER, SHAPE, SPLEEN, ct, stored

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeSam2:
    made = FakeSam2()
    sizes: list[int | None] = []

    def load(name: str, settings: Settings, *, size: int | None = None) -> FakeSam2:
        if name != "fake":
            raise InputError(f"asked for {name}")
        sizes.append(size)
        return made

    monkeypatch.setattr("polycl.propagate.loading.load_propagator", load)
    return made


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Image, full label map, output."""
    image, seed = tmp_path / "ct.nii.gz", tmp_path / "seed.nrrd"
    write_volume(ct(), image)
    write_volume(stored((LIVER + 2 * SPLEEN.astype(np.uint8)).astype(np.uint8)), seed)
    return image, seed, tmp_path / "out.seg.nrrd"


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


def test_every_label_from_its_largest_slice(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]) -> None:
    image, seed, output = files
    code, out, err = run(
        "propagate", image, "--seed", seed, "--seed-slice", "auto", "-o", output, "--model", "fake",
        "--label", "1=liver", "--label", "2",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith(f"{output}: liver ")
    assert "Segment 2" in out
    assert read_segments(output) == {"liver": 1, "Segment 2": 2}
    found = read_volume(output, kind="label")
    assert found.same_grid(read_volume(image))
    voxels = found.canonical().voxels
    assert dice(voxels == 1, LIVER) > 0.85
    assert dice(voxels == 2, SPLEEN) > 0.8
    assert np.array_equal(voxels[:, :, 12] == 1, LIVER[:, :, 12])


def test_json_says_what_was_done(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]) -> None:
    image, seed, output = files
    code, out, _ = run(
        "propagate", image, "--seed", seed, "--label", "2", "-o", output, "--model", "fake", "--json"
    )  # fmt: skip
    done = json.loads(out)
    assert code == 0
    assert done["labels"] == {"Segment 2": 2}
    assert done["seed_slices"] == {"Segment 2": 11}
    assert set(done["seconds"]) == {"read", "load", "propagate", "write"}
    assert np.array_equal(read_volume(output, kind="label").canonical().voxels == 2, SPLEEN)  # each slice is a seed


def test_a_slice_by_its_index_in_the_file(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]) -> None:
    image, seed, output = files
    options = ("--label", "1", "--seed-slice", "9", "--model", "fake")
    coarse = ("--set", "edges=false", "--set", "appearance=0")
    run("propagate", image, "--seed", seed, "-o", output, *options, *coarse)
    assert engine.prompts[0].mask is not None
    (found,) = [z for z in range(SHAPE[2]) if np.array_equal(_as_painted(output, z), LIVER[:, :, z])]
    assert found == 9


def _as_painted(output: Path, z: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = read_volume(output, kind="label").canonical().voxels[:, :, z] == 1
    # A slice that no seed was on is coarser than the ellipse; an empty one is none.
    return found if found.any() else np.ones(found.shape, bool)


def test_names_of_segments(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image, seed, output = files
    named = tmp_path / "named.seg.nrrd"
    write_volume(read_volume(seed, kind="label"), named, names={"liver": 1, "spleen": 2})
    code, _, _ = run("propagate", image, "--seed", named, "--label", "spleen", "-o", output, "--model", "fake")
    assert code == 0
    assert read_segments(output) == {"spleen": 2}
    code, _, err = run("propagate", image, "--seed", named, "--label", "kidney", "-o", output, "--model", "fake")
    assert (code, err) == (1, "polycl: the seed has no label 'kidney'; its segments are liver, spleen\n")


def test_a_region_of_interest_in_voxels_of_the_file(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]) -> None:
    image, seed, output = files
    box = ["--roi", "10,16,0,48,0,40"]
    run("propagate", image, "--seed", seed, "--label", "1", "--seed-slice", "12", "-o", output, "--model", "fake", *box)
    found = read_volume(output, kind="label").canonical().voxels == 1
    assert list(np.flatnonzero(found.any(axis=(0, 1)))) == list(range(10, 16))


def test_where_a_label_begins_and_ends(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]) -> None:
    image, seed, output = files
    command = ["propagate", image, "--seed", seed, "--seed-slice", "12", "-o", output, "--model", "fake", "--json"]
    code, text, _ = run(*command, "--label", "1=liver", "--ends", "10:15")
    assert (code, json.loads(text)["seed_slices"]) == (0, {"liver": 1})
    assert _slices(output, 1) == list(range(10, 16))
    whole = _slices(output, 1) if run(*command, "--label", "1=liver")[0] == 0 else []
    code, _, _ = run(*command, "--label", "1=liver", "--label", "2", "--ends", "liver=:13", "--ends", "2=11:")
    assert code == 0
    assert _slices(output, 1) == [z for z in whole if z <= 13]
    assert min(_slices(output, 2)) == 11


def test_where_a_label_ends_in_an_image_from_head_to_feet(
    run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]
) -> None:
    image, seed, output = files
    for file, kind in ((image, "image"), (seed, "label")):
        volume = read_volume(file, kind=kind).canonical()  # type: ignore[arg-type]
        write_volume(Volume(volume.voxels[:, :, ::-1].copy(), volume.affine @ np.diag([1, 1, -1, 1])), file)
    options = ("--label", "1", "--seed-slice", "11", "--ends", "8:13", "--model", "fake")
    assert run("propagate", image, "--seed", seed, "-o", output, *options)[0] == 0
    assert _slices(output, 1) == [23 - index for index in range(13, 7, -1)]


def _slices(output: Path, label: int) -> list[int]:
    """Canonical ones that hold a label."""
    found = read_volume(output, kind="label").canonical().voxels == label
    return [int(z) for z in np.flatnonzero(found.any(axis=(0, 1)))]


def test_a_segmenter_may_help(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path]) -> None:
    """The tiny segmenter, with random weights, recognises nothing; whether it is asked is the caller's choice."""
    image, seed, output = files
    command = ["propagate", image, "--seed", seed, "--seed-slice", "auto", "-o", output, "--model", "fake", "--json"]
    for guide in ("tiny", "auto", "none"):
        code, text, _ = run(*command, "--guide", guide)
        assert code == 0
        assert json.loads(text)["recognised"] == {}
    code, _, err = run(*command, "--guide", "nobody")
    assert code == 1
    assert "'nobody'" in err
    assert "tiny" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "7"], "the seed has no label 7; it has 1, 2"),
        (["--label", "liver"], "the seed has no label 'liver'; its labels have no names, only ids"),
        (["--label", "0"], "'0' is no label; ids are 1 to 255"),
        (["--seed-slice", "last"], "--seed-slice 'last' is none of all, auto, middle, or the index of a slice"),
        (["--seed-slice", "24"], "--seed-slice 24: the axial slices of the image are 0 to 23"),
        (["--seed-slice", "0"], "label 1 is not on slice 0"),
        (["--ends", "3"], "--ends '3' must be FIRST:LAST or LABEL=FIRST:LAST"),
        (["--ends", "3:9"], "say which label begins and ends there, as LABEL=FIRST:LAST; there are 1 (Segment 1), 2 ("),
        (["--ends", "spleen=3:9"], "--ends: say which label begins and ends there"),
        (["--ends", "1=3:24"], "--ends 24: the axial slices of the image are 0 to 23"),
        (["--ends", "1=a:9"], "--ends a: the axial slices of the image are 0 to 23"),
        (["--ends", "1=20:22"], "is annotated, and the object is said to be on slices 20 to 22 and no other"),
        (["--ends", "1=9:3"], "--ends '1=9:3': the first slice comes after the last"),
        (["--ends", "1=:23", "--ends", "1=0:"], "--ends '1=0:': where Segment 1 begins and ends was said already"),
        (["--ends", f"1=:{'9' * 5000}"], "the axial slices of the image are 0 to 23"),
        (["--roi", "1,2,3"], "--roi '1,2,3' must be six whole numbers"),
        (["--roi", "1,1,3,4,5,6"], "--roi '1,1,3,4,5,6' has no volume"),
        (["--set", "patience"], "--set 'patience' must be NAME=VALUE; names are patience, "),
        (["--set", "speed=3"], "propagation has no parameter speed; it has patience, "),
        (["--window", "fat"], "window must be one of soft-tissue, lung"),
        (["--window", "header"], "this image's header has no window"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, engine: FakeSam2, files: tuple[Path, Path, Path], arguments: list[str], message: str
) -> None:
    image, seed, output = files
    code, _, err = run("propagate", image, "--seed", seed, "-o", output, "--model", "fake", *arguments)
    assert code == 1
    assert err.startswith("polycl: ")
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_a_seed_of_another_grid(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image, _, output = files
    other = tmp_path / "other.nii"
    write_volume(Volume(np.ones(SHAPE, np.uint8), np.eye(4)), other)
    code, _, err = run("propagate", image, "--seed", other, "-o", output, "--model", "fake")
    assert code == 1
    assert "other.nii: is not on the grid of the image" in err


def test_an_empty_seed(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image, _, output = files
    empty = tmp_path / "empty.nii"
    write_volume(stored(np.zeros(SHAPE, np.uint8)), empty)
    code, _, err = run("propagate", image, "--seed", empty, "-o", output, "--model", "fake")
    assert (code, err) == (1, "polycl: the seed is empty: paint the object on at least one axial slice\n")


def test_sagittal_painting_is_noted(run: Run, engine: FakeSam2, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image, _, output = files
    painted = np.zeros(SHAPE, np.uint8)
    painted[14] = LIVER[14]
    seed = tmp_path / "sagittal.nii"
    write_volume(stored(painted), seed)
    code, _, err = run("propagate", image, "--seed", seed, "-o", output, "--model", "fake")
    assert code == 0
    assert err == "polycl: label 1 is painted on sagittal or coronal slices: it became points on axial ones\n"
    assert dice(read_volume(output, kind="label").canonical().voxels == 1, LIVER) > 0.8


def test_without_weights_it_says_what_to_do(run: Run, files: tuple[Path, Path, Path]) -> None:
    image, seed, output = files
    code, _, err = run("propagate", image, "--seed", seed, "-o", output, "--model", "sam2.1-tiny")
    assert code == 1
    assert "polycl models fetch sam2.1-tiny" in err
