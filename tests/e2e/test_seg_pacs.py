"""Labels over a real PACS: submitted as Slicer does, in Orthanc as DICOM SEG, and back; also while it is down."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gdcm
import highdicom
import httpx
import numpy as np
import pydicom
import pytest
import requests
import throwaway_pacs
from monailabel.config import settings as server_settings
from playwright.sync_api import BrowserContext
from processes import Pacs, Server, environment, free_port, running
from viewer import SLOW_MS, opened

from polycl.monailabel.pacs import PacsStore
from polycl.phantom import make_phantom, write_dicom_series
from polycl.server.problems import to_http
from polycl.volume import Volume, list_series, read_series, read_volume, write_volume

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = {"liver": 1, "spleen": 2, "gallbladder": 10}


class Restartable:
    """An Orthanc that can be taken down and up again with what it holds."""

    def __init__(self, folder: Path) -> None:
        found = throwaway_pacs.installed()
        if found is None:
            pytest.skip(throwaway_pacs.MISSING)
        self.folder, self.port, self.program = folder, free_port(), found[0]
        configuration = throwaway_pacs.configuration(folder, self.port, found[1])
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self.pacs = Pacs(f"http://127.0.0.1:{self.port}")
        self._running = contextlib.ExitStack()

    def up(self) -> None:
        command = [self.program, "orthanc.json"]
        self._running.enter_context(running(command, self.folder, dict(os.environ), f"{self.pacs.dicomweb}/studies"))

    def down(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restartable]:
    started = Restartable(tmp_path_factory.mktemp("seg_orthanc"))
    started.up()
    yield started
    started.down()


@pytest.fixture(scope="module")
def server(orthanc: Restartable, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("seg_server"), free_port()
    command = [sys.executable, "-m", "polycl.cli", "serve", "--port", str(port), "--studies", orthanc.pacs.dicomweb]
    variables = environment(folder, tiny_checkpoint) | {"PYTHONPATH": ""}
    started = Server(f"http://127.0.0.1:{port}", folder / "outside.txt")
    with running(command, folder, variables, f"{started.address}/info/"):
        yield started


def patient(pacs: Pacs, folder: Path, seed: int, *, decreasing: bool = False) -> tuple[str, Volume]:
    """A phantom in the PACS: UID and truth of three organs, in DICOM's order."""
    phantom = make_phantom(seed, shape=(64, 52, 12), spacing=(6.0, 6.0, 20.0))
    for file in write_dicom_series(phantom.image, folder, seed=seed, decreasing=decreasing):
        pacs.store(file)
    truth = np.where(np.isin(phantom.labels.voxels, list(NAMES.values())), phantom.labels.voxels, 0).astype(np.uint8)
    return list_series(folder)[0].uid, phantom.labels.with_voxels(truth)


