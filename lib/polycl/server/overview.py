"""What the page shows, as JSON: runs, versions, labels by day, what to label next, the cache.

No ids of images are told but in the queue, where MONAI Label's own next sample tells them too: an id may be a
patient's.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

from monailabel.interfaces.utils.app import app_instance

from polycl.errors import InputError, NotFoundError, PolyclError
from polycl.learning.runs import Event, Pretraining, Run, follow
from polycl.learning.versions import Version, Versions
from polycl.monailabel.folders import check_id
from polycl.monailabel.strategy import METHODS, NextImage
from polycl.monailabel.train import NAME, LearnTask
from polycl.picture import thumbnail
from polycl.volume import read_volume
from polycl.window import Window

RUNS, QUEUE, DAYS = 8, 6, 30
"""How many are shown."""
THUMBNAIL_PIXELS, THUMBNAILS = 192, 128
FRESH_SECONDS = 0.5
"""All who watch at once share one look at the disk."""

_thumbnails: OrderedDict[str, bytes] = OrderedDict()
_drawing = threading.Lock()
_looked: tuple[float, int, dict[str, str]] = (0.0, 0, {})
_looking = threading.Lock()


def trainer() -> LearnTask:
    """The task that trains; NotFoundError if there is no segmenter."""
    task = app_instance()._trainers.get(NAME)
    if task is None:
        raise NotFoundError("nothing can be trained here: there is no segmenter")
    return task  # type: ignore[no-any-return, unused-ignore]


def runs() -> dict[str, Any]:
    """The newest runs, the newest first, and what can be trained."""
    task = app_instance()._trainers.get(NAME)
    if task is None:
        return {"segmenters": [], "runs": [], "busy": False, "images": 0}
    newest = task.trainer.runs.all()[-RUNS:]
    return {
        "segmenters": list(task.segmenters),
        "options": task.config(),
        "images": len(app_instance().datastore().list_images()),
        "busy": task.trainer.runs.pending() is not None,
        "runs": [described(run) for run in reversed(newest)],
    }


def described(run: Run) -> dict[str, Any]:
    """A run with its curves, `[step, value]` each."""
    events = list(follow(run.events()))
    told: dict[str, Any] = {"id": run.id, "state": run.state(), "kind": "training", "model": "", "curves": {}}
    try:
        task = run.task()
        told |= {"kind": "pretraining" if isinstance(task, Pretraining) else "training", "steps": task.steps}
        told["model"] = task.name if isinstance(task, Pretraining) else task.model
    except InputError:
        told["message"] = "of another version of this program"
    if not events:
        return told
    last = events[-1]
    told |= last.model_dump(mode="json", exclude_none=True, exclude={"at", "state"})
    told |= {"started": events[0].at.isoformat(), "curves": _curves(run.events())}
    told["seconds"] = round((last.at - events[0].at).total_seconds(), 1)
    if run.ended:
        told.pop("eta", None)
    return told


def models() -> dict[str, Any]:
    """The segmenters that are served with their versions, and the encoders that were pre-trained."""
    app = app_instance()
    task = app._trainers.get(NAME)
    names = list(task.segmenters) if task else []
    return {
        "models": [_model(name, task.trainer.versions) for name in names],
        "encoders": _encoders(),
    }


def labels() -> dict[str, Any]:
    """Labels that people saved by day and annotator, the newest day first, and how much of the store is labelled."""
    store = app_instance().datastore()
    counts: Counter[tuple[str, str]] = Counter()
    for image in store.library.images():
        for record in store.library.versions(image):
            if record.source == "client":
                counts[f"{record.saved.astimezone():%Y-%m-%d}", record.annotator] += 1
    days = sorted({day for day, _ in counts}, reverse=True)[:DAYS]
    rows = [
        {"day": day, "annotator": name, "count": count} for (day, name), count in counts.items() if day in set(days)
    ]
    images = store.list_images()
    return {
        "rows": sorted(rows, key=lambda row: (days.index(str(row["day"])), -int(row["count"]))),
        "saved": sum(counts.values()),
        "images": len(images),
        "labelled": len(images) - len(store.get_unlabeled_images()),
    }


def queue(strategy: str, count: int = QUEUE) -> dict[str, Any]:
    """What a strategy would hand out next, held or not. NotFoundError for a strategy that there is not."""
    app = app_instance()
    offered = {name: task for name, task in app._strategies.items() if isinstance(task, NextImage)}
    if strategy not in offered or strategy == "random":
        raise NotFoundError(f"no queue of {strategy!r}; there are: {', '.join(_queues(offered))}")
    progress, held, people = app.scores.progress(), app.leases.held(), app.leases.at_work()
    unlabelled = sorted(set(app.datastore().get_unlabeled_images()) - progress.skipped.keys())
    method = METHODS.get(strategy)
    if method is None:
        chosen = unlabelled[:count]
        picks = [pick for image in chosen for pick in app.scores.choose("uncertain", [image], 1)]
    else:
        picks = app.scores.choose(method, unlabelled, count)
        chosen = [pick.image for pick in picks]
        chosen += [image for image in unlabelled if image not in set(chosen)][: count - len(chosen)]
    slices = {pick.image: pick for pick in picks}
    return {
        "strategy": strategy,
        "strategies": {name: task.description for name, task in _queues(offered).items()},
        "model": progress.model,
        "scored": progress.done,
        "images": progress.total,
        "unlabelled": len(unlabelled),
        "skipped": [{"image": image, "reason": reason} for image, reason in progress.skipped.items()],
        "items": [_item(image, slices, image in held) | {"people": people.get(image, [])} for image in chosen],
        "at_work": [{"image": image, "people": names} for image, names in people.items()],
    }


def suggested(image: str) -> dict[str, Any]:
    """The slice of an image to begin with; NotFoundError, with the reason, where none is known."""
    scores = app_instance().scores
    place, picks = scores.place(image), scores.choose("first", [image], 1)
    if place is not None and picks:
        return {"slice": place.slice(picks[0].slice)}
    if place is not None:
        raise NotFoundError("this image has a label already: no slice is suggested")
    reason = scores.progress().skipped.get(image)
    raise NotFoundError(f"no slice can be suggested: {reason}" if reason else "this image is not scored yet")


def picture(image: str, number: int) -> bytes:
    """A small PNG of a slice of an image that lies in the store's folder; NotFoundError if it does not.

    Raises BadRequest for what can be no id of an image: it becomes part of a path.
    """
    check_id("image", image)
    path = app_instance().datastore().library.image(image)
    if path is None:
        raise NotFoundError("no such image in this store")
    key = f"{path}\0{number}\0{path.stat().st_mtime_ns}"
    with _drawing:  # one large file at a time
        if key not in _thumbnails:
            volume = read_volume(path, max_voxels=app_instance().runtime.settings.max_voxels)
            _thumbnails[key] = thumbnail(volume, number, THUMBNAIL_PIXELS, Window.named("soft-tissue"))
            while len(_thumbnails) > THUMBNAILS:
                _thumbnails.popitem(last=False)
        return _thumbnails[key]


def cache() -> dict[str, Any]:
    """Counters of the cache of embeddings."""
    return {"embeddings": app_instance().runtime.engines.cache.statistics()}


def stamps() -> dict[str, str]:
    """For each part of the page, what changes when it does."""
    global _looked  # noqa: PLW0603 (one look is shared by all who watch)
    app = app_instance()
    with _looking:
        when, whose, known = _looked
        if whose != id(app) or time.monotonic() - when > FRESH_SECONDS:
            known = {name: _digest(value) for name, value in _state(app).items()}
            _looked = (time.monotonic(), id(app), known)
        return dict(known)


def _state(app: Any) -> dict[str, object]:
    task = app._trainers.get(NAME)
    newest = task.trainer.runs.all()[-1:] if task else []
    ran = [(run.id, run.size()) for run in newest]
    versions = [
        (name, [one.number for one in task.trainer.versions.kept(name)], _live(name, task.trainer.versions))
        for name in (task.segmenters if task else ())
    ]
    saved = _written(app.datastore().folder / "datastore_v2.json")
    scores = app.scores.progress()
    return {
        "runs": ran,
        "models": [versions, _encoders()],
        "labels": saved,
        "queue": [saved, app.scores.generation, scores.total, sorted(app.leases.held()), app.leases.at_work()],
        "cache": app.runtime.engines.cache.statistics(),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _curves(events: list[Event]) -> dict[str, list[tuple[int, float]]]:
    """Loss and Dice over the steps of training, where an event tells them."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in ("loss", "dice"):
        told = {
            event.step: value
            for event in events
            if event.state == "training" and event.step is not None and (value := getattr(event, name)) is not None
        }
        if told:
            curves[name] = [(step, round(value, 4)) for step, value in sorted(told.items())]
    return curves


