"""The process that trains, as servers have it: started, cancelled, started again, left to the next, given up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polycl.catalogue import Catalogue
from polycl.errors import InputError, NotFoundError
from polycl.labels.record import SavedLabel
from polycl.learning import trainer
from polycl.learning.trainer import Busy, Options, Trainer
from polycl.settings import Settings
from waiting import until

pytestmark = pytest.mark.unit

NAME = "tiny"


@pytest.fixture
def settings(tmp_path: Path, weights: Path) -> Settings:
    made = Settings(state=tmp_path / "state", weights=weights.parent, device="cpu", precision="fp32", learn_nice=0)
    made.prepare()
    return made


@pytest.fixture
def serving(settings: Settings) -> Iterator[Callable[[], Trainer]]:
    """Makes trainers as servers of one state folder would have them; stopped at the end."""
    made: list[Trainer] = []

    def make() -> Trainer:
        made.append(Trainer(settings, Catalogue.default(settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_options_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"no training option epochs.*segmenter, steps, publish"):
        Options.parse({"segmenter": "a", "epochs": 3})
    with pytest.raises(InputError, match="steps 0"):
        Options.parse({"segmenter": "a", "steps": 0})
    with pytest.raises(InputError, match="publish 'maybe'"):
        Options.parse({"segmenter": "a", "publish": "maybe"})


def test_a_run_needs_labels_and_a_segmenter(
    serving: Callable[[], Trainer], saved: list[SavedLabel], tmp_path: Path
) -> None:
    trainer = serving()
    with pytest.raises(InputError, match="save some that show liver or spleen"):
        trainer.start(Options(segmenter=NAME), tmp_path, [])
    with pytest.raises(NotFoundError, match="nothing"):
        trainer.start(Options(segmenter="nothing"), tmp_path, saved)
    assert trainer.runs.all() == []
    assert trainer.cancel() is None
    assert trainer.new_labels(NAME, saved) == len(saved)


@pytest.mark.slow
def test_a_process_trains_alone_and_can_be_cancelled(
    serving: Callable[[], Trainer], saved: list[SavedLabel], tmp_path: Path
) -> None:
    trainer = serving()
    run = trainer.start(Options(segmenter=NAME, steps=10_000), tmp_path, saved)
    with pytest.raises(Busy, match=run.id):
        trainer.start(Options(segmenter=NAME), tmp_path, saved)
    with pytest.raises(Busy):
        serving().start(Options(segmenter=NAME), tmp_path, saved)
    until(lambda: run.state() == "training")
    assert trainer.runs.worker() != os.getpid()
    second = [sys.executable, "-m", trainer_module(), str(run.folder)]
    assert trainer.new_labels(NAME, saved) == 0
    cancelled = trainer.cancel()
    assert cancelled is not None
    assert cancelled.state() == "cancelled"
    until(lambda: trainer.runs.worker() is None)
    assert not list(run.folder.glob("*.resume"))
    assert subprocess.run(second, check=False, timeout=60).returncode == 0, "a run that has ended is left alone"
    assert run.state() == "cancelled"
    assert trainer.versions.kept(NAME) == []


def trainer_module() -> str:
    return trainer.MODULE


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_a_server_that_stops_leaves_the_rest_to_the_next(
    serving: Callable[[], Trainer], saved: list[SavedLabel], tmp_path: Path
) -> None:
    first = serving()
    run = first.start(Options(segmenter=NAME, steps=60, publish="force"), tmp_path, saved)
    until(lambda: any((event.step or 0) >= 20 for event in run.events()))
    process_id = first.runs.worker()
    assert process_id
    os.kill(process_id, signal.SIGKILL)
    until(lambda: any((event.step or 0) >= 40 for event in run.events()))
    first.close()
    assert first.runs.worker() is None
    assert run.state() == "interrupted"
    second = serving()
    assert second.resume() is not None
    second.wait(run)
    assert run.state() == "done"
    steps = [event.step for event in run.events() if event.loss is not None]
    assert (steps.count(10), steps.count(30)) == (1, 1), "what was learned before was not learned again"
    assert second.versions.live(NAME) == 1
    assert second.resume() is None


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_is_given_up(
    serving: Callable[[], Trainer], saved: list[SavedLabel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MODULE", "polycl.no_such_module")
    mine = serving()
    run = mine.start(Options(segmenter=NAME), tmp_path, saved)
    mine.wait(run)
    assert run.state() == "failed"
    assert "killed several times" in run.events()[-1].message
