"""Learning on the server's own machinery: clicks while a model trains, and minutes from the tenth label to a new model.

- **Clicks**: the 95th percentile of clicks on a slice seen before, with a training run beside them and without. The run
  is the server's: a process of its own, as far back as the settings say. A person clicks now and then, so there is a
  pause between clicks.
- **Ten labels**: two slices make a poor segmenter of the liver at 256². Ten volumes of LiTS are labelled, whole, and
  training is started on saving the last; every third of them is kept for validation, as for any new patient. Counted
  are the minutes from that until the better version is live.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polycl import checkpoints, devices
from polycl.catalogue import Catalogue
from polycl.checkpoints import Header
from polycl.clicks import Click, best_mask, decode_seen, locate, on_slice, seen_region
from polycl.dataset import Case, Target, find_cases, labelled_slices
from polycl.labels.library import Library, final_labels
from polycl.labels.saving import Sent, save
from polycl.learning.runs import Run
from polycl.learning.trainer import Options, Trainer
from polycl.phantom import liver_mask, make_phantom
from polycl.sam import EmbeddingCache, default_engine, load_engine
from polycl.sam.slices import SliceEncoder
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.network import SegmentationNetwork
from polycl.segmenter.training import Schedule, TrainingData, finetune
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume
from polycl.window import Window

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "lits"
MODEL = "learner"
LIVER = (1, 2)
LABELS = 10
POOR_STEPS = 40
STEPS = Options.model_fields["steps"].default
CLICKS, PAUSE_SECONDS = 100, 0.1
SETTLED_SECONDS = 5.0
"""A run that says that it trains is given so long to get going."""


def run(settings: Settings) -> dict[str, Any]:
    """Measure both, print a line each and return the figures; without weights of SAM, or real CT, not what needs it."""
    return clicks_beside_training(settings) | ten_labels(settings)


def clicks_beside_training(settings: Settings) -> dict[str, Any]:
    """Milliseconds of cached clicks, by themselves and beside training."""
    name = default_engine(settings)
    if name is None:
        print("learning, clicks: not measured, there are no weights of a SAM model")  # noqa: T201
        return {}
    engine, cache = load_engine(name, settings), EmbeddingCache(256 * 2**20)
    volume = make_phantom(0, shape=(512, 512, 4), spacing=(0.75, 0.75, 5.0)).image

    def click(number: int) -> float:
        """Milliseconds of what the server does for a click on a volume that it has read."""
        time.sleep(PAUSE_SECONDS)
        start = time.perf_counter()
        z, prompts = locate(Click(tuple((200 + 5 * n, 220, 1) for n in range(1 + number % 3))), volume)
        seen = seen_region(engine, prompts, volume)
        embedding = SliceEncoder(volume, engine, Window.named("soft-tissue"), cache, seen).embedding(z)
        on_slice(best_mask(decode_seen(engine, embedding, prompts, volume, seen), prompts), z, volume)
        return (time.perf_counter() - start) * 1e3

    with site(settings, _random_weights) as (trainer, store):
        for seed in range(2):
            phantom = make_phantom(seed, shape=(128, 128, 12), spacing=(3.0, 3.0, 16.0))
            annotate(store, f"phantom_{seed}", phantom.image, liver_mask(phantom.labels).voxels > 0)
        for number in range(3):
            click(number)
        alone = [click(number) for number in range(CLICKS)]
        started = trainer.start(Options(segmenter=MODEL, steps=100_000), store, final_labels(store))
        while started.state() != "training" and not started.ended:
            time.sleep(0.1)
        time.sleep(SETTLED_SECONDS)
        beside = [click(number) for number in range(CLICKS)]
        trained = started.state() == "training"
        trainer.cancel()
    if not trained:
        print("learning, clicks: not measured, training did not go on")  # noqa: T201
        return {}
    before, after = (float(np.percentile(one, 95)) for one in (alone, beside))
    print(  # noqa: T201
        f"learning, clicks on a slice seen before, {name}: 95th percentile {before:.0f} ms, {after:.0f} ms while a "
        f"model trains, {after / before:.2f} times as long (median {statistics.median(alone):.0f} and "
        f"{statistics.median(beside):.0f} ms)"
    )
    return {"click_p95_ms": before, "click_p95_training_ms": after, "click_p95_times": after / before}


def ten_labels(settings: Settings) -> dict[str, Any]:
    """Minutes from saving the tenth label until a better version is live."""
    if not DATA.is_dir():
        print("learning, ten labels: not measured, it needs the real CT in ../shared/data")  # noqa: T201
        return {}
    cases = find_cases(DATA)[:LABELS]
    with site(settings, lambda file: _poor_weights(cases, file, settings)) as (trainer, store):
        for number, case in enumerate(cases, start=1):
            image, label = case.read()
            assert label is not None  # `find_cases` saw to it
            if number == LABELS:
                began = time.perf_counter()
            annotate(store, case.name, image, np.isin(label.voxels, LIVER))
        started = trainer.start(Options(segmenter=MODEL, steps=STEPS), store, final_labels(store))
        while not started.ended:
            time.sleep(0.2)
        minutes = (time.perf_counter() - began) / 60
        live, told = trainer.versions.live(MODEL), _last(started)
    print(  # noqa: T201
        f"learning, from label {LABELS} ({STEPS} steps at 256²): {minutes:.1f} minutes; version {live} is live: {told}"
    )
    return {"minutes": minutes, "published": bool(live), "steps": STEPS, "told": told}


@contextmanager
def site(settings: Settings, make: Callable[[Path], None]) -> Iterator[tuple[Trainer, Path]]:
    """A trainer over a state of its own, with one model that `make` writes, and an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        state, weights, store = (Path(folder) / name for name in ("state", "weights", "store"))
        weights.mkdir()
        store.mkdir()
        make(weights / f"{MODEL}.safetensors")
        own = settings.model_copy(update={"state": state, "weights": weights})
        own.prepare()
        trainer = Trainer(own, Catalogue.default(own))
        try:
            yield trainer, store
        finally:
            trainer.close()
            shutil.rmtree(state, ignore_errors=True)


def annotate(store: Path, name: str, image: Volume, liver: NDArray[np.bool_]) -> None:
    """Put an image into the store, and save its label as a client does."""
    path, sent = store / f"{name}.nii.gz", store.parent / "sent.nii.gz"
    write_volume(image, path)
    write_volume(image.with_voxels(liver.astype(np.uint8)), sent)
    info: Mapping[str, Any] = {"label_info": [{"name": "liver"}], "complete": True}
    save(Library(store), name, "final", Sent.read(sent, info, annotator="bench"), read_volume(path))


def _random_weights(file: Path) -> None:
    header = Header(labels={"liver": 1})
    torch.manual_seed(0)
    checkpoints.save(file, SegmentationNetwork(header.network).state_dict(), header)


def _poor_weights(cases: list[Case], file: Path, settings: Settings) -> None:
    """What two slices of two patients teach in a few steps."""
    two = []
    for case in cases[:2]:
        slices = list(labelled_slices([case], [Target("liver", LIVER)]))
        two.append(slices[len(slices) // 2])
    finetune(
        Header(labels={"liver": 1}, largest={"liver": 1}),
        TrainingData(two, [], []),
        file,
        schedule=Schedule(steps=POOR_STEPS, batch=4, warm_up=5, validate_every=POOR_STEPS),
        augmentation=Augmentation(),
        where=devices.choose(settings.device, settings.precision),
    )


def _last(run: Run) -> str:
    return next((event.message for event in reversed(run.events()) if event.message), run.state())
