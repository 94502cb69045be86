"""Users of a small site: the file, the passwords, the command."""

import io
import json
import stat
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from polycl.accounts import Accounts, Role, hashed, matches
from polycl.errors import InputError, NotFoundError

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
PASSWORD = "correct horse"


def test_a_password_is_kept_as_a_salted_hash(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "users.json")
    accounts.add("jane", Role.ANNOTATOR, PASSWORD)
    accounts.add("john", Role.READER, PASSWORD)
    text = accounts.path.read_text()
    assert PASSWORD not in text
    first, second = (one["password"] for one in json.loads(text)["users"].values())
    assert first != second
    assert stat.S_IMODE(accounts.path.stat().st_mode) == 0o600


def test_the_hash_is_scrypt() -> None:
    # RFC 7914, section 12: the second test vector, cut to 32 bytes.
    known = "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
    digest = b64encode(bytes.fromhex(known)).decode()
    assert matches("password", f"scrypt$1024$8$16$TmFDbA==${digest}") is True
    assert matches("passwore", f"scrypt$1024$8$16$TmFDbA==${digest}") is False
    assert matches("ünïcode \ud800", hashed("ünïcode \ud800")) is True


def test_only_the_right_password_opens(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "users.json")
    assert accounts.check("jane", PASSWORD) is None
    accounts.add("jane", Role.ADMIN, PASSWORD)
    opened = accounts.check("jane", PASSWORD)
    assert opened is not None
    assert opened.role == "admin"
    assert accounts.check("jane", PASSWORD + "x") is None
    assert accounts.check("jane", "") is None
    assert accounts.check("john", PASSWORD) is None


def test_another_process_sees_a_change(tmp_path: Path) -> None:
    ours, theirs = Accounts(tmp_path / "users.json"), Accounts(tmp_path / "users.json")
    theirs.add("jane", Role.READER, PASSWORD)
    assert list(ours.all()) == ["jane"]
    theirs.remove("jane")
    assert ours.all() == {}
    with pytest.raises(NotFoundError):
        ours.remove("jane")


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 65, ".hidden", "j\nd"])
def test_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="user name"):
        Accounts(tmp_path / "users.json").add(name, Role.READER, PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 257])
def test_a_password_that_cannot_be(tmp_path: Path, password: str) -> None:
    with pytest.raises(InputError, match="characters"):
        Accounts(tmp_path / "users.json").add("jane", Role.READER, password)


@pytest.mark.parametrize("text", ["", "{", '{"users": {"jane": {}}}'])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    (tmp_path / "users.json").write_text(text)
    with pytest.raises(InputError) as raised:
        Accounts(tmp_path / "users.json").check("jane", PASSWORD)
    assert str(tmp_path) not in str(raised.value)


def test_the_command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\n"))
    code, out, _ = run("users", "add", "jane", "--role", "reviewer", "--password-stdin")
    assert code == 0
    assert "reviewer" in out
    assert "sign in" in out
    assert json.loads(run("users", "list", "--json")[1])["users"][0]["role"] == "reviewer"
    assert "jane" in run("users", "list")[1]
    assert run("users", "add", "john", "--role", "boss", "--password-stdin")[2].startswith("polycl: no role 'boss'")
    assert run("users", "remove", "jane")[0] == 0
    assert run("users", "remove", "jane")[0] == 1
