"""Which parameters of a request go on to MONAI Label and the tasks: those that these read. The rest is left out.

MONAI Label copies all that a client writes into the request, beside what it puts there itself, and its own code reads
more than it says (devices, files, time limits). Clients send things that mean nothing here, so what is not known is
dropped without a word, as it was ignored before. Options of training are checked where they are parsed.
"""

import json
from typing import Any

from polycl.monailabel.folders import BadRequest

INFER = frozenset(
    {
        *("allow_any_values", "result_compress", "result_dtype", "result_extension", "save_label", "label_tag"),
        *("label", "labels", "label_prompt", "label_info", "selected_label_name", "client_id"),
        *("foreground", "background", "roi", "slice", "window"),
        *("refine", "refine_parameters", "engine", "guide", "size"),
        *("first_slice", "last_slice", "propagate_parameters"),
    }
)
BATCH = INFER | {"device", "logging", "max_batch_size", "max_workers"}
NEXT = frozenset({"client_id", "label_tag", "labels"})
ALLOWED = {"api_run_inference": INFER, "api_sample": NEXT}
NOTED = ("name", "ts", "version", "record", "sha256", "label_info", "SeriesInstanceUID")
"""Of a label: what the server notes itself, from its record."""


def keep_known(name: str, arguments: dict[str, Any]) -> None:
    """Leave out of the params of the endpoint called `name` what nothing here reads."""
    allowed = BATCH if name == "api_run" and "model" in arguments else ALLOWED.get(name)
    params = arguments.get("params")
    if allowed is None or not params:
        return
    given = json.loads(params) if isinstance(params, str) else params
    kept = {key: value for key, value in given.items() if key in allowed}
    arguments["params"] = json.dumps(kept) if isinstance(params, str) else kept


def check_noted(name: str, arguments: dict[str, Any]) -> None:
    """BadRequest if what a client notes of a label would take the place of what the server does."""
    if name not in ("api_put_label_info", "api_update_label_info"):
        return
    key = "info" if name == "api_put_label_info" else "params"
    if taken := [one for one in NOTED if one in json.loads(arguments[key] or "{}")]:
        raise BadRequest(f"{key} may not set {', '.join(taken)}: the server notes these itself when a label is saved")
