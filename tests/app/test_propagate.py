"""Propagation over HTTP: clicks and painted slices to volumes, corrections, undoing, clients apart, cancelling."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from replies import refused, reply
from starlette.testclient import TestClient
from tiny_images import AFFINES

import fake_sam2
from fake_sam2 import FakeSam2
from polycl.propagate.engine import Features, Recall, Tracked
from polycl.volume import Volume, from_canonical_index, write_volume

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("sam2")]

CLICKED, PAINTED = "polycl-propagate", "polycl-propagate-painted"
SHAPE = (40, 36, 24)
X, Y, Z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
BODY = ((X - 20) ** 2 + (Y - 16) ** 2 < 49) & (Z >= 4) & (Z < 20)
Array = NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def sam2() -> Iterator[FakeSam2]:
    """The server has a network that propagates."""
    yield from fake_sam2.installed()


@pytest.fixture(scope="module", autouse=True)
def tubes(studies: Path) -> dict[str, Volume]:
    """A bright tube in three axis orders, and one slice of it."""
    made = {
        name: stored(np.where(BODY, 100, -100).astype(np.int16), AFFINES[name]) for name in ("ras", "swapped", "lps")
    }
    made["flat"] = Volume(np.where(BODY[:, :, 10:11], 100, -100).astype(np.int16), AFFINES["ras"])
    for name, volume in made.items():
        write_volume(volume, studies / f"tube_{name}.nii.gz")
    return made


def stored(canonical: Array, affine: Array) -> Volume:
    """A canonical array as an image with this orientation has it."""
    step = np.argmax(np.abs(affine[:3, :3]), axis=0)
    voxels = canonical.transpose(step)
    flips = tuple(axis for axis in range(3) if affine[step[axis], axis] < 0)
    return Volume(np.ascontiguousarray(np.flip(voxels, flips)), affine)


def infer(client: TestClient, model: str, image: str = "tube_lps", sent: Path | None = None, **params: Any) -> Any:
    files = {"label": (sent.name, sent.read_bytes())} if sent else None
    body = {"params": json.dumps({"result_extension": ".nii.gz"} | params)}
    return client.post(f"/infer/{model}", params={"image": image}, data=body, files=files)


def own(image: Volume, *points: tuple[int, int, int]) -> list[list[int]]:
    """Canonical voxels in the image's own axes."""
    found: list[list[int]] = from_canonical_index(list(points), image.shape, image.affine).tolist()
    return found


def canonical(image: Volume, mask: Array) -> Array:
    return image.with_voxels(mask).canonical().voxels


def dice(one: Array, other: Array) -> float:
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


def slices(mask: Array) -> list[int]:
    return [int(z) for z in np.flatnonzero(mask.any(axis=(0, 1)))]


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


