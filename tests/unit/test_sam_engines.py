"""The torch engine against the package's own predictor, and what every engine refuses."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from polycl import checksums, devices
from polycl.errors import InputError, ModelError
from polycl.sam import Engine, Masks, Prompts, Recipe, mask_prompt
from polycl.sam.loading import MEDSAM
from polycl.sam.onnx_engine import OnnxEngine
from polycl.sam.torch_engine import TorchEngine

pytestmark = pytest.mark.unit

CPU = devices.Device(torch.device("cpu"), torch.float32)
SIDE = 64
SHAPE = (48, 40)  # neither square nor the network's size
POINTS, LABELS, BOX = np.array([[10.0, 20.0], [30.0, 5.0]]), np.array([1, 0]), np.array([4.0, 6.0, 31.0, 40.0])


def tiny_sam(seed: int = 0) -> Any:
    """SAM's own classes at a tiny width; its low-resolution masks are a quarter of the network's size."""
    torch.manual_seed(seed)
    grid = SIDE // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=16,
            img_size=SIDE,
            mlp_ratio=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=3,
            out_chans=16,
        ),
        prompt_encoder=PromptEncoder(16, (grid, grid), (SIDE, SIDE), mask_in_chans=4),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=16, num_heads=2),
            transformer_dim=16,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )
    for parameter in sam.parameters():  # zeros at the start, as of relative positions, would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return sam.eval()


@pytest.fixture(scope="module")
def sam() -> Any:
    return tiny_sam()


@pytest.fixture(scope="module")
def engine(sam: Any) -> TorchEngine:
    return TorchEngine("tiny", "0" * 64, sam, CPU)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, SHAPE).astype(np.float32) / 255


def reference(sam: Any, image: np.ndarray, *, several: bool, **prompts: Any) -> Masks:
    predictor = SamPredictor(sam)
    predictor.set_image(np.repeat((image * 255).round().astype(np.uint8)[..., None], 3, axis=2))
    return Masks(*predictor.predict(multimask_output=several, return_logits=True, **prompts))


def assert_same(ours: Masks, theirs: Masks) -> None:
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.low, theirs.low)


@pytest.mark.parametrize(
    ("ours", "theirs", "several"),
    [
        (Prompts(POINTS[:1], LABELS[:1]), {"point_coords": POINTS[:1], "point_labels": LABELS[:1]}, True),
        (Prompts(POINTS, LABELS), {"point_coords": POINTS, "point_labels": LABELS}, False),
        (Prompts(box=BOX), {"box": BOX}, True),
        (Prompts(POINTS, LABELS, BOX), {"point_coords": POINTS, "point_labels": LABELS, "box": BOX}, False),
    ],
    ids=["point", "points", "box", "points and box"],
)
def test_the_numbers_are_those_of_sams_own_predictor(
    sam: Any, engine: TorchEngine, image: np.ndarray, ours: Prompts, theirs: dict[str, Any], several: bool
) -> None:
    masks = engine.decode(engine.encode(image), ours)
    assert masks.logits.shape == ((3 if several else 1), *SHAPE)
    assert masks.logits.std() > 0
    assert_same(masks, reference(sam, image, several=several, **theirs))


def vit_b() -> Any:
    torch.manual_seed(0)
    return sam_model_registry["vit_b"]().eval()


@pytest.mark.slow
def test_vit_b_with_random_weights_and_a_mask_prompt(image: np.ndarray) -> None:
    network = vit_b()
    engine = TorchEngine("sam-vit-b", "0" * 64, network, CPU)
    logits = mask_prompt(image > 0.5)
    masks = engine.decode(engine.encode(image), Prompts(POINTS, LABELS, BOX, logits))
    prompts = {"point_coords": POINTS, "point_labels": LABELS, "box": BOX, "mask_input": logits[None]}
    assert masks.low.shape == (1, 256, 256)
    assert_same(masks, reference(network, image, several=False, **prompts))


def test_many_prompts_are_decoded_as_one_by_one(engine: TorchEngine, image: np.ndarray) -> None:
    embedding = engine.encode(image)
    prompts = [Prompts(box=BOX - n) if n % 3 else Prompts(POINTS + n, LABELS) for n in range(11)]
    for together, alone in zip(
        engine.decode_many(embedding, prompts), (engine.decode(embedding, one) for one in prompts), strict=True
    ):
        np.testing.assert_allclose(together.logits, alone.logits, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-3, atol=1e-4)


def test_half_precision_comes_close(image: np.ndarray) -> None:
    exact = TorchEngine("tiny", "0", tiny_sam(), CPU)
    rough = TorchEngine("tiny", "0", tiny_sam(), devices.Device(CPU.device, torch.bfloat16))
    features, other = exact.encode(image).features, rough.encode(image).features
    assert other.dtype == np.float32
    assert 0 < np.abs(features - other).mean() < 0.1 * np.abs(features).mean()


def test_medsam_sees_the_whole_square_in_unit_range_and_gives_one_mask(sam: Any, image: np.ndarray) -> None:
    seen = MEDSAM.prepare(image, SIDE)
    assert seen.shape == (1, 3, SIDE, SIDE)
    assert 0 <= seen.min() < seen.max() <= 1
    assert seen.max() > 0.5
    assert seen[..., -1, -1].any()
    engine = TorchEngine("medsam", "0", sam, CPU, MEDSAM)
    embedding = engine.encode(image)
    scaled = torch.tensor(BOX * np.array([SIDE / SHAPE[1], SIDE / SHAPE[0]] * 2), dtype=torch.float32)[None]
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder(points=None, boxes=scaled, masks=None)
        low, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(torch.from_numpy(seen)),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    masks = engine.decode(embedding, Prompts(box=BOX))
    np.testing.assert_array_equal(masks.low, low[0].numpy())
    assert masks.logits.shape == (1, *SHAPE)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 4, 4), np.float32), "shape"),
        (np.zeros((0, 4), np.float32), "shape"),
        (np.full((4, 4), 40, np.float32), "windowed"),
        (np.full((4, 4), np.nan, np.float32), "windowed"),
    ],
)
def test_what_is_no_image_is_refused(engine: TorchEngine, image: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        engine.encode(image)


def test_prompts_outside_are_refused(engine: TorchEngine, image: np.ndarray) -> None:
    embedding = engine.encode(image)
    with pytest.raises(InputError, match="outside the image of 40 x 48"):
        engine.decode(embedding, Prompts([[40.0, 3.0]], [1]))
    with pytest.raises(InputError, match="box is outside"):
        engine.decode(embedding, Prompts(box=[50, 0, 60, 5]))
    engine.decode(embedding, Prompts(box=[-5, -5, 60, 60]))  # reaches over the edge: padded boxes do


@pytest.fixture(scope="module")
def tiny_architecture(sam: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam_model_registry, "vit_b", tiny_sam)
        yield


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "nested.pth"])
def test_checkpoints_are_loaded_and_checked(
    sam: Any, tiny_architecture: None, image: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(dict(tiny_sam(7).state_dict()), path)
    else:
        weights = tiny_sam(7).state_dict()
        torch.save({"model": weights} if "nested" in suffix else weights, path)
    total = checksums.checksum(path)
    engine = TorchEngine.load(path, sums={path.name: total}, device="cpu", precision="fp32")
    assert engine.name == path.stem
    assert f"sha256:{engine.sha256}" == total
    expected = TorchEngine("tiny", "0", tiny_sam(7), CPU).encode(image)
    np.testing.assert_array_equal(engine.encode(image).features, expected.features)
    with pytest.raises(ModelError, match="is expected"):
        TorchEngine.load(path, sums={path.name: "md5:" + "0" * 32})


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code in a checkpoint was run",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("code", "more than tensors"),
        ("old code", "more than tensors"),
        ("text", "no file of weights"),
        ("list", "no state dict"),
        ("other", "do not fit"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tiny_architecture: None, tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "code":
        torch.save({"model": Harmful()}, path)
    elif content == "old code":
        path.write_bytes(pickle.dumps(Harmful(), protocol=2))
    elif content == "text":
        path.write_text("<html>not found</html>")
    else:
        torch.save([torch.zeros(1)] if content == "list" else {"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=words):
        TorchEngine.load(path, device="cpu")
    with pytest.raises(ModelError, match="missing"):
        TorchEngine.load(tmp_path / "none.pth", device="cpu")


def test_onnx_files_are_checked_before_they_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"encoder\.onnx are missing"):
        OnnxEngine.load(tmp_path)
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes(b"no graph")
    with pytest.raises(ModelError, match="is expected"):
        OnnxEngine.load(tmp_path, sums={"decoder.onnx": "sha256:" + "0" * 64})
    with pytest.raises(ModelError, match="cannot be loaded"):
        OnnxEngine.load(tmp_path)


def test_both_engines_fit_the_protocol(engine: TorchEngine) -> None:
    one: Engine = engine
    assert (one.name, one.size, one.sha256) == ("tiny", SIDE, "0" * 64)
    assert Recipe().size_of((512, 256), 1024) == (1024, 512)
