"""The end of a server's process: in order, and soon, also where a thread does not come to its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

SCRIPT = """
import atexit, sys, threading, time
from polycl.server.run import leave

atexit.register(print, "the end of Python")
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
threading.Thread(target=time.sleep, args=(600,)).start()
print("before")
sys.stderr.write("nothing")
leave(lambda seconds: print("closed") or {ended})
"""


@pytest.mark.parametrize("ended", [True, False])
def test_a_process_ends_whatever_computes_on(ended: bool) -> None:
    script = SCRIPT.format(ended=ended)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "before\nclosed\n", "nothing")
