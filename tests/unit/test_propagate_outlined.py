"""Clicks in a file, outlined by a SAM, as seeds of a propagation; and `polycl propagate --clicks`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_sam import FakeSam
from fake_sam2 import FakeSam2
from polycl.errors import InputError
from polycl.propagate.outlined import outline, parse
from polycl.volume import Volume, from_canonical_index, read_segments, read_volume, write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
SHAPE = (48, 40, 24)
# L-P-S, slices first: nothing about it is canonical.
AFFINE = np.array([[0, -1.0, 0, 20], [0, 0, -1.0, 30], [2.0, 0, 0, -50], [0, 0, 0, 1]])


def stored(canonical: NDArray[np.generic]) -> Volume:
    """A canonical array, as the file has it."""
    return Volume(np.ascontiguousarray(canonical.transpose(2, 0, 1)[:, ::-1, ::-1]), AFFINE)


def ball(centre: tuple[int, int, int], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    parts = [((axis - middle) / radius) ** 2 for axis, middle, radius in zip(grid, centre, radii, strict=True)]
    found: NDArray[np.bool_] = parts[0] + parts[1] + parts[2] < 1
    return found


LIVER, SPLEEN = ball((14, 20, 12), (10, 11, 8)), ball((38, 20, 12), (6, 9, 6))


def image() -> Volume:
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:-2, 2:-2] = -60
    hu[LIVER | SPLEEN] = 100
    return stored(hu)


def own(x: int, y: int, z: int) -> list[int]:
    """A canonical voxel in the axes of the file."""
    volume = image()
    found: list[int] = from_canonical_index(np.array([x, y, z]), volume.shape, volume.affine).tolist()
    return found


def roi(x0: int, x1: int, y0: int, y1: int, z: int) -> list[int]:
    corners = np.array([own(x0, y0, z), own(x1, y1, z)])
    return [
        int(value) for low, high in zip(corners.min(axis=0), corners.max(axis=0), strict=True) for value in (low, high)
    ]


CLICKS = {
    "liver": [{"roi": roi(3, 25, 8, 32, 12)}, {"absent": own(0, 0, 22)}],
    "spleen": [{"inside": [own(38, 20, 12)], "outside": [own(14, 20, 12)]}],
    "kidney": [{"absent": own(0, 0, 3)}],
}


def test_each_entry_becomes_a_seed_on_its_slice() -> None:
    engine = FakeSam()
    seeds = outline(parse(json.dumps(CLICKS)), image(), engine)
    assert {name: sorted(found) for name, found in seeds.items()} == {"liver": [12, 22], "spleen": [12]}
    assert np.array_equal(seeds["liver"][12].mask, LIVER[:, :, 12])
    assert not seeds["liver"][22].present
    assert np.array_equal(seeds["spleen"][12].mask, SPLEEN[:, :, 12])
    assert engine.encoded == 1  # both are on one slice


def test_an_outline_stays_in_its_box() -> None:
    class Generous(FakeSam):
        def decode(self, embedding, prompts):  # type: ignore[no-untyped-def]
            masks = super().decode(embedding, prompts)
            return type(masks)(np.full_like(masks.logits, 4.0), masks.scores, masks.low)

    entries = parse(json.dumps({"liver": [{"roi": roi(10, 20, 15, 25, 12)}]}))
    mask = outline(entries, image(), Generous())["liver"][12].mask
    assert mask is not None
    assert [int(ends) for axis in (1, 0) for ends in np.flatnonzero(mask.any(axis=axis))[[0, -1]]] == [8, 22, 13, 27]


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ("nothing", "the file: invalid JSON"),
        ('{"liver": [{"box": [1, 2]}]}', "liver.0.box: extra inputs"),
        ('{"liver": [{}]}', "liver.0: value error, an entry is a roi, points inside"),
        ('{"liver": [{"inside": [[1, 2, 3]], "absent": [1, 2, 3]}]}', "or else absent"),
        ('{"liver": [{"roi": [1, 2, 3]}]}', "liver.0.roi.3"),
        ('{"liver": [{"absent": [1, 2, 3]}]}', "there is nothing to outline"),
        ("{}", "there is nothing to outline"),
    ],
)
def test_a_file_that_cannot_be_used(clicks: str, message: str) -> None:
    with pytest.raises(InputError, match="clicks: ") as error:
        parse(clicks)
    assert message in str(error.value)


def test_what_is_outside_of_the_image_names_the_structure() -> None:
    with pytest.raises(InputError, match=r"spleen: the point \[99, 0, 0\] is outside the image"):
        outline(parse('{"spleen": [{"inside": [[99, 0, 0]]}]}'), image(), FakeSam())


class TestCommand:
    @pytest.fixture(autouse=True)
    def engines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("polycl.propagate.loading.load_propagator", lambda name, settings, *, size=None: FakeSam2())
        monkeypatch.setattr("polycl.sam.load_engine", lambda name, settings: FakeSam())

    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path, Path]:
        """Image, clicks, output."""
        ct, clicks = tmp_path / "ct.nii.gz", tmp_path / "clicks.json"
        write_volume(image(), ct)
        clicks.write_text(json.dumps(CLICKS))
        return ct, clicks, tmp_path / "out.seg.nrrd"

    def test_structures_are_outlined_and_carried_through_the_volume(
        self, run: Run, files: tuple[Path, Path, Path]
    ) -> None:
        ct, clicks, output = files
        code, out, err = run("propagate", ct, "--clicks", clicks, "--guide", "none", "-o", output)
        assert (code, err) == (0, "")
        assert out.startswith(f"{output}: liver ")
        assert read_segments(output) == {"liver": 1, "spleen": 2}
        voxels = read_volume(output, kind="label").canonical().voxels
        for index, organ in ((1, LIVER), (2, SPLEEN)):
            assert 2 * ((voxels == index) & organ).sum() > 0.8 * ((voxels == index).sum() + organ.sum())

    def test_labels_that_are_there_stay_and_new_ones_are_numbered_on(
        self, run: Run, files: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        ct, clicks, output = files
        there = np.zeros(SHAPE, np.uint8)
        there[10:14, 20:24, 12], there[40, 2, 2] = 3, 7
        write_volume(stored(there), tmp_path / "there.nii")
        code, *_ = run(
            "propagate", ct, "--clicks", clicks, "--guide", "none", "--onto", tmp_path / "there.nii", "-o", output
        )
        assert code == 0
        voxels = read_volume(output, kind="label").canonical().voxels
        assert set(np.unique(voxels)) == {0, 3, 7, 8, 9}
        assert np.array_equal(voxels == 3, there == 3)
        assert np.array_equal(voxels[:, :, 12] == 8, LIVER[:, :, 12] & (there[:, :, 12] == 0))

    def test_one_of_seed_and_clicks(self, run: Run, files: tuple[Path, Path, Path]) -> None:
        ct, clicks, output = files
        message = "polycl: give --seed, a label map, or --clicks, a JSON file: one of the two\n"
        assert run("propagate", ct, "-o", output)[::2] == (1, message)
        assert run("propagate", ct, "--seed", ct, "--clicks", clicks, "-o", output)[::2] == (1, message)

    def test_no_id_is_left(self, run: Run, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
        ct, clicks, output = files
        write_volume(stored(np.full(SHAPE, 254, np.uint8)), tmp_path / "there.nii")
        code, _, err = run("propagate", ct, "--clicks", clicks, "--onto", tmp_path / "there.nii", "-o", output)
        assert code == 1
        assert "2 more labels are too many: ids end at 255, and the first free one is 255" in err
        assert run("propagate", ct, "--clicks", tmp_path / "none.json", "-o", output)[0] == 1
