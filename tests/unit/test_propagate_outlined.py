"""Clicks in a file, outlined by a SAM, as seeds of a propagation; and `polycl annotate`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_sam import FakeSam
from fake_sam2 import FakeSam2
from polycl.errors import InputError
from polycl.propagate.outlined import outline, parse
from polycl.volume import from_canonical_index, read_segments, read_volume, write_volume
from two_organs import LIVER, SHAPE, SPLEEN, ct, stored

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


def own(x: int, y: int, z: int) -> list[int]:
    """A canonical voxel in the axes of the file."""
    volume = ct()
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
}


def test_each_entry_becomes_a_seed_on_its_slice() -> None:
    engine = FakeSam()
    seeds = outline(parse(json.dumps(CLICKS)), ct(), engine)
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
    mask = outline(entries, ct(), Generous())["liver"][12].mask
    assert mask is not None
    assert [int(ends) for axis in (1, 0) for ends in np.flatnonzero(mask.any(axis=axis))[[0, -1]]] == [8, 22, 13, 27]


def test_where_outlines_overlap_the_first_has_it() -> None:
    boxes = {"liver": [{"roi": roi(3, 15, 8, 32, 12)}], "all": [{"roi": roi(3, 25, 8, 32, 12)}]}
    seeds = outline(parse(json.dumps(boxes)), ct(), FakeSam())
    first, second = (seeds[name][12].mask for name in boxes)
    assert first is not None
    assert second is not None
    assert not (first & second).any()
    assert np.array_equal(first | second, LIVER[:, :, 12])
    with pytest.raises(InputError, match="clicks: again: nothing is found on axial slice 12"):
        outline(parse(json.dumps({"all": boxes["all"], "again": boxes["all"]})), ct(), FakeSam())


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ("nothing", "not JSON that can be read"),
        ('{"liver": [{"inside": [[1, 2, 3]]}], "liver": []}', "a name comes twice"),
        ('{"liver": [{"box": [1, 2]}]}', "liver.0.box: extra inputs"),
        ('{"liver": [{}]}', "liver.0: value error, an entry is a roi, points inside"),
        ('{"liver": [{"inside": [[1, 2, 3]], "absent": [1, 2, 3]}]}', "or else absent"),
        ('{"liver": [{"outside": [[1, 2, 3]], "absent": [1, 2, 3]}]}', "or else absent alone"),
        ('{"liver": [{"roi": [1, 2, 3]}]}', "liver.0.roi.3"),
        ('{"liver": [{"inside": [["1", 2, 3]]}]}', "liver.0.inside.0.0"),
        ('{"liver": [{"inside": [[1000000000000000000000, 2, 3]]}]}', "liver.0.inside.0.0"),
        ('{"liver": [{"absent": [1, 2, 3]}]}', "nothing to outline of liver"),
        ('{"liver": []}', "nothing to outline of liver"),
        ("{}", "nothing to outline of anything"),
        ("[]", "dictionary"),
    ],
)
def test_a_file_that_cannot_be_used(clicks: str, message: str) -> None:
    with pytest.raises(InputError, match="clicks: ") as error:
        parse(clicks)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"inside": [[99, 0, 0]]}], r"the point \[99, 0, 0\] is outside the image"),
        ([{"inside": [own(38, 20, 12), own(38, 20, 13)]}], "about one axial slice"),
        ([{"roi": roi(3, 25, 8, 32, 12), "outside": [own(1, 1, 9)]}], "about one axial slice"),
        ([{"roi": [12, 13, *roi(3, 25, 8, 32, 12)[2:]]}], "about one axial slice"),
        ([{"inside": [own(38, 20, 12)]}, {"absent": own(0, 0, 12)}], "two entries are on axial slice 12"),
        ([{"roi": roi(3, 10, 3, 10, 1)}], "nothing is found on axial slice 1"),
    ],
)
def test_what_cannot_be_outlined_names_the_structure(entries: list[object], message: str) -> None:
    with pytest.raises(InputError, match=f"clicks: spleen: .*{message}"):
        outline(parse(json.dumps({"spleen": entries})), ct(), FakeSam())


class TestCommand:
    @pytest.fixture(autouse=True)
    def engines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("polycl.propagate.loading.load_propagator", lambda name, settings: FakeSam2())
        monkeypatch.setattr("polycl.sam.load_engine", lambda name, settings: FakeSam())

    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path, Path]:
        """Image, clicks, output."""
        image, clicks = tmp_path / "ct.nii.gz", tmp_path / "clicks.json"
        write_volume(ct(), image)
        clicks.write_text(json.dumps(CLICKS))
        return image, clicks, tmp_path / "out.seg.nrrd"

    def test_structures_are_outlined_and_carried_through_the_volume(
        self, run: Run, files: tuple[Path, Path, Path]
    ) -> None:
        image, clicks, output = files
        code, out, err = run("annotate", image, "--clicks", clicks, "--guide", "none", "-o", output)
        assert (code, err) == (0, "")
        assert out.startswith(f"{output}: liver ")
        assert read_segments(output) == {"liver": 1, "spleen": 2}
        voxels = read_volume(output, kind="label").canonical().voxels
        for index, organ in ((1, LIVER), (2, SPLEEN)):
            assert 2 * ((voxels == index) & organ).sum() > 0.8 * ((voxels == index).sum() + organ.sum())

    def test_labels_that_are_there_stay_and_new_ones_are_numbered_on(
        self, run: Run, files: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        image, clicks, output = files
        there = np.zeros(SHAPE, np.uint8)
        there[10:14, 20:24, 12], there[40, 2, 2] = 3, 7
        write_volume(stored(there), tmp_path / "there.seg.nrrd", names={"vein": 3})
        onto = ("--onto", tmp_path / "there.seg.nrrd")
        code, out, _ = run("annotate", image, "--clicks", clicks, "--guide", "none", *onto, "-o", output, "--json")
        assert code == 0
        assert json.loads(out)["labels"] == {"liver": 8, "spleen": 9}
        assert read_segments(output) == {"vein": 3, "Segment 7": 7, "liver": 8, "spleen": 9}
        voxels = read_volume(output, kind="label").canonical().voxels
        assert np.array_equal(voxels == 3, there == 3)
        assert np.array_equal(voxels[:, :, 12] == 8, LIVER[:, :, 12] & (there[:, :, 12] == 0))

    @pytest.mark.parametrize(
        ("names", "value", "message"),
        [
            ({"liver": 3}, 3, "has a 'liver' already"),
            ({"x": 254}, 254, "numbered on from 255, are too many: ids end at 255"),
        ],
    )
    def test_a_label_map_that_cannot_take_them(
        self, run: Run, files: tuple[Path, Path, Path], tmp_path: Path, names: dict[str, int], value: int, message: str
    ) -> None:
        image, clicks, output = files
        write_volume(stored(np.full(SHAPE, value, np.uint8)), tmp_path / "there.seg.nrrd", names=names)
        code, _, err = run("annotate", image, "--clicks", clicks, "--onto", tmp_path / "there.seg.nrrd", "-o", output)
        assert code == 1
        assert message in err
        assert not output.exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(["--clicks", "none.json"], "there is no file none.json"), (["--outline-by", "nobody"], "nobody")],
    )
    def test_what_is_not_there(
        self, run: Run, files: tuple[Path, Path, Path], arguments: list[str], message: str
    ) -> None:
        image, clicks, output = files
        code, _, err = run("annotate", image, "--clicks", clicks, "-o", output, *arguments)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
