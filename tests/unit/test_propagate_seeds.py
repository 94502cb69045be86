"""Seeds out of label maps: which slices, which labels, and what was painted on other planes."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from polycl.errors import InputError, NotFoundError
from polycl.propagate.seeds import Found, Seed, bounded, box_of, check_seeds, from_labels, union, with_ends
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SPACING = (1.0, 1.5, 4.0)


def volume(voxels: NDArray[np.uint8]) -> Volume:
    return Volume(voxels, np.diag([*SPACING, 1.0]))


def labels() -> NDArray[np.uint8]:
    """Label 1 on slices 2 to 6, largest on 5; label 4 on slice 3."""
    voxels = np.zeros((20, 16, 9), np.uint8)
    for z, width in zip(range(2, 7), (3, 4, 5, 8, 4), strict=True):
        voxels[2 : 2 + width, 4:9, z] = 1
    voxels[14:18, 4:8, 3] = 4
    return voxels


class TestFromLabels:
    def test_every_slice_that_is_not_empty(self) -> None:
        found = from_labels(volume(labels()))
        assert {label: sorted(seeds) for label, seeds in found.seeds.items()} == {1: [2, 3, 4, 5, 6], 4: [3]}
        assert not found.painted
        assert np.array_equal(found.seeds[1][5].mask, labels()[:, :, 5] == 1)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("choice", "slices"), [("auto", [5]), ("middle", [4]), (6, [6])])
    def test_one_slice(self, choice: str | int, slices: list[int]) -> None:
        assert sorted(from_labels(volume(labels()), [1], choice).seeds[1]) == slices  # type: ignore[arg-type]

    def test_auto_takes_the_middle_one_of_equals(self) -> None:
        voxels = np.zeros((9, 9, 9), np.uint8)
        voxels[2:6, 2:6, 1:6] = 1
        assert list(from_labels(volume(voxels), choice="auto").seeds[1]) == [3]

    @pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
    def test_axes_of_the_file_do_not_matter(self, axes: tuple[int, int, int], flips: tuple[int, int, int]) -> None:
        canonical = labels()
        affine = np.diag([*SPACING, 1.0])
        moved = affine[:, [*axes, 3]].copy()
        voxels = canonical.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
        for axis, flip in enumerate(flips):
            if flip < 0:
                moved[:3, 3] += moved[:3, axis] * (voxels.shape[axis] - 1)
                moved[:3, axis] *= -1
        found = from_labels(Volume(voxels, moved), choice="auto")
        assert list(found.seeds[1]) == [5]
        assert np.array_equal(found.seeds[1][5].mask, canonical[:, :, 5] == 1)  # type: ignore[arg-type]

    def test_an_empty_map_is_refused(self) -> None:
        with pytest.raises(InputError, match="the seed is empty: paint the object on at least one axial slice"):
            from_labels(volume(np.zeros((4, 4, 4), np.uint8)))

    def test_an_unknown_label_names_those_there_are(self) -> None:
        with pytest.raises(NotFoundError, match="the seed has no label 3; it has 1, 4"):
            from_labels(volume(labels()), [1, 3])

    def test_a_slice_without_the_label_names_where_it_is(self) -> None:
        with pytest.raises(NotFoundError, match="label 1 is not on slice 8; it is on 2 to 6"):
            from_labels(volume(labels()), [1], 8)

    def test_too_many_labels_are_refused(self) -> None:
        with pytest.raises(InputError, match="has 2 labels; at most 1"):
            from_labels(volume(labels()), most=1)

    def test_a_small_object_is_no_line(self) -> None:
        voxels = np.zeros((9, 9, 9), np.uint8)
        voxels[4, 4:6, 2:7] = 1
        assert sorted(from_labels(volume(voxels)).seeds[1]) == [2, 3, 4, 5, 6]


class TestOtherPlanes:
    def sagittal(self) -> NDArray[np.uint8]:
        voxels = np.zeros((30, 40, 21), np.uint8)
        y, z = np.meshgrid(np.arange(40), np.arange(21), indexing="ij")
        voxels[12] = (((y - 20) / 12) ** 2 + ((z - 10) / 9) ** 2 < 1).astype(np.uint8)
        return voxels

    def test_a_sagittal_outline_becomes_points_on_axial_slices(self) -> None:
        painted = self.sagittal()
        found = from_labels(volume(painted))
        assert "sagittal or coronal" in found.notes[0]
        assert np.array_equal(found.painted[1], painted == 1)
        seeds = found.seeds[1]
        assert len(seeds) == 3
        for z, seed in seeds.items():
            assert seed.mask is None
            inside = seed.points[seed.labels == 1].astype(int)
            outside = seed.points[seed.labels == 0]
            assert (painted[inside[:, 0], inside[:, 1], z] == 1).all()
            assert len(outside) == 2
            line = np.flatnonzero(painted[12, :, z])
            assert (outside[:, 1] < line[0]).any()
            assert (outside[:, 1] > line[-1]).any()

    def test_beside_axial_slices_it_is_kept_and_no_seed(self) -> None:
        painted = self.sagittal()
        painted[6:18, 10:30, 10] = 1
        found = from_labels(volume(painted))
        assert list(found.seeds[1]) == [10]
        assert found.seeds[1][10].mask is not None
        assert "the rest is kept" in found.notes[0]


class TestSeed:
    def test_it_is_a_mask_or_prompts(self) -> None:
        with pytest.raises(InputError, match="a mask, or else points"):
            Seed()
        with pytest.raises(InputError, match="a mask, or else points"):
            Seed(mask=np.ones((2, 2), bool), box=(0, 1, 0, 1))
        with pytest.raises(InputError, match="at least one point must be in"):
            Seed(points=np.zeros((1, 2)), labels=np.zeros(1, np.int64))
        with pytest.raises(InputError, match="each point needs a label"):
            Seed(points=np.zeros((1, 2)), labels=np.zeros(2, np.int64))
        with pytest.raises(InputError, match="x0 below x1"):
            Seed(box=(3, 3, 0, 1))

    def test_what_does_not_fit_the_volume_is_refused(self) -> None:
        image = volume(np.zeros((6, 5, 4), np.uint8))
        inside = Seed(points=np.array([[5, 4]]), labels=np.array([1]))
        check_seeds(image, {3: inside})
        with pytest.raises(InputError, match="there is no axial slice 4; slices are 0 to 3"):
            check_seeds(image, {4: inside})
        with pytest.raises(InputError, match="the mask of slice 0 has"):
            check_seeds(image, {0: Seed(np.ones((5, 6), bool))})
        with pytest.raises(InputError, match="a point is outside slice 1"):
            check_seeds(image, {1: Seed(points=np.array([[5, 5]]), labels=np.array([1]))})
        with pytest.raises(InputError, match="the box is outside slice 1"):
            check_seeds(image, {1: Seed(box=(6, 9, 0, 3))})

    def test_an_object_may_begin_and_end_on_known_slices(self) -> None:
        image, seed = volume(labels()), Seed(np.ones((20, 16), bool))
        assert sorted(with_ends({4: seed}, image, 2, 6)) == [1, 4, 7]
        assert [one.is_end for _, one in sorted(with_ends({4: seed}, image, 2, None).items())] == [True, False]
        assert list(with_ends({4: seed}, image, 0, 8)) == [4], "the image ends there"
        turned = Volume(image.voxels.transpose(2, 0, 1), image.affine[:, [2, 0, 1, 3]])
        assert sorted(with_ends({4: seed}, turned, 2, 6)) == [1, 4, 7]
        again = with_ends(with_ends({4: seed}, image, 3, 5), image, 2, None)
        assert sorted(again) == [1, 4], "what was said before is replaced"

    def test_seeds_that_nobody_drew_give_way_to_ends(self) -> None:
        image, seed, empty = volume(labels()), Seed(np.ones((20, 16), bool)), Seed(np.zeros((20, 16), bool))
        seeds = {1: empty, 2: seed, 4: seed, 5: empty}
        assert sorted(with_ends(seeds, image, 3, 6, kept=(1, 2, 5))) == [1, 2, 4, 7]
        assert not with_ends(seeds, image, 3, 6, kept=(1, 2, 5))[2].present
        with pytest.raises(InputError, match="slice 2 is annotated, and the object is said to be on slices 3 to 6"):
            with_ends(seeds, image, 3, 6, kept=(5,))
        with pytest.raises(InputError, match="slice 5 is empty, and the object is said to be on slices 2 to 6"):
            with_ends(seeds, image, 2, 6)
        assert with_ends(seeds, image, None, None) == seeds

    def test_what_was_painted_on_other_planes_ends_there_too(self) -> None:
        painted = np.zeros((20, 16, 9), bool)
        painted[8, 4:9, 1:8] = True
        found = Found({1: {4: Seed(np.ones((20, 16), bool))}}, {1: painted}, ("a note",))
        ended = bounded(found, 1, volume(labels()), 3, 5)
        assert np.flatnonzero(ended.painted[1].any(axis=(0, 1))).tolist() == [3, 4, 5]
        assert (sorted(ended.seeds[1]), ended.notes) == ([2, 4, 6], ("a note",))
        assert painted.any(axis=(0, 1)).sum() == 7, "the painting itself is not touched"

    @pytest.mark.parametrize(("first", "last"), [(5, 8), (0, 3), (None, 3), (6, 5), (-1, 5), (2, 9)])
    def test_ends_that_cannot_be_are_refused(self, first: int | None, last: int) -> None:
        with pytest.raises(InputError, match="on slices"):
            with_ends({4: Seed(np.ones((20, 16), bool))}, volume(labels()), first, last)
        with pytest.raises(InputError, match="ends on a slice that shows nothing"):
            Seed(np.ones((20, 16), bool), is_end=True)

    def test_boxes(self) -> None:
        mask = np.zeros((6, 5), bool)
        assert box_of(mask) is None
        mask[2:4, 1] = True
        assert box_of(mask) == (2, 4, 1, 2)
        assert union([(2, 4, 1, 2), (3, 9, 0, 2)]) == (2, 9, 0, 2)


def test_seeds_that_say_the_same_have_the_same_version_and_others_another() -> None:
    mask = np.zeros((6, 5), dtype=bool)
    mask[2:4, 1:3] = True
    points, labels = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0])
    seeds = [
        Seed(mask),
        Seed(mask.T.copy()),
        Seed(np.roll(mask, 1, axis=0)),
        Seed(np.zeros((6, 5), dtype=bool)),
        Seed(np.zeros((6, 5), dtype=bool), is_end=True),
        Seed(points=points, labels=labels),
        Seed(points=points, labels=1 - labels),
        Seed(points=points[::-1], labels=labels),
        Seed(box=(1, 4, 0, 3)),
        Seed(box=(1, 4, 0, 2)),
        Seed(points=points, labels=labels, box=(1, 4, 0, 3)),
    ]
    assert len({seed.version for seed in seeds}) == len(seeds)
    assert Seed(np.asfortranarray(mask)).version == seeds[0].version
    assert Seed(points=points.tolist(), labels=[1, 0]).version == seeds[5].version
    x0, x1, y0, y1 = np.array([1, 4, 0, 3])
    assert Seed(box=(x0, x1, y0, y1)).version == seeds[8].version
    assert seeds[8].same(Seed(box=(1, 4, 0, 3)))
    assert not seeds[8].same(seeds[9])
