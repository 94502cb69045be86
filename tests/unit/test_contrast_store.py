"""The slice store: what is in it, what happens to bad images, and that it is never read or built twice."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polycl.checkpoints import Preprocessing
from polycl.contrast import contents, scanfile
from polycl.contrast import store as module
from polycl.contrast.scans import find_scans
from polycl.contrast.store import SliceStore
from polycl.dataset import Case
from polycl.errors import InputError, NotFoundError
from polycl.phantom import write_study
from polycl.volume import Volume, write_volume
from polycl.window import Window

pytestmark = pytest.mark.unit

SMALL = Preprocessing(window=Window(level=0, width=1000), spacing=2.0, size=24)
IMAGES = {"a": 5, "b": 3, "c": 1}


def hu_of(slices: int, level: int) -> NDArray[np.int16]:
    """A block of tissue in air, off centre, of another HU in each slice."""
    hu = np.full((30, 20, slices), -1000, np.int16)
    for z in range(slices):
        hu[14:26, 4:12, z] = level + 10 * z
    return hu


def write_image(file: Path, slices: int, level: int = 0) -> None:
    write_volume(Volume(hu_of(slices, level), np.diag([2.0, 2.0, 5.0, 1.0])), file)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    (tmp_path / "images").mkdir()
    for number, (name, slices) in enumerate(IMAGES.items()):
        write_image(tmp_path / "images" / f"{name}.nii.gz", slices, 100 * number)
    return find_scans(tmp_path)


def build(cases: list[Case], folder: Path, **options: object) -> SliceStore:
    return SliceStore.build(cases, SMALL, folder / "store", **options)  # type: ignore[arg-type]


def never(*_: object, **__: object) -> None:
    raise AssertionError("was called")


def test_all_slices_are_listed_in_order(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    assert store.names == ("a", "b", "c")
    assert len(store) == 9
    assert store.scan.tolist() == [0] * 5 + [1] * 3 + [2]
    assert store.z.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0]
    assert (store.scan.dtype, store.z.dtype) == (np.int32, np.int32)
    assert store.skipped == {}


def test_a_slice_is_windowed_and_its_body_in_the_middle(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    seen = store.read(np.array([6]))
    assert seen.shape == (1, 24, 24)
    assert seen.dtype == np.uint8
    tissue = np.argwhere(seen[0] > 0)
    assert set(seen[0][seen[0] > 0]) == {round((100 + 10 + 500) / 1000 * 255)}
    assert np.abs(tissue.mean(axis=0) - 11.5).max() <= 2  # the margin's grain is 4 pixels
    assert np.ptp(tissue, axis=0).tolist() == [11, 7]


def test_slices_come_in_the_order_and_shape_asked_for(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    everything = store.read(np.arange(9))
    asked = np.array([[8, 0, 0], [3, 7, 1]])
    assert np.array_equal(store.read(asked), everything[asked])
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(asked), everything[asked])  # noqa: S301
    assert store.read(np.array([], int)).shape == (0, 24, 24)
    with pytest.raises(IndexError):
        store.read(np.array([9]))


def test_pixels_are_those_that_the_network_sees_on_the_same_grid(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    tissue = store.read(np.array([2]))[0]
    expected = SMALL.window.apply(torch.tensor(20.0)).mul(255).round().item()
    assert tissue.max() == expected


@pytest.mark.parametrize("axes", [np.diag([-2.0, -2.0, 5.0, 1.0]), np.diag([2.0, 2.0, -5.0, 1.0])])
def test_axes_are_canonical_whatever_those_of_the_file(tmp_path: Path, axes: NDArray[np.float64]) -> None:
    hu = hu_of(4, 0)
    plain = Volume(hu, np.diag([2.0, 2.0, 5.0, 1.0]))
    flips = tuple(slice(None, None, -1) if axes[i, i] < 0 else slice(None) for i in range(3))
    (tmp_path / "images").mkdir()
    write_volume(plain, tmp_path / "images" / "plain.nii.gz")
    write_volume(Volume(hu[flips].copy(), axes), tmp_path / "images" / "turned.nii.gz")
    store = build(find_scans(tmp_path), tmp_path)
    assert np.array_equal(store.read(np.arange(4)), store.read(np.arange(4, 8)))


@pytest.mark.parametrize("size", [4, 7, 10, 13])
def test_the_middle_is_kept_and_zeros_put_around(size: int) -> None:
    slices = np.arange(1, 71, dtype=np.uint8).reshape(1, 7, 10)
    kept = scanfile.centred(slices, size)
    assert kept.shape == (1, size, size)
    assert np.count_nonzero(kept) == min(size, 7) * min(size, 10)
    assert kept[0, size // 2, size // 2] in slices[0, 2:5, 4:7]


@pytest.mark.parametrize(
    ("slice_range", "expected"),
    [((0.2, 0.8), [1, 2, 3, 1, 0]), ((0.0, 0.5), [0, 1, 0, 1, 0]), ((0.9, 1.0), [4, 2, 0])],
)
def test_the_slice_range_chooses_from_what_is_stored(
    cases: list[Case], tmp_path: Path, slice_range: tuple[float, float], expected: list[int]
) -> None:
    whole = build(cases, tmp_path)
    part = build(cases, tmp_path, slice_range=slice_range)
    assert part.z.tolist() == expected
    where = np.flatnonzero((whole.scan == part.scan[1]) & (whole.z == part.z[1]))
    assert np.array_equal(part.read(np.array([1])), whole.read(where))


@pytest.mark.parametrize("slice_range", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0)])
def test_a_range_that_is_none_is_refused(cases: list[Case], tmp_path: Path, slice_range: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="rising fractions"):
        build(cases, tmp_path, slice_range=slice_range)


def test_a_second_build_reads_no_image_and_hashes_none(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(cases, tmp_path)
    for name in ("prepare", "read_volume", "content_hash"):
        monkeypatch.setattr(scanfile, name, never)
    second = build(cases, tmp_path)
    assert np.array_equal(first.read(np.arange(9)), second.read(np.arange(9)))


def test_without_the_remembered_hashes_no_image_is_decoded_again(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(cases, tmp_path)
    (tmp_path / "store" / contents.HASHES).write_text("{ damaged")
    monkeypatch.setattr(scanfile, "read_volume", never)
    assert len(build(cases, tmp_path)) == 9


def test_an_image_that_changed_is_read_again(cases: list[Case], tmp_path: Path) -> None:
    before = build(cases, tmp_path).read(np.array([0]))
    write_image(cases[0].image, 5, level=-300)
    assert build(cases, tmp_path).read(np.array([0])).max() < before.max()


def test_another_preprocessing_gets_files_of_its_own(cases: list[Case], tmp_path: Path) -> None:
    first = build(cases, tmp_path)
    wide = SMALL.model_copy(update={"window": Window(level=0, width=2000)})
    other = SliceStore.build(cases, wide, tmp_path / "store")
    assert not {one.key for one in first.files} & {one.key for one in other.files}
    assert not np.array_equal(first.read(np.array([3])), other.read(np.array([3])))


def test_a_damaged_or_half_scan_is_made_again(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    before = store.read(np.arange(9))
    module._mapped.cache_clear()
    first, second, third = (one.file(store.folder) for one in store.files)
    first.write_bytes(first.read_bytes()[:-1])
    second.with_suffix(".json").unlink()
    third.write_bytes(b"")
    assert np.array_equal(build(cases, tmp_path).read(np.arange(9)), before)


def test_what_a_killed_process_left_is_cleared_once_it_is_old(cases: list[Case], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    old, new = folder / ".x.npy.12345678", folder / ".y.npy.12345678"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    build(cases, tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_corrupt_image_is_named_skipped_and_counted(cases: list[Case], tmp_path: Path) -> None:
    cases[1].image.write_bytes(cases[1].image.read_bytes()[:100])
    gone = Case("d", tmp_path / "images" / "d.nii.gz", None)
    seen: list[tuple[int, int]] = []
    store = build([*cases, gone], tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert store.names == ("a", "c")
    assert set(store.skipped) == {"b", "d"}
    assert store.skipped["b"].startswith("b.nii.gz: is truncated or corrupt")
    assert store.skipped["d"] == "d.nii.gz: no such file or folder"
    assert store.scan.tolist() == [0] * 5 + [1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(InputError, match=r"b\.nii\.gz: is truncated"):
        build(cases, tmp_path, strict=True)


def test_a_slice_too_large_is_named_too(cases: list[Case], tmp_path: Path) -> None:
    wide = np.tile(hu_of(2, 0), (6, 1, 1))
    write_volume(Volume(wide, np.diag([180.0, 180.0, 5.0, 1.0])), cases[0].image)
    assert build(cases, tmp_path).skipped["a"].startswith("a.nii.gz: a slice is")


def test_no_usable_image_is_an_error(cases: list[Case], tmp_path: Path) -> None:
    for case in cases:
        case.image.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"none of the 3 scans can be used; the first: a\.nii\.gz"):
        build(cases, tmp_path)
    with pytest.raises(InputError, match="no scan"):
        build([], tmp_path)


def test_names_must_differ(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several scans are called a"):
        build([*cases, cases[0]], tmp_path)


def test_a_full_disk_stops_the_build_and_leaves_whole_scans_only(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = scanfile.centred

    def full_at_the_second(slices: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        if len(slices) == 3:
            raise OSError(28, "No space left on device")
        return pixels(slices, size)

    monkeypatch.setattr(scanfile, "centred", full_at_the_second)
    with pytest.raises(InputError, match=r"cannot write the slice store .*: No space left on device"):
        build(cases, tmp_path)
    assert len(list((tmp_path / "store").glob("*.npy"))) == 1
    assert not list((tmp_path / "store").glob(".*.npy*"))
    monkeypatch.setattr(scanfile, "centred", pixels)
    assert len(build(cases, tmp_path)) == 9


def test_a_folder_that_cannot_be_made_is_an_error(cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(InputError, match="cannot write the slice store"):
        build(cases, tmp_path)


def test_a_file_that_is_gone_is_an_error_and_no_crash(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    store.files[0].file(store.folder).unlink()
    with pytest.raises(InputError, match="gone or damaged"):
        store.read(np.array([0]))


def test_no_path_is_kept_in_the_store(cases: list[Case], tmp_path: Path) -> None:
    build(cases, tmp_path)
    for file in (tmp_path / "store").glob("*.json"):
        assert "images" not in json.dumps(json.loads(file.read_text()))


def test_scans_can_be_left_out_afterwards(cases: list[Case], tmp_path: Path) -> None:
    store = build(cases, tmp_path)
    less = store.without({"b": "no label", "unknown": "-"})
    assert less.names == ("a", "c")
    assert less.skipped == {"b": "no label"}
    assert less.scan.tolist() == [0] * 5 + [1]
    assert np.array_equal(less.read(np.array([5])), store.read(np.array([8])))
    with pytest.raises(InputError, match="none of the 3"):
        store.without(dict.fromkeys("abc", "no label"))


@pytest.mark.slow
def test_processes_build_what_one_builds_and_name_what_they_skip(cases: list[Case], tmp_path: Path) -> None:
    one = build(cases, tmp_path).read(np.arange(9))
    cases[2].image.write_bytes(b"nothing")
    many = SliceStore.build(cases, SMALL, tmp_path / "other", workers=2)
    assert np.array_equal(many.read(np.arange(8)), one[:8])
    assert set(many.skipped) == {"c"}


def test_scans_are_found_in_every_kind_of_folder(tmp_path: Path) -> None:
    for name in ("flat", "dicom", "empty"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "flat" / "x.nii.gz", 2)
    assert [case.name for case in find_scans(tmp_path / "flat")] == ["x"]
    write_study(tmp_path / "dicom", [1, 2], format="dicom", shape=(16, 16, 3), spacing=(24.0, 24.0, 40.0))
    found = find_scans(tmp_path / "dicom")
    assert len({case.name for case in found}) == 2
    assert len(build(found, tmp_path)) == 6
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(NotFoundError):
            find_scans(folder)
