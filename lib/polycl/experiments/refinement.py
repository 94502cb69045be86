"""What refinement by SAM is worth: masks of few-label models, before and after, on whole volumes of the fixed splits.

Parameters are compared on validation volumes only; the defaults that come of it are then told on the test volumes.
Both masks of a pair get the same clean-up, the largest component of the organ. Results are rows of a JSON-lines file;
a row that is there is not computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polycl.catalogue import Catalogue
from polycl.devices import Device
from polycl.errors import InputError
from polycl.experiments import rows
from polycl.experiments.coarse import Organ, few_label_model
from polycl.experiments.remembering import Remembering
from polycl.experiments.tasks import Scored
from polycl.metrics import compare
from polycl.picture import draw_before_after
from polycl.propagate.engine import VideoEngine
from polycl.refinement import RefineParameters, RefineReport, refine
from polycl.refinement.pieces import edge_distance, padded, pieces_of
from polycl.sam import EmbeddingCache, Engine, to_image
from polycl.segmenter.inference import Segmenter, keep_largest
from polycl.settings import Settings
from polycl.volume import Volume
from polycl.window import Window, seen_through

Part = Literal["validation", "test"]
SHIPPED = 0
"""The budget that stands for the model that ships: a mask that is nearly right already."""
PROPOSED = "defaults"
CEILING = "boxes of the reference"
"""SAM's own masks where the boxes are right: what boxes from a coarse mask can at most come to."""
WITHIN = "reference within reach"
"""The reference itself wherever the coarse mask lets SAM look: what none by SAM can surpass."""
FREE = {
    "max_pixel": 1000.0,
    "passes": 1,
    "follow": None,
    "tissue": 0.0,
    "through_plane": 0.0,
    "hold": 0.0,
    "min_depth": 0.0,
    "min_agreement": 0.0,
    "min_score": -10.0,
    "min_consent": 0.0,
    "unanimous": 2.0,
    "band": None,
}
"""SAM's mask of each component, whatever it is."""
VARIANTS: dict[str, dict[str, Any]] = {
    PROPOSED: {},
    "box alone, no gate": FREE | {"asks": ["box"]},
    "box and point, no gate": FREE | {"asks": ["box+point"]},
    "box and mask, no gate": FREE | {"asks": ["box+mask"]},
    "box, point and mask, no gate": FREE | {"asks": ["box+point+mask"]},
    "mean of three, no gate": FREE,
    "not followed": {"follow": None},
    "not followed, one pass": {"follow": None, "passes": 1},
    "not followed, three passes": {"follow": None, "passes": 3},
    "not followed, at rest from 0.98 on": {"follow": None, "at_rest": 0.98},
    "not followed, at rest if the same": {"follow": None, "at_rest": 1.0},
    "not followed, three answers again": {"follow": None, "asks_again": ["box", "box+mask", "box+point+mask"]},
    "not followed, always three answers": {"follow": None, "unanimous": 2.0},
    "always three answers": {"unanimous": 2.0},
    "two answers if they agree to 0.9": {"unanimous": 0.9},
    "followed with 0.05 for each mm": {"follow": 0.05},
    "followed with 0.2 for each mm": {"follow": 0.2},
    "no tissue": {"tissue": 0.0},
    "tissue counts half": {"tissue": 0.5},
    "tissue counts twice": {"tissue": 2.0},
    "slice by slice": {"through_plane": 0.0},
    "through-plane 1.5 mm": {"through_plane": 1.5},
    "through-plane 5 mm": {"through_plane": 5.0},
    "no hold": {"hold": 0.0},
    "hold 1": {"hold": 1.0},
    "hold 4": {"hold": 4.0},
    "no least consent": {"min_consent": 0.0},
    "consent 0.8": {"min_consent": 0.8},
    "consent 0.9": {"min_consent": 0.9},
    "agreement 0.7": {"min_agreement": 0.7},
    "agreement 0.9": {"min_agreement": 0.9},
    "score 0.9": {"min_score": 0.9},
    "thin components too": {"min_depth": 0.0},
    "depth 6 pixels": {"min_depth": 6.0},
    "large pixels too": {"max_pixel": 100.0},
    "reach 2 mm": {"reach": 2.0},
    "reach 10 mm": {"reach": 10.0},
    "margin 0 mm": {"box_margin": 0.0},
    "margin 5 mm": {"box_margin": 5.0},
    "band 5 mm": {"band": 5.0},
    "no band": {"band": None},
    "every slice": {"stride": 1},
}
ANOTHER_LOOK: dict[str, dict[str, Any]] = {
    "soft-tissue window": {"window": "soft-tissue"},
    "bone window": {"window": "bone"},
    "contrast 60 HU": {"contrast": 60.0},
    "contrast 150 HU": {"contrast": 150.0},
    "contrast 250 HU": {"contrast": 250.0},
    "one slice a picture": {"tiles_if_followed": 1},
    "four slices a picture": {"tiles_if_followed": 2},
    "not followed, one slice a picture": {"follow": None, "tiles": 1},
    "not followed, nine slices a picture": {"follow": None, "tiles": 3},
    "whole slices, one a picture": {"tiles_if_followed": 1, "crop_margin": None},
    "crop margin 50 mm": {"crop_margin": 50.0},
}
"""Variants that SAM must encode anew; compared on the first budget and seed alone."""


