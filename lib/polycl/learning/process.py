"""One training run, stage by stage: prepare, score the parent, train, blend, score, keep, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from polycl import checkpoints, devices
from polycl.checkpoints import Header
from polycl.errors import InputError
from polycl.files import write_atomically
from polycl.learning import slices
from polycl.learning.examples import Example
from polycl.learning.gate import Decision, decide
from polycl.learning.runs import Request, Run
from polycl.learning.scores import Scores, score
from polycl.learning.telling import Teller
from polycl.learning.versions import Figures, Superseded, Trained, Version, Versions
from polycl.segmenter import Segmenter
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.network import SegmentationNetwork
from polycl.segmenter.training import Report, Schedule, TrainingData, finetune

BLENDS = (0.5, 0.75, 1.0)
"""Shares of the trained weights that are tried; the rest is the parent's. As in Wortsman et al., "Robust fine-tuning of
zero-shot models" (CVPR 2022): between the two lies a model that learned the new and forgot less of the old."""
UNSCORED_BLEND = 0.5
CURVE_IMAGES = 3
"""Validation images that the Dice curve is taken on during training; the gate takes all."""
KEEP_EVERY = 20
MOST_EVENTS = 400
"""Of training steps in a run, about: who looks at a run reads them all."""
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Parent:
    header: Header
    weights: Weights
    where: devices.Device

    def segmenter(self, weights: Weights) -> Segmenter:
        network = SegmentationNetwork(self.header.network)
        network.load_state_dict(weights)
        return Segmenter(self.header, network, self.where)


@dataclass(frozen=True)
class _Result:
    """The best blend, with its scores where there is anything to score by."""

    blend: float
    weights: Weights
    after: Scores
    decision: Decision


def learn(run: Run, request: Request, tell: Teller) -> Version:
    """Carry out a run, from wherever an earlier process left it. Returns the version that it made.

    Raises InputError where no label shows anything that the model has, ModelError if the parent's weights are gone.
    """
    tell("preparing", done=0, total=len(request.examples), steps=request.steps)
    header, weights = checkpoints.load(request.weights, sha256=request.sha256)
    parent = _Parent(header, weights, devices.choose(request.device, request.precision))
    shown, empty, problems = slices.build(
        request.examples,
        header.labels,
        request.cache,
        tell.progress("preparing"),
        beside=header.preprocessing.beside,
    )
    _report(problems, tell)
    if not len(shown):
        raise InputError(f"no label to train on shows {' or '.join(header.labels)}")
    began = time.perf_counter()
    before = _remembered(
        run.folder / "before.json",
        lambda: score(parent.segmenter(weights), request.validation, tell.progress("scoring")),
    )
    scoring = time.perf_counter() - began
    validation = [one for one in request.validation if one.record.image not in before.skipped]
    _report(list(before.skipped.values()), tell)
    tell("training", step=0, steps=request.steps, dice=before.dice)
    tuned = _tuned(run, request, parent, TrainingData(shown, [empty], []), validation, scoring, tell)
    result = _blended(request, parent, tuned, before, validation, tell)
    version = _kept(run, request, parent, result, before)
    _conclude(request, version, result, tell)
    return version


