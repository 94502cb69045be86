"""The MONAI Label app. `apps/polycl/main.py` is how MONAI Label finds it."""

import atexit
import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monailabel.config import settings as server_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

import polycl
from polycl.acquisition.ahead import ScoresAhead
from polycl.catalogue import DEFAULT_SEGMENTER, SHIPPED, Catalogue
from polycl.errors import InputError, ModelError, NotFoundError
from polycl.labels.served import served_labels
from polycl.leases import Leases, notices
from polycl.monailabel import click, headers, propagate, refine, train
from polycl.monailabel.config import AppConfig
from polycl.monailabel.engines import MISSING
from polycl.monailabel.folders import check_name
from polycl.monailabel.infer import Runtime, SegmentTask
from polycl.monailabel.pacs import PacsStore
from polycl.monailabel.propagations import Propagations
from polycl.monailabel.propagators import MISSING as NO_PROPAGATOR
from polycl.monailabel.scoring import leases_of, scores_of
from polycl.monailabel.sessions import OwnedSessions
from polycl.monailabel.store import LabelRules, LocalStore
from polycl.monailabel.strategy import strategies
from polycl.monailabel.work import person
from polycl.settings import PREFIX, Settings
from polycl.telemetry import stages_took

logger = logging.getLogger(__name__)


