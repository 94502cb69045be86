"""One patient in many files and slice orders: every path gives the organ where it lies in the patient.

The patient is a formula in world coordinates (RAS+, mm), without any symmetry. Results are read by libraries that are
not ours, and each voxel is judged by the formula at its place, so that no orientation of ours is judged by itself.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import torch
from fake_pacs import FakePacs, fake_pacs
from numpy.typing import NDArray
from starlette.testclient import TestClient
from tiny_images import rotation
from typer.testing import CliRunner

from polycl.cli import app as command_line
from polycl.monailabel import outbox
from polycl.phantom import write_dicom_series
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume

pytestmark = [pytest.mark.app, pytest.mark.timeout(120), pytest.mark.usefixtures("sam", "sam2", "bright_is_liver")]

Array = NDArray[Any]
SHAPE, SPACING = (30, 26, 20), (4.0, 4.0, 5.0)
INSIDE = (-22.0, -14.0, 10.0)
"""A place in the organ, in mm."""
LEAST, MOST_TURNED = 0.85, 0.6
"""Dice of a right mask, and of a wrong one at best."""
FLIPS = [flips for count in (1, 2, 3) for flips in combinations(range(3), count)]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def organ(world: Array) -> Array:
    """Whether places [..., 3] lie in the organ: a beam, and on its left end, in its upper part only, an arm."""
    x, y, z = np.moveaxis(world, -1, 0)
    beam = (abs(x + 10) < 24) & (abs(y + 16) < 9) & (z > -42) & (z < 22)
    arm = (abs(x + 25) < 9) & (y > -12) & (y < 34) & (z > -2) & (z < 22)
    return np.asarray(beam | arm)


def places(shape: tuple[int, ...], affine: Array) -> Array:
    """World coordinates [I, J, K, 3] of voxels."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.asarray(grid @ affine[:3, :3].T + affine[:3, 3])


def grid(order: tuple[int, int, int], signs: tuple[int, int, int], turn: Array | None = None) -> Array:
    """An affine around the origin: voxel axis a runs along world axis `order[a]` in the direction `signs[a]`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (along, sign) in enumerate(zip(order, signs, strict=True)):
        affine[along, axis] = sign * SPACING[along]
    affine = (np.eye(4) if turn is None else turn) @ affine
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(sizes(order)) - 1) / 2)
    return affine


def sizes(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(SHAPE[along] for along in order)


TILTED = rotation(20, 0) @ rotation(12, 2)
GRIDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], Array | None]] = {
    "ras": ((0, 1, 2), (1, 1, 1), None),
    "lps": ((0, 1, 2), (-1, -1, 1), None),
    "las_down": ((0, 1, 2), (-1, 1, -1), None),
    "coronal": ((0, 2, 1), (-1, -1, 1), None),
    "sagittal": ((1, 2, 0), (1, -1, -1), None),
    "turned": ((2, 0, 1), (1, 1, -1), None),
    "oblique": ((0, 1, 2), (-1, -1, 1), TILTED),
    "oblique_sagittal": ((1, 2, 0), (-1, 1, 1), TILTED),
}
SERIES = {"increasing": ("lps", False), "decreasing": ("lps", True), "downwards": ("las_down", False)}
SERIES["oblique"] = ("oblique", True)


def patient(name: str) -> tuple[Array, Array]:
    """HU on one of the grids, and its affine. What is not the organ is fat in air."""
    order, signs, turn = GRIDS[name]
    affine = grid(order, signs, turn)
    world = places(sizes(order), affine)
    body = (world[..., 0] / 58) ** 2 + (world[..., 1] / 50) ** 2 < 1
    return np.where(organ(world), 100, np.where(body, -100, -1000)).astype(np.int16), affine


@dataclass
class Site:
    """A store, the files that its images are of, and of those in a PACS how many voxels the organ has."""

    studies: str
    files: dict[str, Path]
    pacs: FakePacs | None = None
    whole: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module", params=["folder", "pacs"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("patients")
    if request.param == "folder":
        files = {}
        for name in GRIDS:
            voxels, affine = patient(name)
            files[name] = folder / f"{name}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, affine), files[name])
            if name in ("lps", "oblique_sagittal"):
                files[f"{name}_nrrd"] = folder / f"{name}_nrrd.nrrd"
                lps = LPS_TO_RAS @ affine
                header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T}
                nrrd.write(str(files[f"{name}_nrrd"]), voxels, header | {"space origin": lps[:3, 3]})
        yield Site(str(folder), files)
        return
    with fake_pacs() as server:
        here = Site(server.address, {}, server)
        for seed, (name, decreasing) in enumerate(SERIES.values()):
            volume = Volume(*patient(name))
            uid = server.have(write_dicom_series(volume, folder / str(seed), seed=seed, decreasing=decreasing))
            here.files[uid] = folder / str(seed)
            here.whole[uid] = int(organ(places(volume.shape, volume.affine)).sum())
        yield here


@pytest.fixture(scope="module")
def studies(site: Site) -> str:
    return site.studies


@pytest.fixture(scope="module")
def bright_is_liver() -> Iterator[None]:
    """The network's logits are those of a threshold: what is brighter than half of the window is liver."""

    def logits(self: Segmenter, slices: torch.Tensor) -> torch.Tensor:
        bright = 40 * (slices - 0.5)
        others = [torch.full_like(bright, -99)] * (self.header.network.classes - 2)
        return torch.cat([-bright, bright, *others], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "logits", logits)
        patch.setattr(outbox, "FIRST_PAUSE", 0.2)
        yield


