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
        history.replied(painted(mask), history.seeds(painted(mask), IMAGE), BLOCK)

    def test_of_the_last_replies_the_nearest_counts(self) -> None:
        history = History()
        self.replied(history, BLOCK & (np.arange(12) == 5))
        mended = BLOCK.copy()
        mended[8:, :, 7] = False
        meant = history.seeds(painted(mended), IMAGE)
        assert (sorted(meant.found.seeds[OBJECT]), meant.changed) == ([5, 7], [7])
        history.replied(painted(mended), meant, mended)
        assert sorted(history.seeds(painted(mended), IMAGE).found.seeds[OBJECT]) == [5, 7]
        assert sorted(history.seeds(painted(BLOCK), IMAGE).found.seeds[OBJECT]) == [5]

    def test_one_slice_of_a_reply_is_not_the_reply(self) -> None:
        history = History()
        self.replied(history, BLOCK & (np.arange(12) == 5))
        meant = history.seeds(painted(BLOCK & np.isin(np.arange(12), (5, 6))), IMAGE)
        assert (sorted(meant.found.seeds[OBJECT]), meant.changed) == ([5, 6], [])

    def test_nothing_painted(self) -> None:
        with pytest.raises(InputError, match="empty"):
            History().seeds(painted(np.zeros(SHAPE, bool)), IMAGE)


class TestWhatASegmenterFound:
    THICK = Volume(np.zeros((20, 16, 24), np.int16), np.diag([1.0, 1.0, 7.0, 1.0]))
    ORGAN = np.zeros((20, 16, 24), bool)
    ORGAN[5:15, 4:12, 2:22] = True

    def mended(self, *slices: int) -> np.ndarray:
        mask = self.ORGAN.copy()
        mask[10:, :, list(slices)] = False
        return mask

    def test_a_correction_is_carried_a_little_and_the_rest_holds(self) -> None:
        meant = History().seeds(painted(self.mended(10)), self.THICK, [self.ORGAN])
        assert meant.changed == [10]
        assert meant.kept == frozenset({*range(1, 8), *range(13, 23)}), "two slices of 7 mm are within 20 mm"
        seeds = meant.found.seeds[OBJECT]
        assert sorted(seeds) == sorted(meant.kept | {10})
        np.testing.assert_array_equal(seeds[10].mask, self.mended(10)[:, :, 10])
        np.testing.assert_array_equal(seeds[7].mask, self.ORGAN[:, :, 7])

    def test_a_further_correction_is_carried_as_well(self) -> None:
        history = History()
        history.replied(
            painted(self.mended(10)),
            history.seeds(painted(self.mended(10)), self.THICK, [self.ORGAN]),
            self.mended(9, 10, 11),
        )
        meant = history.seeds(painted(self.mended(9, 10, 11, 14)), self.THICK, [self.ORGAN])
        assert meant.changed == [14]
        assert meant.kept == frozenset({*range(1, 8), *range(17, 23)})
        assert sorted(meant.found.seeds[OBJECT]) == sorted(meant.kept | {10, 14}), "what a person painted stays a seed"

    def test_a_slice_that_was_emptied_is_a_wall(self) -> None:
        emptied = self.ORGAN & (np.arange(24) != 20)
        meant = History().seeds(painted(emptied), self.THICK, [self.ORGAN])
        assert meant.changed == [20]
        assert not meant.found.seeds[OBJECT][20].present

    def test_a_result_as_it_was_holds_everywhere(self) -> None:
        meant = History().seeds(painted(self.ORGAN), self.THICK, [self.ORGAN])
        assert meant.changed == []
        assert sorted(meant.found.seeds[OBJECT]) == list(range(1, 23)), "the organ ends where it did"

    def test_what_was_painted_beyond_an_end_is_joined_to_it(self) -> None:
        found = self.ORGAN & (np.arange(24) >= 6) & (np.arange(24) < 16)
        meant = History().seeds(painted(found | (self.ORGAN & (np.arange(24) == 21))), self.THICK, [found])
        assert meant.changed == [21]
        assert sorted(meant.found.seeds[OBJECT]) == [*range(5, 16), 21], "16 is no wall between them; 5 is one"

    def test_what_was_saved_whole_counts_alike_where_there_was_no_reply(self) -> None:
        mended = painted(self.mended(10))
        meant = History().seeds(mended, self.THICK, saved=lambda: [self.ORGAN])
        assert (meant.changed, 7 in meant.kept) == ([10], True)
        assert History().seeds(mended, self.THICK, [self.ORGAN], lambda: pytest.fail("read for nothing")).changed == [
            10
        ]

    def test_what_was_painted_by_hand_is_no_correction(self) -> None:
        alone = self.mended(10) & (np.arange(24) == 10)
        meant = History().seeds(painted(alone), self.THICK, [self.ORGAN, np.zeros_like(self.ORGAN)])
        assert (sorted(meant.found.seeds[OBJECT]), meant.changed, meant.kept) == ([10], [], frozenset())


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
