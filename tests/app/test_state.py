"""Settings, the state folder, what --studies means, and the app's configuration."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_images import AFFINES, ct

from polycl.errors import InputError, NotFoundError
from polycl.monailabel.config import AppConfig
from polycl.monailabel.folders import check_store
from polycl.monailabel.images import VolumeCache
from polycl.server.environment import write_app
from polycl.server.imports import import_studies
from polycl.server.run import run_server
from polycl.server.studies import open_studies
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


def test_state_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYCL_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().state == tmp_path / "polycl"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().state == tmp_path / ".local" / "state" / "polycl"
    monkeypatch.setenv("POLYCL_STATE", "~/elsewhere")
    assert Settings().state == tmp_path / "elsewhere"


def test_an_unknown_variable_names_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCL_DEVISE", "cpu")
    with pytest.raises(InputError, match=r"POLYCL_DEVISE.*POLYCL_DEVICE"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("DEVICE", "gpu"), ("PRECISION", "int8"), ("MAX_VOXELS", "many"), ("MAX_VOXELS", "0")],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"POLYCL_{name}", value)
    with pytest.raises(InputError, match=f"POLYCL_{name}='{value}'"):
        Settings()


def test_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, polycl.settings; print([m for m in ('torch', 'numpy', 'monai', 'monailabel') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="POLYCL_STATE"):
        Settings(state=tmp_path / "file").prepare()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_store(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        check_store(tmp_path / "file")


def test_a_folder_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)  # permissions do not stop root
    with pytest.raises(InputError, match="Read-only file system"):
        check_store(tmp_path)


def test_conf_is_typed() -> None:
    config = AppConfig.parse({"models": "a, b", "device": "cpu", "sam2": "false", "server_mode": "true"})
    assert config.models == ("a", "b")
    assert config.device == "cpu"
    with pytest.raises(InputError, match=r"no --conf key modls; the keys are models, device, precision"):
        AppConfig.parse({"modls": "a"})
    with pytest.raises(InputError, match="--conf device 'gpu'"):
        AppConfig.parse({"device": "gpu"})


def test_conf_overrides_settings(settings: Settings) -> None:
    changed = AppConfig.parse({"precision": "fp32"}).apply(settings)
    assert (changed.precision, changed.device) == ("fp32", settings.device)


class CountingReader:
    def __init__(self) -> None:
        self.paths: list[Path] = []

    def __call__(self, path: Path, allow_any_values: bool) -> Volume:
        self.paths.append(path)
        return read_volume(path, allow_any_values=allow_any_values)


def test_the_cache_reads_a_file_again_only_if_it_changed(tmp_path: Path) -> None:
    reader, path = CountingReader(), tmp_path / "a.nii"
    cache = VolumeCache(reader, capacity=1 << 20)
    write_volume(Volume(ct(0), AFFINES["ras"]), path)
    assert cache.get(path) is cache.get(path)
    write_volume(Volume(ct(1), AFFINES["ras"]), path)
    os.utime(path, ns=(1, 1))
    assert (cache.get(path).voxels == ct(1)).all()
    assert len(reader.paths) == 2


def test_the_cache_keeps_the_last_used_within_its_capacity(tmp_path: Path) -> None:
    reader = CountingReader()
    cache = VolumeCache(reader, capacity=2 * ct(0).nbytes)
    paths = [tmp_path / f"{index}.nii" for index in range(3)]
    for index, path in enumerate(paths):
        write_volume(Volume(ct(index), AFFINES["ras"]), path)
    for index in (0, 1, 0, 2, 0, 1):
        cache.get(paths[index])
    assert [path.name for path in reader.paths] == ["0.nii", "1.nii", "2.nii", "1.nii"]


def test_the_cache_keeps_no_failures_and_nothing_too_large(tmp_path: Path) -> None:
    reader, path = CountingReader(), tmp_path / "a.nii"
    cache = VolumeCache(reader, capacity=1)
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InputError):
            cache.get(path)
    write_volume(Volume(ct(0), AFFINES["ras"]), path)
    assert cache.get(path) is not cache.get(path)


def test_the_app_folder_is_complete_and_written_once(settings: Settings) -> None:
    app = write_app(settings)
    before = (app / "main.py").stat().st_mtime_ns
    assert write_app(settings) == app
    assert (app / "main.py").stat().st_mtime_ns == before
    (app / "logs" / "app.log").write_text("line")
    assert (settings.logs / "app.log").read_text() == "line"


def test_studies_may_be_images_or_an_address_or_empty(tmp_path: Path, settings: Settings) -> None:
    assert open_studies(tmp_path, settings) == str(tmp_path)
    write_volume(Volume(ct(0), AFFINES["ras"]), tmp_path / "a.nrrd")
    assert open_studies(tmp_path, settings) == str(tmp_path)
    assert open_studies("http://pacs:8042/dicom-web", settings) == "http://pacs:8042/dicom-web"
    with pytest.raises(InputError, match="does not exist"):
        open_studies(tmp_path / "nowhere", settings)


def test_studies_without_any_image(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(InputError, match="no NIfTI, NRRD or DICOM"):
        open_studies(tmp_path, settings)


def test_a_taken_port(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"port .* cannot be used .*in use"):
            run_server(port=taken.getsockname()[1], settings=settings)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from polycl.phantom import write_study

    folder = tmp_path_factory.mktemp("dicom")
    write_study(folder, (0, 1), format="dicom", shape=(24, 20, 5), spacing=(16.0, 16.0, 20.0))
    return folder


def test_dicom_is_imported_once(dicom: Path, tmp_path: Path, settings: Settings) -> None:
    seen: list[tuple[int, int]] = []
    report = import_studies(dicom, tmp_path / "store", lambda done, total: seen.append((done, total)))
    assert len(report.imported) == 2
    assert seen == [(1, 2), (2, 2)]
    for uid in report.imported:
        volume = read_volume(tmp_path / "store" / f"{uid}.nii.gz")
        assert volume.shape == (24, 20, 5)
    again = import_studies(dicom, tmp_path / "store")
    assert (again.imported, again.present) == ([], report.imported)
    store = Path(open_studies(dicom, settings))
    assert store.is_relative_to(settings.store)
    assert sorted(path.name for path in store.glob("[!.]*")) == sorted(f"{uid}.nii.gz" for uid in report.imported)


def test_a_series_that_cannot_be_used_is_named_with_the_reason(dicom: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(dicom, tmp_path / "in")
    series = sorted((tmp_path / "in").iterdir())[0]
    sorted(series.rglob("*.dcm"))[2].unlink()
    report = import_studies(tmp_path / "in", tmp_path / "store")
    assert len(report.imported) == 1
    ((uid, reason),) = report.refused.items()
    assert "slice" in reason
    assert not (tmp_path / "store" / f"{uid}.nii.gz").exists()


def test_a_folder_of_only_unusable_series(dicom: Path, tmp_path: Path, settings: Settings) -> None:
    import shutil

    shutil.copytree(sorted(dicom.iterdir())[0], tmp_path / "in")
    sorted((tmp_path / "in").rglob("*.dcm"))[2].unlink()
    with pytest.raises(InputError, match=r"no series in .* can be used"):
        open_studies(tmp_path / "in", settings)


def test_an_unknown_model_in_conf(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polycl.monailabel.app import PolyclApp

    monkeypatch.setenv("POLYCL_STATE", str(settings.state))
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    with pytest.raises(NotFoundError, match="nothing"):
        PolyclApp(str(tmp_path), str(tmp_path), {"models": "nothing"})


def test_broken_weights_are_told_to_who_asks(
    settings: Settings, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polycl.errors import ModelError
    from polycl.monailabel.app import PolyclApp

    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "good.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    (weights / "pickled.safetensors").write_bytes(b"\x80\x04pickle")
    monkeypatch.setenv("POLYCL_STATE", str(settings.state))
    monkeypatch.setenv("POLYCL_WEIGHTS", str(weights))
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    app = PolyclApp(str(tmp_path), str(tmp_path), {"models": "good,pickled"})
    assert "good" in app.info()["models"]
    assert "pickled" not in app.info()["models"]
    with pytest.raises(ModelError, match="pickled"):
        app.infer({"model": "pickled", "image": "x"})


def test_a_site_may_serve_some_models_only(
    settings: Settings, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polycl.errors import NotFoundError
    from polycl.monailabel.app import PolyclApp

    def served(names: str) -> list[str]:
        monkeypatch.setenv("POLYCL_SERVE_MODELS", names)
        app = PolyclApp(str(tmp_path), str(tmp_path), {})
        return [name for name, model in app.info()["models"].items() if model["type"] == "segmentation"]

    monkeypatch.setenv("POLYCL_STATE", str(settings.state))
    monkeypatch.setenv("POLYCL_WEIGHTS", str(tiny_checkpoint.parent))
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    assert served("") == ["polycl-liver", "tiny", "polycl-abdomen", "polycl-headneck"]
    assert served("tiny, polycl-liver") == ["tiny", "polycl-liver"]
    with pytest.raises(NotFoundError, match="POLYCL_SERVE_MODELS nobody: no such model; there are: polycl-liver, tiny"):
        served("tiny,nobody")


def test_a_stopping_server_goes_on_with_its_inferences_for_a_while(
    settings: Settings, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    from polycl.catalogue import Catalogue
    from polycl.monailabel.infer import Runtime, SegmentTask, Stopping

    settings.prepare()
    runtime = Runtime(settings)
    task = SegmentTask(Catalogue.read(tiny_checkpoint.parent).entry("tiny"), runtime)
    write_volume(Volume(ct(0), AFFINES["ras"]), tmp_path / "a.nii")
    file, _ = task({"image": str(tmp_path / "a.nii")})
    assert Path(file).parent == runtime.results
    runtime.stop()
    task({"image": str(tmp_path / "a.nii")})
    runtime.give_up()
    with pytest.raises(Stopping):
        task({"image": str(tmp_path / "a.nii")})


def test_a_pacs_that_is_not_there(
    settings: Settings, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    from polycl.monailabel.app import PolyclApp
    from polycl.server.problems import to_http

    monkeypatch.setenv("POLYCL_STATE", str(settings.state))
    monkeypatch.setenv("POLYCL_WEIGHTS", str(tiny_checkpoint.parent))
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path))
    app = PolyclApp(str(tmp_path), "http://127.0.0.1:9/dicom-web", {"models": "tiny"})
    app.datastore()._client.set_http_retry_params(retry=False)
    with pytest.raises(NotFoundError, match="SeriesInstanceUID"):
        app.infer({"model": "tiny", "image": "undefined"})
    with pytest.raises(requests.RequestException) as raised:
        app.infer({"model": "tiny", "image": "1.2.3"})
    assert to_http(raised.value).status_code == 502
