"""Requests made from the server's own OpenAPI document: no answer is a 5xx, but 503 of a full queue."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

pytest.importorskip("schemathesis")

import fuzz_api

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.timeout(900)]

KNOWN = {"image": "lps", "id": "lps", "label": "lps", "tag": "final", "model": "tiny", "strategy": "first"}


def test_nothing_that_is_sent_is_an_internal_error(client: TestClient) -> None:
    document, report = client.get("/openapi.json").json(), fuzz_api.Report()
    fuzz_api.fuzz(document, fuzz_api.send_to(client), KNOWN, examples=6, seed=1, report=report)
    assert report.failures == []
    assert report.statuses[200] > 20, "some get through"
    assert sum(report.statuses.values()) > 120


def test_it_is_noticed() -> None:
    document = {
        "openapi": "3.1.0",
        "info": {"title": "t", "version": "1"},
        "paths": {"/x": {"get": {"responses": {"200": {"description": "OK"}}}}},
    }
    report = fuzz_api.Report()
    fuzz_api.fuzz(document, lambda request: 500, {}, examples=1, seed=1, report=report)
    assert [(one.status, one.method) for one in report.failures] == [(500, "GET")]
