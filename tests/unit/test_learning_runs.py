"""A training run: better, worse, killed, taken up again, in a process that steps back and gives way."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import phantom, save

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.errors import InputError, NotFoundError
from polycl.labels.record import SavedLabel
from polycl.learning import process, worker
from polycl.learning.examples import split
from polycl.learning.gate import Rule
from polycl.learning.patients import Patients
from polycl.learning.runs import Event, Request, Run, Runs, follow
from polycl.learning.telling import Teller
from polycl.learning.versions import Versions
from polycl.learning.worker import BUSY, carry_out
from polycl.segmenter.transfer import widened

pytestmark = pytest.mark.unit

NAME = "tiny"


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path, weights: Path, header: Header, saved: list[SavedLabel]) -> MakeRun:
    def make(labels: list[SavedLabel] = saved, **changes: object) -> Run:
        train, validation = split(labels, header.labels, lambda image: image, Patients(tmp_path / "patients.json"))
        request = Request(
            model=NAME,
            parent=0,
            weights=weights,
            sha256=checkpoints.sha256_of(weights),
            examples=tuple(train),
            validation=tuple(validation),
            steps=2,
            batch=2,
            learning_rate=1e-2,
            versions=tmp_path / "versions",
            keep=5,
            cache=tmp_path / "cache",
            device="cpu",
            precision="fp32",
            threads=1,
            nice=0,
        )
        return Runs(tmp_path / "runs").create(request.model_copy(update=changes))

    return make


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions", keep=5)


@pytest.mark.slow
def test_a_model_that_fails_on_these_images_gets_better_and_is_published(
    make_run: MakeRun, versions: Versions, header: Header
) -> None:
    run = make_run(steps=60, batch=4, rule=Rule(drop=1.0, margin=0.2))
    assert carry_out(run) == 0
    last = list(follow(run.events()))[-1]
    assert (last.state, last.version, last.published) == ("done", 1, True)
    assert versions.live(NAME) == 1
    version = versions.get(NAME, 1)
    assert version.figures.before is not None
    assert version.figures.after is not None
    assert version.figures.after > version.figures.before + 0.2
    assert last.message.startswith("version 1 published: mean Dice")
    assert [one.role for one in version.data].count("validate") == 3
    found, _ = checkpoints.load(versions.weights(NAME, version), sha256=version.sha256)
    assert found.labels == header.labels
    assert found.provenance.parent == "tiny@0"
    steps = [event.step for event in run.events() if event.loss is not None]
    assert steps == sorted(steps)
    assert steps[-1] == 60
    assert {"request.json", "events.jsonl"} == {file.name for file in run.folder.iterdir()}, "the rest is gone"


def test_a_model_that_is_no_better_waits_and_can_be_published_later(make_run: MakeRun, versions: Versions) -> None:
    run = make_run(learning_rate=1e-6)
    assert carry_out(run) == 0
    last = run.events()[-1]
    assert (last.state, last.version, last.published) == ("done", 1, False)
    assert "a gain of 0.005 is needed" in last.message
    assert versions.live(NAME) == 0
    assert versions.get(NAME, versions.newest_candidate(NAME)).publish is False
    versions.publish(NAME, 1, "as requested")
    assert versions.live(NAME) == 1
    assert versions.rollback(NAME) == 0


def test_a_model_that_looks_beside_slices_goes_on_so(
    make_run: MakeRun, versions: Versions, weights: Path, tmp_path: Path
) -> None:
    header, narrow = checkpoints.load(weights)
    network = header.network.model_copy(update={"channels": 3})
    preprocessing = header.preprocessing.model_copy(update={"beside": (30.0,)})
    wide = tmp_path / "wide.safetensors"
    sha256 = checkpoints.save(
        wide, widened(narrow, 1, 3), header.model_copy(update={"network": network, "preprocessing": preprocessing})
    )
    assert carry_out(make_run(weights=wide, sha256=sha256, publish="force")) == 0
    version = versions.get(NAME, 1)
    found, _ = checkpoints.load(versions.weights(NAME, version), sha256=version.sha256)
    assert found.preprocessing.beside == (30.0,)
    assert found.network.channels == 3


def test_publishing_can_be_forced_and_forbidden(make_run: MakeRun, versions: Versions) -> None:
    forced = make_run(publish="force", learning_rate=1e-6)
    carry_out(forced)
    assert forced.events()[-1].published
    assert "published: as requested, though held back by the gate: mean Dice" in forced.events()[-1].message
    assert versions.live(NAME) == 1
    never = make_run(publish="never", rule=Rule(margin=0, drop=1))
    carry_out(never)
    assert never.events()[-1].published is False
    assert "as requested" in never.events()[-1].message
    assert versions.live(NAME) == 1


def test_another_version_published_meanwhile_is_not_replaced(
    make_run: MakeRun, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out(make_run(publish="never"))
    run = make_run()
    monkeypatch.setattr(process, "decide", lambda *_: process.Decision(publish=True, reason="better"))
    versions.publish(NAME, 1, "as requested")
    carry_out(run)
    assert run.events()[-1].published is False
    assert "version 1 of tiny was published meanwhile" in run.events()[-1].message
    assert versions.live(NAME) == 1


def test_without_validation_patients_a_candidate_is_kept(make_run: MakeRun, saved: list[SavedLabel]) -> None:
    run = make_run(saved[:2])
    assert carry_out(run) == 0
    assert "no validation patient to compare by: one of every 3 new patients" in run.events()[-1].message
    assert run.events()[-1].message.endswith("and 3 are needed")
    assert run.events()[-1].published is False


def test_labels_that_show_nothing_of_the_model_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    image, label = phantom(0)
    empty = save(tmp_path / "store", "case", image, label.with_voxels(np.zeros(label.shape, np.uint8)))
    run = make_run([empty])
    assert carry_out(run) == 1
    assert run.events()[-1].state == "failed"
    assert "shows liver or spleen" in run.events()[-1].message


def test_labels_that_cannot_be_read_are_counted_not_named(
    make_run: MakeRun, saved: list[SavedLabel], tmp_path: Path
) -> None:
    gone = [
        SavedLabel(one.image_id, tmp_path / "Jane_Doe.nii.gz", one.label, one.record) if index in (0, 2) else one
        for index, one in enumerate(saved)
    ]
    run = make_run(gone)
    carry_out(run)
    assert run.state() == "done"
    messages = [event.message for event in run.events() if event.message]
    assert messages[:2] == ["1 of the labels could not be used"] * 2
    assert "Jane" not in (run.folder / "events.jsonl").read_text()
    assert "on 2 validation patients" in messages[-1]


def test_a_full_disk_is_told_without_the_servers_folders(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise InputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(process, "write_atomically", full)
    run = make_run()
    assert carry_out(run) == 1
    assert run.events()[-1].message == "cannot write before.json: No space left on device"


class Killed(BaseException):
    """Stands for a SIGKILL in this process."""


def kill_at(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run die at its n-th event, before or after which something was written."""
    count = iter(range(1000))
    told = Teller.__call__

    def tell(self: Teller, *arguments: object, **what: object) -> None:
        if next(count) == stage:
            raise Killed
        told(self, *arguments, **what)  # type: ignore[arg-type]

    monkeypatch.setattr(Teller, "__call__", tell)


