"""Which image to label next."""

import random
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.activelearning.random import Random


class RandomImage(Random):  # type: ignore[misc, unused-ignore]
    """MONAI Label's random strategy, which prefers images not shown lately; it fails when all were shown just now."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The id of an unlabelled image, or None if there is none."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        try:
            return super().__call__(request, datastore)  # type: ignore[no-any-return, unused-ignore]
        except ValueError:  # all weights are zero
            return {"id": random.choice(images), "weight": 0}