class TestClicks:
    def test_it_is_offered_as_3d_point_prompts(self, client: TestClient) -> None:
        model = client.get("/info/").json()["models"][CLICKED]
        assert (model["type"], model["dimension"], model["labels"]) == ("deepgrow", 3, [])
        assert model["config"]["engine"] == [fake_sam2.NAME]

    @pytest.mark.parametrize("name", ["ras", "swapped", "lps"])
    def test_a_click_gives_the_whole_object(self, client: TestClient, tubes: dict[str, Volume], name: str) -> None:
        image = tubes[name]
        told, mask = reply(infer(client, CLICKED, f"tube_{name}", foreground=own(image, (20, 16, 12)), label="tube"))
        assert mask.shape == image.shape
        assert dice(canonical(image, mask) > 0, BODY) > 0.9
        assert slices(canonical(image, mask)) == list(range(4, 20))
        assert told["label_names"] == {"tube": 1}
        assert told["seed_slices"] == [12]
        assert told["model"] == {"name": FakeSam2.name, "sha256": FakeSam2.sha256}
        assert set(told["seconds"]) == {"load", "read", "propagate", "write", "total"}

    def test_a_box_is_a_prompt_on_its_middle_slice(self, client: TestClient, tubes: dict[str, Volume]) -> None:
        ends = np.sort(own(tubes["lps"], (12, 8, 8), (28, 24, 12)), axis=0).T
        told, mask = reply(infer(client, CLICKED, foreground=[], roi=ends[:, ::-1].ravel().tolist()))
        assert told["seed_slices"] == [10]
        assert dice(canonical(tubes["lps"], mask) > 0, BODY) > 0.9

    def test_clicks_on_other_slices_are_further_seeds_and_undoing_takes_them_back(
        self, client: TestClient, tubes: dict[str, Volume], sam2: FakeSam2
    ) -> None:
        image, who = tubes["lps"], "two-clicks"
        one = own(image, (20, 16, 12))
        both = own(image, (20, 16, 12), (21, 16, 7))
        _, first = reply(infer(client, CLICKED, foreground=one, client_id=who))
        encoded, steps = sam2.encoded, len(sam2.steps)
        told, _ = reply(infer(client, CLICKED, foreground=both, client_id=who))
        assert told["seed_slices"] == [7, 12]
        visited = sum(map(len, sam2.steps[steps:]))
        assert sam2.encoded <= encoded + 1, "image features are kept; a new click is looked at by itself"
        assert visited < 14, "beyond slice 12 nothing is done again"
        _, undone = reply(infer(client, CLICKED, foreground=one, client_id=who))
        np.testing.assert_array_equal(undone, first)

    def test_a_click_outside_alone_on_a_slice_corrects_it(self, client: TestClient, tubes: dict[str, Volume]) -> None:
        image = tubes["lps"]
        inside, there, elsewhere = own(image, (20, 16, 12), (20, 16, 8), (2, 2, 8))
        told, _ = reply(infer(client, CLICKED, foreground=[inside], background=[elsewhere]))
        assert told["seed_slices"] == [12], "that point was not in the object anyway"
        told, _ = reply(infer(client, CLICKED, foreground=[inside], background=[there]))
        assert told["seed_slices"] == [8, 12]

    def test_where_it_begins_and_ends_may_be_said(self, client: TestClient, tubes: dict[str, Volume]) -> None:
        seed = own(tubes["lps"], (20, 16, 12))
        told, mask = reply(infer(client, CLICKED, foreground=seed, first_slice=9, last_slice=14, label="tube"))
        assert slices(canonical(tubes["lps"], mask)) == list(range(9, 15))
        assert told["seed_slices"] == [12]
        _, mask = reply(infer(client, CLICKED, foreground=seed, first_slice=-1, last_slice=14, label="tube"))
        assert slices(canonical(tubes["lps"], mask)) == list(range(4, 15))

    def test_one_slice(self, client: TestClient, tubes: dict[str, Volume]) -> None:
        _, mask = reply(infer(client, CLICKED, "tube_flat", foreground=own(tubes["flat"], (20, 16, 0))))
        assert dice(mask > 0, BODY[:, :, 10:11]) > 0.9

    @pytest.mark.parametrize(
        ("params", "status", "words"),
        [
            ({}, 422, ["foreground", "roi"]),
            ({"foreground": [[99, 0, 0]]}, 422, ["outside", "40x36x24"]),
            ({"foreground": [[1, 2]]}, 422, ["[i, j, k]"]),
            ({"roi": [1, 1, 2, 2, 3, 3]}, 422, ["no volume"]),
            ({"engine": "sam-vit-b"}, 404, ["sam-vit-b", fake_sam2.NAME]),
            ({"engine": "/etc/passwd.safetensors"}, 404, [fake_sam2.NAME]),
            ({"engine": 3}, 422, ["engine"]),
            ({"size": 100_000}, 422, ["size", "64"]),
            ({"window": "fat"}, 422, ["soft-tissue"]),
            ({"window": "header"}, 422, ["no window"]),
            ({"guide": "nobody"}, 404, ["nobody", "tiny"]),
            ({"guide": 3}, 422, ["guide"]),
            ({"first_slice": 13}, 422, ["slice 12 is annotated", "13 to 23"]),
            ({"last_slice": 24}, 422, ["0 to 24", "0 to 23"]),
            ({"last_slice": "top"}, 422, ["last_slice 'top' is no slice", "from the feet"]),
            ({"first_slice": -2}, 422, ["first_slice -2 is no slice"]),
            ({"propagate_parameters": {"speed": 3}}, 422, ["speed", "patience"]),
            ({"propagate_parameters": [1]}, 422, ["object", "patience"]),
            ({"propagate_parameters": {"state_mib": 1, "labels": 1}, "size": 0}, 200, []),
            ({"client_id": 7}, 422, ["client_id"]),
        ],
    )
    def test_bad_input(
        self, client: TestClient, tubes: dict[str, Volume], params: dict[str, Any], status: int, words: list[str]
    ) -> None:
        sent = params if not params or {"foreground", "roi"} & set(params) else {"foreground": [[20, 19, 12]]} | params
        response = infer(client, CLICKED, **sent)
        if status == 200:
            reply(response)
        else:
            refused(response, status, *words)

    def test_what_the_client_chose_before_it_may_choose_again(self, client: TestClient) -> None:
        """3D Slicer sends the first of each list of options."""
        config = client.get("/info/").json()["models"][CLICKED]["config"]
        sent = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
        assert infer(client, CLICKED, foreground=[[20, 19, 12]], **sent).status_code == 200

    def test_a_guide_is_asked_once(
        self, client: TestClient, tubes: dict[str, Volume], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from polycl.segmenter import Segmenter

        calls = []
        likelihoods = Segmenter.likelihoods

        def counted(self: Segmenter, *given: Any, **named: Any) -> Any:
            calls.append(given)
            return likelihoods(self, *given, **named)

        monkeypatch.setattr(Segmenter, "likelihoods", counted)
        counts = []
        for guide, point in (("none", (20, 16, 12)), ("tiny", (20, 16, 12)), ("tiny", (21, 16, 12))):
            points = own(tubes["lps"], point)
            reply(infer(client, CLICKED, foreground=points, label="liver", guide=guide, client_id="guided"))
            counts.append(len(calls))
        assert counts[0] == 0
        assert 1 <= counts[1] == counts[2]

    def test_not_enough_memory_is_told(
        self, client: TestClient, tubes: dict[str, Volume], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def out_of_it(self: FakeSam2, frames: Any) -> list[Features]:
            raise MemoryError

        sent = {"foreground": own(tubes["ras"], (20, 16, 12)), "client_id": "short of it"}
        with monkeypatch.context() as patch:
            patch.setattr(FakeSam2, "encode", out_of_it)
            refused(infer(client, CLICKED, "tube_ras", window="bone", **sent), 422, "memory", "roi")
        reply(infer(client, CLICKED, "tube_ras", window="bone", **sent))


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


class Slow:
    """Holds a propagation up at its first step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        track = FakeSam2.track

        def slowly(engine: FakeSam2, features: list[Features], recalls: list[Recall]) -> list[Tracked]:
            self.reached.set()
            assert self.go_on.wait(20)
            return track(engine, features, recalls)

        patch.setattr(FakeSam2, "track", slowly)


class TestProgress:
    def test_work_is_listed_and_can_be_cancelled(
        self, client: TestClient, tubes: dict[str, Volume], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert client.get("/polycl/work").json() == {"work": []}
        points, answers = own(tubes["lps"], (20, 16, 12)), []

        def ask() -> None:
            answers.append(infer(client, CLICKED, foreground=points, label="tube", client_id="slow"))

        with monkeypatch.context() as patch:
            slow = Slow(patch)
            thread = threading.Thread(target=ask)
            thread.start()
            assert slow.reached.wait(20)
            (work,) = client.get("/polycl/work").json()["work"]
            assert (work["client_id"], work["model"], work["label"]) == ("slow", CLICKED, "tube")
            assert work["slices_total"] == 23
            assert client.get("/polycl/work", params={"client_id": "someone"}).json() == {"work": []}
            assert client.delete("/polycl/work/none").status_code == 404
            foreign = {"Origin": "http://elsewhere.example"}
            assert client.delete(f"/polycl/work/{work['id']}", headers=foreign).status_code == 403
            assert client.delete(f"/polycl/work/{work['id']}").json() == {"cancelled": work["id"]}
            slow.go_on.set()
            thread.join(20)
        refused(answers[0], 499, "cancelled")
        assert client.get("/polycl/work").json() == {"work": []}
        told, mask = reply(infer(client, CLICKED, foreground=points, label="tube", client_id="slow"))
        assert dice(canonical(tubes["lps"], mask) > 0, BODY) > 0.9
        assert told["seed_slices"] == [12]

    def test_who_waits_can_be_cancelled_too(
        self, client: TestClient, tubes: dict[str, Volume], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points, answers = own(tubes["lps"], (20, 16, 12)), {}

        def ask(who: str) -> None:
            answers[who] = infer(client, CLICKED, foreground=points, client_id=who)

        with monkeypatch.context() as patch:
            slow = Slow(patch)
            threads = [threading.Thread(target=ask, args=(who,)) for who in ("goes on", "gives up")]
            threads[0].start()
            assert slow.reached.wait(20)
            threads[1].start()
            deadline = time.monotonic() + 20
            while not (waiting := client.get("/polycl/work?client_id=gives up").json()["work"]):
                assert time.monotonic() < deadline
            assert waiting[0]["seconds_left"] is None
            client.delete(f"/polycl/work/{waiting[0]['id']}")
            threads[1].join(20)
            refused(answers["gives up"], 499, "cancelled")
            slow.go_on.set()
            threads[0].join(20)
        reply(answers["goes on"])
