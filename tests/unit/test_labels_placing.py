"""Labels on their image's grid, what their voxels say, and whether they come from a reply."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polycl.errors import InputError
from polycl.labels.facts import facts_of, marked
from polycl.labels.placing import count_by_slice, place, ranges_of
from polycl.labels.record import LabelRecord, ModelVersion
from polycl.labels.replies import ReplyLog, descent, fingerprint, sample
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE = (7, 6, 5)
TURNS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def grid(shape: tuple[int, ...] = SHAPE) -> Volume:
    """An oblique grid with unequal spacing."""
    a = np.deg2rad(20.0)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, 2.0, 3.0])
    affine[:3, 3] = (40.0, -20.0, 7.0)
    return Volume(np.zeros(shape, np.int16), affine)


def painted(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def turned(volume: Volume, axes: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same label with other axes: the index map is written out, not taken from the code under test."""
    voxels = volume.voxels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[old, new] = sign
        matrix[old, 3] = volume.shape[old] - 1 if sign < 0 else 0
    return Volume(np.ascontiguousarray(voxels), volume.affine @ matrix)


def cut(volume: Volume, start: tuple[int, ...], stop: tuple[int, ...]) -> Volume:
    shift = np.eye(4)
    shift[:3, 3] = start
    voxels = volume.voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return Volume(voxels, volume.affine @ shift)


@pytest.mark.parametrize(("axes", "signs"), TURNS)
def test_any_axis_order(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    image = grid()
    label = Volume(painted(1), image.affine)
    for box in (False, True):
        np.testing.assert_array_equal(place(turned(label, axes, signs), image, box=box), label.voxels)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_box_goes_back_where_it_was_cut(data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(0, size - 1)) for size in SHAPE)
    stop = tuple(data.draw(st.integers(low + 1, size)) for low, size in zip(start, SHAPE, strict=True))
    axes, signs = data.draw(st.sampled_from(TURNS))
    image = grid()
    whole = np.zeros(SHAPE, np.uint8)
    part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    whole[part] = painted(data.draw(st.integers(0, 99)))[part]
    box = turned(cut(Volume(whole, image.affine), start, stop), axes, signs)
    np.testing.assert_array_equal(place(box, image, box=True), whole)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 3))
def test_a_box_larger_than_the_image(margins: tuple[tuple[int, int], ...]) -> None:
    image = grid()
    larger = np.pad(painted(2), margins)
    shift = np.eye(4)
    shift[:3, 3] = [-before for before, _ in margins]
    np.testing.assert_array_equal(place(Volume(larger, image.affine @ shift), image, box=True), painted(2))


def test_what_is_painted_outside_is_not_dropped() -> None:
    image = grid()
    shift = np.eye(4)
    shift[0, 3] = 3
    with pytest.raises(InputError, match="outside"):
        place(Volume(np.ones(SHAPE, np.uint8), image.affine @ shift), image, box=True)
    assert not place(Volume(np.zeros((1, 1, 1), np.uint8), np.diag([9.0, 9, 9, 1])), image, box=True).any()


@pytest.mark.parametrize("shift", [(0.5, 0, 0), (0, 0.4, 0), (0, 0, 0.2)])
def test_nothing_is_resampled(shift: tuple[float, ...]) -> None:
    image, moved = grid(), np.eye(4)
    moved[:3, 3] = shift
    for box in (False, True):
        with pytest.raises(InputError, match="not on the grid"):
            place(Volume(painted(3), image.affine @ moved), image, box=box)
    with pytest.raises(InputError, match="not on the grid"):
        place(Volume(painted(3), image.affine @ np.diag([2.0, 1, 1, 1])), image, box=True)
    with pytest.raises(InputError, match="not on the grid"):
        place(cut(Volume(painted(3), image.affine), (1, 1, 1), (4, 4, 4)), image)


@given(st.lists(st.booleans(), max_size=30))
def test_ranges_hold_just_the_slices(flags: list[bool]) -> None:
    ranges = ranges_of(np.array(flags, dtype=bool))
    assert [z for start, stop in ranges for z in range(start, stop)] == [z for z, flag in enumerate(flags) if flag]
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(ranges))


def test_counts() -> None:
    voxels = painted(5)
    counts = count_by_slice(voxels)
    assert counts.shape == (SHAPE[2], 256)
    for z, value in itertools.product(range(SHAPE[2]), range(4)):
        assert counts[z, value] == (voxels[:, :, z] == value).sum()


