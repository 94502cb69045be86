"""Propagating one organ: ours against the usual pipeline, on the same official tiny SAM 2 with the same random weights.

The usual pipeline is what servers do with the package's video predictor: every slice as a JPEG file on disk, frames of
1024 x 1024, fp32, one pass for each direction. Ours sees the same slices whole, at 1024 and at 512. Each runs in a
process of its own, for its peak memory. What is done once for all slices counts by its share of those propagated.

Random weights find no organ, but what they compute is as long as any, and their masks tell whether both compute the
same. The network is told that the object is always there, or there might be nothing to compare.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, SPACING, SEED = (512, 512, 200), (0.75, 0.75, 1.5), 100
ROUNDS = 2
"""That each pipeline is timed, in turn; its faster one counts, for other work on the machine only takes time."""
STEPS = 8
"""Slices propagated in each direction: from the seventh on a slice looks at as many memories as it ever does."""
PRESENT = 10.0
LEVEL, WIDTH = 40, 400


def run(settings: Any, steps: int = STEPS) -> dict[str, Any]:
    """Measure; prints a table and returns the figures."""
    from polycl.phantom import LABELS, make_phantom
    from polycl.volume import write_volume

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phantom = make_phantom(0, shape=SHAPE, spacing=SPACING)
        write_volume(phantom.image, folder / "ct.nii")
        liver = (phantom.labels.voxels == LABELS["liver"]).astype(np.uint8)
        write_volume(phantom.labels.with_voxels(liver), folder / "seed.nii")
        del phantom, liver
        kinds = (("stock", 1024), ("ours", 1024), ("ours", 512))
        rounds = [[_in_a_process(folder, *kind, steps, settings.device) for kind in kinds] for _ in range(ROUNDS)]
        for tried in zip(*rounds, strict=True):
            row = min(tried, key=lambda one: one["seconds_per_slice"])
            row["peak_memory_mib"] = max(one["peak_memory_mib"] for one in tried)
            row["peak_gflops"] = max(one["peak_gflops"] for one in tried)
            rows.append(row)
        dice = _dice(*(np.load(folder / f"{kind}-1024.npy") for kind in ("stock", "ours")))
    stock = rows[0]
    stock["gflop_per_slice"] = rows[1]["gflop_per_slice"]  # the same but for 6 GFLOP in its neck, which ours folds
    lines = [
        f"propagate through {SHAPE[0]} x {SHAPE[1]}, SAM 2.1 tiny, {2 * steps} of {SHAPE[2]} slices, {SEED} the seed"
    ]
    for row in rows:
        row["share_of_peak"] = row["gflop_per_slice"] / row["seconds_per_slice"] / row["peak_gflops"]
        row["times_faster"] = stock["seconds_per_slice"] / row["seconds_per_slice"]
        row["share_of_memory"] = row["peak_memory_mib"] / stock["peak_memory_mib"]
        lines.append(
            f"  {row['kind']}, {row['size']}², {row['precision']}: {1 / row['seconds_per_slice']:.2f} slices/s, "
            f"{row['times_faster']:.1f} times stock; {row['share_of_peak']:.0%} of the matrix-product peak; "
            f"peak memory {row['peak_memory_mib']:.0f} MiB, {row['share_of_memory']:.0%} of stock"
        )
    lines.append(f"  Dice of the masks at 1024²: mean {np.mean(dice):.4f}, least {np.min(dice):.4f}")
    print("\n".join(lines))  # noqa: T201
    return {"rows": rows, "dice_mean": float(np.mean(dice)), "dice_least": float(np.min(dice)), "steps": steps}


def _in_a_process(folder: Path, kind: str, size: int, steps: int, device: str) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), kind, str(size), str(steps), device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _dice(theirs: np.ndarray, ours: np.ndarray) -> list[float]:
    """Of each slice where either finds anything."""
    pairs = [(one, other) for one, other in zip(theirs, ours, strict=True) if one.any() or other.any()]
    return [2 * float((one & other).sum()) / float(one.sum() + other.sum()) for one, other in pairs]


def _measure(folder: Path, kind: str, size: int, steps: int, device: str) -> dict[str, Any]:
    """In a process of its own: seconds a slice, masks [Z, Y, X] into a file, memory."""
    from polycl import devices
    from polycl.volume import read_volume

    where = devices.choose(device, "fp32" if kind == "stock" else "auto")
    image = read_volume(folder / "ct.nii")
    seed = read_volume(folder / "seed.nii", kind="label").canonical().voxels[:, :, SEED] > 0
    measured = _stock if kind == "stock" else _ours
    seconds, masks, engine = measured(folder, image, seed, size, steps, where)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the count, which needs some itself
    np.save(folder / f"{kind}-{size}.npy", masks)
    return {
        "kind": kind,
        "size": size,
        "precision": where.precision,
        "seconds_per_slice": seconds,
        "gflop_per_slice": None if engine is None else _gflop(engine, steps),
        "peak_memory_mib": memory,
        "peak_gflops": devices.matrix_product_peak(where) / 1e9,
    }


def _network(size: int, kind: Any = None) -> tuple[Any, Any]:
    import torch

    from polycl.propagate.architecture import ARCHITECTURES, arguments
    from polycl.propagate.package import SAM2Base

    config = ARCHITECTURES["tiny"].at(size)
    torch.manual_seed(0)
    network = (kind or SAM2Base)(**arguments(config)).eval()
    network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(PRESENT)
    return network, config


def _stock(folder: Path, image: Any, seed: Any, size: int, steps: int, where: Any) -> tuple[float, Any, Any]:
    from PIL import Image
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    from polycl.sam import slice_image, to_image
    from polycl.window import Window

    network, _ = _network(size, SAM2VideoPredictor)
    network = network.to(where.device)
    canonical, window = image.canonical(), Window(level=LEVEL, width=WIDTH)
    frames = folder / "frames"
    frames.mkdir(exist_ok=True)
    started = time.perf_counter()
    for z in range(SHAPE[2]):
        grey = (slice_image(canonical, z, window) * 255 + 0.5).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(frames / f"{z:05d}.jpg", quality=95)
    state = network.init_state(str(frames))
    once = time.perf_counter() - started
    masks = np.zeros((SHAPE[2], *to_image(seed).shape), bool)
    started = time.perf_counter()
    network.add_new_mask(state, SEED, 1, np.ascontiguousarray(to_image(seed)))
    for reverse in (False, True):
        for z, _, logits in network.propagate_in_video(state, SEED, steps, reverse):
            masks[z] = (logits[0, 0] > 0).cpu().numpy()
    return once / SHAPE[2] + (time.perf_counter() - started) / (2 * steps), masks, None


def _ours(folder: Path, image: Any, seed: Any, size: int, steps: int, where: Any) -> tuple[float, Any, Any]:
    from polycl.propagate.frames import Region
    from polycl.propagate.header import FrameConfig
    from polycl.propagate.parameters import PropagateParameters
    from polycl.propagate.sam2_engine import Sam2Engine
    from polycl.propagate.seeds import Seed
    from polycl.propagate.session import Propagation
    from polycl.sam import to_image
    from polycl.window import Window

    network, config = _network(size)
    frames = FrameConfig(windows=(Window(level=LEVEL, width=WIDTH),))
    engine = Sam2Engine("tiny", "0" * 64, network, config, frames, where)
    started = time.perf_counter()
    session = Propagation(
        image,
        engine,
        # Random masks are anywhere: none of what tells an organ's end, or mends its outline, applies.
        parameters=PropagateParameters(
            connected=False, collapse=0.0, overlap=0.0, patience=1e6, drift=1e6, tissue=0.0, edges=False, appearance=0.0
        ),
        roi=(0, SHAPE[0], 0, SHAPE[1], SEED - steps, SEED + steps + 1),
        region=Region(0, 0, SHAPE[0], SHAPE[1]),
    )
    session.put(1, {SEED: Seed(seed)})
    found = session.run().canonical().voxels == 1
    seconds = (time.perf_counter() - started) / (2 * steps)
    return seconds, np.stack([to_image(found[:, :, z]) for z in range(SHAPE[2])]), engine


def _gflop(engine: Any, steps: int) -> float:
    """Arithmetic of a slice, the mean over a run of `steps`: the first look at fewer memories than the later."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from polycl.propagate.engine import FramePrompt, Recall

    mask = torch.zeros(engine.size, engine.size)
    mask[: engine.size // 2] = 1
    with FlopCounterMode(display=False) as counter:
        (features,) = engine.encode(torch.zeros(1, 3, engine.size, engine.size))
    total = steps * counter.get_total_flops()
    memory = engine.prompt(features, [FramePrompt(mask=mask)])[0].memory
    ends = []  # with one memory and with all; it rises evenly between
    for count in (1, engine.memories):
        recall = Recall(tuple((slot, memory) for slot in range(count)), ((1, memory),) * count, engine.pointers)
        with FlopCounterMode(display=False) as counter:
            engine.track([features], [recall])
        ends.append(counter.get_total_flops())
    for step in range(steps):
        share = min(step, engine.memories - 1) / (engine.memories - 1)
        total += (1 - share) * ends[0] + share * ends[1]
    return total / steps / 1e9


if __name__ == "__main__":
    place, kind, *numbers, chosen = sys.argv[1:]
    print(json.dumps(_measure(Path(place), kind, int(numbers[0]), int(numbers[1]), chosen)))  # noqa: T201
