"""The pre-training loop: what it learns, what survives an interruption, what several processes share."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from polycl import checkpoints, devices
from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.contrast.objective import Recipe
from polycl.contrast.pretraining import Outcome, Report, pretrain, step_cost
from polycl.contrast.selection import Triplets
from polycl.contrast.simclr import SimclrViews
from polycl.contrast.tracking import TensorBoard
from polycl.contrast.views import Batches, Views
from polycl.errors import InputError
from polycl.segmenter.network import SegmentationNetwork
from polycl.segmenter.transfer import read_encoder, start_from

pytestmark = pytest.mark.unit

SCANS, DEPTH, SIZE = 4, 6, 32


class Slices:
    """Stands for a slice store: each scan has its own stripes, and a bright square in its upper half."""

    names = tuple(f"scan{number}" for number in range(SCANS))
    scan = np.repeat(np.arange(SCANS, dtype=np.int32), DEPTH)
    present = np.tile(np.arange(DEPTH) >= DEPTH // 2, SCANS)

    def __len__(self) -> int:
        return len(self.scan)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(indices), SIZE, SIZE), dtype=np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = 60 + 50 * np.sin(np.arange(SIZE) * (self.scan[index] + 1) * 0.7) + index % DEPTH
            if self.present[index]:
                image[8:20, 8:20] = 220
        return images


def header(**network: object) -> Header:
    return Header(
        network=NetworkConfig(features=(4, 4, 8, 8, 8, 4), **network),  # type: ignore[arg-type]
        preprocessing=Preprocessing(size=SIZE, spacing=4.0),
    )


def views(recipe: Recipe) -> Views:
    store = Slices()
    if recipe.strategy == "simclr":
        return Views(store, None, seed=recipe.seed)
    triplets = Triplets(recipe.strategy, store.scan, store.present, seed=recipe.seed)
    return Views(store, triplets, seed=recipe.seed, present=store.present)


def recipe(strategy: str = "scan", **options: object) -> Recipe:
    settings = {"steps": 20, "batch": 8, "embedding": 16, "warm_up": 2, "learning_rate": 1e-2, "save_every": 10}
    return Recipe(strategy=strategy, **{**settings, **options})  # type: ignore[arg-type]


def run(
    output: Path,
    chosen: Recipe,
    *,
    report: Callable[[Report], None] = lambda _: None,
    network: Mapping[str, object] | None = None,
    **options: object,
) -> Outcome:
    where = devices.choose("cpu", "fp32")
    return pretrain(
        header(**network or {}), views(chosen), output, recipe=chosen, where=where, report=report, **options
    )  # type: ignore[arg-type]


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "negatives", "share"),
    [
        ("scan", "one", 0.8),
        ("scan", "batch", 0.8),
        ("organ", "one", 0.8),
        ("organ", "batch", 0.8),
        ("mixed", "one", 0.8),
        ("mixed", "batch", 0.8),
        ("simclr", "batch", 0.9),  # slices of so small a store meet themselves in a batch
    ],
)
def test_every_method_learns(strategy: str, negatives: str, share: float, tmp_path: Path) -> None:
    losses: list[Report] = []
    run(tmp_path / "e.safetensors", recipe(strategy, negatives=negatives, steps=60), report=losses.append)
    assert losses[-1].loss < share * losses[0].loss
    assert not losses[-1].health.collapsed


def test_the_checkpoint_holds_the_encoder_that_a_segmenter_takes(tmp_path: Path) -> None:
    outcome = run(tmp_path / "e.safetensors", recipe())
    loaded, weights = checkpoints.load(tmp_path / "e.safetensors")
    assert loaded.kind == "encoder"
    SegmentationNetwork(loaded.network).encoder.load_state_dict(weights)
    assert same(weights, outcome.encoder)
    assert loaded.provenance.figures == outcome.figures
    assert {"loss", "spread", "rank", "step"} == set(outcome.figures)
    assert [file.name for file in tmp_path.iterdir()] == ["e.safetensors"]


def test_local_contrast_trains_a_decoder_that_a_segmenter_takes(tmp_path: Path) -> None:
    losses: list[Report] = []
    run(tmp_path / "e.safetensors", recipe("mixed", local=1.0, steps=60), report=losses.append)
    assert losses[-1].loss < 0.9 * losses[0].loss
    loaded, weights = read_encoder(tmp_path / "e.safetensors")
    network = SegmentationNetwork(loaded.network)
    head = network.decoder.head.weight.clone()
    start_from(network, weights)
    decoder = {name: one for name, one in network.state_dict().items() if name.startswith("decoder.levels.")}
    assert decoder
    assert all(torch.equal(weights[name], one) for name, one in decoder.items())
    assert torch.equal(network.decoder.head.weight, head)
    untrained = run(tmp_path / "f.safetensors", recipe("mixed", local=1.0, steps=1, learning_rate=0.0))
    assert any(not torch.equal(untrained.encoder[name], one) for name, one in weights.items() if name in decoder)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("mixed", {"negatives": "batch", "clip": 1.0}),
        ("mixed", {"local": 1.0}),
        ("simclr", {"optimiser": "adam"}),
    ],
)
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    strategy: str, options: dict[str, object], tmp_path: Path
) -> None:
    chosen = recipe(strategy, steps=25, **options)
    network = {"dropout": 0.2}

    def stop(now: Report) -> None:
        if now.step == 20:
            raise Killed

    whole = run(tmp_path / "whole.safetensors", chosen, network=network)
    with pytest.raises(Killed):
        run(tmp_path / "cut.safetensors", chosen, network=network, report=stop)
    assert not (tmp_path / "cut.safetensors").exists()
    steps: list[int] = []
    cut = run(
        tmp_path / "cut.safetensors",
        replace(chosen, workers=1),
        network=network,
        report=lambda now: steps.append(now.step),
    )
    assert steps == [20, 25]
    assert same(whole.encoder, cut.encoder)
    assert whole.figures == cut.figures


def test_another_runs_state_is_refused(tmp_path: Path) -> None:
    def stop(_: Report) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "e.safetensors", recipe(save_every=5, steps=10), report=lambda now: now.step < 10 or stop(now))
    with pytest.raises(InputError, match=r"e\.resume was left by a run with other options"):
        run(tmp_path / "e.safetensors", recipe(save_every=5, steps=10, temperature=0.3))
    (tmp_path / "e.resume").write_bytes(b"PK damaged")
    with pytest.raises(InputError, match="damaged"):
        run(tmp_path / "e.safetensors", recipe(save_every=5, steps=10))


def test_instance_norm_and_average_pooling_are_caught_collapsing(tmp_path: Path) -> None:
    """The trap: after this norm the average of a channel says nothing about the slice."""
    seen: list[Report] = []
    for norm in ("instance", "batch"):
        run(tmp_path / "e.safetensors", recipe(steps=10), network={"norm": norm}, report=seen.append)
    assert [one.health.collapsed for one in seen] == [True, False]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite at step"):
        run(tmp_path / "e.safetensors", recipe(learning_rate=1e30, warm_up=0))
    assert not (tmp_path / "e.safetensors").exists()


def test_speed_is_told_as_a_share_of_the_peak(tmp_path: Path) -> None:
    seen: list[Report] = []
    run(tmp_path / "e.safetensors", recipe(steps=10), report=seen.append, peak=1e12)
    flop = step_cost(header(), recipe()).flop_per_slice
    assert seen[0].share == pytest.approx(seen[0].slices_per_second * flop / 1e12)


def test_the_cost_is_that_of_the_convolutions() -> None:
    """Those of the first convolution, by hand, are part of it; forward and backward are three times forward."""
    cost = step_cost(header(), recipe())
    first = 2 * SIZE**2 * 9 * 4
    assert cost.flop_per_slice > 3 * first
    assert not cost.unreached
    quarter = step_cost(header().model_copy(update={"preprocessing": Preprocessing(size=SIZE // 2)}), recipe())
    assert cost.flop_per_slice == pytest.approx(4 * quarter.flop_per_slice, rel=0.02)


def test_what_only_a_decoder_reads_keeps_its_weights() -> None:
    unreached = step_cost(header(architecture="resnet18"), recipe()).unreached
    assert unreached
    assert all(name.startswith("encoder.stem.") for name in unreached)


@pytest.mark.parametrize("strategy", ["mixed", "simclr"])
def test_an_item_depends_on_seed_and_number_alone(strategy: str) -> None:
    first, again, other = (views(recipe(strategy, seed=seed)) for seed in (1, 1, 2))
    batch = first.__getitems__([3, 4, 5])
    for name, values in again[4].items():
        assert torch.equal(values, batch[name][1])
    assert not torch.equal(other.__getitems__([3, 4, 5])["images"], batch["images"])


def test_triplets_carry_what_the_batchs_negatives_are_judged_by() -> None:
    batch = views(recipe("mixed")).__getitems__([0, 1, 2, 3])
    scan, present = batch["scan"], batch["present"]
    assert torch.equal(scan[:, 0], scan[:, 1])
    assert not (scan[:, 0] == scan[:, 2]).any()
    assert torch.equal(present[:, 0], present[:, 1])
    assert not (present[:, 0] == present[:, 2]).any()


def test_simclrs_views_differ_and_come_from_one_slice() -> None:
    batch = views(recipe("simclr")).__getitems__([0, 1])
    assert batch["images"].shape == (2, 2, SIZE, SIZE)
    assert torch.equal(batch["scan"][:, 0], batch["scan"][:, 1])
    assert not torch.equal(batch["images"][0, 0], batch["images"][0, 1])


def test_a_view_without_change_is_the_slice() -> None:
    still = SimclrViews(area=(1, 1), aspect=(1, 1), flip=0, strength=0, blur=0, noise=0)
    image = Slices().read(np.array([5]))[0]
    assert np.array_equal(still(image, np.random.default_rng(0)), image)
    flipped = replace(still, flip=1)(image, np.random.default_rng(0))
    assert np.array_equal(flipped, image[::-1])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_out_each_step(processes: int) -> None:
    shares = [list(Batches(2, 5, 8, rank=rank, processes=processes)) for rank in range(processes)]
    steps = [[item for share in shares for item in share[step]] for step in range(3)]
    assert steps == [list(range(8 * step, 8 * step + 8)) for step in (2, 3, 4)]


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a batch of 8 cannot be shared by 3 devices"):
        run(tmp_path / "e.safetensors", recipe(), processes=3)


def test_torchruns_number_of_processes_is_not_contradicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun started 2 processes"):
        run(tmp_path / "e.safetensors", recipe(), processes=4)


def apart(negatives: str) -> Recipe:
    """Nothing but the loss connects the slices of a batch, so that how they are shared out changes nothing."""
    return recipe("mixed", negatives=negatives, pooling="grid", steps=40, learning_rate=3e-3)


SCRIPT = """
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, {tests!r})
from test_contrast_pretraining import Report, apart, run

