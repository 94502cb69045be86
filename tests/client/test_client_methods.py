"""Each method of MONAI Label's client module, and of the copy that 3D Slicer's plugin brings, against a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from recording import OWN, files

pytestmark = [pytest.mark.client, pytest.mark.slow]

LABELS = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
NRRD = {"result_extension": ".nrrd", "result_dtype": "uint8"}


def address(client: Any, saved: dict[str, Path]) -> None:
    server = client.get_server_url()
    client.set_server_url(f"{server}/")
    assert client.get_server_url() == server


def sign_in(client: Any, saved: dict[str, Path]) -> None:
    """Where nobody has to sign in; `test_client_signin` has the other."""
    assert client.auth_enabled() is False
    client.update_auth({"token_type": "bearer", "access_token": "none"})
    assert client.auth_valid_token() is False
    assert client.info(), "a token that nobody gave does no harm"
    refused(client, lambda: client.auth_token("jane", "secret"), 404)


def what_there_is(client: Any, saved: dict[str, Path]) -> None:
    info = client.info()
    assert {"name", "version", "labels", "models", "trainers", "strategies", "scoring"} <= info.keys()
    sample = client.next_sample("random", {})
    assert sample["id"] in client.datastore()["objects"]


def a_session(client: Any, saved: dict[str, Path]) -> None:
    session = client.create_session(str(saved["own.nii.gz"]))["session_id"]
    assert client.get_session(session)["name"] == session
    file, _ = client.infer("tiny", "", dict(NRRD), session_id=session)
    assert nrrd.read(file)[0].shape == (24, 20, 6)
    client.remove_session(session)
    refused(client, lambda: client.get_session(session), 404)


def a_label(client: Any, saved: dict[str, Path]) -> None:
    name = f"{OWN} again"
    assert client.upload_image(str(saved["own.nii.gz"]), name)["image"] == name
    assert client.save_label(name, str(saved["label.nii.gz"]), tag="draft", params=dict(LABELS))["tag"] == "draft"
    assert client.save_label(name, str(saved["edited.nrrd"]), params=dict(LABELS))["tag"] == "final"
    assert client.datastore()["objects"][name]["labels"].keys() == {"draft", "final"}
    voxels, _ = nrrd.read(client.download_label(name, "final"))
    np.testing.assert_array_equal(voxels, nrrd.read(str(saved["edited.nrrd"]))[0])


def inference(client: Any, saved: dict[str, Path]) -> None:
    _, params = client.infer("tiny", "axial", dict(NRRD))
    assert params["label_names"] == {"liver": 1, "spleen": 2}
    refused(client, lambda: client.wsi_infer("tiny", "axial"), 404)


def training(client: Any, saved: dict[str, Path]) -> None:
    started = client.train_start("polycl", {"steps": 100_000})
    assert started["status"] in ("SUBMITTED", "RUNNING")
    assert client.train_status(check_if_running=True) is True
    assert client.train_status()["id"] == started["id"]
    assert client.train_stop()["status"] == "STOPPED"
    assert client.train_status(check_if_running=True) is False
    refused(client, lambda: client.train_start("nothing", {}), 404)


def refused(client: Any, call: Callable[[], Any], status: int) -> None:
    with pytest.raises(client.infer.__globals__["MONAILabelClientException"]) as raised:
        call()
    assert f"Status: {status}" in raised.value.msg
    assert json.loads(raised.value.msg.partition("Response: ")[2])["detail"]


USES: dict[Callable[[Any, dict[str, Path]], None], set[str]] = {
    address: {"get_server_url", "set_server_url"},
    sign_in: {"auth_enabled", "auth_token", "auth_valid_token", "update_auth"},
    what_there_is: {"info", "next_sample", "datastore"},
    a_session: {"create_session", "get_session", "remove_session"},
    a_label: {"upload_image", "save_label", "download_label"},
    inference: {"infer", "wsi_infer"},
    training: {"train_start", "train_status", "train_stop"},
}


def test_no_method_is_left_out(client: Any) -> None:
    assert set.union(*USES.values()) == {name for name in dir(client) if not name.startswith("_")}


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_methods(client: Any, tmp_path: Path, use: Callable[[Any, dict[str, Path]], None]) -> None:
    use(client, files(tmp_path / "saved"))
