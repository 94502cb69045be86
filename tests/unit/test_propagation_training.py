"""Training of the small SAM 2: loss, memory, and a run that is interrupted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from balls import RULES, clips, write_balls

from polycl.checkpoints import Provenance, load_as
from polycl.dataset import find_cases
from polycl.devices import choose
from polycl.errors import InputError
from polycl.propagate.architecture import ConvolutionalTrunkConfig, Sam2Config, build
from polycl.propagate.engine import FramePrompt
from polycl.propagate.header import FrameConfig, Sam2Header
from polycl.propagate.runs import Mark, recall
from polycl.propagate.runs import Run as Sweep
from polycl.propagate.sam2_engine import Sam2Engine
from polycl.propagate.training.clips import ClipBatch, Clips
from polycl.propagate.training.loop import Report, train
from polycl.propagate.training.loss import LossWeights, clip_loss
from polycl.propagate.training.recipe import Recipe, Stage
from polycl.propagate.training.start import look_back_to_the_same_place, resize, weights_of
from polycl.propagate.training.store import ObjectStore
from polycl.propagate.training.unroll import Step, Unroll
from polycl.propagate.training.validation import Validation
from polycl.propagate.training.views import View

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
SMALL = Sam2Config(
    image_size=64,
    trunk=ConvolutionalTrunkConfig(widths=(8, 16, 16, 32), layers=(1, 1, 1, 1)),
    width=32,
    memory_width=32,
    attention_layers=1,
    attention_hidden=32,
    dropout=0.0,
    memories=3,
    pointers=3,
    tracking_masks=1,
)
RECIPE = Recipe(
    network=SMALL,
    clips=RULES,
    stages=(Stage(2, 32, 2, 3), Stage(4, 64, 2, 3)),
    warm_up=2,
    validate_every=3,
    keep_every=2,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_balls(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def store(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return ObjectStore.build(find_cases(dataset), tmp_path_factory.mktemp("objects"))


@pytest.mark.slow
@pytest.mark.parametrize("previous_mask", [False, True])
def test_every_weight_learns_something(store: ObjectStore, previous_mask: bool) -> None:
    torch.manual_seed(0)
    network = build(SMALL)
    unroll = Unroll(network, previous_mask=previous_mask)
    for kind in ("mask", "box", "points"):
        for number in range(6):
            batch = clips(store, seeds={kind: 1.0})[number]
            clip_loss(unroll(batch), batch, LossWeights()).total.backward()
    idle = {name for name, one in network.named_parameters() if one.grad is None}
    # used only for slices between two memories that this length has not, or where an object is absent
    assert {name for name in idle if "no_obj" not in name and "no_mem_pos" not in name} == set()


def test_a_perfect_answer_costs_next_to_nothing_and_a_wrong_one_much(store: ObjectStore) -> None:
    batch = clips(store, kinds={"label": 1.0})[0]

    def said(masks: torch.Tensor) -> list[Step]:
        """What a decoder would say that is sure of `masks` and of nothing wrong."""
        there = masks.flatten(2).any(2).float() * 40 - 20
        logits = masks.float() * 40 - 20
        ones = torch.ones(len(masks), 1)
        return [Step(logits[:, t, None], ones, there[:, t, None]) for t in range(masks.shape[1])]

    right = clip_loss(said(batch.masks), batch, LossWeights())
    wrong = clip_loss(said(~batch.masks), batch, LossWeights())
    assert float(right.total) < 0.1
    assert float(right.dice) == pytest.approx(1.0)
    assert float(wrong.total) > 1.0


def test_a_told_slice_leaves_the_truth_in_memory(store: ObjectStore) -> None:
    torch.manual_seed(0)
    network = build(SMALL).eval()
    batch = clips(store, seeds={"mask": 1.0}, far=0.0, two=0.0)[0]
    told = batch._replace(told=torch.ones_like(batch.told))
    other = told._replace(memories=torch.cat([told.memories[:, :1], ~told.memories[:, 1:]], dim=1))

    def last(of: ClipBatch) -> torch.Tensor:
        with torch.no_grad():
            return Unroll(network)(of)[-1].logits

    assert not torch.allclose(last(told), last(other))
    untold = batch._replace(told=torch.zeros_like(batch.told))
    assert torch.equal(last(untold), last(untold._replace(memories=other.memories)))


@pytest.mark.parametrize("previous_mask", [False, True])
def test_propagation_does_what_was_trained(store: ObjectStore, previous_mask: bool) -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"previous_mask": previous_mask})
    network = build(config).eval()
    network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += 20  # present, or there is no mask to compare
    batch = clips(store, seeds={"mask": 1.0}, far=0.0, two=0.0, told=0.0)[0]
    with torch.no_grad():
        trained = Unroll(network, previous_mask=previous_mask)(batch)

    engine = Sam2Engine("tiny", "0" * 64, network, config, FrameConfig(), choose("cpu", "fp32"))
    features, run = engine.encode(batch.images[0]), Sweep(1, Mark(0, 0), None, 1, batch.images.shape[1])
    found = engine.prompt(features[0], [FramePrompt(mask=batch.memories[0, 0].float())])[0]
    seeds, last = {run.start: found.memory}, {}
    for z in run.slices:
        looks = recall(run, z, seeds, last, slots=config.memories, pointers=config.pointers, depth=1000)
        found = engine.track([features[z]], [replace(looks, previous=found.logits)])[0]
        last[z] = found.memory
        # memories are bf16, and the seed's is made of its mask at low resolution
        expected = trained[z].logits[0, 0]
        torch.testing.assert_close(found.logits, expected, atol=0.1 * float(expected.std()), rtol=0)
    if previous_mask:
        other = engine.track([features[z]], [replace(looks, previous=-found.logits)])[0]
        assert not torch.allclose(other.logits, expected, atol=0.1 * float(expected.std()))


def test_the_same_weights_take_images_of_another_size(store: ObjectStore) -> None:
    torch.manual_seed(0)
    network = build(SMALL).eval()
    other = build(SMALL.at(96)).eval()
    other.load_state_dict(network.state_dict())
    resize(network, 96)
    batch = Clips(store, RULES, View(size=96), batches=1, batch=2, seed=3)[0]
    with torch.no_grad():
        assert torch.equal(Unroll(network)(batch)[-1].logits, Unroll(other)(batch)[-1].logits)


def test_new_memory_attention_prefers_the_same_place() -> None:
    torch.manual_seed(0)
    network = build(SMALL.at(160))
    look_back_to_the_same_place(network)
    attention = network.memory_attention.layers[0].cross_attn_image
    from sam2.modeling.position_encoding import apply_rotary_enc, compute_axial_cis

    constant = attention.q_proj.bias.expand(1, 1, 100, -1)
    turned, _ = apply_rotary_enc(constant, constant, compute_axial_cis(dim=constant.shape[-1], end_x=10, end_y=10))
    weights = (turned @ turned.transpose(-1, -2) / constant.shape[-1] ** 0.5).softmax(-1)[0, 0]
    assert (weights.argmax(-1) == torch.arange(100)).all()
    assert weights[55, 55] > 1.2 * weights[55, 56]


def finish(store: ObjectStore, output: Path, recipe: Recipe = RECIPE, stop_at: int | None = None) -> list[Report]:
    """Train, and give up after `stop_at` steps as if the program had been killed."""
    reports: list[Report] = []

    def report(now: Report) -> None:
        reports.append(now)
        if now.step == stop_at:
            raise KeyboardInterrupt

    where = choose("cpu", "fp32")
    train(store, store, output, recipe=recipe, where=where, provenance=Provenance(), report=report)
    return reports


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(store: ObjectStore, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    finish(store, whole)
    with pytest.raises(KeyboardInterrupt):
        finish(store, parts, stop_at=3)
    assert parts.with_suffix(".resume").is_file()
    finish(store, parts)
    assert not parts.with_suffix(".resume").exists()
    (header, one), (_, other) = load_as(Sam2Header, whole), load_as(Sam2Header, parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert header.network == SMALL
    assert header.frames == RECIPE.frames
    build(SMALL).load_state_dict(weights_of(whole))


@pytest.mark.slow
def test_another_run_does_not_take_over_what_is_left(store: ObjectStore, tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finish(store, output, stop_at=3)
    with pytest.raises(InputError, match="other options"):
        finish(store, output, replace(RECIPE, learning_rate=5e-4))


@pytest.mark.slow
def test_the_loss_falls_on_a_small_problem(store: ObjectStore, tmp_path: Path) -> None:
    recipe = replace(RECIPE, stages=(Stage(60, 64, 4, 3),), learning_rate=2e-3, validate_every=60, warm_up=10)
    reports = finish(store, tmp_path / "a.safetensors", recipe)
    assert reports[-1].loss < 0.6 * reports[0].loss


def test_validation_gives_the_same_score_twice_and_none_without_objects(store: ObjectStore) -> None:
    torch.manual_seed(0)
    network, where = build(SMALL), choose("cpu", "fp32")
    validation = Validation(store, View(size=64), batches=2, batch=2)
    first = validation.score(network, SMALL, where)
    assert validation.score(network, SMALL, where) == first
    assert 0 <= first <= 1
    assert network.training


def test_the_learning_rate_rises_and_falls_over_all_stages() -> None:
    recipe = Recipe(stages=(Stage(500, 128, 8), Stage(300, 192, 6), Stage(200, 256, 4, 8)))
    assert [recipe.stage(step).size for step in (0, 499, 500, 799, 800, 999)] == [128, 128, 192, 192, 256, 256]
    assert recipe.rate(0) < recipe.rate(recipe.warm_up) > recipe.rate(999)
    assert [recipe.rules(stage).length for stage in recipe.stages] == [5, 5, 8]


@pytest.mark.parametrize("text", ["", "10", "10,100,4", "0,128,4", "10,128,4,2", "a,b,c", "1,2,3,4,5"])
def test_what_is_no_stage_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="stage"):
        Stage.parse(text)


@pytest.mark.slow
def test_the_command_trains_goes_on_from_a_checkpoint_and_names_what_it_saw(
    dataset: Path, tmp_path: Path, run: Run
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    common = [
        "--stage",
        "1,64,2",
        "--phantoms",
        0,
        "--teacher",
        "none",
        "--cache",
        tmp_path / "objects",
        "--train",
        "one",
    ]
    code, out, err = run("train-propagation", dataset, "-o", first, *common)
    assert (code, out.strip()) == (0, str(first)), err
    header, weights = load_as(Sam2Header, first)
    assert header.provenance.data == ("one",)
    assert {one.dtype for one in weights.values() if one.is_floating_point()} == {torch.float16}
    assert first.stat().st_size < 16e6
    code, _, err = run("train-propagation", dataset, "-o", second, "--start", first, *common)
    assert code == 0, err
    assert load_as(Sam2Header, second)[0].provenance.parent == "first.safetensors"


def test_the_command_refuses_what_cannot_work(dataset: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "a.safetensors"
    for options, message in (
        (["-o", tmp_path / "a.pt"], "must end in .safetensors"),
        (["-o", output, "--train", "none"], "no case is left"),
        (["-o", output, "--validate", "*"], "2 are held out"),
        (["-o", output, "--phantoms", 0, "--teacher", "mobile-sam"], "mobile-sam"),
        (["-o", output, "--phantoms", 0, "--teacher", "medsam"], "medsam"),
    ):
        code, _, err = run("train-propagation", dataset, *options)
        assert code == 1
        assert message in err
    (dataset / "labels" / "two.nii.gz").rename(tmp_path / "two.nii.gz")
    try:
        code, _, err = run("train-propagation", dataset, "-o", output, "--validate", "two")
    finally:
        (tmp_path / "two.nii.gz").rename(dataset / "labels" / "two.nii.gz")
    assert code == 1
    assert "validation needs labels" in err
