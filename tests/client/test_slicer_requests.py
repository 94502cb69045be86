"""3D Slicer's two modules: their own code against the server, and each request of theirs as it was recorded."""

import http.client
import json
import os
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import numpy as np
import pytest
from plugin import Panel, Reviewer
from recording import FOLDER, POINT, SCENES, SESSION, Recorded, files, play, read, write

from polycl.volume import read_volume

pytestmark = [pytest.mark.client, pytest.mark.slow]

SECONDS = 120


@pytest.fixture(scope="module")
def played(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Recorded]], Panel]:
    """What the modules send to this server, and what the panel shows of the replies."""
    scenes, panel = play(server, tmp_path_factory.mktemp("slicer"))
    if os.environ.get("RECORD"):
        write(scenes)
    return scenes, panel


@pytest.mark.parametrize("scene", SCENES)
def test_the_modules_still_send_what_was_recorded(scene: str, played: tuple[dict[str, list[Recorded]], Panel]) -> None:
    assert [one.asks for one in played[0][scene]] == [one.asks for one in read(scene)], "record them anew"


def test_what_the_panel_shows(played: tuple[dict[str, list[Recorded]], Panel]) -> None:
    """Value v is the v-th of the names, and the names have no gaps; clicks and propagation are 0 and 1."""
    shown = played[1].shown
    assert len(shown) == 15
    for file, labels, _ in shown:
        values = np.unique(read_volume(file, kind="label").voxels)
        assert values.max() == len(labels) > 0
    assert [one.labels for one in shown] == [
        *[["liver"]] * 2,  # the panel runs the first model on what it is given next
        ["liver", "spleen"],  # auto segmentation
        *[["liver"]] * 5,  # 2D, and the two boxes
        *[["spleen"]] * 2,
        ["liver"],  # options
        *[["liver"]] * 2,  # scribbles
        *[["liver", "spleen"]] * 2,  # a session
    ]
    assert [one.slice for one in shown[3:7]] == [POINT[2], POINT[2], 0, 20]


def test_the_panel_gets_its_image_over_http(images: Path, played: tuple[dict[str, list[Recorded]], Panel]) -> None:
    assert played[1].loaded is not None
    got, served = read_volume(played[1].loaded), read_volume(images / "axial.nii.gz")
    assert got.same_grid(served)
    np.testing.assert_array_equal(got.voxels, served.voxels)


def send(server: str, request: Recorded, session: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlparse(server).netloc, timeout=SECONDS)
    headers = {"content-type": request.content_type} if request.content_type else {}
    connection.request(request.method, request.path.replace(SESSION, session), request.body, headers)
    return connection.getresponse()


@pytest.fixture(scope="module")
def session(server: str) -> str:
    """A session of the server's for the image that was recorded."""
    opening = next(one for one in read("session") if (one.method, one.path) == ("PUT", "/session/"))
    return str(json.load(send(server, opening, ""))["session_id"])


EXPECTED = {"GET /train/?check_if_running=true": (200, 404), "GET /auth/": (200, 404)}
"""Both mean no: no training runs, nobody has to sign in."""


@pytest.mark.parametrize("scene", list(SCENES))
def test_each_recorded_request_is_answered(server: str, session: str, scene: str) -> None:
    for request in read(scene):
        answer = send(server, request, session)
        content = answer.read()
        allowed = EXPECTED.get(f"{request.method} {request.path}", (200,))
        assert answer.status in allowed, (request.method, request.path, answer.status, content[:500])
        if request.path.startswith("/infer/"):
            assert answer.headers["content-type"].startswith("multipart/form-data"), "a map and what is told of it"


def test_the_reviewer_finds_its_judgement_again(server: str, slicer: ModuleType, tmp_path: Path) -> None:
    saved, name = files(tmp_path), "To review"
    annotator = slicer.MONAILabelClient(server, str(tmp_path), "ann")
    annotator.upload_image(str(saved["own.nii.gz"]), name)
    info = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    assert not Reviewer(server).images()[name].isSegemented()
    annotator.save_label(name, str(saved["label.nii.gz"]), params=info)
    module = Reviewer(server)
    image = module.images()[name]
    assert (image.isSegemented(), image.getClientId(), image.getStatus()) == (True, "ann", "")
    assert image.getTimeOfAnnotation() > "20"
    module.judge(image, "final", "flagged", "hard", "dr", "the tail is missing")
    again = module.images()[name]
    assert again.isFlagged()
    assert (again.getLevel(), again.getApprovedBy(), again.getComment()) == ("hard", "dr", "the tail is missing")
    version = module.save(again, saved["edited.nrrd"], "dr")
    module.judge(again, version, "approved", "easy", "dr", "mended")
    image = module.images()[name]
    assert image.getVersionNames() == ["final", "version_1"]
    assert image.isApprovedVersion("version_1")
    assert image.getApprovedVersionTagElseReturnLatestVersion() == "version_1"
    assert image.getLabelContent()["label_info"] == info["label_info"]
    for tag, file in (("version_1", "edited.nrrd"), ("final", "label.nii.gz")):
        (tmp_path / image.getSegmentationFileName()).write_bytes(
            module.controller.reuqestSegmentation(name, tag).content
        )
        stored = read_volume(tmp_path / image.getSegmentationFileName(), kind="label")
        sent = read_volume(saved[file], kind="label")
        np.testing.assert_array_equal(stored.canonical().voxels, sent.canonical().voxels)
    annotator.save_label(name, str(saved["edited.nrrd"]), params=info)
    assert module.images()[name].getStatus() == "", "what was changed is to be reviewed again"
    assert module.controller.deleteLabelByVersionTag(name, "version_1")
    assert module.images()[name].getVersionNames() == ["final"]
    module.controller.updateLabelInfo(name, "version_1", {"segmentationMeta": {"status": "approved"}})
    assert not module.images()[name].isApproved()


def test_nothing_recorded_names_this_machine() -> None:
    for file in FOLDER.iterdir():
        assert "/tmp" not in file.read_text()
