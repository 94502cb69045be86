"""SAM 2 in batches of our own against the package's video predictor, and the official architectures."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.core.global_hydra import GlobalHydra

from polycl import devices
from polycl.errors import InputError
from polycl.propagate.architecture import ARCHITECTURES, ConvolutionalTrunkConfig, Sam2Config, TrunkConfig, arguments
from polycl.propagate.attention import attend
from polycl.propagate.encoder import fold_batch_norm, fold_fine
from polycl.propagate.engine import LARGEST, FramePrompt, Hint, Memory, Recall, Tracked
from polycl.propagate.header import FrameConfig
from polycl.propagate.package import SAM2Base
from polycl.propagate.runs import Mark, Run, recall
from polycl.propagate.sam2_engine import LEAST_PRESENCE, Sam2Engine

pytestmark = pytest.mark.unit

SIZE, FRAMES, SEED = 64, 9, 2
TINY = Sam2Config(
    image_size=SIZE,
    trunk=TrunkConfig(width=16, blocks=(1, 1, 2, 1), windows=(4, 4, 4, 2), global_blocks=(3,), background=(4, 4)),
    width=64,
    memory_width=32,
    attention_layers=2,
    attention_hidden=64,
    memories=4,
    pointers=4,
)
MASK = torch.zeros(SIZE, SIZE)
MASK[10:40, 12:50] = 1
BOX = np.array([5.0, 6.0, 30.0, 33.0])
POINTS, LABELS = np.array([[30.0, 30.0], [50.0, 50.0]]), np.array([1, 0])
PROMPTS = [
    FramePrompt(mask=MASK),
    FramePrompt(box=BOX),
    FramePrompt(points=POINTS, labels=LABELS),
    FramePrompt(points=POINTS[:1], labels=LABELS[:1]),
    FramePrompt(points=POINTS[1:], labels=LABELS[1:], box=BOX),
]


def predictor(config: Sam2Config = TINY) -> SAM2Base:
    """The package's own, with random weights."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    torch.manual_seed(0)
    network = SAM2VideoPredictor(**arguments(config)).eval()
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return network


def engine(network: SAM2Base, config: Sam2Config = TINY, precision: str = "fp32") -> Sam2Engine:
    return Sam2Engine("tiny", "0" * 64, copy.deepcopy(network), config, FrameConfig(), devices.choose("cpu", precision))


def start(monkeypatch: pytest.MonkeyPatch, network: SAM2Base, frames: torch.Tensor) -> dict[str, object]:
    """The predictor's state for these frames, which it would read from files."""
    monkeypatch.setattr("sam2.sam2_video_predictor.load_video_frames", lambda **_: (frames, SIZE, SIZE))
    state: dict[str, object] = network.init_state("")
    return state


def prompt_theirs(network: SAM2Base, state: dict[str, object], frame: int, number: int, prompt: FramePrompt) -> None:
    if prompt.mask is not None:
        network.add_new_mask(state, frame, number, prompt.mask > 0)
    else:
        network.add_new_points_or_box(state, frame, number, prompt.points, prompt.labels, box=prompt.box)


def large(found: list[Tracked]) -> torch.Tensor:
    logits = torch.stack([one.logits for one in found])[:, None]
    return F.interpolate(logits, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]


