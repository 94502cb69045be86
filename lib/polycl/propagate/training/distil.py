"""The first weights of a run: SAM's decoder, and an image encoder that was taught to give what MobileSAM's gives.

MobileSAM is too slow to run on each slice of a volume. It looks once at some hundred slices; its embeddings are kept,
and the small encoder learns to make them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from polycl.devices import Device
from polycl.errors import ModelError
from polycl.files import replacing
from polycl.propagate.architecture import build
from polycl.propagate.header import FrameConfig
from polycl.propagate.training.clips import Clips
from polycl.propagate.training.mobile_sam import decoder_weights, start_as_sam
from polycl.propagate.training.recipe import Distillation, Recipe
from polycl.propagate.training.start import look_back_to_the_same_place
from polycl.propagate.training.store import ObjectStore
from polycl.segmenter.training import warm_cosine

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

Progress = Callable[[int, int], None]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the photographs that SAM saw, in [0, 1]."""


class Teacher:
    """MobileSAM's encoder, as an ONNX file."""

    def __init__(self, encoder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(encoder), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # ONNX Runtime has no base class of its own
            raise ModelError(f"{encoder.name} cannot be loaded: {type(error).__name__}") from error
        self._input = self._session.get_inputs()[0].name
        self.size = int(self._session.get_inputs()[0].shape[-1])

    def embed(self, image: torch.Tensor, grid: int) -> NDArray[np.float16]:
        """The embedding `[C, grid, grid]` of channels `[3, S, S]` in [0, 1], seen as the colours of a photograph."""
        large = F.interpolate(image[None], size=(self.size, self.size), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        (found,) = self._session.run(None, {self._input: ((large - mean) / std).numpy()})
        shrunk = F.interpolate(torch.from_numpy(found), size=(grid, grid), mode="bilinear", antialias=True)
        return shrunk[0].numpy().astype(np.float16)


def lessons(
    stills: Clips, frames: FrameConfig, teacher: Callable[[], Teacher], folder: Path, progress: Progress
) -> list[Path]:
    """A file with image and embedding for each of `stills`; those that are there are not made again.

    `teacher` is called only if some are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.npz" for number in range(len(stills))]
    grid = stills.view.size // 16
    guide: Teacher | None = None
    for number, file in enumerate(files):
        if not file.is_file():
            guide = guide or teacher()
            seen = stills[number].images[0, 0] * torch.tensor(frames.std)[:, None, None]
            image = (seen + torch.tensor(frames.mean)[:, None, None]).clamp(0, 1)
            eight = (image * 255).round().byte().numpy()
            with replacing(file) as stream:
                np.savez(stream, image=eight, embedding=guide.embed(image, grid))
        progress(number + 1, len(files))
    return files


def distil(
    network: SAM2Base, files: Sequence[Path], frames: FrameConfig, how: Distillation, where: Device, progress: Progress
) -> float:
    """Teach the image encoder of `network` its lessons, in place. Returns the mean cosine of the last steps."""
    encoder = network.image_encoder.to(where.device).train()
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    random = np.random.default_rng(how.seed)
    recent: list[float] = []
    for step in range(how.steps):
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * warm_cosine(step, how.steps, how.warm_up)
        pairs = [_lesson(files[int(random.integers(len(files)))], how, random) for _ in range(how.batch)]
        images = frames.normalised(torch.stack([image for image, _ in pairs])).to(where.device)
        wanted = torch.stack([embedding for _, embedding in pairs]).to(where.device)
        with torch.autocast(where.device.type, where.dtype, enabled=where.dtype != torch.float32):
            found = encoder(images.contiguous(memory_format=torch.channels_last))["vision_features"]
        cosine = F.cosine_similarity(found.float(), wanted, dim=1).mean()
        loss = how.far * F.mse_loss(found.float(), wanted) + 1 - cosine
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        recent = [*recent[-19:], cosine.item()]
        progress(step + 1, how.steps)
    return sum(recent) / max(1, len(recent))


def taught(
    store: ObjectStore, recipe: Recipe, weights: tuple[Path, Path], where: Device, progress: tuple[Progress, Progress]
) -> dict[str, torch.Tensor]:
    """The first weights of a run. The slices to learn from are kept in the store's folder.

    Args:
        weights: MobileSAM's encoder and decoder.
        progress: of the slices that MobileSAM looks at, and of the steps of learning.
    """
    encoder, decoder = weights
    torch.manual_seed(recipe.seed)
    network = build(recipe.network).to(memory_format=torch.channels_last)
    look_back_to_the_same_place(network)
    start_as_sam(network, decoder_weights(decoder))
    how = recipe.distillation
    rules = replace(recipe.clips, length=1, objects=1, seeds={"mask": 1.0})
    stills = Clips(store, rules, recipe.view(recipe.network.image_size), batches=how.slices, batch=1, seed=how.seed)
    made_of = [asdict(how) | {"steps": 0}, [scan.key for scan in store.scans], recipe.network.image_size]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    files = lessons(stills, recipe.frames, lambda: Teacher(encoder), store.folder / f"lessons-{key}", progress[0])
    distil(network, files, recipe.frames, how, where, progress[1])
    return {name: one.cpu() for name, one in network.state_dict().items()}


def _lesson(file: Path, how: Distillation, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Image `[3, S, S]` in [0, 1] and embedding, flipped alike, the image brighter or darker and noisy."""
    with np.load(file) as kept:
        image, embedding = torch.from_numpy(kept["image"]).float() / 255, torch.from_numpy(kept["embedding"]).float()
    flips = [axis for axis in (1, 2) if random.random() < 0.5]
    image, embedding = image.flip(flips), embedding.flip(flips)
    grain = torch.from_numpy(random.standard_normal((1, *image.shape[1:])).astype(np.float32))
    shift = random.uniform(-how.brightness, how.brightness)
    image = image * (1 + random.uniform(-2, 2) * how.brightness) + shift + grain * random.uniform(0, how.noise)
    return image.clamp(0, 1), embedding
