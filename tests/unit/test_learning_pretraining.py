"""Pre-training as a run: its encoder becomes a model, it goes on after a kill, and runs one at a time with training."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from polycl import checkpoints
from polycl.catalogue import SHIPPED, Catalogue
from polycl.errors import InputError, NotFoundError
from polycl.learning.runs import ENDED, Pretraining, Run, Runs
from polycl.learning.trainer import Busy, Trainer
from polycl.learning.worker import carry_out
from polycl.phantom import make_phantom
from polycl.segmenter.transfer import read_encoder, widened
from polycl.settings import Settings
from polycl.volume import write_volume

pytestmark = pytest.mark.unit


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed in range(3):
        image = make_phantom(seed, shape=(32, 32, 6), spacing=(12.0, 12.0, 30.0)).image
        write_volume(image, folder / f"patient_{seed}.nii.gz")
    return folder


@pytest.fixture
def settings(tmp_path: Path, tiny_checkpoint: Path) -> Settings:
    made = Settings(state=tmp_path / "state", weights=tiny_checkpoint.parent, device="cpu", precision="fp32")
    made.prepare()
    return made


def begun(settings: Settings, store: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 4) -> tuple[Trainer, Run]:
    """A run that nobody works on yet."""
    trainer = Trainer(settings, Catalogue.default(settings))
    monkeypatch.setattr(trainer, "_watch", lambda run: None)
    return trainer, trainer.pretrain("tiny", store, steps=steps)


def test_the_encoder_becomes_a_model(settings: Settings, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = begun(settings, store, monkeypatch)
    (store / "patient_9.nii.gz").write_bytes(b"nothing")
    assert carry_out(run) == 0
    events = run.events()
    assert run.state() == "done"
    assert any(event.loss is not None and event.eta is not None for event in events)
    assert "1 of the images could not be used" in " ".join(event.message for event in events)
    task = run.task()
    assert isinstance(task, Pretraining)
    assert task.name in Catalogue.default(settings).names("encoder")
    header, _ = read_encoder(settings.models / f"{task.name}.safetensors")
    assert header.kind == "encoder"
    assert header.network == checkpoints.load(settings.weights / "tiny.safetensors")[0].network
    told = header.model_dump_json() + "".join(event.message for event in events)
    assert "3 images" in told
    assert "patient_" not in told
    assert [file.name for file in run.folder.iterdir() if file.suffix == ".safetensors"] == []


def test_for_a_segmenter_that_looks_beside_slices_it_learns_from_single_ones(
    settings: Settings, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    header, weights = checkpoints.load(settings.weights / "tiny.safetensors")
    wide = header.model_copy(
        update={
            "network": header.network.model_copy(update={"channels": 3}),
            "preprocessing": header.preprocessing.model_copy(update={"beside": (30.0,)}),
        }
    )
    folder = tmp_path / "weights"
    folder.mkdir()
    checkpoints.save(folder / "tiny.safetensors", widened(weights, 1, 3), wide)
    _, run = begun(settings.model_copy(update={"weights": folder}), store, monkeypatch)
    assert carry_out(run) == 0
    task = run.task()
    assert isinstance(task, Pretraining)
    found, _ = read_encoder(settings.models / f"{task.name}.safetensors")
    assert found.network == header.network


def test_one_run_of_either_kind_at_a_time(settings: Settings, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, run = begun(settings, store, monkeypatch)
    with pytest.raises(Busy):
        trainer.pretrain("tiny", store)
    with pytest.raises(InputError, match="trains no segmenter"):
        run.request()
    assert trainer.new_labels("tiny", []) == 0
    assert trainer.cancel().id == run.id
    assert run.state() == "cancelled"


def test_too_few_images_fail_with_the_reason(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    write_volume(make_phantom(0, shape=(32, 32, 6), spacing=(12.0, 12.0, 30.0)).image, folder / "patient.nii.gz")
    _, run = begun(settings, folder, monkeypatch)
    assert carry_out(run) == 1
    assert run.state() == "failed"
    assert "scan" in run.events()[-1].message
    assert str(tmp_path) not in run.events()[-1].message


def test_an_unknown_segmenter(settings: Settings, store: Path) -> None:
    trainer = Trainer(settings, Catalogue.default(settings))
    with pytest.raises(NotFoundError, match="other"):
        trainer.pretrain("other", store)
    assert Runs(settings.learning / "runs").all() == []


def reaches(run: Run, state: str) -> None:
    deadline = time.monotonic() + 120
    while (now := run.events()[-1]).state != state:
        assert time.monotonic() < deadline
        assert now.state not in ENDED, now.message
        time.sleep(0.1)


@pytest.mark.slow
def test_a_process_of_its_own_that_is_cancelled(settings: Settings, store: Path) -> None:
    trainer = Trainer(settings, Catalogue.default(settings))
    run = trainer.pretrain("tiny", store, steps=100_000)
    reaches(run, "training")
    trainer.cancel()
    assert run.state() == "cancelled"
    assert Catalogue.default(settings).names("encoder") == Catalogue.read(SHIPPED).names("encoder")
    trainer.close()


@pytest.mark.slow
def test_the_run_after_a_cancelled_one_is_left_alone(
    settings: Settings, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(settings, Catalogue.default(settings))
    first = trainer.pretrain("tiny", store, steps=100_000)
    reaches(first, "training")
    monkeypatch.setattr("polycl.learning.trainer.POLL_SECONDS", 10)  # whoever cancels looks again two seconds later
    cancelling = threading.Thread(target=trainer.cancel)
    cancelling.start()
    reaches(first, "cancelled")
    second = trainer.pretrain("tiny", store, steps=100_000)
    cancelling.join()
    reaches(second, "training")
    trainer.cancel()
    trainer.close()
