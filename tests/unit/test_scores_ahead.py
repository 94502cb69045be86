"""Scores made ahead: what is scored, when it is scored again, and that nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import waiting
from polycl import checkpoints
from polycl.acquisition import ahead
from polycl.acquisition.ahead import Image, Model, ScoresAhead
from polycl.errors import InputError
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.volume import Volume, read_volume, write_volume

until = partial(waiting.until, seconds=30)

pytestmark = pytest.mark.unit


class Site:
    """A folder of images and what scores them; counts what is read."""

    def __init__(self, folder: Path, segmenter: Segmenter) -> None:
        self.folder, self.segmenter = folder, segmenter
        self.weights = "w" * 64
        self.images: list[Image] = []
        self.reads: list[str] = []
        self.busy: Callable[[], bool] = lambda: False
        for seed in range(3):
            self.add(f"image_{seed}", seed)

    def add(self, name: str, seed: int) -> None:
        path = self.folder / f"{name}.nii.gz"
        write_volume(make_phantom(seed, shape=(32, 32, 6), spacing=(12.0, 12.0, 30.0)).image, path)
        self.images.append(Image(name, path))

    def read(self, path: Path) -> Volume:
        self.reads.append(path.name.partition(".")[0])
        return read_volume(path)

    def idle(self, seconds: float) -> bool:
        if busy := self.busy():
            time.sleep(0.01)
        return not busy

    def scored(self) -> ScoresAhead:
        return ScoresAhead(
            self.folder / "state",
            images=lambda: list(self.images),
            model=lambda: Model(self.segmenter, self.weights, "tiny@0"),
            read=self.read,
            idle=self.idle,
        )


@pytest.fixture
def site(tmp_path: Path, segmenter: Segmenter) -> Site:
    return Site(tmp_path, segmenter)


def test_scores_survive_a_restart(site: Site) -> None:
    names = [image.id for image in site.images]
    first = site.scored()
    first.look()
    assert site.reads == names
    picks = first.choose("mixed", names, 3)
    assert len(picks) == 3
    again = site.scored()
    again.look()
    assert site.reads == names, "nothing is read again"
    assert again.choose("mixed", names, 3) == picks


def test_another_version_scores_again(site: Site) -> None:
    scored = site.scored()
    scored.look()
    site.weights = "v" * 64
    scored.look()
    assert len(site.reads) == 6
    site.weights = "w" * 64
    scored.look()
    assert len(site.reads) == 6, "the scores of the version before are kept"


def test_a_changed_image_is_scored_again(site: Site) -> None:
    scored = site.scored()
    scored.look()
    write_volume(make_phantom(9, shape=(32, 32, 6), spacing=(12.0, 12.0, 30.0)).image, site.images[1].path)
    scored.look()
    assert site.reads[3:] == ["image_1"]


def test_a_broken_image_is_skipped_and_named(site: Site) -> None:
    site.images[0].path.write_bytes(b"nothing")
    scored = site.scored()
    scored.look()
    progress = scored.progress()
    assert (progress.done, progress.total) == (2, 3)
    assert list(progress.skipped) == ["image_0"]
    assert "not" in progress.skipped["image_0"]
    scored.look()
    assert site.reads.count("image_0") == 1, "it is not tried again as long as it is the same"
    assert {pick.image for pick in scored.choose("uncertain", ["image_0", "image_1"], 5)} == {"image_1"}


def test_labelled_images_cover_and_are_not_chosen(site: Site) -> None:
    site.images[2] = Image("image_2", site.images[2].path, labelled=True, known=np.ones(6, bool))
    scored = site.scored()
    scored.look()
    assert {pick.image for pick in scored.choose("diverse", ["image_0", "image_1"], 5)} == {"image_0", "image_1"}
    assert scored.choose("diverse", ["image_2"], 5) == []
    site.images[2] = Image("image_2", site.images[2].path)
    scored.look()
    assert [pick.image for pick in scored.choose("diverse", ["image_2"], 5)] == ["image_2"]


def test_a_full_disk_costs_only_what_would_be_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise InputError("cannot write: No space left on device")

    monkeypatch.setattr(checkpoints, "save", full)
    scored = site.scored()
    scored.look()
    assert scored.progress().done == 3
    assert scored.progress().skipped == {}


def test_nothing_is_computed_while_a_request_is_served(site: Site) -> None:
    free = threading.Event()
    site.busy = lambda: not free.is_set()
    scored = site.scored()
    scored.start()
    time.sleep(0.3)
    assert scored.progress().done == 0
    free.set()
    until(lambda: scored.progress().done == 3)
    scored.close()


def test_it_ends_at_once_when_closed(site: Site) -> None:
    site.busy = lambda: True
    others = set(threading.enumerate())
    scored = site.scored()
    scored.start()
    until(lambda: site.reads)
    began = time.monotonic()
    scored.close()
    assert time.monotonic() - began < 5
    mine = [thread for thread in threading.enumerate() if thread.name == "scores-ahead" and thread not in others]
    assert not [thread for thread in mine if thread.is_alive()]


def test_a_new_image_is_found_when_woken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = site.scored()
    scored.start()
    until(lambda: scored.progress().done == 3)
    site.add("image_3", 3)
    scored.wake()
    until(lambda: scored.progress().done == 4)
    scored.close()


def test_without_a_model_nothing_is_chosen(tmp_path: Path) -> None:
    scored = ScoresAhead(tmp_path, images=list, model=lambda: None, read=read_volume)
    scored.look()
    assert scored.choose("mixed", ["a"], 1) == []
    assert scored.progress() == ahead.Progress("", 0, 0, {})