def _tuned(
    run: Run,
    request: Request,
    parent: _Parent,
    data: TrainingData,
    validation: Sequence[Example],
    scoring: float,
    tell: Teller,
) -> Weights:
    """The trained weights, from the run's folder if an earlier process finished them."""
    path = run.folder / "tuned.safetensors"
    if not path.is_file():
        half_done = run.folder / "training.safetensors"
        schedule = Schedule(
            steps=request.steps,
            batch=request.batch,
            learning_rate=request.learning_rate,
            warm_up=max(1, request.steps // 10),
            average=0.99,
            validate_every=max(1, -(-request.steps // 4)),
            keep_every=KEEP_EVERY,
            seed=request.seed,
        )
        curve = validation[:CURVE_IMAGES]

        def report(now: Report) -> None:
            if now.dice is None and now.step % max(10, request.steps // MOST_EVENTS):
                return
            left = (now.steps - now.step) * schedule.batch / now.slices_per_second + len(BLENDS) * scoring
            dice = now.dice if curve else None
            tell("training", step=now.step, steps=now.steps, loss=now.loss, dice=dice, eta=round(left, 1))

        finetune(
            parent.header,
            data,
            half_done,
            schedule=schedule,
            augmentation=Augmentation(),
            start=parent.weights,
            judge=lambda segmenter: score(segmenter, curve).dice or 0.0,
            where=parent.where,
            report=report,
        )
        half_done.replace(path)
    return checkpoints.load(path)[1]


def blend(parent: Weights, tuned: Weights, share: float) -> Weights:
    """Weights on the line from `parent` (0) to `tuned` (1); counters and the like are those of `tuned`."""
    return {
        name: torch.lerp(parent[name], one, share) if one.is_floating_point() else one for name, one in tuned.items()
    }


def _blended(
    request: Request, parent: _Parent, tuned: Weights, before: Scores, validation: Sequence[Example], tell: Teller
) -> _Result:
    """The blend nearest to the parent that is within the gate's margin of the best, by the validation labels."""
    if not before.cells:
        decision = decide(before, before, request.rule)
        return _Result(UNSCORED_BLEND, blend(parent.weights, tuned, UNSCORED_BLEND), before, decision)
    results = []
    for share in BLENDS:
        weights = blend(parent.weights, tuned, share)
        after = score(parent.segmenter(weights), validation, tell.progress("scoring"))
        results.append(_Result(share, weights, after, decide(before, after, request.rule)))
    eligible = [one for one in results if one.decision.publish] or results
    best = max(one.decision.after or 0.0 for one in eligible)
    return next(one for one in eligible if (one.decision.after or 0.0) >= best - request.rule.margin)


def _kept(run: Run, request: Request, parent: _Parent, result: _Result, before: Scores) -> Version:
    """The result as a version of the model, whether or not it will be published."""
    now = datetime.now(UTC)
    decision = result.decision
    figures = {
        name: round(value, 4)
        for name, value in (("validation_dice_before", decision.before), ("validation_dice", decision.after))
        if value is not None
    }
    provenance = checkpoints.Provenance(
        data=tuple(one.record.sha256[:16] for one in request.examples),
        command=f"training run {run.id}",
        parent=f"{request.model}@{request.parent}",
        created=now.date().isoformat(),
        figures={**figures, "step": request.steps, "blend": result.blend},
        notes="fine-tuned on labels saved at this site; `data` are their hashes",
    )
    header = parent.header.model_copy(update={"provenance": provenance})
    path = run.folder / "candidate.safetensors"
    sha256 = checkpoints.save(path, result.weights, header)
    started = run.events()[0].at
    return Versions(request.versions, request.keep).add(
        request.model,
        path,
        Version(
            number=1,
            sha256=sha256,
            parent=request.parent,
            parent_sha256=request.sha256,
            run=run.id,
            created=now,
            seconds=round((now - started).total_seconds(), 1),
            blend=result.blend,
            data=(*_used(request.examples, "train"), *_used(request.validation, "validate")),
            figures=Figures(before=decision.before, after=decision.after, cells=_cells(before, result.after)),
            publish=decision.publish,
            reason=decision.reason,
        ),
    )


def _conclude(request: Request, version: Version, result: _Result, tell: Teller) -> None:
    """Publish the version if that was asked for and is due, and say so."""
    versions, reason, published = Versions(request.versions, request.keep), version.reason, False
    pointer = versions.pointer(request.model)
    if any(switch.version == version.number for switch in pointer.history):
        published = pointer.live == version.number  # by an earlier process of this run; it may be rolled back by now
    elif request.publish == "force" or (request.publish == "better" and version.publish):
        try:
            forced = request.publish == "force"
            why = "as requested" if forced else "better"
            versions.publish(request.model, version.number, why, instead_of=None if forced else request.parent)
            published = True
            reason = reason if version.publish else f"as requested, though held back by the gate: {reason}"
        except Superseded as error:
            reason = f"{reason}; {error}"
    elif request.publish == "never":
        reason += "; kept as a candidate, as requested"
    what = "published" if published else "not published"
    tell(
        "done",
        version=version.number,
        published=published,
        dice=result.decision.after,
        message=f"version {version.number} {what}: {reason}",
    )


def _used(examples: Sequence[Example], role: str) -> list[Trained]:
    return [
        Trained.model_validate({"image": one.record.image, "sha256": one.record.sha256, "role": role})
        for one in examples
    ]


def _cells(before: Scores, after: Scores) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    table: dict[str, dict[str, tuple[float | None, float | None]]] = {}
    for old, new in zip(before.cells, after.cells, strict=True):
        table.setdefault(old.image, {})[old.label] = (old.dice, new.dice)
    return table


def _remembered(path: Path, compute: Callable[[], Scores]) -> Scores:
    """The scores in a file, computed and written if it is not there."""
    if not path.is_file():
        write_atomically(path, compute().model_dump_json().encode())
    return Scores.model_validate_json(path.read_bytes())


def _report(problems: Sequence[str], tell: Teller) -> None:
    """Say how many labels could not be used; which and why is for the log, as it may name them."""
    if problems:
        print(*problems, sep="\n", flush=True)  # noqa: T201 (the worker's log)
        tell("preparing", message=f"{len(problems)} of the labels could not be used")
