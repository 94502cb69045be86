"""NRRD and Slicer segmentations: round trips, layers, refusals, and agreement with SimpleITK and pynrrd."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from polycl.errors import InputError
from polycl.volume import Volume, read_segments, read_volume, write_volume

pytestmark = pytest.mark.unit

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (20, -35, 170), degrees=True).as_matrix() * (0.7, 0.8, 2.5)
OBLIQUE[:3, 3] = (-120.5, 33.25, 800)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LPS = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
LAYERED = {
    "space": "left-posterior-superior",
    "space directions": np.vstack([np.full(3, np.nan), np.eye(3)]),
    "space origin": np.zeros(3),
    "kinds": ["list", "domain", "domain", "domain"],
}


def ct(shape: tuple[int, ...] = (4, 5, 6), dtype: Any = np.int16) -> NDArray[Any]:
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(dtype)


def labels() -> NDArray[np.uint8]:
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[1:3, 2:4, 3:6] = 1
    voxels[0, 0, 0:2] = 3
    return voxels


def save(path: Path, voxels: NDArray[Any], header: Mapping[str, Any] | None = None, **more: Any) -> Path:
    nrrd.write(str(path), voxels, {**(LPS if header is None else header), **more})
    return path


def edit(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
def test_round_trip_is_exact(tmp_path: Path, compress: bool, dtype: Any) -> None:
    volume = Volume(ct(dtype=dtype), OBLIQUE)
    write_volume(volume, tmp_path / "a.nrrd", compress=compress)
    back = read_volume(tmp_path / "a.nrrd", allow_any_values=True)
    assert back.voxels.dtype == dtype
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_array_equal(back.affine, OBLIQUE)
    encoding = b"encoding: gzip\n" if compress else b"encoding: raw\n"
    assert encoding in (tmp_path / "a.nrrd").read_bytes()


def test_raw_voxels_are_the_end_of_the_file(tmp_path: Path) -> None:
    """OHIF copies these bytes into its labelmap."""
    write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.nrrd", compress=False)
    assert (tmp_path / "a.nrrd").read_bytes().endswith(b"\n\n" + labels().tobytes(order="F"))


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([1, -1])] * 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_simpleitk_agrees_both_ways(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], signs: tuple[int, ...], compress: bool
) -> None:
    folder = tmp_path_factory.mktemp("nrrd")
    affine = OBLIQUE.copy()
    affine[:3, :3] = (OBLIQUE[:3, :3] * signs)[:, order]
    volume = Volume(ct(), affine)
    write_volume(volume, folder / "ours.nrrd", compress=compress)
    image = sitk.ReadImage(str(folder / "ours.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, volume.voxels)
    theirs = np.eye(4)
    theirs[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    theirs[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(LPS_TO_RAS @ theirs, affine, atol=1e-9)
    sitk.WriteImage(image, str(folder / "theirs.nrrd"), compress)
    back = read_volume(folder / "theirs.nrrd")
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_spaces_become_ras(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nrrd", ct(), {**LPS, "space": space, "space origin": np.array([1.0, 2, 3])})
    affine = read_volume(path).affine
    np.testing.assert_array_equal(np.diag(affine)[:3], signs)
    np.testing.assert_array_equal(affine[:3, 3], np.array([1, 2, 3]) * signs)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_big_endian_in_each_encoding(tmp_path: Path, encoding: str) -> None:
    path = save(tmp_path / "a.nrrd", ct(dtype=">i2"), encoding=encoding, endian="big")
    back = read_volume(path)
    assert back.voxels.dtype == np.dtype(np.int16)
    np.testing.assert_array_equal(back.voxels, ct())


@pytest.mark.parametrize("position", [0, 3])
def test_a_single_frame_of_four_dimensions_works(tmp_path: Path, position: int) -> None:
    directions = np.insert(np.eye(3), position, np.nan, axis=0)
    path = save(tmp_path / "a.nrrd", np.expand_dims(ct(), position), {**LPS, "space directions": directions})
    np.testing.assert_array_equal(read_volume(path).voxels, ct())


@pytest.mark.parametrize(
    ("voxels", "header", "message"),
    [
        (ct((4, 5)), {}, "not a volume"),
        (ct(), {}, "no orientation"),
        (ct(), {"spacings": [1, 1, 2]}, "no orientation"),
        (ct(), {**LPS, "space": "scanner-xyz"}, "space scanner-xyz"),
        (ct(), {**LPS, "space directions": np.zeros((3, 3))}, "cannot be inverted"),
        (ct((3, 4, 5, 6)), {**LAYERED, "kinds": ["RGB-color", *["domain"] * 3]}, "colours, vectors"),
        (ct((3, 4, 5, 6)), {**LAYERED, "kinds": ["vector", *["domain"] * 3]}, "colours, vectors"),
        (ct((3, 4, 5, 6)), LAYERED, "3 frames"),
        (np.full((4, 5, 6), np.nan), LPS, "NaN or infinite"),
        (ct(), {**LPS, "encoding": "ascii"}, "raw, gzip and bzip2"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, voxels: NDArray[Any], header: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"a.nrrd: .*{message}"):
        read_volume(save(tmp_path / "a.nrrd", voxels, header))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"type: int16", b"type: block", "voxels of type block"),
        (b"endian: little\n", b"", "no endian"),
        (b"sizes: 4 5 6", b"sizes: 4 5", "incomplete"),
        (b"sizes: 4 5 6", b"sizes: 4 x 6", "broken NRRD header"),
        (b"dimension: 3\n", b"", "broken NRRD header"),
        (b"sizes: 4 5 6", b"sizes: 4 5 60", "truncated"),
        (b"sizes: 4 5 6", b"sizes: 4 5 0", "not a volume"),
        (b"kinds:", b"line skip: 3\nkinds:", "skips bytes or lines"),
        (b"kinds:", b"data file: a.raw\nkinds:", "detached"),
        (b"NRRD0004\n", b"NRRD0004\nnonsense\n", "broken NRRD header"),
    ],
)
def test_broken_headers_are_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    write_volume(Volume(ct(), OBLIQUE), tmp_path / "a.nrrd", compress=False)
    with pytest.raises(InputError, match=message):
        read_volume(edit(tmp_path / "a.nrrd", old, new))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("share", [0.97, 0.6])
def test_truncated_voxels_are_refused(tmp_path: Path, encoding: str, share: float) -> None:
    path = save(tmp_path / "a.nrrd", ct((20, 20, 20)), encoding=encoding)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"truncated|corrupt"):
        read_volume(path)


def test_the_voxel_limit_is_checked_before_the_voxels(tmp_path: Path) -> None:
    write_volume(Volume(ct(), OBLIQUE), tmp_path / "a.nrrd")
    with pytest.raises(InputError, match="limit is 100"):
        read_volume(tmp_path / "a.nrrd", max_voxels=100)


def test_a_detached_header_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nhdr", ct())
    with pytest.raises(InputError, match="detached NRRD header"):
        read_volume(tmp_path / "a.nhdr")


def test_bytes_at_random_never_raise_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_volume(Volume(labels(), OBLIQUE), path, names={"liver": 1, "spleen": 3})
    original = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        data = bytearray(original)
        for at in rng.integers(0, original.index(b"\n\n"), 2):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_volume(path, kind="label")
            read_segments(path)
        except InputError:
            refused += 1
    assert 0 < refused < 150


def test_a_segmentation_keeps_names_and_values(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    names = {"liver": 1, "Lésion: 2": 3, "empty": 7}
    write_volume(Volume(labels(), OBLIQUE), path, names=names)
    assert read_segments(path) == names
    back = read_volume(path, kind="label")
    np.testing.assert_array_equal(back.voxels, labels())
    np.testing.assert_array_equal(back.affine, OBLIQUE)
    header = nrrd.read_header(str(path))
    assert header["Segment0_Extent"] == "1 2 2 3 3 5"
    assert header["Segment1_Extent"] == "0 0 0 0 0 1"
    assert header["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert header["Segment1_LabelValue"] == "3"
    assert sitk.ReadImage(str(path)).GetSize() == (4, 5, 6)


def test_unnamed_labels_are_numbered(tmp_path: Path) -> None:
    write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.seg.nrrd")
    assert read_segments(tmp_path / "a.seg.nrrd") == {"Segment 1": 1, "Segment 3": 3}


def test_plain_files_have_no_segments(tmp_path: Path) -> None:
    for name in ("a.nrrd", "a.nii.gz"):
        write_volume(Volume(labels(), OBLIQUE), tmp_path / name)
        assert read_segments(tmp_path / name) == {}


@pytest.mark.parametrize("names", [{"a": 1, "b": 1}, {"a": 0}, {"a": 256}])
def test_impossible_segment_values_are_refused(tmp_path: Path, names: dict[str, int]) -> None:
    with pytest.raises(InputError, match="segment values"):
        write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.seg.nrrd", names=names)


def layered_file(path: Path, segments: list[tuple[str, int, int]]) -> Path:
    """Two layers: ones in the first half, then twos over the middle; ones over the last slices."""
    voxels = np.zeros((2, 4, 5, 6), np.uint8)
    voxels[0, :2] = 1
    voxels[0, 2] = 2
    voxels[1, :, :, 4:] = 1
    header: dict[str, Any] = dict(LAYERED)
    for n, (name, layer, label) in enumerate(segments):
        header |= {f"Segment{n}_ID": f"Segment_{n}", f"Segment{n}_Name": name}
        header |= {f"Segment{n}_Layer": str(layer), f"Segment{n}_LabelValue": str(label)}
    return save(path, voxels, header)


def test_layers_are_merged_with_later_segments_on_top(tmp_path: Path) -> None:
    path = layered_file(tmp_path / "a.seg.nrrd", [("liver", 0, 1), ("spleen", 0, 2), ("tumour", 1, 1)])
    assert read_segments(path) == {"liver": 1, "spleen": 2, "tumour": 3}
    merged = read_volume(path, kind="label")
    expected = np.zeros((4, 5, 6), np.uint8)
    expected[:2], expected[2] = 1, 2
    expected[:, :, 4:] = 3
    np.testing.assert_array_equal(merged.voxels, expected)
    np.testing.assert_array_equal(merged.affine, LPS_TO_RAS)


def test_labels_that_differ_across_layers_are_kept(tmp_path: Path) -> None:
    path = layered_file(tmp_path / "a.seg.nrrd", [("spleen", 0, 2), ("tumour", 1, 1)])
    assert read_segments(path) == {"spleen": 2, "tumour": 1}
    assert set(np.unique(read_volume(path, kind="label").voxels)) == {0, 1, 2}


def test_segments_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = layered_file(tmp_path / "a.seg.nrrd", [("cyst", 0, 1), ("cyst", 0, 2), ("cyst", 1, 1)])
    assert read_segments(path) == {"cyst": 1, "cyst (2)": 2, "cyst (3)": 3}


def test_old_files_without_layer_fields_have_one_segment_a_layer(tmp_path: Path) -> None:
    voxels = np.zeros((2, 4, 5, 6), np.uint8)
    voxels[0, 0] = 1
    voxels[1, 3] = 1
    names = {"Segment0_ID": "a", "Segment0_Name": "left", "Segment1_ID": "b", "Segment1_Name": "right"}
    path = save(tmp_path / "a.seg.nrrd", voxels, {**LAYERED, **names})
    assert read_segments(path) == {"left": 1, "right": 2}
    assert read_volume(path, kind="label").voxels[:, 0, 0].tolist() == [1, 0, 0, 2]


def test_a_segment_outside_the_layers_is_refused(tmp_path: Path) -> None:
    path = layered_file(tmp_path / "a.seg.nrrd", [("liver", 5, 1)])
    with pytest.raises(InputError, match="outside its layers"):
        read_volume(path, kind="label")


@pytest.mark.parametrize("layers", [b"256", b"999999999", b"0", b"-2"])
def test_more_layers_than_segments_can_be_are_refused(tmp_path: Path, layers: bytes) -> None:
    path = layered_file(tmp_path / "s.seg.nrrd", [("liver", 0, 1), ("spleen", 1, 1)])
    with pytest.raises(InputError, match="layers"):
        read_volume(edit(path, b"sizes: 2 ", b"sizes: " + layers + b" "), kind="label")