class PolyclApp(MONAILabelApp):  # type: ignore[misc, unused-ignore]
    """Registers one task for each segmenter of the catalogue, those that need SAM, and what picks the next image."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.config = AppConfig.parse(conf or {})
        settings = self.config.apply(Settings())
        settings.prepare()
        self.runtime = Runtime(settings)
        self.catalogue = Catalogue.default(settings)
        self._broken: dict[str, str] = {}
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name="PolyCL",
            description="Outlines organs on CT, and gets better with every label saved",
            version=polycl.__version__,
        )

    def init_datastore(self) -> Datastore:
        """A PACS for an http(s) address, else the folder of images."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        auto_reload = server_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        return LocalStore(self.studies, rules=self._label_rules(), auto_reload=auto_reload)

    def init_infers(self) -> dict[str, InferTask]:
        """One task for each segmenter, and those of SAM; what cannot be used is named to those who ask for it."""
        tasks: dict[str, InferTask] = {}
        for name in self._names():
            try:
                tasks[name] = SegmentTask(self.catalogue.entry(f"{name}@0", "segmenter"), self.runtime)
            except ModelError as error:
                logger.warning("model %s is left out: %s", name, error.in_full())
                self._broken[name] = str(error)
        if self.runtime.engines.default() is None:
            self._broken |= dict.fromkeys((click.NAME, refine.NAME), MISSING)
        else:
            tasks |= {click.NAME: click.ClickTask(self.runtime), refine.NAME: refine.RefineTask(self.runtime)}
        segmenters = {name: task for name, task in tasks.items() if isinstance(task, SegmentTask)}
        self.propagations = Propagations(self.runtime, segmenters)
        if self.propagations.engines.names:
            tasks[propagate.CLICKED] = propagate.PropagateClicksTask(self.propagations)
            tasks[propagate.PAINTED] = propagate.PropagatePaintedTask(self.propagations)
        else:
            self._broken |= dict.fromkeys((propagate.CLICKED, propagate.PAINTED), NO_PROPAGATOR)
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """One for all segmenters that can be used; none without any."""
        segmenters = [name for name, task in self._infers.items() if isinstance(task, SegmentTask)]
        return {train.NAME: train.LearnTask(segmenters, self.catalogue, self.runtime.settings)} if segmenters else {}

    def init_strategies(self) -> dict[str, Strategy]:
        """Which image comes next."""
        return strategies(self.scores, self.leases)

    @cached_property
    def scores(self) -> ScoresAhead:
        """What the strategies choose by. NotFoundError if the settings name a segmenter that is not served."""
        segmenters = {name: task for name, task in self._infers.items() if isinstance(task, SegmentTask)}
        return scores_of(self.runtime, segmenters, self.datastore)

    @cached_property
    def leases(self) -> Leases:
        """Who was given which image."""
        return leases_of(self.runtime.settings, self.studies)

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """MONAI Label's inference, with an answer for models and images that are not there."""
        model = str(request.get("model") or "")
        self.require_model(model)
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL
        check_name("label_tag", tag)
        store = datastore or self.datastore()
        image = request.get("image")
        started = time.perf_counter()
        added = {"image": self._image_path(image, store)}
        fetched = time.perf_counter() - started
        if model in (refine.NAME, propagate.PAINTED):
            added |= refine.stored_label(request, store)
        try:
            with self.runtime.engines.cache.serving():  # nothing is embedded ahead while somebody waits
                result = super().infer({**request, **added}, store)
        except InputError as error:
            raise InputError(_by_role(str(error), request), hint=error.hint) from error
        stages_took(model, result["params"])
        stages = {"fetch": fetched, **(result["params"].get("seconds") or {})}
        headers.note(headers.TIMING, headers.timing(stages))
        self._told_of_others(request, result["params"])
        made_by = result["params"].get("model")
        if isinstance(made_by, dict) and "version" in made_by:
            headers.note(headers.MODEL, f"{quote(made_by['name'])}@{made_by['version']}")
            headers.note(headers.WEIGHTS, made_by["sha256"])
        if request.get("save_label") and not Path(str(image)).is_absolute():
            info = {"model": model, "params": result["params"]}
            try:
                result["label"] = store.save_label(image, result["file"], tag, info)
            except BaseException:
                Path(result["file"]).unlink(missing_ok=True)
                raise
        return dict(result)

    def _told_of_others(self, request: Mapping[str, Any], params: dict[str, Any]) -> None:
        """Note that somebody works on the image, unless it is their own file, and tell them who else does."""
        image = request.get("image")
        if isinstance(image, str) and not Path(image).is_absolute():
            told = notices(self.leases.see(image, person(request.get("client_id"))))
            if told:
                params["notes"] = [*params.get("notes", ()), *told]
                headers.note(headers.NOTES, quote("; ".join(told)))

    def require_model(self, model: str) -> None:
        """ModelError for a model that cannot be used, NotFoundError for one that there is not."""
        if model in self._broken:
            raise ModelError(self._broken[model])
        if model not in self._infers:
            raise NotFoundError(f"no model is called {model!r}; there are: {', '.join(self._infers) or 'none'}")

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """MONAI Label's batch inference, on the device of the settings: choosing a GPU itself, it fails without."""
        self.runtime.ahead.enabled = False
        asked = {key: value for key, value in request.items() if key != "client_id"}  # nobody looks at these images
        return dict(super().batch_infer({**asked, "multi_gpu": False}, datastore))

    def info(self) -> dict[str, Any]:
        """MONAI Label's, and counters of the embedding cache."""
        return {**super().info(), "embeddings": self.runtime.engines.cache.statistics()}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """MONAI Label's; the slices of the image are embedded from here on, first those around the one to label."""
        sample = super().next_sample(request)
        if sample:
            self.runtime.ahead.opened(Path(sample["path"]), sample.get("slice", {}).get("number"))
        return dict(sample)

    def opened(self, image: str) -> None:
        """A client has got `image`, or some of it, to show it to somebody. Ignored for what is no image to segment."""
        store = self.datastore()
        if not isinstance(store, PacsStore):
            self.runtime.ahead.opened(Path(store.get_image_uri(image)))
        elif image in store.list_images():
            self.runtime.ahead.opened(store.place(image), fetch=lambda: store.get_image_uri(image))

    def on_init_complete(self) -> None:
        """Called by the server that has just loaded this app, before its first request."""
        from monailabel.app import app

        from polycl.server import work
        from polycl.server.endpoints import protect
        from polycl.server.pages import install

        protect()
        work.install(app)
        install(app)
        train.take_over()
        for task in self._trainers.values():
            task.serve(self.datastore())
        atexit.register(self.close)
        if self.runtime.settings.score_ahead:
            self.scores.start()
        super().on_init_complete()

    def stop(self) -> None:
        """The server goes down: nothing new is begun, and what was asked for goes on."""
        self.runtime.stop()
        self.scores.cancel()

    def give_up(self) -> None:
        """There is no more time: inferences that still run end at their next slice, and are answered 503."""
        self.runtime.give_up()

    def close(self, seconds: float | None = None) -> bool:
        """Stop, and wait for the threads that compute, each for so long at most. Whether all have ended.

        One that torch works in may not outlive Python.
        """
        self.stop()
        self.give_up()
        for task in self._trainers.values():
            task.trainer.close()
        ended = [self.scores.close(seconds), self.runtime.engines.cache.close(seconds)]
        return all(ended)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Called when a client has saved a label: training may start by itself."""
        self.leases.release(image_id)
        self.scores.wake()
        for task in self._trainers.values():
            task.consider()
        return {}

    def _names(self) -> list[str]:
        def place(name: str) -> tuple[bool, bool]:
            return name != DEFAULT_SEGMENTER, self.catalogue.entry(name).path.parent == SHIPPED

        known = sorted(self.catalogue.names("segmenter"), key=place)  # the site's own before others that ship
        given = [name.strip() for name in self.runtime.settings.serve_models.split(",") if name.strip()]
        if unknown := [name for name in self.config.models or given if name not in known]:
            where = "--conf models" if self.config.models else f"{PREFIX}SERVE_MODELS"
            raise NotFoundError(f"{where} {', '.join(unknown)}: no such model; there are: {', '.join(known)}")
        return list(self.config.models) or given or known

    def _image_path(self, image: object, store: Datastore) -> str:
        """Path of an image in the store by its id, or an absolute path as it is (a file or session that a client sent).

        Done here because MONAI Label takes an id for a path where one like it exists in the server's working folder.
        """
        if not isinstance(image, str) or not image:
            raise InputError("the request names no image: give image=ID of one in the store, a file, or a session_id")
        if Path(image).is_absolute() and Path(image).exists():
            return image
        path = store.get_image_uri(image)
        if not path or not Path(path).exists():
            raise NotFoundError(f"no image {image!r} in this store; GET /datastore/?output=all lists them")
        return str(path)

    def _load_sessions(self, load: bool = False) -> OwnedSessions | None:
        """Images that clients sent; in the state folder unless MONAI Label was told another place."""
        settings = self.runtime.settings
        folder = Path(server_settings.MONAI_LABEL_SESSION_PATH or settings.sessions)
        return OwnedSessions(folder, settings.session_minutes, int(settings.session_room)) if load else None

    def _init_dicomweb_datastore(self) -> Datastore:
        """MONAI Label would fetch a program from the network here, to write DICOM SEG; here `polycl.dicomseg` does."""
        settings = self.runtime.settings
        folder = server_settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.store / "dicomweb"
        return PacsStore(self.studies, Path(folder), self._label_rules(), int(settings.pacs_room))

    def _label_rules(self) -> LabelRules:
        runtime, settings = self.runtime, self.runtime.settings
        return LabelRules(
            known=served_labels(self.catalogue, self._names()),
            keep=settings.label_versions,
            read=runtime.image,
            replies=runtime.replies,
            max_voxels=settings.max_voxels,
        )


def _by_role(message: str, request: Mapping[str, Any]) -> str:
    """`message` with "the image" and "the label" for the files that MONAI Label made of what a client sent."""
    for role in ("image", "label"):
        sent = request.get(role)
        if isinstance(sent, str) and Path(sent).is_absolute():
            message = message.replace(f"{Path(sent).name}: ", f"the {role}: ")
    return message
