"""`POST /infer/MODEL?output=dicom_seg`: a model's reply as DICOM SEG of the series in the PACS. Nothing is stored."""

import json
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance

from polycl.dicomseg import Algorithm, Identity, Segment, make_seg
from polycl.files import sha256_of
from polycl.labels.placing import values_in
from polycl.monailabel.folders import BadRequest
from polycl.monailabel.pacs import PacsStore
from polycl.volume import read_volume


def reply_as_seg(arguments: dict[str, Any]) -> FileResponse:
    """The file that the endpoint's `arguments` ask for. BadRequest for an image that is not in the PACS."""
    app = app_instance()
    store = app.datastore()
    if not isinstance(store, PacsStore):
        raise BadRequest("output=dicom_seg needs a DICOMweb store; use output=image or all")
    if arguments.get("session_id") or arguments.get("file"):
        raise BadRequest("output=dicom_seg needs an image in the PACS; use output=image or all")
    params = {**json.loads(arguments["params"] or "{}"), "result_extension": ".nii.gz"}
    image = str(arguments["image"])
    result = app.infer({**params, "model": arguments["model"], "image": image})
    file = Path(result["file"])
    try:
        seg = _seg(file, image, result["params"], store)
        path = app.runtime.result_file(".dcm")
    finally:
        file.unlink(missing_ok=True)
    tasks: BackgroundTasks = arguments["background_tasks"]
    tasks.add_task(path.unlink, missing_ok=True)
    seg.save_as(path)
    return FileResponse(path, media_type="application/dicom", filename=f"{seg.SOPInstanceUID}.dcm")


def _seg(file: Path, image: str, replied: dict[str, Any], store: PacsStore) -> Any:
    label = read_volume(file, kind="label")
    present = values_in(label.voxels)
    names = {value: str(name) for name, value in dict(replied.get("label_names") or {}).items()}
    model = replied.get("model")
    made_by = model if isinstance(model, dict) else {}
    algorithm = Algorithm("AUTOMATIC", str(made_by.get("name") or ""), str(made_by.get("sha256") or "")[:16])
    values = present or sorted(names) or [1]
    segments = [Segment(names.get(value, f"label_{value}"), value, algorithm) for value in values]
    return make_seg(label, segments, store.source(image), Identity.of(image, sha256_of(file), algorithm.version))
