"""Whether the target is in a slice: from label maps, ranges and MONAI Label's folder, and the errors of each."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from polycl.checkpoints import Preprocessing
from polycl.contrast import presence
from polycl.contrast.presence import UnusableLabelsError
from polycl.contrast.saved import saved_cases, saved_labels
from polycl.contrast.scans import find_scans
from polycl.contrast.store import SliceStore
from polycl.dataset import Case, Target
from polycl.errors import InputError, NotFoundError
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit

SMALL = Preprocessing(spacing=4.0, size=8)
UP, DOWN = np.diag([4.0, 4.0, 5.0, 1.0]), np.diag([4.0, 4.0, -5.0, 1.0])
ORGAN = Target("organ", (2, 3))


def write_case(folder: Path, name: str, ids: list[int] | None, affine: NDArray[np.float64] = UP) -> None:
    """A scan of as many slices as there are ids; each slice of the label holds its id, in the order of the file."""
    hu = np.full((8, 8, 4 if ids is None else len(ids)), -1000, np.int16)
    hu[2:6, 2:6] = len(name)
    write_volume(Volume(hu, affine), folder / "images" / f"{name}.nii.gz")
    if ids is not None:
        label = np.zeros(hu.shape, np.uint8)
        label[3, 3] = ids
        write_volume(Volume(label, affine), folder / "labels" / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    write_case(tmp_path, "a", [0, 2, 1, 3])
    write_case(tmp_path, "bb", [2, 0, 0], DOWN)
    return tmp_path


def opened(folder: Path, **options: object) -> tuple[SliceStore, list[Case]]:
    cases = find_scans(folder)
    return SliceStore.build(cases, SMALL, folder / "store", **options), cases  # type: ignore[arg-type]


def write_table(folder: Path, text: str) -> Path:
    file = folder / "ranges.csv"
    file.write_text(text)
    return file


def test_labels_tell_in_canonical_order(dataset: Path) -> None:
    store, cases = opened(dataset)
    found = presence.from_labels(store, cases, ORGAN)
    assert found.dtype == np.bool_
    assert found.tolist() == [False, True, False, True, False, False, True]
    assert presence.from_labels(store, cases, Target("spot", (1,))).tolist() == [False, False, True] + [False] * 4


def test_only_the_slices_of_the_store_are_told(dataset: Path) -> None:
    store, cases = opened(dataset, slice_range=(0.5, 1.0))
    assert list(zip(store.scan.tolist(), store.z.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 2)]
    assert presence.from_labels(store, cases, ORGAN).tolist() == [False, True, True]


def test_a_label_is_decoded_once_and_again_when_it_changes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cases = opened(dataset)
    first = presence.from_labels(store, cases, ORGAN)
    reader = presence.read_volume
    read: list[str] = []
    monkeypatch.setattr(presence, "read_volume", lambda path, **how: read.append(path.name) or reader(path, **how))
    assert np.array_equal(presence.from_labels(store, cases, ORGAN), first)
    assert read == []
    write_case(dataset, "a", [2, 2, 2, 2])
    assert presence.from_labels(store, cases, ORGAN).tolist()[:4] == [True] * 4
    assert read == ["a.nii.gz"]


def test_scans_without_a_usable_label_are_named_and_can_be_left_out(dataset: Path) -> None:
    write_case(dataset, "ccc", None)
    write_case(dataset, "dddd", [2, 0])
    write_case(dataset, "eeeee", [2, 0])
    (dataset / "labels" / "dddd.nii.gz").write_bytes(b"nothing")
    write_volume(Volume(np.zeros((8, 8, 3), np.uint8), UP), dataset / "labels" / "eeeee.nii.gz")
    store, cases = opened(dataset)
    with pytest.raises(UnusableLabelsError, match="cannot be told for 3 scans: ccc: it has no label; dddd: ") as caught:
        presence.from_labels(store, cases, ORGAN)
    assert set(caught.value.reasons) == {"ccc", "dddd", "eeeee"}
    assert "not on the grid" in caught.value.reasons["eeeee"]
    less = store.without(caught.value.reasons)
    assert presence.from_labels(less, cases, ORGAN).tolist() == [False, True, False, True, False, False, True]


def test_an_unknown_target_is_an_error_with_the_ids_there_are(dataset: Path) -> None:
    store, cases = opened(dataset)
    with pytest.raises(InputError, match="no label holds 'kidney'; the ids in them are 1, 2, 3"):
        presence.from_labels(store, cases, Target("kidney", (9,)))
    with pytest.raises(InputError, match="1 to 255"):
        presence.from_labels(store, cases, Target("kidney", (300,)))


def test_ranges_include_both_ends_and_absence(dataset: Path) -> None:
    store, _ = opened(dataset)
    table = write_table(dataset, "scan,first,last\na,0,0\na,2,3\n\n")
    assert presence.from_ranges(store, table).tolist() == [True, False, True, True, False, False, False]
    spreadsheet = write_table(dataset, "\ufeffscan, first, last\r\nbb, 1, 2\r\n")
    assert presence.from_ranges(store, spreadsheet).tolist() == [False] * 5 + [True, True]


def test_ranges_of_a_scan_that_was_skipped_are_passed_over(dataset: Path) -> None:
    (dataset / "images" / "bb.nii.gz").write_bytes(b"nothing")
    store, _ = opened(dataset)
    assert presence.from_ranges(store, write_table(dataset, "scan,first,last\nbb,7,9\na,1,1\n")).sum() == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line must be scan,first,last"),
        ("scan;first;last\na;0;1\n", "first line must be"),
        ("scan,first,last\nzz,0,1\n", "line 2: no scan is called 'zz'; scans are a, bb"),
        ("scan,first,last\na,0,1\na,3,4\n", "line 3: 3 to 4 is no range of slices from 0 to 3"),
        ("scan,first,last\na,2,1\n", "line 2: 2 to 1 is no range"),
        ("scan,first,last\na,-1,1\n", "no range"),
        ("scan,first,last\na,1\n", "whole numbers"),
        ("scan,first,last\na,1,x\n", "whole numbers"),
        ("scan,first,last\na,1,2,3\n", "more than three values"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(dataset: Path, text: str, words: str) -> None:
    store, _ = opened(dataset)
    with pytest.raises(InputError, match=words):
        presence.from_ranges(store, write_table(dataset, text))


def test_a_table_that_is_no_text_or_not_there_is_refused(dataset: Path) -> None:
    store, _ = opened(dataset)
    (dataset / "ranges.csv").write_bytes(b"scan,first,last\n\xff\xfe\x00")
    with pytest.raises(InputError, match="no CSV text"):
        presence.from_ranges(store, dataset / "ranges.csv")
    with pytest.raises(InputError, match="cannot be read"):
        presence.from_ranges(store, dataset / "none.csv")


@pytest.fixture
def kept(dataset: Path) -> Path:
    """The data set as MONAI Label keeps it: images in the folder itself, labels in labels/final."""
    folder = dataset / "kept"
    (folder / "labels" / "final").mkdir(parents=True)
    for part, place in (("images", folder), ("labels", folder / "labels" / "final")):
        for file in (dataset / part).iterdir():
            file.rename(place / file.name)
    return folder


def write_index(folder: Path, **segments: list[str] | None) -> None:
    """As the server writes it, with the names that Slicer sends; their own numbers are wrong on purpose."""
    objects = {
        name: {
            "image": {"ext": ".nii.gz", "info": {"name": f"{name}.nii.gz"}},
            "labels": {
                "final": {
                    "ext": ".nii.gz",
                    "info": {} if names is None else {"label_info": [{"name": one, "idx": 9} for one in names]},
                }
            },
        }
        for name, names in segments.items()
    }
    index = {"name": "x", "description": "y", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (folder / "datastore_v2.json").write_text(json.dumps(index))


def test_saved_labels_are_read_by_the_names_of_their_segments(kept: Path) -> None:
    write_index(kept, a=["spot", "organ"], bb=["spot", "organ", "other"])
    store, _ = opened(kept)
    assert presence.from_saved_labels(store, kept, Target("organ", (1,))).tolist() == [
        *(False, True, False, False),
        *(False, False, True),
    ]


@pytest.mark.parametrize("index", [True, False])
def test_saved_labels_without_names_are_read_by_ids(kept: Path, index: bool) -> None:
    if index:
        write_index(kept, a=None, bb=None)
    store, _ = opened(kept)
    found = presence.from_saved_labels(store, kept, ORGAN)
    assert found.tolist() == [False, True, False, True, False, False, True]


def test_images_whose_saved_label_cannot_tell_are_named(kept: Path) -> None:
    write_index(kept, a=["spot", "organ"], bb=["other"])
    store, _ = opened(kept)
    with pytest.raises(UnusableLabelsError, match="1 scans: bb: its label does not list 'organ'"):
        presence.from_saved_labels(store, kept, ORGAN)
    assert [case.name for case in saved_cases(kept, ORGAN)] == ["a"]
    (kept / "labels" / "final" / "a.nii.gz").unlink()
    write_index(kept, a=["organ"], bb=["other", "organ"])
    with pytest.raises(UnusableLabelsError, match="a: it has no label"):
        presence.from_saved_labels(store, kept, ORGAN)


def test_an_unknown_target_of_saved_labels_is_an_error_with_the_names_there_are(kept: Path) -> None:
    write_index(kept, a=["spot", "organ"], bb=["other"])
    store, _ = opened(kept)
    with pytest.raises(InputError, match="no saved label lists 'kidney'; they list organ, other, spot"):
        presence.from_saved_labels(store, kept, Target("kidney", (1,)))


def test_a_folder_without_saved_labels_is_refused(tmp_path: Path, kept: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        saved_labels(tmp_path / "none")
    (tmp_path / "bare").mkdir()
    with pytest.raises(NotFoundError, match="no image with a saved label"):
        saved_labels(tmp_path / "bare")
    (kept / "datastore_v2.json").write_text('{"objects": {')
    with pytest.raises(InputError, match="cannot be read"):
        saved_labels(kept)


def test_an_index_cannot_point_out_of_its_folder(kept: Path) -> None:
    write_index(kept, **{"../a": ["organ"]})
    with pytest.raises(InputError, match="no name of a file"):
        saved_labels(kept)
