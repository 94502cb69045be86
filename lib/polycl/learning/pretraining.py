"""A run that teaches an encoder from the images of a store, without labels: `polycl.contrast` in a worker's process.

The encoder becomes a model of this site, for `polycl finetune --encoder`. It does not replace the one inside a
segmenter: a decoder that was trained with another encoder would have to start anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from polycl import devices
from polycl.checkpoints import Provenance
from polycl.contrast.examples import Examples
from polycl.contrast.objective import Recipe
from polycl.contrast.pretraining import Report, pretrain
from polycl.learning.runs import Pretraining, Run
from polycl.learning.telling import Teller

SLICES_AN_ITEM = 3
"""Anchor, positive and negative."""


def learn_encoder(run: Run, request: Pretraining, tell: Teller) -> Path:
    """Carry out a run, from wherever an earlier process left it. Returns the encoder's file.

    Raises InputError or NotFoundError where the store has too few images that can be used.
    """
    tell("preparing", steps=request.steps)
    examples = Examples(request.store, "scan", request.cache, seed=request.seed)
    views, left_out = examples.views(request.header.preprocessing, tell.progress("preparing"))
    if left_out:
        print(*(f"{name}: {reason}" for name, reason in left_out.items()), sep="\n", flush=True)  # noqa: T201 (its log)
        tell("preparing", message=f"{len(left_out)} of the images could not be used")
    count = len(views.store.names)
    provenance = Provenance(
        command=f"pre-training run {run.id}",
        created=datetime.now(UTC).date().isoformat(),
        notes=f"pre-trained by contrast on {count} images of this site",
    )
    tell("training", step=0, steps=request.steps)

    def report(now: Report) -> None:
        left = (now.steps - now.step) * request.batch * SLICES_AN_ITEM / now.slices_per_second
        tell("training", step=now.step, steps=now.steps, loss=now.loss, eta=round(left, 1))

    made = run.folder / "encoder.safetensors"
    pretrain(
        request.header.model_copy(update={"provenance": provenance}),
        views,
        made,
        recipe=Recipe("scan", steps=request.steps, batch=request.batch, save_every=20, seed=request.seed),
        where=devices.choose(request.device, request.precision),
        report=report,
    )
    target = request.models / f"{request.name}.safetensors"
    made.replace(target)
    tell(
        "done", message=f"the encoder {request.name} was learnt from {count} images; polycl finetune --encoder uses it"
    )
    return target
