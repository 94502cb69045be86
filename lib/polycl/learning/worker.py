"""The process that trains: `python -m polycl.learning.worker RUN`, with the folder of a run.

It may be killed at any moment and started again: each stage leaves its result in the run's folder, whole or not at all,
and is left out when that is there. SIGTERM stops it in order; whether for good says the run's folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from filelock import Timeout

from polycl.errors import PolyclError
from polycl.learning.runs import Pretraining, Run, Runs
from polycl.learning.telling import Teller

BUSY = 75
"""Exit code where another process trains already (EX_TEMPFAIL)."""
PATIENCE_SECONDS = 10
AUTOGROUP = Path("/proc/self/autogroup")
FOLDERS = re.compile(r"(?<!\w)/\S*/")
"""Clients are told what a run tells; where this machine keeps its files is not for them."""


class Stopped(BaseException):
    """Somebody asked this process to stop. Like KeyboardInterrupt it is no error that a library may swallow."""


def main(arguments: list[str]) -> int:
    """Carry out the run in the folder given; the exit code."""
    run = Run(Path(arguments[0]).resolve())
    runs = Runs(run.folder.parent)
    try:
        with runs.lock(PATIENCE_SECONDS):
            runs.note_worker()
            signal.signal(signal.SIGTERM, _stop)
            signal.signal(signal.SIGINT, _stop)
            _step_back(run)
            return carry_out(run)
    except Timeout:
        return BUSY


def carry_out(run: Run) -> int:
    """Do what is left of a run, and tell how it ended. Returns the exit code."""
    if run.ended:
        return 0
    tell = Teller(run)
    try:
        if run.cancelled:
            raise Stopped
        task = run.task()
        if isinstance(task, Pretraining):
            from polycl.learning.pretraining import learn_encoder

            learn_encoder(run, task, tell)
        else:
            from polycl.learning.process import learn

            learn(run, task, tell)
    except Stopped:
        tell("cancelled" if run.cancelled else "interrupted")
    except PolyclError as error:
        print(error.in_full(), file=sys.stderr)  # noqa: T201 (the worker's log)
        tell("failed", message=FOLDERS.sub("", str(error)))
    except Exception:
        traceback.print_exc()
        tell("failed", message="an internal error; the run's worker.log says more")
    if run.ended:
        run.tidy()
    return 0 if run.state() != "failed" else 1


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # once is enough
    raise Stopped


def _step_back(run: Run) -> None:
    """Give way to whoever else wants the processor, such as the server that started this.

    Where Linux shares the processor out among sessions first, and this has one of its own, being nice is not enough:
    only within a session does it count. The session has to be nice too.
    """
    try:
        request = run.task()
    except PolyclError:  # told by who carries it out
        return
    os.nice(max(0, request.nice - os.nice(0)))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # another system, or one that shares otherwise
            AUTOGROUP.write_text(str(request.nice))
    import torch

    torch.set_num_threads(request.threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
