"""Propagation for several clients: a session for each client, image and label, so that corrections cost little.

Concurrency: one request at a time works in a session; of these, one at a time computes on its device.
Who waits for either can be cancelled. Sessions that nobody used for long, or too many, are forgotten: then the next
request does all the work again, and a painted mask counts as new.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

from polycl import devices
from polycl.corrector.inference import Corrector
from polycl.corrector.loading import load_correctors
from polycl.errors import InputError, ModelError, NotFoundError
from polycl.monailabel.current import Loaded
from polycl.monailabel.infer import Runtime, SegmentTask
from polycl.monailabel.work import Running, Work
from polycl.propagate.engine import VideoEngine
from polycl.propagate.guides import SegmenterGuide
from polycl.propagate.painted import History
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Found
from polycl.propagate.session import Propagation, Roi
from polycl.sam import EmbeddingCache, content_hash
from polycl.volume import Volume
from polycl.window import FromHeader, Window, seen_through

SESSIONS = 16
IMAGE_BYTES = 1 << 30
"""Of images that sessions hold on to, together."""
EXPIRY_S = 3600.0
WAIT_S = 0.05
ANY_GUIDE, NO_GUIDE = "auto", "none"


@dataclass(frozen=True)
class Choices:
    """What a client may choose. None: the default model, its usual size, the windows it was trained with.

    `guide` is a segmenter, `ANY_GUIDE` for whichever recognises the object, or `NO_GUIDE`. `first` and `last` are the
    canonical axial slices at which the object begins and ends, if that is known.
    """

    engine: str | None = None
    size: int | None = None
    window: Window | FromHeader | None = None
    guide: str = ANY_GUIDE
    first: int | None = None
    last: int | None = None
    how: PropagateParameters = field(default_factory=PropagateParameters)


@dataclass(eq=False)
class Session:
    """What is remembered of one label of one image for one client. Whoever reads or changes it holds the lock."""

    image: Volume
    label: str
    history: History = field(default_factory=History)
    made_for: Hashable = None
    propagation: Propagation | None = None
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sessions:
    """Sessions by client, image and label; those used longest ago go first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, client: Hashable, image: Volume, label: str) -> Session:
        """The session, a new one if there is none. The same voxels on another grid are another image."""
        key = (client, content_hash(image), image.shape, image.affine.tobytes(), label)
        with self._lock:
            session = self._kept.pop(key, None) or Session(image, label)
            session.used = self._clock()
            self._kept[key] = session
            self._trim()
            return session

    def _trim(self) -> None:
        fresh = self._clock() - EXPIRY_S
        for key in [key for key, session in self._kept.items() if session.used < fresh]:
            del self._kept[key]
        while len(self._kept) > 1 and (len(self._kept) > SESSIONS or self._bytes() > IMAGE_BYTES):
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        images = {id(session.image): session.image for session in self._kept.values()}
        return sum(image.voxels.nbytes for image in images.values())


class Propagations:
    """What the tasks that propagate share. `segmenters` are those that may guide."""

    def __init__(self, runtime: Runtime, segmenters: Mapping[str, SegmentTask]) -> None:
        self.runtime, self.segmenters = runtime, segmenters
        self.engines = runtime.engines.propagators
        self.sessions, self.work = Sessions(), Work()
        self._features = EmbeddingCache(runtime.settings.embedding_memory)

    def prepare(self, choices: Choices) -> VideoEngine:
        """The network to use; refuses choices that cannot be, before anything is computed."""
        if choices.guide not in (ANY_GUIDE, NO_GUIDE, *self.segmenters):
            there = ", ".join((ANY_GUIDE, NO_GUIDE, *self.segmenters))
            raise NotFoundError(f"no segmenter is called {choices.guide!r} here; guide may be {there}")
        return self.engines.named(choices.engine, choices.size)

    def carry(
        self,
        session: Session,
        choices: Choices,
        engine: VideoEngine,
        running: Running,
        found: Found,
        roi: Roi | None = None,
    ) -> Volume:
        """The label from the seeds `found`, 0 and 1 on the image's grid; only what changed is computed.

        For whoever holds the session's lock. Raises Cancelled where it is stopped, and InputError where the seeds do
        not fit or the memory does not suffice; neither changes what a later request gets.
        """

        def step(done: int, total: int) -> None:
            running.step(done, total)
            self.runtime.progress(done, total)

        def check() -> None:
            running.check()
            self.runtime.progress(0, 0)

        device = str(devices.choose(self.runtime.settings.device, self.runtime.settings.precision).device)
        try:
            with _held(self.runtime.device_lock(device), check):
                propagation = self._propagation(session, choices, engine, roi)
                propagation.replace(found)
                return propagation.run(step)
        except MemoryError:
            session.propagation = None
            raise InputError(
                "there is not enough memory to propagate in this image: choose a smaller size, or a roi"
            ) from None

    @contextmanager
    def session(self, client: Hashable, image: Volume, label: str, running: Running) -> Iterator[Session]:
        """The session of this client, image and label, for this thread alone."""

        def check() -> None:
            running.check()
            self.runtime.progress(0, 0)

        session = self.sessions.get(client, image, label)
        with _held(session.lock, check):
            yield session

    def _propagation(self, session: Session, choices: Choices, engine: VideoEngine, roi: Roi | None) -> Propagation:
        guides = self._guides(choices.guide)
        frames = engine.frames
        if choices.window is not None:
            frames = frames.model_copy(update={"windows": (seen_through(choices.window, session.image.window),)})
        versions = tuple(guide.sha256 for guide in guides)
        made_for = (engine.name, engine.sha256, engine.size, frames, choices.how, versions, roi)
        if session.propagation is None or session.made_for != made_for:
            image = session.image.canonical()
            session.propagation = Propagation(
                session.image,
                engine,
                cache=self._features,
                parameters=choices.how,
                frames=frames,
                roi=roi,
                guides=[SegmenterGuide(guide.segmenter, guide.name, image, self._correctors) for guide in guides],
            )
            session.made_for = made_for
        return session.propagation

    @cached_property
    def _correctors(self) -> list[Corrector]:
        return load_correctors(self.runtime.settings, self.segmenters)

    def _guides(self, name: str) -> list[Loaded]:
        """The live versions that may help. One that cannot be loaded is left out, unless it is the one asked for."""
        if name not in (ANY_GUIDE, NO_GUIDE):
            return [self.segmenters[name].model()]
        loaded = []
        for task in self.segmenters.values() if name == ANY_GUIDE else ():
            with suppress(ModelError):
                loaded.append(task.model())
        return loaded


@contextmanager
def _held(lock: threading.Lock, check: Callable[[], None]) -> Iterator[None]:
    """Inside, the lock is held; who waits for it calls `check` now and then, which may raise."""
    while not lock.acquire(timeout=WAIT_S):
        check()
    try:
        yield
    finally:
        lock.release()