def submit(server: Server, uid: str, label: Volume, folder: Path) -> dict[str, Any]:
    """As Slicer submits: a labelmap whose v-th value is the v-th name."""
    sent = np.zeros(label.shape, np.uint8)
    for position, value in enumerate(NAMES.values(), start=1):
        sent[label.voxels == value] = position
    write_volume(label.with_voxels(sent), folder / "sent.nii.gz")
    files = {"label": ("label.nii.gz", (folder / "sent.nii.gz").read_bytes())}
    params = json.dumps({"label_info": [{"name": name} for name in NAMES], "client_id": "user-xyz"})
    url = f"{server.address}/datastore/label"
    answer = httpx.put(url, params={"image": uid}, files=files, data={"params": params}, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def segs(pacs: Pacs, uid: str) -> list[bytes]:
    """What the PACS has of DICOM SEG on a series."""
    found = []
    for instance in httpx.get(f"{pacs.root}/instances?expand").json():
        file = httpx.get(f"{pacs.root}/instances/{instance['ID']}/file").content
        header = pydicom.dcmread(pydicom.filebase.DicomBytesIO(file), stop_before_pixels=True)
        if header.Modality == "SEG" and uid in [item.SeriesInstanceUID for item in header.ReferencedSeriesSequence]:
            found.append(file)
    return found


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < until, "it never came about"
        time.sleep(0.5)
    return result


@pytest.mark.parametrize("decreasing", [False, True])
def test_a_label_is_in_the_pacs_and_comes_back(
    orthanc: Restartable, server: Server, tmp_path: Path, decreasing: bool
) -> None:
    uid, label = patient(orthanc.pacs, tmp_path / "ct", 60 + decreasing, decreasing=decreasing)
    before = httpx.get(f"{server.address}/info/").json()["datastore"]["completed"]
    reply = submit(server, uid, label, tmp_path)
    assert not [note for note in reply["notes"] if "PACS" in note]
    assert httpx.get(f"{server.address}/info/").json()["datastore"]["completed"] == before + 1
    (file,) = segs(orthanc.pacs, uid)
    (tmp_path / "seg.dcm").write_bytes(file)
    # By highdicom, slice by slice, by the instances that it says they lie on.
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    names = [item.SegmentLabel for item in seg.SegmentSequence]
    assert set(names) == {name for name, value in NAMES.items() if (label.voxels == value).any()}
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    uids = [image.SOPInstanceUID for image in images]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    truth = label.canonical()
    lowest_first = np.argsort([float(image.ImagePositionPatient[2]) for image in images])
    for number, name in enumerate(names):
        lps = pixels[lowest_first][..., number].astype(bool).T[::-1, ::-1]  # columns run to the left, rows to the back
        np.testing.assert_array_equal(lps, truth.voxels == NAMES[name])
    # And by the server, as a segmentation of the PACS.
    series = httpx.get(f"{server.address}/datastore/label/info?label={uid}&tag=final").json()["SeriesInstanceUID"]
    back = httpx.get(f"{server.address}/datastore/label?label={uid}&tag={series}", timeout=60)
    (tmp_path / "back.seg.nrrd").write_bytes(back.content)
    image = read_series(tmp_path / "ct")
    returned = read_volume(tmp_path / "back.seg.nrrd", kind="label")
    assert returned.same_grid(image)
    stored = reply["labels"]
    for name in names:
        np.testing.assert_array_equal(returned.canonical().voxels == stored[name], truth.voxels == NAMES[name])
    # OHIF finds it in the study.
    study = images[0].StudyInstanceUID
    listed = httpx.get(f"{server.address}/proxy/dicom/qido/studies/{study}/series?includefield=Modality").json()
    assert sorted(row["00080060"]["Value"][0] for row in listed) == ["CT", "SEG"]
    if (program := shutil.which("dciodvfy")) is not None:
        said = subprocess.run([program, "-new", tmp_path / "seg.dcm"], capture_output=True, text=True, check=False)
        assert "Error" not in said.stderr, said.stderr


def test_a_pacs_that_is_down_gets_the_label_later(orthanc: Restartable, server: Server, tmp_path: Path) -> None:
    uid, label = patient(orthanc.pacs, tmp_path / "ct", 70)
    assert httpx.get(f"{server.address}/datastore/image?image={uid}", timeout=60).status_code == 200
    orthanc.down()
    try:
        notes = submit(server, uid, label, tmp_path)["notes"]
        (note,) = [note for note in notes if "PACS" in note]
        assert "kept here" in note
        assert httpx.get(f"{server.address}/info/", timeout=60).status_code == 200
        assert httpx.get(f"{server.address}/datastore/label?label={uid}&tag=final").status_code == 200
        refusal = httpx.get(f"{server.address}/proxy/dicom/qido/studies", timeout=60)
        assert (refusal.status_code, refusal.json()["detail"]) == (502, "the PACS cannot be reached")
    finally:
        orthanc.up()
    eventually(lambda: segs(orthanc.pacs, uid))
    assert len(segs(orthanc.pacs, uid)) == 1


def test_a_pacs_that_goes_down_while_somebody_reads(
    orthanc: Restartable, server: Server, windows: BrowserContext, tmp_path: Path
) -> None:
    """What was opened can be worked on and saved; the list says what is wrong, and is there again afterwards."""
    uid, _ = patient(orthanc.pacs, tmp_path / "ct", 71)
    with opened(windows, server.address) as viewer:
        viewer.open_study("PHANTOM, SEED71")
        viewer.connect()
        viewer.choose("Segmentation", "tiny")
        assert viewer.run("Segmentation").status == 200
        orthanc.down()
        try:
            assert viewer.run("Segmentation").status == 200
            said = viewer.press("save")
            assert said.startswith("Saved liver, spleen as version 1.")
            assert "which does not have it yet: the PACS cannot be reached" in said
            viewer.page.goto(f"{server.address}/ohif/")
            viewer.page.get_by_text("Data Source Connection Error").wait_for(timeout=SLOW_MS)
        finally:
            orthanc.up()
        eventually(lambda: segs(orthanc.pacs, uid))
        viewer.page.reload()
        viewer.page.get_by_text("PHANTOM, SEED71").first.wait_for(timeout=SLOW_MS)
        assert not viewer.page.get_by_text("Upload").is_visible()  # which the server would refuse


def test_a_series_that_is_removed_midway(orthanc: Restartable, server: Server, tmp_path: Path) -> None:
    """What was opened before goes on, and its label comes to the PACS; what was not is not there any more."""
    opened_one, label = patient(orthanc.pacs, tmp_path / "ct", 72)
    other, _ = patient(orthanc.pacs, tmp_path / "other", 73)
    assert httpx.get(f"{server.address}/datastore/image?image={opened_one}", timeout=60).status_code == 200
    for series in httpx.get(f"{orthanc.pacs.root}/series?expand").json():
        if series["MainDicomTags"]["SeriesInstanceUID"] in (opened_one, other):
            httpx.delete(f"{orthanc.pacs.root}/series/{series['ID']}").raise_for_status()
    assert httpx.post(f"{server.address}/infer/tiny?image={opened_one}", timeout=60).status_code == 200
    refusal = httpx.post(f"{server.address}/infer/tiny?image={other}", timeout=60)
    assert (refusal.status_code, refusal.json()["detail"]) == (404, f"no series {other} in this PACS")
    assert not [note for note in submit(server, opened_one, label, tmp_path)["notes"] if "PACS" in note]
    assert len(segs(orthanc.pacs, opened_one)) == 1


def test_a_segmentation_of_another_study(orthanc: Restartable, server: Server, tmp_path: Path) -> None:
    owners = [patient(orthanc.pacs, tmp_path / str(seed), seed) for seed in (74, 75)]
    submit(server, *owners[0], tmp_path)
    seg = pydicom.dcmread(pydicom.filebase.DicomBytesIO(segs(orthanc.pacs, owners[0][0])[0])).SeriesInstanceUID
    for uid, status in ((owners[0][0], 200), (owners[1][0], 404)):
        answer = httpx.get(f"{server.address}/datastore/label?label={uid}&tag={seg}", timeout=60)
        assert answer.status_code == status
    assert seg in answer.json()["detail"]
    final = {"info": json.dumps({"final": True})}
    made = httpx.put(f"{server.address}/datastore/label/info?label={owners[1][0]}&tag={seg}", data=final, timeout=60)
    assert made.status_code == 404


def test_filters_reach_the_pacs(orthanc: Restartable, server: Server, tmp_path: Path) -> None:
    for seed in (80, 81):
        patient(orthanc.pacs, tmp_path / str(seed), seed)

    def ids(query: str) -> list[str]:
        rows = httpx.get(f"{server.address}/proxy/dicom/qido/studies?{query}").json()
        return [row["00100020"]["Value"][0] for row in rows]

    assert ids("PatientID=PHANTOM80") == ["PHANTOM80"]
    assert ids("00100010=*SEED81*&limit=5") == ["PHANTOM81"]
    assert len(ids("limit=1&offset=1")) == 1


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless", "RLELossless"])
def test_a_compressed_series(orthanc: Restartable, server: Server, tmp_path: Path, syntax: str) -> None:
    seed = 90 + len(syntax)
    image = make_phantom(seed, shape=(48, 40, 6), spacing=(8.0, 8.0, 30.0)).image
    for file in write_dicom_series(image, tmp_path / "ct", seed=seed):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        orthanc.pacs.store(file)
    uid = list_series(tmp_path / "ct")[0].uid
    answer = httpx.get(f"{server.address}/datastore/image?image={uid}", timeout=60)
    assert answer.status_code == 200, answer.text
    (tmp_path / "image.nii.gz").write_bytes(answer.content)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "image.nii.gz").canonical().voxels, image.canonical().voxels.clip(-1024)
    )


def test_a_pacs_that_asks_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in compose.yaml: with the account the store works, without it says what is wrong."""
    guarded = Restartable(tmp_path)
    settings = json.loads((tmp_path / "orthanc.json").read_text())
    settings |= {"AuthenticationEnabled": True, "RegisteredUsers": {"polycl": "secret"}}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    child = subprocess.Popen(
        [guarded.program, "orthanc.json"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: answered(f"{guarded.pacs.dicomweb}/studies") == 401)
        monkeypatch.setattr(server_settings, "MONAI_LABEL_DICOMWEB_USERNAME", "polycl")
        monkeypatch.setattr(server_settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "secret")
        assert PacsStore(guarded.pacs.dicomweb, tmp_path / "right").list_images() == []
        monkeypatch.setattr(server_settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "wrong")
        with pytest.raises(requests.HTTPError) as raised:
            PacsStore(guarded.pacs.dicomweb, tmp_path / "wrong").list_images()
        answer = to_http(raised.value)
        assert answer.status_code == 502
        assert "account" in answer.detail
    finally:
        child.terminate()
        child.wait()


def answered(address: str) -> int:
    try:
        return httpx.get(address).status_code
    except httpx.TransportError:
        return 0
