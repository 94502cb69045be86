"""MONAI Label's trainer: what Slicer and OHIF see of `polycl.learning.trainer`, and the endpoints under `/train`.

MONAI Label would import the app once more in a subprocess, and know of a run only as long as it lives itself. Here the
endpoints ask the trainer, which has a process of its own and runs that outlive the server. There is one trainer, as
OHIF's Update Model starts every one.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.interfaces.utils.app import app_instance

from polycl.audit import Audit
from polycl.catalogue import Catalogue
from polycl.errors import InputError, NotFoundError, PolyclError
from polycl.labels.library import final_labels
from polycl.labels.record import SavedLabel
from polycl.learning.runs import Event, Pretraining, Run, State, follow
from polycl.learning.trainer import Options, Trainer
from polycl.monailabel.store import IndexedStore
from polycl.settings import Settings

logger = logging.getLogger(__name__)

NAME = "polycl"
FOREIGN_KEYS = frozenset(
    {"model", "client_id", "gpus", "multi_gpu", "device", "local_rank", "bundle_path", "description", "user"}
)
"""What clients and MONAI Label itself put into every request; it means nothing here."""
STATUS: Mapping[State, str] = {
    "submitted": "SUBMITTED",
    "preparing": "RUNNING",
    "training": "RUNNING",
    "scoring": "RUNNING",
    "interrupted": "SUBMITTED",
    "done": "DONE",
    "failed": "ERROR",
    "cancelled": "STOPPED",
}
DETAILS = 20


class LearnTask(TrainTask):  # type: ignore[misc, unused-ignore]
    """Fine-tunes a segmenter on all final labels of a store, in the background."""

    def __init__(self, segmenters: list[str], catalogue: Catalogue, settings: Settings) -> None:
        super().__init__("fine-tunes a segmenter on the labels saved here; published only if it is better")
        self.segmenters = segmenters
        self._catalogue, self._settings = catalogue, settings
        self.trainer = Trainer(settings, catalogue, on_end=self._ended)
        self._store: IndexedStore | None = None
        self._considering = threading.Lock()
        self._stats: tuple[tuple[str, int] | None, dict[str, Any]] = (None, {})

    def config(self) -> dict[str, Any]:
        """What Slicer and OHIF show as options; of a list, the first is chosen."""
        options = Options(segmenter=self.segmenters[0])
        return {
            "segmenter": list(self.segmenters),
            "steps": options.steps,
            "publish": ["better", "force", "never"],
        }

    def stats(self) -> dict[str, Any]:
        """What Slicer and OHIF draw bars of: steps as epochs, and Dice on the validation patients."""
        newest = self.trainer.runs.all()[-1:]
        stamp = (newest[0].id, newest[0].size()) if newest else None
        if stamp != self._stats[0]:  # each inference asks for it
            self._stats = (stamp, self._figures(newest[0]) if newest else {})
        return dict(self._stats[1])

    @staticmethod
    def _figures(run: Run) -> dict[str, Any]:
        events = list(follow(run.events()))
        if not events:
            return {}
        last = events[-1]
        stats: dict[str, Any] = {"epoch": last.step or 0, "total_epochs": last.steps or 1, "state": last.state}
        stats["best_metric"] = round(last.dice or 0.0, 4)
        stats |= {name: value for name in ("loss", "eta", "version") if (value := getattr(last, name)) is not None}
        if run.ended:
            stats["total_time"] = str(last.at - events[0].at).partition(".")[0]
        return stats

    def begin(self, request: Mapping[str, Any], store: IndexedStore) -> Run:
        """Start a run as `request` has it. Raises what `Options.parse` and `Trainer.start` do."""
        given = {key: value[0] if isinstance(value, list) and value else value for key, value in request.items()}
        values = {key: value for key, value in given.items() if key not in FOREIGN_KEYS and key != NAME}
        options = Options.parse({"segmenter": self.segmenters[0]} | values)
        if options.segmenter not in self.segmenters:
            raise NotFoundError(f"no segmenter {options.segmenter!r}; there are: {', '.join(self.segmenters)}")
        return self.trainer.start(options, store.folder, self._labels(options.segmenter, store))

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Start a run and wait for its end, as MONAI Label's own trainers do."""
        run = self.begin(request, datastore)
        self.trainer.wait(run)
        return self.stats()

    def serve(self, store: IndexedStore) -> None:
        """Take up what an earlier server left, and watch for new labels of `store` from now on."""
        self._store = store
        if self.trainer.resume() is None:
            self.consider()

    def _ended(self, run: Run) -> None:
        """Tell the audit trail how a run ended, and see whether the next may start."""
        last = next(reversed(list(follow(run.events()))), None)
        told = {name: value for name in ("version", "published") if (value := getattr(last, name, None)) is not None}
        details = {"run": run.id, **_options(run), "state": run.state(), **told}
        try:
            Audit(self._settings.audit).add("training.end", client="the server", details=details)
            if told.get("published"):
                named = {"model": details["segmenter"], "version": told.get("version"), "run": run.id}
                Audit(self._settings.audit).add("model.publish", client="the server", details=named)
        except OSError as error:
            logger.error("the audit trail cannot be written (%s): run %s ended", error.strerror, run.id)
        self.consider()

    def consider(self) -> None:
        """Start by itself once there are enough new labels, if that was asked for; in a thread of its own."""
        if self._settings.learn_after and self._store is not None:
            threading.Thread(target=self._consider, args=(self._store,), daemon=True).start()

    def _consider(self, store: IndexedStore) -> None:
        with self._considering:
            for segmenter in self.segmenters:
                try:
                    saved = self._labels(segmenter, store)
                    enough = self.trainer.new_labels(segmenter, saved) >= self._settings.learn_after
                    if enough and self.trainer.runs.pending() is None:
                        self.trainer.start(Options(segmenter=segmenter), store.folder, saved)
                except PolyclError as error:
                    logger.warning("training did not start by itself: %s", error)

    def _labels(self, segmenter: str, store: IndexedStore) -> list[SavedLabel]:
        return final_labels(store.folder, self._catalogue.entry(segmenter, "segmenter").header().labels)


