"""Propagation over HTTP from clicks: whole objects, further slices, undoing, bad input; progress and cancelling."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from bright_tube import BODY, canonical, dice, infer, own, slices
from replies import refused, reply
from starlette.testclient import TestClient

import fake_sam2
from fake_sam2 import FakeSam2
from polycl.propagate.engine import Features, Recall, Tracked
from polycl.volume import Volume

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("sam2", "tubes")]

CLICKED = "polycl-propagate"


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