def test_killed_at_every_stage_it_ends_with_the_same_weights(
    make_run: MakeRun, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "KEEP_EVERY", 1)
    carry_out(make_run())
    run = make_run()
    stages = 0
    while not run.ended:
        with monkeypatch.context() as context:
            kill_at(stages % 20, context)
            try:
                carry_out(run)
            except Killed:
                stages += 1
    assert stages > 4
    whole, cut = (checkpoints.load(versions.weights(NAME, versions.get(NAME, number)))[1] for number in (1, 2))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=0, atol=0, msg=name)
    assert len(versions.kept(NAME)) == 2


def test_what_was_rolled_back_is_not_published_again_by_a_run_that_goes_on(
    make_run: MakeRun, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(publish="force")
    with monkeypatch.context() as context:
        done = Teller.__call__

        def die(self: Teller, state: str, **what: object) -> None:
            if state == "done":
                raise Killed
            done(self, state, **what)  # type: ignore[arg-type]

        context.setattr(Teller, "__call__", die)
        with pytest.raises(Killed):
            carry_out(run)
    assert versions.live(NAME) == 1
    versions.rollback(NAME)
    carry_out(run)
    assert run.state() == "done"
    assert versions.live(NAME) == 0


def test_a_line_half_written_is_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.add(Event(at=datetime.now(UTC), state="training", step=1, loss=0.5))
    with (tmp_path / "events.jsonl").open("ab") as stream:
        stream.write(b'{"at": "2026-')
    run.add(Event(at=datetime.now(UTC), state="training", step=2))
    assert [event.step for event in run.events()] == [1, 2]
    assert [event.loss for event in follow(run.events())] == [0.5, 0.5]


def test_few_runs_are_kept(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polycl.learning.runs.KEPT", 2)
    for _ in range(4):
        make_run().add(Event(at=datetime.now(UTC), state="failed"))
    runs = Runs(tmp_path / "runs")
    assert len(runs.all()) == 2
    assert runs.pending() is None
    assert runs.get(runs.all()[0].id).ended
    with pytest.raises(NotFoundError):
        runs.get("nothing")


@pytest.mark.parametrize("own_session", [True, False])
def test_the_session_of_a_process_that_trains_is_as_nice_as_the_process(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_session: bool
) -> None:
    added: list[int] = []
    session = tmp_path / "autogroup"
    monkeypatch.setattr(worker, "AUTOGROUP", session)
    monkeypatch.setattr(os, "nice", lambda more: added.append(more) or 3)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid() if own_session else 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    worker._step_back(make_run(nice=15))
    assert added == [0, 12], "as nice as asked, whatever it was before"
    assert session.is_file() == own_session
    assert not own_session or session.read_text() == "15"


@pytest.mark.slow
def test_a_second_process_gives_way(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from polycl.learning import worker

    monkeypatch.setattr(worker, "PATIENCE_SECONDS", 0.1)
    run = make_run()
    with Runs(run.folder.parent).lock():
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(worker.main([str(run.folder)])))
        other.start()
        other.join()
    assert found == [BUSY]
    assert run.state() == "submitted"


def test_a_request_that_this_version_cannot_read_fails_in_words(make_run: MakeRun) -> None:
    run = make_run()
    request = json.loads((run.folder / "request.json").read_text())
    (run.folder / "request.json").write_text(json.dumps(request | {"format": 2}))
    assert carry_out(run) == 1
    assert "cannot be read by this version" in run.events()[-1].message
