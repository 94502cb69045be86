"""`polycl serve`: the server that Slicer and OHIF connect to."""

from __future__ import annotations

import json
import threading
import time
from typing import Annotated

import typer

from polycl.cli import options

SAMPLE = "phantom_000"
SAMPLE_MODEL = "polycl-liver"


def serve(
    studies: Annotated[
        str | None,
        typer.Option(help="A folder of NIfTI, NRRD or DICOM, or a DICOMweb address. A sample study if not given."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is reached from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    device: options.Device = None,
    precision: options.Precision = None,
    insecure_public: Annotated[
        bool, typer.Option("--insecure-public", help="Listen where others reach it though nobody has to sign in.")
    ] = False,
) -> None:
    """Serve STUDIES to 3D Slicer and OHIF until Ctrl-C."""
    settings = options.settings(device, precision)
    typer.echo("Starting …")
    from polycl.server import leave_server, run_server
    from polycl.server.exposure import must_sign_in

    def ready(address: str) -> None:
        typer.echo(f"\nPolyCL answers at {address}  (Ctrl-C stops it; state is in {settings.state})")
        typer.echo(f"  3D Slicer: module MONAI Label, server {address}, press the reload button, then Next Sample,")
        typer.echo("             choose a model under Auto Segmentation and press Run")
        if studies is None and not must_sign_in(settings):
            threading.Thread(target=_segment_sample, args=(address,), daemon=True).start()

    with options.progress("Importing series") as report:
        run_server(
            studies,
            host=host,
            port=port,
            settings=settings,
            on_ready=ready,
            progress=report,
            insecure_public=insecure_public,
        )
    leave_server()


def _segment_sample(address: str) -> None:
    """Outline the sample through the server itself, which also loads the model, and keep that as its first label.

    Slicer shows it with the study: a label tagged "original" is one that nobody has checked yet.
    """
    import httpx

    start = time.perf_counter()
    url, query = f"{address}/infer/{SAMPLE_MODEL}", {"image": SAMPLE, "output": "json"}
    params = json.dumps({"save_label": True, "label_tag": "original", "result_extension": ".nii.gz"})
    try:
        answer = httpx.post(url, params=query, data={"params": params}, timeout=300)
    except httpx.HTTPError as error:
        typer.echo(f"  The sample study could not be segmented: {type(error).__name__}", err=True)
        return
    if answer.is_error:
        typer.echo(f"  The sample study could not be segmented: {answer.json().get('detail', answer.text)}", err=True)
        return
    organs = ", ".join(f"{name} {ml:.0f} ml" for name, ml in answer.json()["volumes_ml"].items())
    typer.echo(f"  Sample study {SAMPLE}: {organs}, in {time.perf_counter() - start:.1f} s")
