"""Which queue a request stands in. See `polycl.server.queue` for the order within one.

Inference waits for its device. All else that blocks has two queues: one for what may take long, as a PACS or a disk
does, and one for pages and for what tells about the server, so that these always answer.
"""

from dataclasses import dataclass, field
from typing import Any

from anyio.lowlevel import RunVar
from monailabel.interfaces.utils.app import app_instance

from polycl.errors import PolyclError
from polycl.server.queue import FairQueue

VOLUMES = 2
"""Whole volumes at once: a network computes on one, another may be read or written meanwhile."""
CLICKS = 1
"""Threads beside these for clicks alone."""
OTHER_THREADS = 16
OTHER_WAITING = 512
PAGES = frozenset({"api_app_info", "api_get_ohif", "api_get_logs", "api_status"})
"""Endpoints that tell about the server."""


def _others() -> FairQueue:
    return FairQueue(OTHER_THREADS, OTHER_WAITING)


@dataclass
class Lanes:
    """The queues of one event loop."""

    devices: dict[str, FairQueue] = field(default_factory=dict)
    long: FairQueue = field(default_factory=_others)
    pages: FairQueue = field(default_factory=_others)

    def device(self, device: str, capacity: int) -> FairQueue:
        """The queue of a device, of which `capacity` may wait."""
        if device not in self.devices:
            self.devices[device] = FairQueue(VOLUMES + CLICKS, capacity, bulk=VOLUMES)
        return self.devices[device]

    def close(self, reason: PolyclError) -> None:
        """Refuse whoever waits, or comes, with `reason`: the server goes down."""
        for queue in (*self.devices.values(), self.long, self.pages):
            queue.close(reason)


_LANES: RunVar[Lanes] = RunVar("polycl_lanes")


def lanes() -> Lanes:
    """Those of the running event loop."""
    try:
        return _LANES.get()
    except LookupError:
        _LANES.set(made := Lanes())
        return made


def lane_of(name: str, arguments: dict[str, Any]) -> tuple[FairQueue, bool]:
    """The queue for the endpoint called `name`, and whether the request is a click, which works on one slice."""
    if "infer" not in name:
        return (lanes().pages if name in PAGES else lanes().long), False
    app = app_instance()
    task = app._infers.get(arguments.get("model"))
    settings = app.runtime.settings
    return lanes().device(settings.device, settings.queue), getattr(task, "dimension", 3) == 2
