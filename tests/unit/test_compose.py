"""`compose.yaml`: both services fit each other, and nothing but this machine reaches them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import throwaway_pacs
import yaml

from polycl.cli.serve import serve

pytestmark = pytest.mark.unit

FILE = Path(__file__).resolve().parents[2] / "compose.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def orthanc(compose: dict[str, Any], password: str) -> dict[str, Any]:
    """Orthanc's settings, with the password as Compose puts it in."""
    content = re.sub(r"\$\{PACS_PASSWORD[^}]*\}", password, compose["configs"]["orthanc"]["content"])
    return dict(json.loads(content))


def test_ports_are_for_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_pacs_asks_for_the_apps_account(compose: dict[str, Any]) -> None:
    configuration = orthanc(compose, "secret")
    assert configuration["AuthenticationEnabled"]
    account = compose["services"]["app"]["environment"]
    assert configuration["RegisteredUsers"] == {account["MONAI_LABEL_DICOMWEB_USERNAME"]: "secret"}
    assert account["MONAI_LABEL_DICOMWEB_PASSWORD"].startswith("${PACS_PASSWORD:?")


def test_the_app_is_given_the_pacs(compose: dict[str, Any]) -> None:
    configuration, command = orthanc(compose, "x"), compose["services"]["app"]["command"]
    address = f"http://orthanc:{configuration['HttpPort']}{configuration['DicomWeb']['Root'].rstrip('/')}"
    assert command[:2] == ["polycl", "serve"]
    assert command[command.index("--studies") + 1] == address
    options = {name.replace("_", "-") for name in serve.__annotations__}
    assert {word.removeprefix("--") for word in command if word.startswith("--")} <= options


def test_what_is_kept_lies_in_volumes(compose: dict[str, Any]) -> None:
    configuration = orthanc(compose, "x")
    mounted = [volume.split(":") for service in compose["services"].values() for volume in service["volumes"]]
    assert {name for name, _ in mounted} == set(compose["volumes"])
    assert configuration["StorageDirectory"] in {target for _, target in mounted}


def test_the_settings_are_those_that_the_throw_away_pacs_is_started_with(compose: dict[str, Any]) -> None:
    """Which the end-to-end tests run."""
    ours = orthanc(compose, "x")
    theirs = throwaway_pacs.configuration(Path("/x"), 8042, Path("/usr/share/orthanc/plugins", throwaway_pacs.PLUGIN))
    assert set(theirs) <= set(ours)
    assert ours["Plugins"] == theirs["Plugins"]
    assert ours["DicomWeb"] == theirs["DicomWeb"]