class TestAgainstThePackage:
    @pytest.mark.parametrize("step", [1, -1])
    def test_all_kinds_of_prompts_and_all_objects_in_one_batch(
        self, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        network, frames = predictor(), torch.randn(FRAMES, 3, SIZE, SIZE)
        state, seed = start(monkeypatch, network, frames), SEED if step == 1 else FRAMES - 1 - SEED
        for number, prompt in enumerate(PROMPTS):
            prompt_theirs(network, state, seed, number, prompt)
        theirs = {z: logits[:, 0].clone() for z, _, logits in network.propagate_in_video(state, reverse=step < 0)}

        ours = engine(network)
        features = ours.encode(frames)
        found = ours.prompt(features[seed], PROMPTS)
        torch.testing.assert_close(large(found), theirs[seed], atol=1e-5, rtol=1e-4)
        runs = [Run(n, Mark(seed, 0), None, step, FRAMES if step == 1 else -1) for n in range(len(PROMPTS))]
        seeds = [{run.start: one.memory} for run, one in zip(runs, found, strict=True)]
        last: list[dict[int, Memory]] = [{} for _ in runs]
        for z in runs[0].slices:
            recalls = [
                recall(run, z, seeds[n], last[n], slots=TINY.memories, pointers=TINY.pointers, depth=FRAMES)
                for n, run in enumerate(runs)
            ]
            found = ours.track([features[z]] * len(runs), recalls)
            torch.testing.assert_close(large(found), theirs[z], atol=1e-5, rtol=1e-4)
            for n, one in enumerate(found):
                last[n][z] = one.memory
        assert theirs[seed + 3 * step].std() > 0.01  # or there would be nothing to compare

    def test_between_two_seeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, frames = predictor(), torch.randn(FRAMES, 3, SIZE, SIZE)
        state = start(monkeypatch, network, frames)
        first, second = PROMPTS[0], FramePrompt(mask=MASK.flip(0))
        prompt_theirs(network, state, 1, 1, first)
        prompt_theirs(network, state, 7, 1, second)
        theirs = {z: logits[:, 0].clone() for z, _, logits in network.propagate_in_video(state)}

        ours = engine(network)
        features = ours.encode(frames)
        run = Run(1, Mark(1, 0), Mark(7, 0), 1, 7)
        seeds = {
            mark: ours.prompt(features[mark.z], [prompt])[0].memory
            for mark, prompt in zip(run.marks, (first, second), strict=True)
        }
        last: dict[int, Memory] = {}
        for z in run.slices:
            looked = recall(run, z, seeds, last, slots=TINY.memories, pointers=TINY.pointers, depth=FRAMES)
            found = ours.track([features[z]], [looked])
            torch.testing.assert_close(large(found), theirs[z], atol=1e-5, rtol=1e-4)
            last[z] = found[0].memory

    def test_what_a_hint_changes_is_remembered(self) -> None:
        ours = engine(predictor())
        features = ours.encode(torch.randn(3, 3, SIZE, SIZE))
        seed = ours.prompt(features[1], PROMPTS[:1])[0].memory
        run = Run(1, Mark(1, 0), None, 1, 3)
        looked = recall(run, 2, {run.start: seed}, {}, slots=TINY.memories, pointers=TINY.pointers, depth=3)
        odds = np.where(np.arange(SIZE // 4) < 5, 6.0, -6.0)[:, None].repeat(SIZE // 4, axis=1).astype(np.float32)
        recalls = [replace(looked, hints=() if share is None else (Hint(odds, share),)) for share in (None, 0.0, 1.0)]
        alone, silent, told = ours.track([features[2]] * 3, recalls)
        torch.testing.assert_close(silent.logits, alone.logits.clamp(-LARGEST, LARGEST))
        torch.testing.assert_close(told.logits, torch.from_numpy(odds))
        assert told.presence >= LEAST_PRESENCE
        assert not torch.equal(told.memory.features, alone.memory.features)
        assert torch.equal(told.memory.pointer, alone.memory.pointer)

    def test_an_object_that_is_known_to_be_there_keeps_its_mask(self) -> None:
        network = predictor()
        network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(-10)
        ours = engine(network)
        features = ours.encode(torch.randn(3, 3, SIZE, SIZE))
        seed = ours.prompt(features[1], PROMPTS[:1])[0].memory
        run = Run(1, Mark(1, 0), None, 1, 3)
        looked = recall(run, 2, {run.start: seed}, {}, slots=TINY.memories, pointers=TINY.pointers, depth=3)
        gone, kept = ours.track([features[2]] * 2, [looked, replace(looked, there=True)])
        assert gone.presence < 0
        assert (gone.logits == gone.logits[0, 0]).all(), "the package takes the mask away"
        assert kept.presence == LEAST_PRESENCE
        assert kept.logits.std() > 0
        assert not torch.equal(kept.memory.pointer, gone.memory.pointer)
        assert torch.equal(ours.track([features[2]], [looked])[0].logits, gone.logits), "only where it was told"
        surer, surest = ours.track([features[2]] * 2, [replace(looked, presence=by) for by in (2.0, 12.0)])
        assert surer.presence == pytest.approx(gone.presence + 2, abs=1e-3)
        assert torch.equal(surer.logits, gone.logits), "it is still believed to be gone"
        torch.testing.assert_close(surest.logits, kept.logits)

    def test_directions_in_one_batch_are_the_same_as_one_by_one(self) -> None:
        ours = engine(predictor())
        features = ours.encode(torch.randn(3, 3, SIZE, SIZE))
        seed = ours.prompt(features[1], PROMPTS[:1])[0].memory
        runs = [Run(1, Mark(1, 0), None, step, end) for step, end in ((1, 3), (-1, -1))]
        looked = [
            recall(run, run.slices[0], {run.start: seed}, {}, slots=TINY.memories, pointers=TINY.pointers, depth=3)
            for run in runs
        ]
        together = ours.track([features[2], features[0]], looked)
        alone = [ours.track([features[z]], [one])[0] for z, one in zip((2, 0), looked, strict=True)]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-4)

    def test_lanes_of_a_batch_may_remember_different_slots(self) -> None:
        """One between two seeds and one past its first slice: two memories each, of other ages."""
        ours = engine(predictor())
        features = ours.encode(torch.randn(2, 3, SIZE, SIZE))
        one, other = (found.memory for found in ours.prompt(features[0], PROMPTS[:2]))
        looked = [
            Recall(((0, one), (0, other)), ((1, one),), 4),
            Recall(((0, one), (TINY.memories - 1, other)), ((2, one),), 4),
        ]
        together = ours.track([features[1]] * 2, looked)
        for each, found in zip(looked, together, strict=True):
            alone = ours.track([features[1]], [each])[0]
            torch.testing.assert_close(alone.logits, found.logits, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(together[0].logits, together[1].logits)

    @pytest.mark.parametrize(("precision", "off"), [("fp32", 1e-5), ("bf16", 0.02)])
    def test_lanes_of_a_batch_may_remember_more_or_less(self, precision: str, off: float) -> None:
        ours = engine(predictor(), precision=precision)
        features = ours.encode(torch.randn(2, 3, SIZE, SIZE))
        one, other = (found.memory for found in ours.prompt(features[0], PROMPTS[:2]))
        looked = [
            Recall(((0, one),), ((1, one),), 4),
            Recall(((0, one), (0, other), (TINY.memories - 1, other)), ((3, one), (1, other)), 16),
            Recall(((0, other),), (), 9),
        ]
        together = ours.track([features[1]] * 3, looked)
        alone = [ours.track([features[1]], [each])[0] for each in looked]
        for single, found in zip(alone, together, strict=True):
            torch.testing.assert_close(single.logits, found.logits, atol=off, rtol=1e-4)
            torch.testing.assert_close(single.memory.pointer, found.memory.pointer, atol=off, rtol=1e-4)
        assert (alone[0].logits - alone[2].logits).abs().max() > 2 * off
        nearer = ours.track([features[1]], [replace(looked[1], reach=4)])[0]
        assert not torch.equal(nearer.logits, alone[1].logits), "it tells how long ago a slice was"


class TestEngine:
    def test_bf16_is_close(self) -> None:
        frames = torch.randn(2, 3, SIZE, SIZE)
        results = []
        for precision in ("fp32", "bf16"):
            ours = engine(predictor(), precision=precision)
            features = ours.encode(frames)
            run = Run(1, Mark(0, 0), None, 1, 2)
            seeds = {run.start: ours.prompt(features[0], PROMPTS[:1])[0].memory}
            looked = recall(run, 1, seeds, {}, slots=TINY.memories, pointers=TINY.pointers, depth=2)
            results.append(ours.track([features[1]], [looked])[0].logits)
        assert (results[0] - results[1]).abs().max() < 0.2 * results[0].std()

    def test_attention_in_blocks_of_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("polycl.propagate.attention.BLOCK", 1)
        query, key, value = (torch.randn(2, n, 16).bfloat16() for n in (100, 70, 70))
        expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        torch.testing.assert_close(attend(query, key, value).float(), expected, atol=0.03, rtol=0.03)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_is_absent_gets_no_attention(self, dtype: torch.dtype) -> None:
        query, key, value = (torch.randn(2, n, 16).to(dtype) for n in (10, 7, 7))
        absent = torch.arange(7) >= torch.tensor([[7], [4]])
        found = attend(query, key, value, absent)
        for lane, count in enumerate((7, 4)):
            there = slice(lane, lane + 1), slice(count)
            alone = attend(query[lane : lane + 1], key[there], value[there])
            torch.testing.assert_close(found[lane : lane + 1], alone, atol=0.02, rtol=0.02)

    @pytest.mark.parametrize("size", [32, 96, 160])
    def test_any_size_that_fits(self, size: int) -> None:
        config = TINY.at(size)
        ours = engine(predictor(config), config)
        features = ours.encode(torch.randn(1, 3, size, size))[0]
        assert features.top.shape == (64, size // 16, size // 16)
        assert ours.prompt(features, PROMPTS[1:2])[0].logits.shape == (size // 4, size // 4)

    def test_a_size_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(InputError, match="an image size of 500 does not fit SAM 2; a multiple of 32 does"):
            ARCHITECTURES["tiny"].at(500)

    def test_frames_of_another_size_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"do not fit; \[B, 3, 64, 64\] do"):
            engine(predictor()).encode(torch.zeros(1, 3, 32, 32))

    def test_a_prompt_is_one_thing_or_the_other(self) -> None:
        with pytest.raises(InputError, match="a prompt is a mask, or else points"):
            FramePrompt()
        with pytest.raises(InputError, match="each point needs a label"):
            FramePrompt(points=POINTS, labels=LABELS[:1])

    def test_hydra_is_left_alone(self) -> None:
        assert not GlobalHydra.instance().is_initialized()

    def test_batch_norm_is_folded_without_changing_anything(self) -> None:
        config = TINY.model_copy(update={"trunk": ConvolutionalTrunkConfig(widths=(8, 8, 16, 16), layers=(1, 1, 1, 1))})
        encoder = predictor(config).image_encoder
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        image = torch.randn(1, 3, SIZE, SIZE)
        with torch.no_grad():
            before = encoder(image)["backbone_fpn"]
            fold_batch_norm(encoder)
            after = encoder(image)["backbone_fpn"]
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    def test_the_decoder_s_convolutions_are_folded_into_the_neck_without_changing_anything(self) -> None:
        network = predictor(TINY)
        image = torch.randn(1, 3, SIZE, SIZE)
        with torch.no_grad():
            before = network.forward_image(image)["backbone_fpn"]
            fold_fine(network)
            after = network.forward_image(image)["backbone_fpn"]
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class TestArchitectures:
    @pytest.mark.parametrize(("name", "file"), [("tiny", "t"), ("small", "s"), ("base+", "b+"), ("large", "l")])
    def test_the_official_weights_fit(self, name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Names and shapes are those of what the package builds from its own file; no numbers are computed."""
        import sam2
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        written = Path(sam2.__path__[0]) / "configs" / "sam2.1" / f"sam2.1_hiera_{file}.yaml"
        linspace = torch.linspace  # the package asks for its numbers, which there are none of on this device
        monkeypatch.setattr(torch, "linspace", lambda *values: linspace(*values, device="cpu"))
        with torch.device("meta"):
            ours = SAM2Base(**arguments(ARCHITECTURES[name])).state_dict()
            theirs = instantiate(OmegaConf.load(written).model).state_dict()
        assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}

    def test_the_small_one_is_small(self) -> None:
        with torch.device("meta"):
            network = SAM2Base(**arguments(ARCHITECTURES["ct"]))
        assert 2 * sum(tensor.numel() for tensor in network.state_dict().values()) < 16e6

    def test_a_block_that_halves_the_image_cannot_see_all_of_it(self) -> None:
        with pytest.raises(InputError, match="block 3 halves the image"):
            Sam2Config(trunk=TrunkConfig(global_blocks=(3, 5)))
