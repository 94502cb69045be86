"""The small SAM 2 as an engine for single slices: against the package's own predictor, in parts of slices, offline."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from polycl import checkpoints, devices
from polycl.clicks import Click, best_mask, decode_seen, locate, seen_region
from polycl.errors import InputError
from polycl.propagate.architecture import ConvolutionalTrunkConfig, Sam2Config, build
from polycl.propagate.header import FrameConfig, Sam2Header
from polycl.propagate.package import SAM2Base
from polycl.propagate.sam2_engine import Sam2Engine
from polycl.refinement import RefineParameters, refine
from polycl.sam import EmbeddingCache, Prompts, Sight, default_engine, load_engine
from polycl.sam.disk import DiskTier
from polycl.sam.regions import masks_on, prompts_in, region_for
from polycl.sam.sam2_image import Sam2ImageEngine
from polycl.sam.slices import SliceEncoder
from polycl.settings import Settings
from polycl.volume import Volume
from polycl.window import Window

pytestmark = pytest.mark.unit

SIZE = 64
TINY = Sam2Config(
    image_size=SIZE,
    trunk=ConvolutionalTrunkConfig(widths=(8, 8, 16, 16), layers=(1, 1, 1, 1)),
    width=64,
    memory_width=32,
    attention_layers=1,
    attention_hidden=64,
    fuser_layers=1,
    dropout=0.0,
    memories=3,
    pointers=3,
    tracking_masks=1,
)
WINDOWS = (Window(level=40, width=400), Window(level=-600, width=1500), Window(level=400, width=1800))
FRAMES = FrameConfig(windows=WINDOWS, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SIGHT = Sight(WINDOWS, coverage=2.0, least=40.0, guess=80.0)
BOX = np.array([10.0, 12.0, 40.0, 50.0])
POINTS, LABELS = np.array([[30.0, 30.0], [50.0, 50.0]]), np.array([1, 0])


@pytest.fixture(scope="module")
def network() -> SAM2Base:
    torch.manual_seed(1)
    made = build(TINY).eval()
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return made


@pytest.fixture(scope="module")
def engine(network: SAM2Base) -> Sam2ImageEngine:
    where = devices.choose("cpu", "fp32")
    return Sam2ImageEngine(Sam2Engine("tiny", "0" * 64, copy.deepcopy(network), TINY, FRAMES, where))


class Fixed(torch.nn.Module):
    """Gives one image, whatever it gets."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.image


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("prompts", "several"),
    [
        (Prompts(points=POINTS[:1], labels=LABELS[:1]), True),
        (Prompts(points=POINTS, labels=LABELS), False),
        (Prompts(box=BOX), False),
        (Prompts(points=POINTS, labels=LABELS, box=BOX), False),
    ],
)
def test_the_same_as_the_package_s_image_predictor(
    network: SAM2Base, engine: Sam2ImageEngine, prompts: Prompts, several: bool
) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    image = picture(SIZE, SIZE)
    predictor = SAM2ImagePredictor(network)
    predictor._bb_feat_sizes = [(SIZE // 4,) * 2, (SIZE // 8,) * 2, (SIZE // 16,) * 2]
    normalised = FRAMES.normalised(torch.from_numpy(image).permute(2, 0, 1)[None])
    predictor._transforms.transforms = Fixed(normalised[0])  # theirs is ImageNet's
    predictor.set_image(image)
    # A box in their prompts is in edges of pixels, ours in the pixels it holds.
    box = None if prompts.box is None else prompts.box + np.array([-0.5, -0.5, 0.5, 0.5])
    points = prompts.points if len(prompts.points) else None
    expected, scores, _ = predictor.predict(
        points, prompts.labels if points is not None else None, box, multimask_output=several, return_logits=True
    )
    masks = engine.decode(engine.encode(image), prompts)
    np.testing.assert_allclose(masks.logits, expected, atol=2e-3)
    np.testing.assert_allclose(masks.scores, scores, atol=1e-4)


def test_many_prompts_are_as_one_by_one(engine: Sam2ImageEngine) -> None:
    embedding = engine.encode(picture(50, 70))
    asked = [
        Prompts(box=np.array([3.0, 4.0, 30.0, 40.0])),
        Prompts(points=POINTS[:1], labels=LABELS[:1]),
        Prompts(box=np.array([20.0, 14.0, 60.0, 44.0]), mask_logits=np.full((256, 256), -3.0)),
        Prompts(box=np.array([20.0, 14.0, 60.0, 44.0])),
    ]
    for one, together in zip(asked, engine.decode_many(embedding, asked), strict=True):
        alone = engine.decode(embedding, one)
        assert together.logits.shape[1:] == (50, 70)
        assert together.low.shape[1:] == (256, 256)
        np.testing.assert_allclose(together.logits, alone.logits, atol=1e-3)


def test_what_cannot_be_seen(engine: Sam2ImageEngine) -> None:
    with pytest.raises(InputError, match=r"\[H, W, 3\]"):
        engine.encode(np.zeros((8, 8), np.float32))
    with pytest.raises(InputError, match="windowed"):
        engine.encode(np.full((8, 8, 3), np.nan, np.float32))
    with pytest.raises(InputError, match="outside"):
        engine.decode(engine.encode(picture(20, 20)), Prompts(points=np.array([[30.0, 3.0]]), labels=np.array([1])))


def test_on_disk_it_is_the_same(engine: Sam2ImageEngine, tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 1 << 24)
    embedding = engine.encode(picture(50, 70))
    tier.write("one", embedding)
    tier.flush()
    found = tier.read("one")
    tier.close()
    assert found is not None
    assert embedding.nbytes > embedding.features.nbytes
    masks = [engine.decode(each, Prompts(box=BOX)).logits for each in (embedding, found)]
    np.testing.assert_array_equal(*masks)


@given(
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 119)), min_size=1, max_size=4),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
    st.booleans(),
)
def test_a_region_holds_what_is_said_to_be_inside(
    points: list[tuple[int, int]], labels: list[int], boxed: bool
) -> None:
    box = np.array([20.0, 30.0, 90.0, 60.0]) if boxed else None
    prompts = Prompts(np.array(points, float), np.array(labels[: len(points)]), box)
    shape = (120, 200)
    rows, columns = region = region_for(SIGHT, prompts, shape, (0.8, 0.8))
    assert 0 <= rows.start < rows.stop <= 120
    assert 0 <= columns.start < columns.stop <= 200
    for (column, row), label in zip(prompts.points, prompts.labels, strict=True):
        assert label == 0 or (rows.start <= row < rows.stop and columns.start <= column < columns.stop)
    here = prompts_in(prompts, region) if boxed or prompts.labels.any() else None
    if here is not None:
        here.require_inside((rows.stop - rows.start, columns.stop - columns.start))
        assert (here.labels == 1).sum() == (prompts.labels == 1).sum()