def read(path: Path) -> tuple[Array, Array]:
    """Voxels and affine (RAS+) of a file, by nibabel or pynrrd."""
    if path.name.endswith(".nrrd"):
        voxels, header = nrrd.read(str(path))
        assert header["space"] == "left-posterior-superior"
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = np.array(header["space directions"]).T, header["space origin"]
        return voxels, LPS_TO_RAS @ affine
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def dice(one: Array, other: Array) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def is_the_organ(mask: Array, affine: Array, where: Array | None = None) -> None:
    """The mask is the organ at its place in the world, and no flip of the mask is."""
    truth = organ(places(mask.shape, affine))
    if where is not None:
        assert not mask[~where].any()
        truth &= where
    assert dice(mask > 0, truth) > LEAST
    for flips in FLIPS:
        turned = np.flip(mask > 0, flips)
        assert dice(turned, truth) < MOST_TURNED or (where is not None and not turned.any())


@pytest.mark.parametrize("name", GRIDS)
def test_a_flip_would_be_noticed(name: str) -> None:
    voxels, affine = patient(name)
    is_the_organ(voxels > 0, affine)
    for flips in FLIPS:
        with pytest.raises(AssertionError):
            is_the_organ(np.flip(voxels > 0, flips), affine)
    mirrored = affine.copy()
    mirrored[0] *= -1
    with pytest.raises(AssertionError):
        is_the_organ(voxels > 0, mirrored)


def parts(response: Any, folder: Path, extension: str) -> tuple[Array, Array]:
    """The map of a reply with `output=image`."""
    assert response.status_code == 200, response.text
    (folder / f"reply{extension}").write_bytes(response.content)
    return read(folder / f"reply{extension}")


def ask(client: TestClient, model: str, folder: Path, query: dict[str, str], **params: Any) -> tuple[Array, Array]:
    sent = {"result_extension": ".nrrd", "result_dtype": "uint8"} | params
    body = {"params": json.dumps(sent)}
    answer = client.post(f"/infer/{model}", params={**query, "output": "image"}, data=body)
    return parts(answer, folder, str(sent["result_extension"]))


def shown(client: TestClient, image: str, folder: Path) -> tuple[Array, Array]:
    """The image as a viewer is given it."""
    answer = client.get("/datastore/image", params={"image": image})
    assert answer.status_code == 200, answer.text
    extension = ".nrrd" if image.endswith("_nrrd") else ".nii.gz"
    (folder / f"image{extension}").write_bytes(answer.content)
    return read(folder / f"image{extension}")


def voxel(affine: Array) -> list[int]:
    """The voxel that the place inside the organ lies in."""
    return [round(float(index)) for index in (np.linalg.inv(affine) @ [*INSIDE, 1])[:3]]


def test_on_the_command_line(site: Site, settings: Settings, tmp_path: Path) -> None:
    environment = {"POLYCL_STATE": str(settings.state), "POLYCL_WEIGHTS": str(settings.weights)}
    for image in site.files.values():
        for name in ("out.nii.gz", "out.nrrd"):
            done = ["segment", str(image), "-o", str(tmp_path / name), "--model", "tiny", "--precision", "fp32"]
            result = CliRunner().invoke(command_line, done, env=environment, catch_exceptions=False)
            assert result.exit_code == 0, result.output
            is_the_organ(*read(tmp_path / name))