@dataclass(frozen=True)
class Trial:
    """One mask, and how it is refined: a variant's name, `CEILING` or `WITHIN`."""

    case: str
    part: Part
    budget: int
    seed: int
    variant: str


class Study:
    """One organ: its few-label models and their masks, the engine, and the rows found so far."""

    def __init__(
        self,
        organ: Organ,
        engine: Engine,
        results: Path,
        cache: Path,
        where: Device,
        *,
        follower: VideoEngine | None = None,
        steps: int = 400,
    ) -> None:
        self.follower = follower
        self.organ, self.results, self.where, self.steps = organ, results, where, steps
        self.engine = Remembering(engine)
        self.shipped: Segmenter | None = None
        self._models = cache / "coarse"
        self._embeddings = EmbeddingCache(1 << 28, cache / "embeddings", disk_capacity=16 << 30)
        self._scored: dict[str, Scored] = {scored[0].name: scored for scored in (*organ.validation, *organ.test)}
        self._last: tuple[tuple[str, int, int], Volume, Volume, Volume] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of this organ, these models and today's parameters that the results file holds."""
        mine = [row for row in rows.read(self.results) if (row["organ"], row["steps"]) == (self.organ.name, self.steps)]
        known = {PROPOSED, CEILING, WITHIN, *VARIANTS, *ANOTHER_LOOK}
        return [
            row
            for row in mine
            if (name := row["trial"]["variant"]) in known and row["parameters"] == _as_json(parameters(name))
        ]

    def trials(
        self, part: Part, budgets: Iterable[int], seeds: int, variants: Iterable[str], cases: int | None = None
    ) -> Iterator[Trial]:
        """All of a part's volumes (or the first `cases`), those of one mask together."""
        for scored in getattr(self.organ, part)[:cases]:
            for budget in budgets:
                for seed in range(1 if budget == SHIPPED else seeds):
                    yield from (Trial(scored[0].name, part, budget, seed, variant) for variant in variants)

    def missing(self, wanted: Iterable[Trial]) -> list[Trial]:
        """The trials without a row of the same parameters."""
        done = [row["trial"] for row in self.rows()]
        return [trial for trial in wanted if asdict(trial) not in done]

    def run(self, trial: Trial) -> dict[str, Any]:
        """Refine one mask, compare it before and after with the reference, and add the row to the results file."""
        image, reference, coarse = self.volumes(trial)
        refined, report = self.refined(trial)
        before, after = (self._figures(mask, reference, trial.case) for mask in (coarse, refined))
        row = {
            "organ": self.organ.name,
            "steps": self.steps,
            "engine": self.engine.name,
            "trial": asdict(trial),
            "parameters": _as_json(parameters(trial.variant)),
            "before": before,
            "after": after,
            "report": {key: value for key, value in report.items() if key != "sha256"},
            "voxels_mm": [round(mm, 3) for mm in image.spacing],
        }
        rows.append(self.results, row)
        return row

    def refined(self, trial: Trial) -> tuple[Volume, dict[str, Any]]:
        """The refined mask after the clean-up that the coarse one had, and the report."""
        image, reference, coarse = self.volumes(trial)
        how = parameters(trial.variant)
        if trial.variant == WITHIN:
            return within_reach(coarse, reference, how), RefineReport("none", "").as_dict()
        start = reference if trial.variant == CEILING else coarse
        result, report = refine(image, start, self.engine, self._embeddings, how, follower=self.follower)
        keep_largest(result.voxels, self.organ.label, 1)
        return result, report.as_dict()

    def ship(self, settings: Settings) -> None:
        """Refine masks of the catalogue's model for this organ too, if there is one: they are nearly right already."""
        name = self.organ.shipped
        catalogue = Catalogue.default(settings)
        if name in catalogue.names("segmenter"):
            entry = catalogue.entry(name, "segmenter")
            where = {"device": str(self.where.device), "precision": self.where.precision}
            self.shipped = Segmenter.load(entry.path, sha256=entry.sha256, **where)

    def draw(self, trial: Trial, path: Path) -> None:
        """A picture of one mask before and after."""
        image, reference, coarse = self.volumes(trial)
        refined, _ = self.refined(trial)
        window = seen_through(parameters(trial.variant).window or Window.named("soft-tissue"), image.window)
        draw_before_after(image, coarse, refined, reference, path, window)

    def volumes(self, trial: Trial) -> tuple[Volume, Volume, Volume]:
        """Image, reference (the organ alone, by its label here) and coarse mask of a trial."""
        key = (trial.case, trial.budget, trial.seed)
        if self._last is None or self._last[0] != key:
            case, targets = self._scored[trial.case]
            image, label = case.read()
            if label is None:
                raise InputError(f"{case.name} has no label to compare with")
            target = next(target for target in targets if target.name == self.organ.name)
            organ = np.isin(label.voxels, target.ids).astype(np.uint8) * np.uint8(self.organ.label)
            found = self._model(trial).segment(image, [self.organ.name])
            coarse = found.with_voxels((found.voxels > 0) * np.uint8(self.organ.label))
            self.engine.forget()
            self._last = key, image, label.with_voxels(organ), coarse
        return self._last[1:]

    def _model(self, trial: Trial) -> Segmenter:
        if trial.budget == SHIPPED:
            if self.shipped is None:
                raise InputError("there is no model that ships for this organ")
            return self.shipped
        return few_label_model(self.organ, trial.budget, trial.seed, self.steps, self._models, self.where)

    def _figures(self, mask: Volume, reference: Volume, case: str) -> dict[str, float | None]:
        figures = compare(mask, reference, self.organ.label)
        return {
            name: None if value is None else round(value, 4)
            for name, value in (
                ("dice", figures.dice),
                ("hd95_mm", figures.hd95_mm),
                ("surface_dice", figures.surface_dice),
            )
        }


def parameters(variant: str) -> RefineParameters:
    """The parameters of a variant."""
    changes = {CEILING: FREE | {"asks": ["box"]}, WITHIN: {}} | VARIANTS | ANOTHER_LOOK
    return RefineParameters(**changes[variant])


def within_reach(coarse: Volume, reference: Volume, how: RefineParameters) -> Volume:
    """The reference where all passes together can reach from a component of the coarse mask on the same slice."""
    result = coarse.with_voxels(np.zeros_like(coarse.voxels))
    masks = [volume.canonical() for volume in (coarse, reference, result)]
    spacing = (masks[0].spacing[1], masks[0].spacing[0])
    for z in range(masks[0].shape[2]):
        before, right, out = (to_image(mask.voxels[:, :, z]) for mask in masks)
        near = edge_distance(before > 0, spacing) <= (np.inf if how.band is None else how.band)
        for piece in pieces_of(before > 0, spacing, how.model_copy(update={"min_depth": 0.0, "min_area": 0.0}))[0]:
            box = padded(piece, spacing, how.reach * how.passes)
            out[box] = np.where(near[box], right[box], before[box] > 0)
    return result


def _as_json(how: RefineParameters) -> Mapping[str, Any]:
    return dict(how.model_dump(mode="json"))