def test_further_clicks_see_the_same_region() -> None:
    one = Prompts(np.array([[100.0, 60.0]]), np.array([1]))
    more = Prompts(np.array([[100.0, 60.0], [110.0, 66.0], [3.0, 3.0]]), np.array([1, 1, 0]))
    assert region_for(SIGHT, one, (120, 200), (0.8, 0.8)) == region_for(SIGHT, more, (120, 200), (0.8, 0.8))


def ct() -> Volume:
    voxels = np.full((60, 50, 6), -1000, np.int16)
    voxels[5:55, 5:45] = -50
    voxels[20:40, 15:35] = 80
    return Volume(voxels, np.diag([3.0, 3.0, 5.0, 1.0]))


def test_a_click_asks_about_a_part_of_the_slice(engine: Sam2ImageEngine) -> None:
    volume = ct()
    z, prompts = locate(Click(inside=((30, 25, 2),)), volume)
    region = seen_region(engine, prompts, volume)
    assert region is not None
    encoder = SliceEncoder(volume, engine, Window.named("lung"), EmbeddingCache(1 << 26), region)
    assert encoder.key(z).window == WINDOWS[0], "what it was trained on, whatever is asked for"
    masks = decode_seen(engine, encoder.embedding(z), prompts, volume, region)
    assert masks.logits.shape == (3, 50, 60)
    assert best_mask(masks, prompts).shape == (50, 60)
    outside = np.ones((50, 60), bool)
    outside[region] = False
    assert (masks.logits[:, outside] < 0).all()


def test_refinement_shows_it_one_slice_at_a_time(engine: Sam2ImageEngine) -> None:
    volume = ct()
    coarse = volume.with_voxels((volume.voxels == 80).astype(np.uint8))
    result, report = refine(volume, coarse, engine, None, RefineParameters(stride=1, min_depth=0.0))
    assert report.encodings == report.encoded == 6
    assert set(np.unique(result.voxels)) <= {0, 1}


def test_masks_come_back_where_they_were(engine: Sam2ImageEngine) -> None:
    embedding = engine.encode(picture(20, 30))
    masks = engine.decode(embedding, Prompts(box=np.array([2.0, 2.0, 20.0, 15.0])))
    whole = masks_on(masks, (slice(5, 25), slice(7, 37)), (40, 60))
    np.testing.assert_array_equal(whole.logits[:, 5:25, 7:37], masks.logits)


def test_it_is_the_engine_where_its_weights_ship(network: SAM2Base, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    header = Sam2Header(network=TINY, frames=FRAMES)
    checkpoints.save(weights / "polycl-sam2-ct.safetensors", network.state_dict(), header)
    settings = Settings(state=tmp_path / "state", weights=weights, device="cpu", precision="fp32")
    assert default_engine(settings) == "polycl-sam2-ct"
    engine = load_engine("polycl-sam2-ct", settings)
    assert engine.sight is not None
    image = picture(SIZE, SIZE)
    logits = engine.decode(engine.encode(image), Prompts(box=BOX)).logits
    assert logits.shape == (1, SIZE, SIZE)
    assert F.relu(torch.from_numpy(logits)).isfinite().all()