def test_a_stored_image(client: TestClient, site: Site, tmp_path: Path) -> None:
    for image in site.files:
        voxels, affine = shown(client, image, tmp_path)
        is_the_organ(voxels > 0, affine)
        for extension in (".nrrd", ".nii.gz"):
            mask, where = ask(client, "tiny", tmp_path, {"image": image}, result_extension=extension)
            assert mask.shape == voxels.shape, "a viewer lays it over the image voxel by voxel"
            np.testing.assert_allclose(where, affine, atol=1e-3)
            is_the_organ(mask, where)


def test_an_image_sent_in_a_session(client: TestClient, site: Site, tmp_path: Path) -> None:
    for file in site.files.values():
        if file.is_file():
            session = client.put("/session/", files={"files": (file.name, file.read_bytes())}).json()["session_id"]
            is_the_organ(*ask(client, "tiny", tmp_path, {"image": "", "session_id": session}))


def test_a_click(client: TestClient, site: Site, tmp_path: Path) -> None:
    for image in site.files:
        voxels, affine = shown(client, image, tmp_path)
        point = voxel(affine)
        mask, where = ask(client, "polycl-click", tmp_path, {"image": image}, foreground=[point], background=[])
        upwards = int(np.argmax(np.abs(affine[2, :3])))
        slice_of_it = np.zeros(voxels.shape, bool)
        np.moveaxis(slice_of_it, upwards, 0)[point[upwards]] = True
        is_the_organ(mask, where, slice_of_it)


def test_propagation_from_a_click(client: TestClient, site: Site, tmp_path: Path) -> None:
    for image in site.files:
        point = voxel(shown(client, image, tmp_path)[1])
        is_the_organ(*ask(client, "polycl-propagate", tmp_path, {"image": image}, foreground=[point], background=[]))


def save(client: TestClient, image: str, label: nibabel.Nifti1Image, folder: Path) -> Any:
    nibabel.save(label, folder / "label.nii.gz")
    params = {"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})}
    files = {"label": ("label.nii.gz", (folder / "label.nii.gz").read_bytes())}
    return client.put("/datastore/label", params={"image": image}, data=params, files=files)


def test_a_label_saved_and_read_back(client: TestClient, site: Site, tmp_path: Path) -> None:
    for image in site.files:
        voxels, affine = shown(client, image, tmp_path)
        straight = nibabel.Nifti1Image(organ(places(voxels.shape, affine)).astype(np.uint8), affine)
        for label in (straight, straight.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))):
            assert save(client, image, label, tmp_path).status_code == 200
            answer = client.get("/datastore/label", params={"label": image, "tag": "final"})
            disposition = answer.headers["content-disposition"]
            is_the_organ(*parts(answer, tmp_path, ".nrrd" if ".nrrd" in disposition else ".nii.gz"))


def is_the_organ_in(seg: pydicom.Dataset, whole: int) -> None:
    """The pixels of a DICOM SEG, each at the place that its frame says, are the organ, which has `whole` voxels."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    frames = np.atleast_3d(seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)) > 0
    row, column = np.split(np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float), 2)
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    rows, columns = np.meshgrid(range(seg.Rows), range(seg.Columns), indexing="ij")
    right = found = 0
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        world = origin + columns[..., None] * across * row + rows[..., None] * down * column
        right += int((frame & organ(world @ LPS_TO_RAS[:3, :3])).sum())
        found += int(frame.sum())
    assert right / found > LEAST
    assert right / whole > LEAST


def test_dicom_seg(client: TestClient, site: Site, tmp_path: Path) -> None:
    if site.pacs is None:
        pytest.skip("a folder has no series to refer to")
    for image, whole in site.whole.items():
        answer = client.post("/infer/tiny", params={"image": image, "output": "dicom_seg"})
        (tmp_path / "seg.dcm").write_bytes(answer.content)
        is_the_organ_in(pydicom.dcmread(tmp_path / "seg.dcm"), whole)
        voxels, affine = shown(client, image, tmp_path)
        label = nibabel.Nifti1Image(organ(places(voxels.shape, affine)).astype(np.uint8), affine)
        assert save(client, image, label, tmp_path).status_code == 200
    until = time.monotonic() + 20
    while {source_of(seg) for seg in site.pacs.stored} != set(site.whole):
        assert time.monotonic() < until, "the labels that were saved have not come to the PACS"
        time.sleep(0.05)
    for seg in site.pacs.stored:
        is_the_organ_in(seg, site.whole[source_of(seg)])


def source_of(seg: pydicom.Dataset) -> str:
    return str(seg.ReferencedSeriesSequence[0].SeriesInstanceUID)