def _model(name: str, versions: Versions) -> dict[str, Any]:
    try:
        pointer = versions.pointer(name)
        live, switches = pointer.live, [switch.model_dump(mode="json") for switch in pointer.history[-RUNS:]]
    except PolyclError as error:
        return {"name": name, "live": None, "versions": [], "switches": [], "problem": str(error)}
    kept = [_version(one) for one in reversed(versions.kept(name))]
    return {"name": name, "live": live, "versions": kept, "switches": switches[::-1]}


def _version(one: Version) -> dict[str, Any]:
    """Without what names images: the labels it was made of, and the scores of each."""
    told = one.model_dump(mode="json", include={"number", "parent", "created", "seconds", "publish", "reason"})
    roles = Counter(trained.role for trained in one.data)
    return told | {
        "before": one.figures.before,
        "after": one.figures.after,
        "trained": roles["train"],
        "validated": roles["validate"],
    }


def _live(name: str, versions: Versions) -> int | None:
    try:
        return versions.live(name)
    except PolyclError:
        return None


def _encoders() -> list[str]:
    folder = app_instance().runtime.settings.models
    return sorted((file.stem for file in folder.glob("encoder-*.safetensors")), reverse=True)


def _queues(offered: dict[str, NextImage]) -> dict[str, NextImage]:
    """Strategies that have an order to show."""
    return {name: task for name, task in offered.items() if name != "random"}


def _item(image: str, slices: dict[str, Any], held: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"image": image, "held": held}
    pick, place = slices.get(image), app_instance().scores.place(image)
    if pick is not None and place is not None:
        told |= {"slice": place.slice(pick.slice), "score": round(pick.score, 4)}
    return told
