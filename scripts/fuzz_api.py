"""Send what the server's own OpenAPI document allows, and what it does not; tell of every 5xx that is no 503.

    .venv/bin/python scripts/fuzz_api.py --minutes 20 --seed 1

The server is made in this process, over phantoms in a folder for temporary files. Ids of what is there are put into
every second request, so that it gets past the first check.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

BASE = "http://127.0.0.1:8000"
LEFT_OUT = frozenset(
    {
        ("GET", "/polycl/api/events"),  # a stream that lasts a minute
        ("POST", "/polycl/api/pretraining/start"),  # these start processes
        ("POST", "/polycl/api/training/start"),
        ("POST", "/train/{model}"),
        ("POST", "/batch/infer/{model}"),
        ("DELETE", "/datastore/image"),  # the next requests need it
    }
)
Send = Callable[[requests.PreparedRequest], int]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A request that was answered with a status it should never be."""

    status: int
    method: str
    url: str
    body: bytes | str | None


@dataclasses.dataclass
class Report:
    """What was sent: how often each status came, and what failed."""

    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    failures: list[Failure] = dataclasses.field(default_factory=list)


def fuzz(
    document: Mapping[str, Any], send: Send, known: Mapping[str, str], *, examples: int, seed: int, report: Report
) -> None:
    """Send `examples` requests to each operation of `document`, drawn by `seed`, and add to `report`."""
    for operation in operations(document):
        probe(operation, send, known, examples, seed, report)


def operations(document: Mapping[str, Any]) -> Iterator[Any]:
    """Those of the document that are tried."""
    for result in schemathesis.openapi.from_dict(dict(document)).get_all_operations():
        operation = result.ok()
        if (operation.method.upper(), operation.path) not in LEFT_OUT:
            yield operation


def probe(operation: Any, send: Send, known: Mapping[str, str], examples: int, seed: int, report: Report) -> None:
    """One operation."""
    valid, invalid = (
        operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def sent(data: Any) -> None:
        case = data.draw(st.one_of(valid, valid, invalid))
        if data.draw(st.booleans()):
            for where in (case.path_parameters, case.query):
                if isinstance(where, dict):
                    where.update({name: value for name, value in known.items() if name in where})
        try:
            request = requests.Request(**case.as_transport_kwargs(base_url=BASE)).prepare()
        except (ValueError, UnicodeError, requests.RequestException):  # what cannot be sent at all
            return
        status = send(request)
        report.statuses[status] += 1
        if status >= 500 and status != 503:
            report.failures.append(Failure(status, str(request.method), str(request.url), request.body))

    try:
        sent()
    except hypothesis.errors.Unsatisfiable:  # nothing can be drawn, such as invalid requests without parameters
        return


def send_to(client: Any) -> Send:
    """Send through a Starlette test client."""

    def send(request: requests.PreparedRequest) -> int:
        try:
            answer = client.request(
                request.method, request.url, headers=dict(request.headers), content=request.body or b""
            )
        except (ValueError, UnicodeError, TypeError):  # the client refuses it
            return 0
        return int(answer.status_code)

    return send


def main() -> None:
    """Until the time is over; exits 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=20, help="requests to each operation in a round")
    given = parser.parse_args()

    from starlette.testclient import TestClient

    from polycl.phantom import make_phantom
    from polycl.server import create_app
    from polycl.settings import Settings
    from polycl.volume import write_volume

    until, report, seed = time.monotonic() + given.minutes * 60, Report(), given.seed
    with tempfile.TemporaryDirectory(
        ignore_cleanup_errors=True
    ) as folder:  # the app still writes when it is told to end
        studies = Path(folder, "studies")
        studies.mkdir()
        write_volume(make_phantom(0, shape=(48, 40, 9), spacing=(8.0, 8.0, 20.0)).image, studies / "phantom.nii.gz")
        app = create_app(str(studies), Settings(state=Path(folder, "state"), score_ahead=False))
        with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
            document = client.get("/openapi.json").json()
            models = list(client.get("/info/").json()["models"])
            while time.monotonic() < until:
                known = {"image": "phantom", "id": "phantom", "label": "phantom", "tag": "final", "strategy": "first"}
                known["model"] = models[seed % len(models)]
                fuzz(document, send_to(client), known, examples=given.examples, seed=seed, report=report)
                seed += 1
                print(
                    f"seed {seed}: {dict(sorted(report.statuses.items()))}, {len(report.failures)} failures", flush=True
                )
    for failure in report.failures[:20]:
        print(failure)
    raise SystemExit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
