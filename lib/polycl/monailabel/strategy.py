"""Which image to label next, and which slice of it: MONAI Label's strategies over `polycl.acquisition`.

An image that is handed out is leased: others are not given it until the lease expires or a label is saved. Clients that
say nothing of themselves, as OHIF does, count as one person.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from math import ceil
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.random import Random

from polycl.acquisition.ahead import ScoresAhead
from polycl.acquisition.selection import Method, Pick
from polycl.errors import PolyclError
from polycl.leases import Lease, Leases, notices
from polycl.monailabel.work import person

METHODS: Mapping[str, Method] = {
    "polycl-uncertain": "uncertain",
    "polycl-diverse": "diverse",
    "polycl-mixed": "mixed",
}
MOST_PICKS = 32
"""Ranked at a time: more only if others hold all of these."""
UNSCORED = "not scored yet: taken in order"


class Held(PolyclError):
    """There are images to label, but others have them all."""

    status = 409


class NextImage(Strategy):  # type: ignore[misc, unused-ignore]
    """The first image without a label, and what the strategies share: leases, and the slice to begin with."""

    def __init__(
        self, scores: ScoresAhead, leases: Leases, description: str = "the first image without a label"
    ) -> None:
        super().__init__(description)
        self._scores, self._leases = scores, leases

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The id of an image, and its `slice`; None if all are labelled. Held if others have those that are not.

        Images that cannot be scored come last: they are damaged, or no CT. `slice` is what `Place.slice` says
        (`polycl.acquisition.scores`), where the image is scored; `note` says why it is not, `notes` who else is at it.
        """
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        holder = person(request.get("client_id"))
        others = self._leases.held_by_others(holder)
        free, skipped = set(images) - others.keys(), self._scores.progress().skipped
        good, bad = sorted(free - skipped.keys()), sorted(free & skipped.keys())
        for pick in chain(self.ordered(good, request, datastore), self.in_order(bad)):
            lease = self._leases.take(pick.image, holder)
            if lease is not None or not self._leases.enabled:
                told = notices(self._leases.see(pick.image, holder))
                return self._reply(pick, lease) | ({"notes": told} if told else {})
        raise Held(_wait(len(images), self._leases.held_by_others(holder).values()))

    def ordered(self, images: Sequence[str], request: dict[str, Any], datastore: Datastore) -> Iterator[Pick]:
        """Picks among `images`, the best first, one for each."""
        yield from self.in_order(images)

    def in_order(self, images: Sequence[str]) -> Iterator[Pick]:
        """One pick for each image, as they come."""
        for image in images:
            yield next(iter(self._scores.choose("first", [image], 1)), Pick(image, -1, 0.0))

    def _reply(self, pick: Pick, lease: Lease | None) -> dict[str, Any]:
        reply: dict[str, Any] = {"id": pick.image}
        place = self._scores.place(pick.image)
        if place is not None and pick.slice >= 0:
            reply |= {"slice": place.slice(pick.slice), "score": round(pick.score, 4)}
        else:
            reply["note"] = self._scores.progress().skipped.get(pick.image, UNSCORED)
        return reply | ({"leased_until": lease.until.isoformat(timespec="seconds")} if lease else {})


class RandomImage(NextImage):
    """MONAI Label's random strategy, which prefers images not shown lately; it fails when all were shown just now."""

    def __init__(self, scores: ScoresAhead, leases: Leases) -> None:
        super().__init__(scores, leases, "any image without a label, rather one that was not shown lately")
        self._random = Random()

    def ordered(self, images: Sequence[str], request: dict[str, Any], datastore: Datastore) -> Iterator[Pick]:
        """One after the other, drawn."""
        left = list(images)
        while left:
            try:
                drawn = str(self._random(request, _Only(datastore, left))["id"])
            except ValueError:  # all weights are zero
                drawn = left[0]
            left.remove(drawn)
            yield from self.in_order([drawn])


class BestImage(NextImage):
    """The best image by a method of `polycl.acquisition`. Who asks again without saving is given another."""

    def __init__(self, scores: ScoresAhead, leases: Leases, method: Method, description: str) -> None:
        super().__init__(scores, leases, description)
        self._method = method

    def ordered(self, images: Sequence[str], request: dict[str, Any], datastore: Datastore) -> Iterator[Pick]:
        """Those that are scored, then the rest, then those that this annotator holds already, in turn."""
        held = self._leases.held()  # those of others are left out before
        mine = sorted(held.keys() & set(images), key=lambda image: held[image].until)
        yield from self._best([image for image in images if image not in held])
        for image in mine:
            yield from self._best([image])

    def _best(self, images: Sequence[str]) -> Iterator[Pick]:
        picks = self._scores.choose(self._method, images, min(len(images), MOST_PICKS))
        yield from picks
        yield from self.in_order([image for image in images if image not in {pick.image for pick in picks}])


def strategies(scores: ScoresAhead, leases: Leases) -> dict[str, Strategy]:
    """All strategies by name; clients offer the first."""
    best = {
        "polycl-mixed": "doubtful images that are unlike those labelled",
        "polycl-uncertain": "the image that the model doubts most",
        "polycl-diverse": "the image least like those labelled",
    }
    named = {name: BestImage(scores, leases, METHODS[name], text) for name, text in best.items()}
    return {"first": NextImage(scores, leases), "random": RandomImage(scores, leases), **named}


class _Only:
    """A datastore in which only some images are without a label."""

    def __init__(self, datastore: Datastore, images: Collection[str]) -> None:
        self._datastore, self._images = datastore, images

    def get_unlabeled_images(self, *_: object) -> list[str]:
        return list(self._images)

    def get_image_info(self, image: str) -> dict[str, Any]:
        return dict(self._datastore.get_image_info(image))


def _wait(count: int, others: Collection[Lease]) -> str:
    soonest = min((lease.until for lease in others), default=datetime.now(UTC))
    minutes = max(1, ceil((soonest - datetime.now(UTC)).total_seconds() / 60))
    return (
        f"others work on all {count} images that have no label; the first is free in {minutes} min, or once it is saved"
    )
