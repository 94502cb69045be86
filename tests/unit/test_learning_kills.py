"""SIGKILL at random moments while a run trains, publishes and is rolled back: nothing broken is ever served."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from labelled import save_phantoms

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.learning import process
from polycl.learning.examples import split
from polycl.learning.patients import Patients
from polycl.learning.runs import Request, Run, Runs
from polycl.learning.versions import Versions
from polycl.learning.worker import carry_out
from polycl.segmenter import Segmenter
from polycl.segmenter.network import SegmentationNetwork

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NAME = "tiny"


def killed(work: Callable[[], object], after: float) -> bool:
    """Do the work in a process of its own, which is killed after so many seconds. Whether it was."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def check_served(versions: Versions) -> None:
    """Whatever is live can be loaded and is what it should be."""
    live = versions.live(NAME)
    if live:
        version = versions.get(NAME, live)
        Segmenter.load(versions.weights(NAME, version), sha256=version.sha256, device="cpu", precision="fp32")


@pytest.fixture
def request_of(tmp_path: Path, tiny_header: Header) -> Request:
    """A run of a few steps whose result is published whatever it is."""
    header = tiny_header.model_copy(
        update={"preprocessing": tiny_header.preprocessing.model_copy(update={"spacing": 8.0, "size": 48})}
    )
    torch.manual_seed(3)
    weights = tmp_path / f"{NAME}.safetensors"
    sha256 = checkpoints.save(weights, SegmentationNetwork(header.network).state_dict(), header)
    saved = save_phantoms(tmp_path / "store", 4)
    train, validation = split(saved, header.labels, lambda image: image, Patients(tmp_path / "patients.json"))
    return Request(
        model=NAME,
        parent=0,
        weights=weights,
        sha256=sha256,
        examples=tuple(train),
        validation=tuple(validation),
        publish="force",
        steps=4,
        batch=2,
        versions=tmp_path / "versions",
        keep=4,
        cache=tmp_path / "cache",
        device="cpu",
        precision="fp32",
        threads=1,
    )


def test_a_run_killed_at_random_moments_goes_on_and_ends(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "KEEP_EVERY", 1)
    runs, versions, luck = Runs(tmp_path / "runs"), Versions(request_of.versions, request_of.keep), random.Random(0)
    began = time.monotonic()
    carry_out(runs.create(request_of))
    took = time.monotonic() - began
    _, whole = checkpoints.load(versions.weights(NAME, versions.get(NAME, 1)))
    kills, finished = 0, 0
    while kills < 25:
        run = runs.pending() or runs.create(request_of)
        kills += killed(lambda run=run: carry_out(run), luck.uniform(0, took))  # type: ignore[misc]
        check_served(versions)
        finished += run.ended
    for run in runs.all():
        carry_out(Run(run.folder))
        assert run.state() == "done"
    assert finished
    for version in versions.kept(NAME):
        _, weights = checkpoints.load(versions.weights(NAME, version))
        for name, tensor in whole.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0, msg=name)


def test_publishing_and_rolling_back_killed_at_random_moments(request_of: Request, tmp_path: Path) -> None:
    runs, versions, luck = Runs(tmp_path / "runs"), Versions(request_of.versions, request_of.keep), random.Random(1)
    for seed in (0, 1):
        carry_out(runs.create(request_of.model_copy(update={"seed": seed, "steps": 1})))

    def switch() -> None:
        while True:
            for number in (1, 2, 0):
                versions.publish(NAME, number, "as requested")
            versions.publish(NAME, 1, "as requested")
            versions.rollback(NAME)

    kills = 0
    while kills < 25:
        kills += killed(switch, luck.uniform(0, 0.1))
        check_served(versions)
    assert versions.rollback(NAME, 0) == versions.live(NAME) == 0
    assert len(versions.kept(NAME)) == 2