def test_where_a_label_is_known() -> None:
    voxels = np.zeros((4, 4, 8), np.uint8)
    voxels[1, 1, [2, 3, 6]] = 1
    voxels[2, 2, 5] = 2
    labels = {"liver": 1, "spleen": 2, "kidney": 3, "aorta": 4}
    facts = facts_of(voxels, labels, descends=("spleen", "kidney"), complete=("aorta",))
    assert facts.painted == {"liver": ((2, 4), (6, 7)), "spleen": ((5, 6),)}
    assert facts.known == {"liver": ((2, 4), (6, 7)), "spleen": "all", "aorta": "all"}
    assert facts.descends == ("spleen",)
    assert facts.voxels == {"liver": 3, "spleen": 1, "kidney": 0, "aorta": 0}
    record = LabelRecord(**dict(facts), image="a", version=1, file="a.nii", sha256="", saved=datetime.now(UTC))
    assert np.flatnonzero(record.known_slices("liver")).tolist() == [2, 3, 6]
    assert record.known_slices("aorta").all()
    assert not record.known_slices("kidney").any()
    assert LabelRecord.model_validate_json(record.model_dump_json()) == record
    assert marked(facts, ("liver",)).known == {"liver": "all", "spleen": "all"}
    assert marked(marked(facts, ("liver",)), ()).known["liver"] == ((2, 4), (6, 7))


def organ(shape: tuple[int, ...] = (20, 18, 12)) -> np.ndarray:
    voxels = np.zeros(shape, np.uint8)
    voxels[4:15, 3:14, 2:11] = 1
    voxels[16:18, 3:14, 2:4] = 2
    return voxels


@pytest.mark.parametrize(("axes", "signs"), TURNS[::7])
def test_a_label_made_from_a_reply_descends_from_it(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    image = grid(organ().shape)
    image = image.with_voxels(np.random.default_rng(0).integers(-1000, 1000, image.shape).astype(np.int16))
    log, model = ReplyLog(tmp_path), ModelVersion(name="tiny", sha256="0" * 64)
    log.note(
        turned(image, axes, signs), turned(image.with_voxels(organ()), axes, signs), {"liver": 1, "spleen": 2}, model
    )
    replies = ReplyLog(tmp_path).of(image)
    assert datetime.now(UTC) - replies[0].made < timedelta(minutes=1)

    def descends(voxels: np.ndarray) -> tuple[str, ...]:
        names, found = descent(replies, image.with_voxels(voxels).canonical().voxels, {"spleen": 2, "liver": 1})
        assert found == (model if names else None)
        return names

    assert descends(organ()) == ("spleen", "liver")
    mended = organ()
    mended[4:7] = 0
    mended[14:18, 3:14, 2:11] = 1
    assert descends(mended) == ("liver",)
    by_hand = np.zeros_like(organ())
    by_hand[..., [4, 8]] = organ()[..., [4, 8]]
    assert descends(by_hand) == ()
    assert descends(np.zeros_like(organ())) == ()
    other = image.with_voxels(image.voxels[::-1].copy())
    assert fingerprint(other) != fingerprint(image)
    assert log.of(other) == ()


def test_some_voxels_stand_for_all() -> None:
    image = grid((60, 50, 40))
    voxels = (np.random.default_rng(1).random(image.shape) < 0.3).astype(np.uint8)
    voxels[0, 0, 0] = 2
    samples = sample(image.with_voxels(voxels), {"liver": 1, "dot": 2, "none": 3})
    assert set(samples) == {"liver", "dot"}
    canonical = image.with_voxels(voxels).canonical().voxels
    assert (canonical.ravel()[list(samples["liver"])] == 1).all()
    assert len(samples["dot"]) == 1


def test_few_replies_are_remembered(tmp_path: Path) -> None:
    image, log = grid(), ReplyLog(tmp_path)
    for number in range(9):
        log.note(image, image.with_voxels(painted(1)), {"a": 1}, ModelVersion(name=str(number)))
    assert [reply.model.name for reply in log.of(image)] == ["3", "4", "5", "6", "7", "8"]
    next(tmp_path.iterdir()).write_text("{")
    assert log.of(image) == ()


def test_a_reply_that_cannot_be_noted_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    image = grid()
    ReplyLog(tmp_path / "file").note(image, image.with_voxels(painted(1)), {"a": 1}, ModelVersion(name="m"))
    assert "could not be noted" in caplog.text
