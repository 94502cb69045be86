"""Propagation over HTTP from painted slices and stored labels: corrections, undoing, ends, clients apart, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_tube import BODY, SHAPE, Array, X, Z, canonical, dice, infer, own, slices, stored
from replies import refused, reply
from starlette.testclient import TestClient

from fake_sam2 import FakeSam2
from polycl.volume import Volume, write_volume

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("sam2", "tubes")]

PAINTED = "polycl-propagate-painted"


class Painter:
    """What 3D Slicer does: all segments in one map, the reply replaces the selected one."""

    def __init__(
        self, client: TestClient, folder: Path, image: Volume, name: str = "tube_lps", who: str = "user"
    ) -> None:
        self.client, self.folder, self.image, self.name, self.who = client, folder, image, name, who
        self.segments: dict[str, Array] = {"liver": np.zeros(SHAPE, bool)}

    def send(self, label: str = "liver", **params: Any) -> Any:
        voxels = np.zeros(SHAPE, np.uint8)
        for value, mask in enumerate(self.segments.values(), start=1):
            voxels[mask] = value
        path = self.folder / "label.nrrd"
        write_volume(stored(voxels, self.image.affine), path)
        info = [{"name": name, "id": number} for number, name in enumerate(self.segments, start=1)]
        params = {"label_info": info, "selected_label_name": label, "client_id": self.who, "roi": []} | params
        return infer(self.client, PAINTED, self.name, path, **params)

    def update(self, label: str = "liver", **params: Any) -> dict[str, Any]:
        told, mask = reply(self.send(label, **params))
        assert told["label_names"] == {label: 1}
        assert set(np.unique(mask)) <= {0, 1}
        self.segments[label] = canonical(self.image, mask) > 0
        return told


@pytest.fixture
def painter(client: TestClient, tmp_path: Path, tubes: dict[str, Volume], request: pytest.FixtureRequest) -> Painter:
    return Painter(client, tmp_path, tubes["lps"], who=request.node.name)


class TestPainted:
    def test_it_is_offered_to_slicer_and_to_our_script_in_ohif(self, client: TestClient) -> None:
        model = client.get("/info/").json()["models"][PAINTED]
        assert model["type"] == "scribbles"
        assert model["config"]["propagates"] is True

    def test_a_painted_slice_comes_back_as_it_was_and_the_rest_is_found(self, painter: Painter) -> None:
        rough = BODY[:, :, 12].copy()
        rough[20, 16] = False
        painter.segments["liver"][:, :, 12] = rough
        told = painter.update()
        np.testing.assert_array_equal(painter.segments["liver"][:, :, 12], rough)
        assert dice(painter.segments["liver"], BODY) > 0.9
        assert (told["seed_slices"], told["corrected_slices"]) == ([12], [])

    def test_slices_that_differ_from_the_reply_are_corrections_and_earlier_seeds_stay(
        self, painter: Painter, sam2: FakeSam2
    ) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        painter.update()
        encoded = sam2.encoded
        smaller = BODY[:, :, 7] & (X[:, :, 7] < 22)
        painter.segments["liver"][:, :, 7] = smaller
        told = painter.update()
        assert (told["seed_slices"], told["corrected_slices"]) == ([7, 12], [7])
        np.testing.assert_array_equal(painter.segments["liver"][:, :, 7], smaller)
        np.testing.assert_array_equal(painter.segments["liver"][:, :, 12], BODY[:, :, 12])
        assert sam2.encoded == encoded
        steps = len(sam2.steps)
        painter.update()
        assert len(sam2.steps) == steps, "nothing changed, so nothing is done"

    def test_an_emptied_slice_is_a_wall(self, painter: Painter) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        painter.update()
        painter.segments["liver"][:, :, 7] = False
        told = painter.update()
        assert told["seed_slices"] == [7, 12]
        assert slices(painter.segments["liver"]) == list(range(8, 20))

    def test_where_it_begins_and_ends_may_be_said(self, painter: Painter) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        told = painter.update(first_slice=9, last_slice=14)
        assert told["seed_slices"] == [12]
        assert slices(painter.segments["liver"]) == list(range(9, 15))
        told = painter.update()
        assert told["corrected_slices"] == []
        assert slices(painter.segments["liver"]) == list(range(4, 20)), "it is not remembered"

    def test_undoing_in_the_viewer_takes_a_correction_back(self, painter: Painter) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        painter.update()
        before = painter.segments["liver"].copy()
        painter.segments["liver"][:, :, 7] = BODY[:, :, 7] & (X[:, :, 7] < 16)
        painter.update()
        painter.segments["liver"] = before
        told = painter.update()
        assert told["seed_slices"] == [12]
        np.testing.assert_array_equal(painter.segments["liver"], before)

    def test_painted_slices_alone_are_all_the_seeds(self, painter: Painter) -> None:
        """As OHIF sends them: each time what was painted, and nothing of the replies."""
        for painted in ([12], [8, 12], [8]):
            painter.segments["liver"] = BODY & np.isin(Z, painted)
            told = painter.update()
            assert (told["seed_slices"], told["corrected_slices"]) == (painted, [])

    def test_what_another_segment_covers_is_no_correction(self, painter: Painter) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        painter.update()
        painter.segments["spleen"] = BODY & (X > 24) & (Z < 10)
        told = painter.update()
        assert told["corrected_slices"] == []
        assert dice(painter.segments["liver"], BODY) > 0.9

    def test_scribbles_start_it_and_correct_it_but_do_not_return(self, painter: Painter) -> None:
        painter.segments["background_scribbles"] = np.zeros(SHAPE, bool)
        painter.segments["foreground_scribbles"] = BODY & (Z == 12)
        painter.update()
        assert dice(painter.segments["liver"], BODY) > 0.9
        assert painter.update()["corrected_slices"] == []
        painter.segments["background_scribbles"] = BODY & (Z == 6) & (X > 20)
        told = painter.update()
        assert told["corrected_slices"] == [6]
        assert not (painter.segments["liver"] & painter.segments["background_scribbles"]).any()

    def test_clients_and_labels_are_apart(self, painter: Painter) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        painter.update()
        reply_of_first = painter.segments["liver"].copy()
        other = Painter(painter.client, painter.folder, painter.image, who="another")
        other.segments["liver"] = reply_of_first & (Z < 12)
        assert other.update()["corrected_slices"] == [], "it never got that reply from us"
        painter.segments["spleen"] = BODY & (Z == 9)
        assert painter.update("spleen")["seed_slices"] == [9]

    def test_sagittal_painting_becomes_points_and_says_so(self, painter: Painter) -> None:
        painter.segments["liver"] = BODY & (X == 20)
        told = painter.update()
        assert dice(painter.segments["liver"], BODY) > 0.9
        assert "liver is painted on sagittal or coronal slices" in told["notes"][0]

    def test_a_region_of_interest_limits_it(self, painter: Painter) -> None:
        painter.segments["liver"][:, :, 12] = BODY[:, :, 12]
        ends = np.sort(own(painter.image, (0, 0, 9), (39, 35, 14)), axis=0).T
        painter.update(roi=ends.ravel().tolist())
        assert slices(painter.segments["liver"]) == list(range(9, 15))

    def test_a_stored_label_and_what_was_made_of_it(
        self, client: TestClient, tubes: dict[str, Volume], tmp_path: Path
    ) -> None:
        image, path = tubes["ras"], tmp_path / "label.nii.gz"

        def save(mask: Array) -> dict[str, Any]:
            write_volume(stored(mask.astype(np.uint8), image.affine), path)
            told: dict[str, Any] = client.put(
                "/datastore/label",
                params={"image": "tube_ras", "tag": "final"},
                data={"params": json.dumps({"label_info": [{"name": "tube", "idx": 1}]})},
                files={"label": (path.name, path.read_bytes())},
            ).json()
            return told

        refused(infer(client, PAINTED, "tube_ras"), 404, "no label to propagate")
        assert save(BODY & (Z == 12))["known"] != {"tube": "all"}
        told, mask = reply(infer(client, PAINTED, "tube_ras"))
        assert told["label_names"] == {"tube": 1}
        assert dice(canonical(image, mask) > 0, BODY) > 0.9
        assert save(canonical(image, mask))["known"] == {"tube": "all"}, "a whole-volume reply counts on all slices"
        refused(infer(client, PAINTED, "tube_ras", label_tag="draft"), 404, "draft")
        refused(infer(client, PAINTED, "tube_ras", label="aorta"), 404, "aorta", "tube")

    def test_a_saved_label_that_was_corrected_changes_near_the_correction(
        self, client: TestClient, tubes: dict[str, Volume], tmp_path: Path
    ) -> None:
        """As OHIF loads it, in another window or on another day."""
        image, path = tubes["swapped"], tmp_path / "label.nii.gz"
        painter = Painter(client, tmp_path, image, "tube_swapped", "the other day")
        write_volume(stored(BODY.astype(np.uint8), image.affine), path)
        answer = client.put(
            "/datastore/label",
            params={"image": "tube_swapped", "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}], "complete": True})},
            files={"label": (path.name, path.read_bytes())},
        )
        assert answer.json()["known"] == {"liver": "all"}
        painter.segments["liver"] = BODY & ~((Z == 12) & (X > 20))
        told = painter.update()
        assert told["corrected_slices"] == [12]
        assert sorted(set(range(3, 21)) - set(told["seed_slices"])) == [8, 9, 10, 11, 13, 14, 15, 16]

    def test_bad_input(self, painter: Painter, tmp_path: Path, client: TestClient) -> None:
        refused(painter.send(), 422, "liver", "outline")
        refused(painter.send("aorta"), 404, "aorta", "liver")
        painter.segments = {"liver": BODY & (Z == 12), "spleen": BODY & (Z == 5)}
        refused(painter.send(""), 422, "2 structures", "liver, spleen")
        other = tmp_path / "other.nii.gz"
        write_volume(Volume(np.ones((4, 4, 4), np.uint8), np.eye(4)), other)
        refused(infer(client, PAINTED, sent=other), 422, "grid")
        empty = tmp_path / "empty.nii.gz"
        write_volume(stored(np.zeros(SHAPE, np.uint8), painter.image.affine), empty)
        refused(infer(client, PAINTED, sent=empty), 422, "empty")
        refused(infer(client, PAINTED, sent=empty, selected_label_name=3), 422, "selected_label_name")

    def test_a_segmentation_that_was_corrected_on_a_slice_changes_near_it_and_nowhere_else(
        self, client: TestClient, tubes: dict[str, Volume], tmp_path: Path
    ) -> None:
        image = tubes["ras"]
        _, mask = reply(infer(client, "tiny", "tube_ras"))
        painter = Painter(client, tmp_path, image, "tube_ras", "mender")
        painter.segments = {"liver": canonical(image, mask) == 1, "spleen": canonical(image, mask) == 2}
        before = painter.segments["spleen"].copy()
        painter.segments["spleen"][:, :, 12] = BODY[:, :, 12]
        told = painter.update("spleen")
        assert told["corrected_slices"] == [12]
        near = range(8, 17)  # 20 mm of slices 5 mm apart
        assert not set(told["seed_slices"]) & set(near) - {12}
        np.testing.assert_array_equal(painter.segments["spleen"][:, :, 12], BODY[:, :, 12])
        found, far = painter.segments["spleen"], [z for z in slices(before) if z not in near]
        assert len(far) > 4
        np.testing.assert_array_equal(found[:, :, far], before[:, :, far])
        assert (found[:, :, 11] != before[:, :, 11]).any()

    def test_ends_count_more_than_what_a_segmenter_found(
        self, client: TestClient, tubes: dict[str, Volume], tmp_path: Path
    ) -> None:
        image = tubes["ras"]
        _, mask = reply(infer(client, "tiny", "tube_ras"))
        spleen = canonical(image, mask) == 2
        there = slices(spleen)
        assert there[0] < 8
        assert there[-1] > 16
        for first, last in ((8, 16), (5, 19)):
            painter = Painter(client, tmp_path, image, "tube_ras", f"until {last}")
            painter.segments = {"liver": np.zeros(SHAPE, bool), "spleen": spleen.copy()}
            painter.segments["spleen"][:, :, 12] = BODY[:, :, 12]
            painter.update("spleen", first_slice=first, last_slice=last)
            assert slices(painter.segments["spleen"])[0] >= first
            assert slices(painter.segments["spleen"])[-1] == last

    def test_a_map_of_one_structure_needs_no_names(self, client: TestClient, painter: Painter, tmp_path: Path) -> None:
        path = tmp_path / "one.nii.gz"
        write_volume(stored((3 * (BODY & (Z == 12))).astype(np.uint8), painter.image.affine), path)
        assert reply(infer(client, PAINTED, sent=path))[0]["label_names"] == {"object": 1}
        for key in ("selected_label_name", "label"):
            assert reply(infer(client, PAINTED, sent=path, **{key: "tube"}))[0]["label_names"] == {"tube": 1}
