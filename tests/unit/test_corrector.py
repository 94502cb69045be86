"""The 3D network that corrects what a segmenter finds, by annotated slices: grids, what it changes, and loading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from one_ball import HEADER, WHERE, X, Y, Z, ball, corrector, odds, volume

from polycl import checkpoints
from polycl.corrector.grids import annotated_at, resampled, shape_at
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.inference import Corrector
from polycl.corrector.loading import load_correctors
from polycl.corrector.network import CorrectorNetwork
from polycl.errors import Cancelled, ModelError
from polycl.settings import Settings
from polycl.volume import Volume

pytestmark = pytest.mark.unit


class TestGrids:
    def test_what_is_even_stays_so_at_any_spacing(self) -> None:
        for shape in ((40, 36, 24), (20, 18, 24), (50, 11, 7), (1, 1, 1)):
            even = resampled(torch.full((2, 40, 36, 24), 7.5), shape)
            assert even.shape == (2, *shape)
            torch.testing.assert_close(even, torch.full_like(even, 7.5))

    def test_places_stay_along_each_axis(self) -> None:
        ramps = torch.from_numpy(np.stack([X, Y, Z]).astype(np.float32))
        coarse = resampled(ramps, (20, 18, 12))
        inner = coarse[:, 2:-2, 2:-2, 2:-2]
        expected = torch.from_numpy(np.indices((20, 18, 12)).astype(np.float32))[:, 2:-2, 2:-2, 2:-2] * 2 + 0.5
        torch.testing.assert_close(inner, expected, atol=1e-3, rtol=0)

    def test_noise_is_averaged_where_voxels_grow(self) -> None:
        noise = torch.randn(1, 40, 36, 24, generator=torch.Generator().manual_seed(0))
        assert float(resampled(noise, (10, 9, 6)).std()) < 0.25

    def test_shapes_are_of_the_same_extent(self) -> None:
        assert shape_at((40, 36, 24), (2.0, 2.0, 4.0), (4.0, 4.0, 4.0)) == (20, 18, 24)
        assert shape_at((2, 2, 1), (0.5, 0.5, 1.0), (4.0, 4.0, 4.0)) == (1, 1, 1)

    @limits(max_examples=40, deadline=None)
    @given(depth=st.integers(1, 90), seen=st.integers(1, 60), share=st.floats(0, 1))
    def test_an_annotated_slice_lies_where_it_was(self, depth: int, seen: int, share: float) -> None:
        z = min(depth - 1, int(share * depth))
        shown = annotated_at({z: ball(8)[:, :, 12]}, depth, (20, 18, seen))[0]
        [at] = np.flatnonzero((shown != 0).any(dim=0).any(dim=0))
        assert at / seen <= (z + 0.5) / depth <= (at + 1) / seen
        assert set(shown[:, :, at].unique().tolist()) == {-1.0, 1.0}
        assert int((shown == 1).sum()) * 4 == pytest.approx(ball(8)[:, :, 12].sum(), rel=0.1)

    def test_of_two_slices_on_one_of_its_voxels_the_nearer_to_the_middle_counts_in_any_order(self) -> None:
        one, other = ball(8)[:, :, 12], ball(4)[:, :, 12]
        for slices in ({4: one, 5: other}, {5: other, 4: one}):  # of 3 to 5 in one, whose middle is 4
            shown = annotated_at(slices, 9, (20, 18, 3))
            torch.testing.assert_close(shown, annotated_at({4: one}, 9, (20, 18, 3)))

    def test_what_is_too_small_for_its_voxels_is_still_shown(self) -> None:
        dot = np.zeros((40, 36), dtype=bool)
        dot[20, 18] = True
        shown = annotated_at({0: dot}, 1, (10, 9, 1))[0, :, :, 0]
        assert torch.nonzero(shown == 1).tolist() == [[5, 4]]


class TestInference:
    @pytest.mark.parametrize("shape", [(4, 4, 1), (60, 60, 1), (16, 16, 16)])
    def test_small_volumes_are_corrected_too(self, shape: tuple[int, int, int]) -> None:
        mask = np.ones(shape, dtype=bool)
        mask[: shape[0] // 2] = False
        image = Volume(np.zeros(shape, np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))
        found = odds(mask)
        np.testing.assert_array_equal(corrector().corrected(image, found, {0: mask[:, :, 0]}), found)

    def test_new_weights_change_nothing(self) -> None:
        found = odds(ball(10))
        after = corrector().corrected(volume(ball(10)), found, {12: ball(10)[:, :, 12]})
        np.testing.assert_array_equal(after, found)
        assert after.dtype == np.int8

    def test_what_is_far_from_all_that_was_found_stays(self) -> None:
        wide = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(0.5, 0.5, 0.5), features=(4,) * 6)
        network = CorrectorNetwork(wide)
        torch.nn.init.constant_(network.unet.final_conv.bias, 5.0)
        found = odds(ball(4), 2)
        after = Corrector(wide, network, WHERE).corrected(volume(ball(4)), found, {})
        assert after[20, 18, 12] > found[20, 18, 12]
        assert after[20, 23, 12] > found[20, 23, 12]
        np.testing.assert_array_equal(after[:, :4], found[:, :4])

    def test_where_in_the_volume_it_lies_makes_no_difference(self) -> None:
        fine = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(0.5, 0.5, 1.0), features=(4,) * 6)
        network = CorrectorNetwork(fine)
        torch.nn.init.normal_(network.unet.final_conv.weight, generator=torch.Generator().manual_seed(0))
        one = Corrector(fine, network, WHERE)
        image, found, drawn = volume(ball(6, 5)), odds(ball(4, 5)), ball(6, 5)[:, :, 6]
        after = one.corrected(image, found, {6: drawn})
        hollow = one.corrected(image, found, {6: drawn & ~ball(3, 5)[:, :, 6]})
        assert (after != hollow).any(), "the outline tells"
        ends = ((11, 3), (2, 9), (7, 1))
        moved = Volume(np.pad(image.voxels, ends, constant_values=-100), image.affine)
        elsewhere = one.corrected(moved, np.pad(found, ends, constant_values=-48), {13: np.pad(drawn, ends[:2])})
        np.testing.assert_array_equal(elsewhere, np.pad(after, ends, constant_values=-48))

    def test_it_looks_at_what_was_annotated_where_nothing_was_found(self) -> None:
        fine = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(0.5, 0.5, 0.5), features=(4,) * 6)
        network = CorrectorNetwork(fine)
        torch.nn.init.constant_(network.unet.final_conv.bias, 5.0)
        found, drawn = odds(ball(4), 2), np.roll(ball(4)[:, :, 12], 9, axis=0)
        after = Corrector(fine, network, WHERE).corrected(volume(ball(4)), found, {20: drawn})
        assert (after[:, :, 20][drawn] > found[:, :, 20][drawn]).all()

    def test_what_is_far_from_all_that_was_annotated_stays(self) -> None:
        long = Volume(np.full((8, 8, 120), 60.0, np.float32), np.diag([4.0, 4.0, 5.0, 1.0]))
        network = CorrectorNetwork(HEADER)
        torch.nn.init.constant_(network.unet.final_conv.bias, 5.0)
        found, drawn = odds(np.ones(long.shape, bool)), np.ones((8, 8), bool)
        changed = (corrector(network).corrected(long, found, {60: drawn}) != found).any(axis=(0, 1))
        assert changed[11:110].all()
        assert not changed[:10].any()
        assert not changed[111:].any()
        assert (corrector(network).corrected(long, found, {}) != found).all(), "nothing was annotated"

    def test_who_stops_it_is_heard_at_each_layer_and_not_later(self) -> None:
        calls, one, image, found = [], corrector(), volume(ball(10)), odds(ball(10))

        def stop() -> None:
            calls.append(1)
            if len(calls) == 3:
                raise Cancelled("enough")

        with pytest.raises(Cancelled):
            one.corrected(image, found, {12: ball(10)[:, :, 12]}, stop)
        assert len(calls) == 3
        one.corrected(image, found, {12: ball(10)[:, :, 12]})
        assert len(calls) == 3, "nothing of it stays"
        one.corrected(image, found, {12: ball(10)[:, :, 12]}, lambda: calls.append(1))
        assert len(calls) > 15

    def test_nothing_found_and_nothing_annotated_stays(self) -> None:
        found = odds(ball(10) & False)
        np.testing.assert_array_equal(corrector().corrected(volume(ball(10)), found, {}), found)

    def test_it_knows_the_labels_of_its_segmenter_alone(self) -> None:
        one = corrector()
        assert one.knows("tiny", "liver")
        assert not one.knows("tiny", "spleen")
        assert not one.knows("other", "liver")

    def test_values_that_are_no_numbers_are_borne(self) -> None:
        image = Volume(np.where(ball(10), np.nan, -100).astype(np.float32), np.diag([2.0, 2.0, 4.0, 1.0]))
        network = CorrectorNetwork(HEADER)
        torch.nn.init.normal_(network.unet.final_conv.weight)
        after = corrector(network).corrected(image, odds(ball(10)), {12: ball(10)[:, :, 12]})
        assert len(np.unique(after)) > 2

    def test_loading_refuses_what_is_none(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        path = tmp_path / "c.safetensors"
        sha256 = checkpoints.save(path, CorrectorNetwork(HEADER).state_dict(), HEADER)
        assert Corrector.load(path, sha256=sha256, device="cpu").header == HEADER
        for refused, options in ((tiny_checkpoint, {}), (path, {"sha256": "0" * 64}), (tmp_path / "no", {})):
            with pytest.raises(ModelError):
                Corrector.load(refused, device="cpu", **options)
        other = HEADER.model_copy(update={"features": (8,) * 6})
        checkpoints.save(path, CorrectorNetwork(HEADER).state_dict(), other)
        with pytest.raises(ModelError, match="do not fit"):
            Corrector.load(path, device="cpu")

    def test_an_unusable_one_is_left_out_with_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        here = Settings(state=tmp_path / "state", weights=tmp_path, device="cpu")
        checkpoints.save(tmp_path / "good.safetensors", CorrectorNetwork(HEADER).state_dict(), HEADER)
        other = HEADER.model_copy(update={"features": (8,) * 6})
        checkpoints.save(tmp_path / "bad.safetensors", CorrectorNetwork(HEADER).state_dict(), other)
        for name, wrong in (("negative", {"features": (-1,) * 6}), ("flat", {"spacing": (0.0, 4.0, 4.0)})):
            impossible = HEADER.model_copy(update=wrong)
            checkpoints.save(tmp_path / f"{name}.safetensors", CorrectorNetwork(HEADER).state_dict(), impossible)
        checkpoints.save(tmp_path / "c@2.safetensors", CorrectorNetwork(HEADER).state_dict(), HEADER)
        assert [one.header for one in load_correctors(here, {"tiny"})] == [HEADER]
        assert "do not fit" in caplog.text
        assert load_correctors(here, {"nobody"}) == []
