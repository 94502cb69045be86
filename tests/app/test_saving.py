"""Labels saved over HTTP: names, grids, what is known of them, versions, two at once, and a full disk."""

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_images import AFFINES, SHAPE, ct
from tiny_labels import LIVER_SPLEEN, painted, stored

from polycl.labels.library import Library, final_labels
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.app


def save(
    client: TestClient,
    label: Volume | np.ndarray,
    folder: Path,
    image: str = "lps",
    *,
    name: str = "label.nii.gz",
    tag: str | None = None,
    **params: Any,
) -> Any:
    volume = label if isinstance(label, Volume) else Volume(label, AFFINES[image])
    write_volume(volume, folder / name, names=params.pop("names", None))
    params = {"label_info": LIVER_SPLEEN, "client_id": "user-xyz"} | params
    return client.put(
        "/datastore/label",
        params={"image": image} | ({"tag": tag} if tag else {}),
        data={"params": json.dumps(params)},
        files={"label": (name, (folder / name).read_bytes())},
    )


def reason(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert "\n" not in detail
    assert "/tmp" not in detail
    return detail


def test_as_slicer_saves(client: TestClient, studies: Path, tmp_path: Path) -> None:
    names = [{"name": "spleen", "idx": 4}, {"name": "cyst", "idx": 7}, {"name": "liver", "idx": 9}]
    label = painted(1, 2) + painted(4, value=2)
    answer = save(client, label, tmp_path, name="tmp123.nrrd", label_info=names)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["image"], told["label"]) == ("lps", "lps")
    assert told["labels"] == {"spleen": 2, "cyst": 3, "liver": 1}
    assert told["unknown"] == ["cyst"]
    assert told["known"] == {"spleen": [[1, 3]], "cyst": [[4, 5]]}
    assert any("cyst" in note for note in told["notes"])
    assert np.array_equal(stored(studies), painted(1, 2, value=2) + painted(4, value=3))
    info = client.get("/datastore/label/info?label=lps&tag=final").json()
    assert [entry["name"] for entry in info["label_info"]] == ["liver", "spleen", "cyst"]
    assert info["name"] == "lps.nrrd"
    assert info["record"]["annotator"] == "user-xyz"
    assert info["record"]["version"] == told["version"]
    back = client.get("/datastore/label?label=lps&tag=final")
    assert back.content == (studies / "labels" / "final" / "lps.nrrd").read_bytes()
    assert client.get("/datastore/?output=train").json()[0]["label"].endswith("lps.nrrd")


@pytest.mark.parametrize("image", ["ras", "swapped", "oblique"])
def test_a_cropped_segmentation_becomes_whole(client: TestClient, studies: Path, tmp_path: Path, image: str) -> None:
    whole = np.zeros(SHAPE, np.uint8)
    whole[5:13, 2:11, 1:4] = np.random.default_rng(1).integers(0, 3, (8, 9, 3))
    whole[5, 2, 1] = whole[12, 10, 3] = 2
    shift = np.eye(4)
    shift[:3, 3] = (5, 2, 1)
    box = Volume(whole[5:13, 2:11, 1:4], AFFINES[image] @ shift).canonical()
    params = {"names": {"Gallbladder": 1, "liver": 2}, "label_info": LIVER_SPLEEN}
    answer = save(client, box, tmp_path, image, name="tmp.seg.nrrd", **params)
    assert answer.json()["labels"] == {"Gallbladder": 3, "liver": 1}
    expected = np.zeros(SHAPE, np.uint8)
    expected[whole == 1], expected[whole == 2] = 3, 1
    assert np.array_equal(stored(studies, image), expected)


