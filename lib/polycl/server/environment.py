"""MONAI Label's own settings, environment and log, all pointed at the state folder.

MONAI Label runs training, scoring and batch inference in a subprocess that reads its settings, and ours, from the
environment, so that is where they go.
"""

import json
import logging
import logging.config
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from polycl.files import write_atomically
from polycl.server.logs import FORMATS, Format
from polycl.settings import PREFIX, Settings

APP_SOURCE = b'''"""Written at each start; the app is polycl.monailabel.app."""

from polycl.monailabel.app import PolyclApp

__all__ = ["PolyclApp"]
'''
LOG_BYTES = 10 << 20
LOG_FILES = 10
QUIET_LOGGERS = ("monailabel", "uvicorn.access", "uvicorn.error", "httpx")
TASK_LOGGERS = ("task_train", "task_scoring", "task_batch_infer")


def configure(studies: str, settings: Settings, port: int) -> None:
    """Point MONAI Label at `studies` and at the state folder, in this process and those it starts."""
    app = write_app(settings)
    shutil.rmtree(settings.cache / "results", ignore_errors=True)
    keep_temporary_files(settings.cache / "tmp")
    for name, value in settings.model_dump().items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    _export_monailabel(
        {
            "MONAI_LABEL_APP_DIR": str(app),
            "MONAI_LABEL_STUDIES": studies,
            "MONAI_LABEL_APP_CONF": {},
            "MONAI_LABEL_SERVER_PORT": port,
            "MONAI_LABEL_SESSION_PATH": str(settings.sessions),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(settings.store / "dicomweb"),
            "MONAI_LABEL_AUTO_UPDATE_SCORING": False,
            "MONAI_LABEL_TRACKING_ENABLED": False,
        }
    )
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*paths, str(app)]))


def write_app(settings: Settings) -> Path:
    """An app folder in the state folder: MONAI Label writes beside the app, and the checkout may be read-only."""
    settings.prepare()
    app = settings.state / "app"
    if not (app / "main.py").is_file() or (app / "main.py").read_bytes() != APP_SOURCE:
        write_atomically(app / "main.py", APP_SOURCE)
    logs = app / "logs"  # where MONAI Label's /logs/ looks
    if not logs.exists():
        logs.symlink_to(settings.logs, target_is_directory=True)
    return app


def keep_temporary_files(folder: Path) -> None:
    """Let this process and those it starts keep what clients send in `folder`, emptied, which nobody else can read."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def log_to(folder: Path, form: Format = "text") -> None:
    """Log to the console and to `folder/app.log`. MONAI Label's own information is left out: it names patients."""
    handlers: dict[str, Any] = {
        "console": {"class": "logging.StreamHandler", "formatter": "line"},
        "file": {
            "class": "logging.handlers.RotatingFileHandler",
            "formatter": "line",
            "filename": str(folder / "app.log"),
            "maxBytes": LOG_BYTES,
            "backupCount": LOG_FILES,
            "encoding": "utf-8",
        },
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": FORMATS[form]}},
            "handlers": handlers,
            "root": {"level": "INFO", "handlers": list(handlers)},
            "loggers": {
                **{name: {"level": "WARNING"} for name in QUIET_LOGGERS},
                **{name: {"level": "INFO"} for name in TASK_LOGGERS},
            },
        }
    )
    # It quotes the index of a store, with what was noted about patients; `polycl.monailabel.store` says it without.
    logging.getLogger("monailabel.datastore.local").addFilter(lambda record: "to load datastore" not in str(record.msg))
    logging.getLogger("timeloop").disabled = True  # it sets its own level


def _export_monailabel(values: dict[str, Any]) -> None:
    """Set MONAI Label's settings, also if it read them before, and all of them in the environment as it does itself."""
    from monailabel.config import settings as monailabel_settings

    for name, value in values.items():
        setattr(monailabel_settings, name, value)
    for name, value in monailabel_settings.model_dump(mode="json").items():
        if value is not None:
            os.environ[name] = json.dumps(value) if isinstance(value, list | dict) else str(value)