torch.set_num_threads(1)
folder, processes, negatives = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
seen: list[Report] = []
outcome = run(
    folder / "e.safetensors",
    apart(negatives),
    network={{"norm": "instance"}},
    report=seen.append,
    processes=processes,
)
rank = os.environ.get("LOCAL_RANK", "0")
save_file(outcome.encoder, folder / f"rank{{rank}}.safetensors")
if seen:
    (folder / "losses.txt").write_text(" ".join(str(one.loss) for one in seen))
"""


def launched(folder: Path, negatives: str, processes: int, *launcher: str) -> list[float]:
    """Losses of a run in processes of its own."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), str(processes), negatives],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [float(one) for one in (folder / "losses.txt").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("negatives", "launcher"),
    [("one", ()), ("batch", ("-m", "torch.distributed.run", "--nproc-per-node", "2"))],
    ids=["started by itself", "started by torchrun"],
)
def test_two_processes_learn_the_same_weights(negatives: str, launcher: tuple[str, ...], tmp_path: Path) -> None:
    losses = launched(tmp_path / "two", negatives, 2, *launcher)
    first, second, kept = (load_file(tmp_path / "two" / f"{name}.safetensors") for name in ("rank0", "rank1", "e"))
    assert same(first, second)
    assert same(first, kept)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.9 * losses[0]
    alone: list[float] = []
    whole = run(
        tmp_path / "alone.safetensors",
        apart(negatives),
        network={"norm": "instance"},
        report=lambda now: alone.append(now.loss),
    )
    assert losses == pytest.approx(alone, rel=0.02, abs=1e-4)
    # a bias before a norm has no gradient but rounding
    kernels = [name for name, tensor in first.items() if tensor.ndim == 4]
    for name in kernels:
        torch.testing.assert_close(first[name], whole.encoder[name], rtol=0, atol=0.01, msg=name)


def test_figures_reach_tensorboard(tmp_path: Path) -> None:
    run(tmp_path / "e.safetensors", recipe(steps=10), trackers=[lambda: TensorBoard(tmp_path / "logs")])
    (events,) = (tmp_path / "logs").iterdir()
    assert b"spread" in events.read_bytes()