def test_layers_of_a_segmentation_are_merged_and_what_was_sent_is_kept(
    client: TestClient, studies: Path, tmp_path: Path
) -> None:
    import nrrd

    layers = np.stack([painted(1, 2, 3), painted(2)])
    affine = AFFINES["lps"]
    directions = np.vstack([[np.nan] * 3, (np.diag([-1, -1, 1]) @ affine[:3, :3]).T])
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": directions,
        "space origin": np.array([-1, -1, 1]) * affine[:3, 3],
        "Segment0_ID": "S1",
        "Segment0_Name": "liver",
        "Segment0_Layer": "0",
        "Segment0_LabelValue": "1",
        "Segment1_ID": "S2",
        "Segment1_Name": "tumour",
        "Segment1_Layer": "1",
        "Segment1_LabelValue": "1",
    }
    nrrd.write(str(tmp_path / "l.seg.nrrd"), layers, header, custom_field_map={k: "string" for k in header if "_" in k})
    data = (tmp_path / "l.seg.nrrd").read_bytes()
    query, files = {"image": "lps", "tag": "layers"}, {"label": ("l.seg.nrrd", data)}
    answer = client.put("/datastore/label", params=query, files=files)
    assert answer.json()["labels"] == {"liver": 1, "tumour": 3}
    expected = painted(1, 2, 3)
    expected[painted(2) > 0] = 3
    assert np.array_equal(stored(studies, "lps", "layers"), expected)
    (sent,) = (studies / "label_versions" / "layers" / "lps").glob("*/sent.seg.nrrd")
    assert sent.read_bytes() == data


def test_a_label_made_from_a_reply_is_known_everywhere(client: TestClient, studies: Path, tmp_path: Path) -> None:
    image = "oblique"
    file = client.post(f"/infer/tiny?image={image}&output=image", data={"params": '{"result_extension": ".nrrd"}'})
    (tmp_path / "reply.nrrd").write_bytes(file.content)
    label = read_volume(tmp_path / "reply.nrrd", kind="label")
    told = save(client, label, tmp_path, image).json()
    assert told["known"] == {"liver": "all", "spleen": "all"}
    record = client.get(f"/datastore/label/info?label={image}&tag=final").json()["record"]
    assert record["model"]["name"] == "tiny"
    assert len(record["model"]["sha256"]) == 64
    assert 0 <= record["seconds"] < 600
    one = np.where(np.arange(SHAPE[2]) == 3, label.voxels, 0).astype(np.uint8)
    known = save(client, one, tmp_path, image).json()["known"]
    assert known.get("liver") == [[3, 4]]


def test_how_long_it_took_since_it_was_handed_out(client: TestClient, tmp_path: Path) -> None:
    sample = client.post("/activelearning/first", json={"client_id": "ann"}).json()["id"]
    image = Volume(painted(1), AFFINES.get(sample, AFFINES["lps"]))
    if sample in AFFINES:
        assert save(client, image, tmp_path, sample, client_id="ann").status_code == 200
        record = client.get(f"/datastore/label/info?label={sample}&tag=final").json()["record"]
        assert 0 <= record["seconds"] < 600
        assert record["annotator"] == "ann"


def test_an_empty_label(client: TestClient, studies: Path, tmp_path: Path) -> None:
    save(client, painted(1), tmp_path, "las_down")
    before = stored(studies, "las_down")
    assert "complete" in reason(save(client, painted(), tmp_path, "las_down"), 422)
    assert np.array_equal(stored(studies, "las_down"), before)
    told = save(client, painted(), tmp_path, "las_down", complete=["liver"]).json()
    assert told["known"] == {"liver": "all"}
    marked = [*LIVER_SPLEEN, {"name": "complete"}]
    assert save(client, painted(), tmp_path, "las_down", label_info=marked).json()["known"] == {
        "liver": "all",
        "spleen": "all",
    }


def test_marked_complete_afterwards(client: TestClient, tmp_path: Path) -> None:
    save(client, painted(1), tmp_path, tag="marked")

    def mark(value: Any) -> Any:
        query = {"label": "lps", "tag": "marked"}
        return client.put("/datastore/label/info", params=query, data={"info": json.dumps({"complete": value})})

    def known() -> Any:
        return client.get("/datastore/label/info?label=lps&tag=marked").json()["record"]["known"]

    assert mark(["liver"]).status_code == 200
    assert known() == {"liver": "all"}
    assert mark(True).status_code == 200
    assert known() == {"liver": "all", "spleen": "all"}
    assert mark(False).status_code == 200
    assert known() == {"liver": [[1, 2]]}
    assert "aorta" in reason(mark(["aorta"]), 404)
    reason(mark("yes"), 422)


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"label_info": ["liver"]}, "label_info"),
        ({"label_info": 5}, "label_info"),
        ({"complete": "yes"}, "complete"),
        ({"seconds": "long"}, "seconds"),
        ({"client_id": 5}, "client_id"),
        ({"client_id": "x" * 201}, "client_id"),
        ({"label_info": [{"name": "x" * 201}]}, "name"),
        ({"label_info": [{"name": "complete"}]}, "empty"),
    ],
)
def test_params_that_make_no_sense(
    client: TestClient, studies: Path, tmp_path: Path, params: dict[str, Any], word: str
) -> None:
    versions = len(Library(studies).versions("ras"))
    assert word in reason(save(client, painted(1), tmp_path, "ras", **params), 422)
    assert len(Library(studies).versions("ras")) == versions


