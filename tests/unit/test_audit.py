"""The audit trail: lines that stay, in order, of several processes, without ids of images."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polycl.audit import Audit
from polycl.server.roles import TABLE, route_of
from polycl.server.trail import ACTIONS, PAGE_ACTIONS, action_of

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
PATIENT = "Doe^Jane_1234567"


def test_lines_tell_who_and_what_but_no_id(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit")
    audit.add("label.save", image=PATIENT, user="jane", request="r1", details={"version": 3})
    audit.add("model.rollback", user="kim", details={"model": "polycl-liver"})
    files = [path for path in audit.folder.iterdir() if path.is_file()]
    assert all(PATIENT.encode() not in path.read_bytes() for path in files)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files if not path.name.startswith("."))
    first, second = audit.lines()
    assert (first.action, first.user, first.request, first.details) == ("label.save", "jane", "r1", {"version": 3})
    assert second.image == ""
    assert [line.user for line in audit.lines(image=PATIENT)] == ["jane"]
    assert list(audit.lines(image="another")) == []
    assert [line.user for line in audit.lines(action="model")] == ["kim"]
    assert [line.action for line in audit.lines(user="jane")] == ["label.save"]
    assert list(audit.lines(since=datetime.now(UTC) + timedelta(minutes=1))) == []


def test_hashes_of_two_servers_differ(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        (audit := Audit(tmp_path / name)).add("label.save", image=PATIENT)
        hashes |= {line.image for line in audit.lines()}
    assert len(hashes) == 2


def test_nothing_is_lost_when_files_are_full(tmp_path: Path) -> None:
    audit = Audit(tmp_path, limit=300)
    for number in range(40):
        audit.add("label.save", details={"number": number})
    assert len(list(tmp_path.glob("audit-*.jsonl"))) > 3
    assert [line.details["number"] for line in audit.lines()] == list(range(40))


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.add("label.save", user="before")
    with (tmp_path / "audit.jsonl").open("ab") as stream:
        stream.write(b'{"at": "2026-')
    audit.add("label.save", user="after")
    assert [line.user for line in audit.lines()] == ["before", "after"]


def test_processes_write_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from polycl.audit import Audit\n"
        "for n in range(20): Audit(Path(sys.argv[1]), 2000).add('label.save', user=sys.argv[2], image=str(n))"
    )
    each = [subprocess.Popen([sys.executable, "-c", code, tmp_path, name]) for name in ("a", "b")]
    assert [process.wait() for process in each] == [0, 0]
    assert sorted(line.user for line in Audit(tmp_path).lines()) == ["a"] * 20 + ["b"] * 20
    assert len(list(Audit(tmp_path).lines(image="7"))) == 2


def test_every_action_is_of_a_route() -> None:
    rows = {(method, route.path) for route in TABLE for method in route.methods}
    assert ACTIONS.keys() <= rows
    assert all(route_of("POST", path) for path in PAGE_ACTIONS)
    assert action_of("PUT", "/datastore/label") == "label.save"
    assert action_of("GET", "/datastore/label") is None
    assert action_of("POST", "/polycl/api/models/publish") == "model.publish"


def test_commands_are_told_and_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(run("audit", "--json")[1]) == {"lines": []}
    monkeypatch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "correct horse")
    assert run("users", "add", "jane", "--role", "annotator")[0] == 0
    assert run("users", "remove", "jane")[0] == 0
    code, out, _ = run("audit", "--action", "user", "--json")
    lines = json.loads(out)["lines"]
    assert (code, [line["action"] for line in lines]) == (0, ["user.add", "user.remove"])
    assert lines[0]["details"] == {"name": "jane", "role": "annotator"}
    assert lines[0]["client"].endswith("at the machine")
    assert "user.remove" in run("audit")[1]
    assert run("audit", "--since", "2999-01-01")[1] == ""


def test_a_name_cannot_command_the_terminal(run: Run, tmp_path: Path) -> None:
    Audit(tmp_path / "state" / "audit").add("user.sign-in", user="\x1b[2J\nx", outcome="refused")
    (line,) = run("audit")[1].splitlines()
    assert line.isprintable()
