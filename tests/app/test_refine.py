"""Refinement over HTTP: of what a model just segmented, of a stored label, and of one that is sent along."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from replies import refused, reply
from starlette.testclient import TestClient

import fake_sam
from fake_sam import FakeSam
from polycl.monailabel.engines import Engines
from polycl.propagate.loading import follower
from polycl.refinement import RefineParameters, refine
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("sam")]

LABELS = {"liver": 1, "spleen": 2}
EASY = {
    "min_agreement": 0.3,
    "min_score": 0.1,
    "min_consent": 0.0,
    "min_area": 20.0,
    "min_depth": 0.0,
    "max_pixel": 100.0,
    "stride": 1,
    "window": "soft-tissue",
}


def infer(client: TestClient, model: str, image: str = "oblique", sent: Path | None = None, **params: Any) -> Any:
    files = {"label": (sent.name, sent.read_bytes())} if sent else None
    body = {"params": json.dumps({"result_extension": ".nii.gz"} | params)}
    return client.post(f"/infer/{model}", params={"image": image}, data=body, files=files)


@pytest.fixture
def coarse(studies: Path) -> Volume:
    """Two boxes in the tissue of the oblique image."""
    image = read_volume(studies / "oblique.nii.gz")
    labels = np.zeros(image.shape, np.uint8)
    labels[8:18, 8:20, 1:6] = 1
    labels[20:28, 8:20, 1:6] = 2
    return image.with_voxels(labels)


def save(client: TestClient, coarse: Volume, path: Path, tag: str, image: str = "oblique") -> None:
    write_volume(coarse, path)
    info = [{"name": "liver", "idx": 7}, {"name": "spleen", "idx": 3}]  # clients' ids mean nothing
    response = client.put(
        "/datastore/label",
        params={"image": image, "tag": tag},
        data={"params": json.dumps({"label_info": info})},
        files={"label": (path.name, path.read_bytes())},
    )
    assert response.is_success, response.text


def test_a_segmentation_is_refined_where_asked(client: TestClient, segmenter: Segmenter, studies: Path) -> None:
    params, mask = reply(infer(client, "tiny", refine=fake_sam.NAME, refine_parameters=EASY))
    image = read_volume(studies / "oblique.nii.gz")
    segmented = segmenter.segment(image)
    expected, report = refine(
        image, segmented, FakeSam(), None, RefineParameters(**EASY), follower=follower(Settings())
    )
    np.testing.assert_array_equal(mask, expected.voxels)
    assert (mask != segmented.voxels).any()
    assert params["refined"] is True
    assert params["refinement"]["accepted"] == report.accepted > 0
    assert set(params["seconds"]) == {"read", "segment", "refine", "write", "total"}
    assert params["label_names"] == LABELS


@pytest.mark.parametrize("value", [None, "none", "", False, ["none", "mobile-sam"]])
def test_without_refinement_nothing_is_different(
    client: TestClient, segmenter: Segmenter, studies: Path, value: Any
) -> None:
    params, mask = reply(infer(client, "tiny", refine=value))
    np.testing.assert_array_equal(mask, segmenter.segment(read_volume(studies / "oblique.nii.gz")).voxels)
    assert "refined" not in params
    assert set(params["seconds"]) == {"read", "segment", "write", "total"}


def test_without_weights_the_segmentation_still_comes(client: TestClient, segmenter: Segmenter, studies: Path) -> None:
    params, mask = reply(infer(client, "tiny", refine="sam-vit-b"))
    np.testing.assert_array_equal(mask, segmenter.segment(read_volume(studies / "oblique.nii.gz")).voxels)
    assert params["refined"] is False
    assert "missing" in params["reason"]
    assert "/tmp" not in params["reason"]


def test_the_choice_is_offered_to_clients(client: TestClient) -> None:
    models = client.get("/info/").json()["models"]
    assert models["tiny"]["config"] == {"refine": ["none", "mobile-sam"]}
    assert models["refine"]["type"] == "scribbles"


def test_a_stored_label_by_tag(client: TestClient, coarse: Volume, studies: Path, tmp_path: Path) -> None:
    save(client, coarse, tmp_path / "label.nii.gz", "final")
    image = read_volume(studies / "oblique.nii.gz")
    expected, _ = refine(image, coarse, FakeSam(), None, RefineParameters(**EASY), follower=follower(Settings()))
    for tag in ({}, {"label_tag": "final"}):
        params, mask = reply(infer(client, "refine", refine_parameters=EASY, **tag))
        np.testing.assert_array_equal(mask, expected.voxels)
        assert params["label_names"] == LABELS
        assert params["refinement"]["accepted"] > 0
    _, one = reply(infer(client, "refine", refine_parameters=EASY, labels=["liver"]))
    np.testing.assert_array_equal(one == 2, coarse.voxels == 2)
    refused(infer(client, "refine", label_tag="draft"), 404, "draft", "final")
    refused(infer(client, "refine", labels=["kidney"]), 404, "kidney", "liver, spleen")


def test_weights_that_came_after_the_start_follow_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(Settings())
    assert engines.follower(RefineParameters()) is not None
    monkeypatch.setattr(engines.propagators, "names", ("sam2.1-tiny",))
    assert engines.follower(RefineParameters()) is None


def test_a_ragged_label_is_followed_unless_that_is_switched_off(
    client: TestClient, coarse: Volume, studies: Path, tmp_path: Path
) -> None:
    ragged = coarse.with_voxels(np.zeros_like(coarse.voxels))
    columns, rows, slices = np.ogrid[tuple(slice(length) for length in ragged.canonical().shape)]
    disc = np.hypot(columns - 18, rows - 18) < 10 + slices % 2
    ragged.canonical().voxels[...] = disc & (slices > 0) & (slices < slices.max())
    path = tmp_path / "ragged.nii.gz"
    write_volume(ragged, path)
    how = EASY | {"max_pixel": 1.0}  # SAM is not asked
    params, mask = reply(infer(client, "refine", sent=path, refine_parameters=how))
    assert params["refinement"]["followed"] == 1
    assert (mask != ragged.voxels).any()
    params, mask = reply(infer(client, "refine", sent=path, refine_parameters=how | {"follow": None}))
    assert params["refinement"]["followed"] == 0
    np.testing.assert_array_equal(mask, ragged.voxels)


def test_slicer_sends_a_painted_mask(client: TestClient, coarse: Volume, studies: Path, tmp_path: Path) -> None:
    painted = coarse.voxels.copy()
    painted[18:20, 8:20, 1:6] = 3
    path = tmp_path / "painted.nrrd"
    write_volume(coarse.with_voxels(painted), path)
    names = ["liver", "spleen", "foreground_scribbles", "background_scribbles"]
    info = [{"name": name, "id": number + 1} for number, name in enumerate(names)]
    params, mask = reply(
        infer(client, "refine", sent=path, refine_parameters=EASY, label_info=info, selected_label_name="liver", roi=[])
    )
    image = read_volume(studies / "oblique.nii.gz")
    start = coarse.with_voxels(np.isin(painted, (1, 3)).astype(np.uint8))
    np.testing.assert_array_equal(mask, refine(image, start, FakeSam(), None, RefineParameters(**EASY))[0].voxels)
    assert params["label_names"] == {"liver": 1}


def test_what_cannot_be_refined(client: TestClient, coarse: Volume, tmp_path: Path) -> None:
    refused(infer(client, "refine", image="ras"), 404, "no label to refine")
    other = tmp_path / "other.nii.gz"
    write_volume(Volume(coarse.voxels[:-1], coarse.affine), other)
    refused(infer(client, "refine", sent=other), 422, "grid")
    empty = tmp_path / "empty.nii.gz"
    write_volume(coarse.with_voxels(np.zeros_like(coarse.voxels)), empty)
    refused(infer(client, "refine", sent=empty), 422, "empty")
    good = tmp_path / "good.nii.gz"
    write_volume(coarse, good)
    refused(infer(client, "refine", sent=good, selected_label_name="aorta"), 404, "aorta")
    refused(infer(client, "refine", sent=good, label_info=[3]), 422, "label_info")
    nan = tmp_path / "nan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full(coarse.shape, np.nan, np.float32), coarse.affine), nan)
    refused(infer(client, "refine", sent=nan), 422)


def test_parameters_are_checked_before_anything_is_computed(client: TestClient) -> None:
    refused(infer(client, "tiny", refine="medsan"), 404, "medsan", "mobile-sam")
    refused(infer(client, "tiny", refine=7), 422, "refine")
    refused(infer(client, "tiny", refine="mobile-sam", refine_parameters={"margin": 1}), 422, "box_margin")
    refused(infer(client, "tiny", refine="mobile-sam", refine_parameters=[1]), 422, "object")


def test_a_client_cannot_name_a_file_of_the_server(client: TestClient, coarse: Volume, settings: Any) -> None:
    secret = settings.state / "secret.nii.gz"
    write_volume(coarse, secret)
    for key in ("label", "polycl_stored_label"):
        refused(infer(client, "refine", image="ras", **{key: str(secret)}), 404, "no label to refine")


def test_an_original_label_is_used_where_there_is_no_final_one(
    client: TestClient, coarse: Volume, studies: Path, tmp_path: Path
) -> None:
    image = read_volume(studies / "lps.nii.gz")
    save(client, image.with_voxels(coarse.voxels), tmp_path / "label.nii.gz", "original", image="lps")
    params, _ = reply(infer(client, "refine", image="lps", refine_parameters=EASY))
    assert params["label_names"] == LABELS
