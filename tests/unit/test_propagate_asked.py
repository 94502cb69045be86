"""Seeds from clicks, what of a painted mask is new, and sessions that are forgotten."""

import numpy as np
import pytest

from polycl.clicks import Click
from polycl.errors import InputError, ModelError, NotFoundError
from polycl.monailabel.propagations import EXPIRY_S, SESSIONS, Sessions
from polycl.monailabel.propagators import Propagators
from polycl.monailabel.work import Running, Work
from polycl.propagate.clicked import corrected, from_click
from polycl.propagate.painted import OBJECT, History, Painted
from polycl.settings import Settings
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE = (20, 16, 12)
IMAGE = Volume(np.zeros(SHAPE, np.int16), np.diag([-1.0, 1.0, 2.0, 1.0]))
BLOCK = np.zeros(SHAPE, bool)
BLOCK[5:15, 4:12, 2:10] = True


def painted(mask: np.ndarray) -> Painted:
    return Painted(mask)


class TestClicks:
    def test_points_are_seeds_of_their_slices(self) -> None:
        asked = from_click(Click(inside=((3, 4, 5), (3, 5, 5), (9, 9, 2)), outside=((1, 1, 5), (2, 2, 8))), IMAGE)
        assert sorted(asked.seeds) == [2, 5]
        np.testing.assert_array_equal(asked.seeds[5].points, [[16, 4], [16, 5], [18, 1]])  # x runs the other way here
        np.testing.assert_array_equal(asked.seeds[5].labels, [1, 1, 0])
        np.testing.assert_array_equal(asked.outside[8], [[17, 2]])

    def test_a_box_goes_where_a_point_in_it_is(self) -> None:
        roi = (4, 12, 3, 9, 9, 1)
        assert list(from_click(Click(roi=roi), IMAGE).seeds) == [5]
        both = from_click(Click(inside=((5, 5, 11), (5, 5, 7)), roi=roi), IMAGE).seeds
        assert both[7].box == (7, 16, 3, 10)
        assert both[11].box is None

    def test_nothing_to_propagate(self) -> None:
        with pytest.raises(InputError, match="foreground"):
            from_click(Click(outside=((1, 1, 1),)), IMAGE)

    def test_a_point_outside_leaves_what_is_deepest(self) -> None:
        found = IMAGE.with_voxels(BLOCK[::-1].astype(np.uint8))  # its own x runs the other way
        seeds = corrected(found, {3: np.array([[6.0, 5.0]]), 5: np.array([[0.0, 0.0]]), 11: np.array([[6.0, 5.0]])})
        assert list(seeds) == [3]
        assert seeds[3].box == (5, 15, 4, 12)
        (x, y), label = seeds[3].points[0], seeds[3].labels
        assert BLOCK[int(x), int(y), 3]
        assert label.tolist() == [1, 0]


class TestHistory:
    def replied(self, history: History, mask: np.ndarray) -> None:
        found, _ = history.seeds(painted(mask), IMAGE)
        history.replied(painted(mask), found, BLOCK)

    def test_of_the_last_replies_the_nearest_counts(self) -> None:
        history = History()
        self.replied(history, BLOCK & (np.arange(12) == 5))
        mended = BLOCK.copy()
        mended[8:, :, 7] = False
        found, changed = history.seeds(painted(mended), IMAGE)
        assert (sorted(found.seeds[OBJECT]), changed) == ([5, 7], [7])
        history.replied(painted(mended), found, mended)
        assert sorted(history.seeds(painted(mended), IMAGE)[0].seeds[OBJECT]) == [5, 7]
        assert sorted(history.seeds(painted(BLOCK), IMAGE)[0].seeds[OBJECT]) == [5]

    def test_one_slice_of_a_reply_is_not_the_reply(self) -> None:
        history = History()
        self.replied(history, BLOCK & (np.arange(12) == 5))
        found, changed = history.seeds(painted(BLOCK & np.isin(np.arange(12), (5, 6))), IMAGE)
        assert (sorted(found.seeds[OBJECT]), changed) == ([5, 6], [])

    def test_nothing_painted(self) -> None:
        with pytest.raises(InputError, match="empty"):
            History().seeds(painted(np.zeros(SHAPE, bool)), IMAGE)


class TestSessions:
    def test_they_are_by_client_image_grid_and_label(self) -> None:
        sessions = Sessions()
        first = sessions.get("a", IMAGE, "liver")
        moved = Volume(IMAGE.voxels, IMAGE.affine @ np.diag([2.0, 1.0, 1.0, 1.0]))
        others = [sessions.get(*key) for key in (("b", IMAGE, "liver"), ("a", moved, "liver"), ("a", IMAGE, "spleen"))]
        assert first not in others
        assert sessions.get("a", Volume(IMAGE.voxels.copy(), IMAGE.affine), "liver") is first

    def test_too_many_and_too_old_ones_go(self) -> None:
        now = [0.0]
        sessions = Sessions(lambda: now[0])
        first = sessions.get("first", IMAGE, "liver")
        for number in range(SESSIONS):
            sessions.get(number, IMAGE, "liver")
        assert len(sessions) == SESSIONS
        assert sessions.get("first", IMAGE, "liver") is not first
        now[0] = EXPIRY_S + 1
        sessions.get("late", IMAGE, "liver")
        assert len(sessions) == 1


def test_networks_by_name(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polycl.monailabel.propagators.at_hand", lambda catalogue: [])
    settings = Settings(state=tmp_path_factory.mktemp("state"))
    with pytest.raises(ModelError, match="polycl models fetch"):
        Propagators(settings).named()
    monkeypatch.setattr("polycl.monailabel.propagators.at_hand", lambda catalogue: ["one", "two"])
    loaded: list[tuple[str, int | None]] = []
    load = "polycl.monailabel.propagators.load_propagator"
    monkeypatch.setattr(load, lambda name, settings, size=None: loaded.append((name, size)))
    engines = Propagators(settings)
    for name, size in ((None, None), ("one", None), ("two", 256), ("one", 256), (None, None)):
        engines.named(name, size)
    assert loaded == [("one", None), ("two", 256), ("one", 256), ("one", None)], "two are kept"
    with pytest.raises(NotFoundError, match="one, two"):
        engines.named("/some/file.safetensors")


def test_work_belongs_to_who_asked() -> None:
    work = Work()
    with work.run(Running("anna", "user-xyz", "model", "liver")) as running:
        assert work.of("anna") == [running]
        assert work.of("bert") == []
        running.step(2, 10)
        assert running.described()["seconds_left"] is not None
        with pytest.raises(NotFoundError):
            work.cancel("bert", running.id)
    assert work.of("anna") == []