def take_over() -> None:
    """Have MONAI Label's `/train` endpoints ask the trainer. They keep their paths, arguments and permissions."""
    from monailabel.endpoints import train

    for name, ours in _ENDPOINTS.items():
        setattr(train, name, ours)


def _status(all: bool = False, check_if_running: bool = False) -> Any:
    """The newest run as MONAI Label describes a task, or `all`. 404 without one, or none that runs."""
    runs = _task().trainer.runs.all()
    if check_if_running:
        runs = [run for run in runs[-1:] if not run.ended]
    if not runs:
        raise HTTPException(404, "no training is under way" if check_if_running else "nothing was trained here yet")
    return [described(run) for run in runs] if all else described(runs[-1])


def _run(params: dict[str, Any] | None = None, run_sync: bool | None = False) -> Any:
    """Start every trainer there is, which is one; `params` holds its options by its name."""
    given = (params or {}).get(NAME) or {}
    if not isinstance(given, dict):
        raise InputError(f"the options of {NAME} must be an object")
    return {NAME: {"result": _run_model(NAME, given, run_sync), "detail": None}}


def _run_model(
    model: str, params: dict[str, Any] | None = None, run_sync: bool | None = False, enqueue: bool | None = False
) -> Any:
    """Start a run, and wait for it if `run_sync`. Busy where one is under way: none waits in a queue."""
    task = _task()
    run = task.begin(params or {}, app_instance().datastore())
    if run_sync:
        task.trainer.wait(run)
        return task.stats()
    return described(run)


def _stop() -> Any:
    """Cancel the run under way; None if there is none, as MONAI Label has it."""
    run = _task().trainer.cancel()
    return None if run is None else described(run)


_ENDPOINTS: dict[str, Callable[..., Any]] = {"status": _status, "run": _run, "run_model": _run_model, "stop": _stop}


def described(run: Run) -> dict[str, Any]:
    """A run as MONAI Label describes a task."""
    events = list(follow(run.events()))
    last = events[-1] if events else None
    answer: dict[str, Any] = {"id": run.id, "status": STATUS[run.state()], "request": _options(run)}
    answer["details"] = [_line(event) for event in events[-DETAILS:]]
    if events:
        answer["start_ts"] = _local(events[0].at)
    if last is not None and run.ended:
        answer |= {"end_ts": _local(last.at), "result": last.message or last.state}
    return answer


def _options(run: Run) -> dict[str, Any]:
    """What was asked for; nothing that names a patient or a folder."""
    try:
        request = run.task()
    except InputError:
        return {"model": NAME}
    if isinstance(request, Pretraining):
        return {"model": NAME, "encoder": request.name, "steps": request.steps}
    return {"model": NAME, "segmenter": request.model, "steps": request.steps, "publish": request.publish}


def _line(event: Event) -> str:
    parts: list[str] = [event.state]
    if event.step is not None and event.state == "training":
        parts.append(f"step {event.step}/{event.steps}")
        parts += [f"{name} {value:.4f}" for name in ("loss", "dice") if (value := getattr(event, name)) is not None]
        parts += [] if event.eta is None else [f"{event.eta:.0f} s left"]
    elif event.done is not None and event.state in ("preparing", "scoring"):
        parts.append(f"{event.done}/{event.total}")
    return f"{_local(event.at)} {' '.join(parts)}{': ' + event.message if event.message else ''}"


def _local(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _task() -> LearnTask:
    task = app_instance()._trainers.get(NAME)
    if task is None:
        raise NotFoundError("nothing can be trained here: there is no segmenter")
    return task