def test_two_annotators_at_once(client: TestClient, studies: Path, tmp_path: Path) -> None:
    answers: list[Any] = []

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        answers.append(save(client, painted(number), folder, tag="both", client_id=f"user-{number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 5
    versions = Library(studies).versions("lps", "both")
    assert sorted(record.annotator for record in versions) == [f"user-{number}" for number in range(5)]
    assert np.array_equal(stored(studies, "lps", "both"), painted(int(versions[-1].annotator[-1])))
    info = client.get("/datastore/label/info?label=lps&tag=both").json()
    assert info["version"] == info["record"]["version"] == 5
    assert info["client_id"] == versions[-1].annotator


def test_a_deleted_label_can_be_had_again(client: TestClient, studies: Path, tmp_path: Path) -> None:
    version = save(client, painted(2), tmp_path, "swapped").json()["version"]
    assert client.delete("/datastore/label?id=swapped&tag=final").status_code == 200
    assert "final" not in client.get("/datastore/?output=all").json()["objects"]["swapped"]["labels"]
    assert client.delete("/datastore/label?id=swapped&tag=final").status_code == 404
    Library(studies).restore("swapped", version)
    assert np.array_equal(stored(studies, "swapped"), painted(2))
    deadline = time.monotonic() + 20
    while "final" not in client.get("/datastore/?output=all").json()["objects"]["swapped"]["labels"]:
        assert time.monotonic() < deadline, "the server did not notice"
        time.sleep(0.1)
    assert client.get("/datastore/label/info?label=swapped&tag=final").json()["version"] == version + 1


def test_an_image_that_is_deleted_leaves_the_versions(client: TestClient, studies: Path, tmp_path: Path) -> None:
    write_volume(Volume(ct(5), AFFINES["lps"]), tmp_path / "image.nii.gz")
    data = (tmp_path / "image.nii.gz").read_bytes()
    assert client.put("/datastore/image", params={"image": "short"}, files={"file": ("i.nii.gz", data)}).is_success
    label = Volume(painted(1), AFFINES["lps"])
    assert save(client, label, tmp_path, "short").status_code == 200
    assert client.delete("/datastore/image?id=short").status_code == 200
    assert "short" not in client.get("/datastore/?output=all").json()["objects"]
    assert [record.version for record in Library(studies).versions("short")] == [1]


def test_a_full_disk(client: TestClient, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(client, painted(2), tmp_path, tag="full")
    before = stored(studies, "lps", "full")
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "disk of the server is full" in reason(save_sent(client, painted(3), tmp_path, "full"), 507)
    monkeypatch.setattr(os, "fsync", real)
    assert np.array_equal(stored(studies, "lps", "full"), before)
    assert save(client, painted(3), tmp_path, tag="full").status_code == 200


def save_sent(client: TestClient, label: np.ndarray, folder: Path, tag: str) -> Any:
    """Save a label whose file needs no disk that works."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(label, AFFINES["lps"]), folder / "sent.nii.gz")
    data = (folder / "sent.nii.gz").read_bytes()
    return client.put("/datastore/label", params={"image": "lps", "tag": tag}, files={"label": ("l.nii.gz", data)})


def test_what_follows_a_save_does_not_fail_it(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from monailabel.interfaces.utils.app import app_instance

    def broken(*_: Any) -> None:
        raise RuntimeError("no trainer")

    monkeypatch.setattr(app_instance(), "on_save_label", broken)
    assert save(client, painted(1), tmp_path, tag="hook").status_code == 200
    assert "what follows a save failed" in caplog.text


def test_a_models_reply_in_the_store_is_no_final_label(client: TestClient, studies: Path, settings: Settings) -> None:
    params = json.dumps({"save_label": True, "label_tag": "final", "result_extension": ".nrrd"})
    client.post("/infer/tiny?image=swapped", data={"params": params})
    record = client.get("/datastore/label/info?label=swapped&tag=final").json()["record"]
    assert (record["source"], record["model"]["name"]) == ("model", "tiny")
    assert "swapped" not in [label.image_id for label in final_labels(studies)]
