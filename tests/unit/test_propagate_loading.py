"""Networks for propagation by name: ours, those that others published, and what is said where they are missing."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from polycl import checkpoints
from polycl.errors import InputError, ModelError, NotFoundError
from polycl.propagate.architecture import ConvolutionalTrunkConfig, Sam2Config, build
from polycl.propagate.header import FrameConfig, Sam2Header
from polycl.propagate.loading import DEFAULT, USUAL_SIZE, load_propagator
from polycl.settings import Settings

pytestmark = pytest.mark.unit

SMALL = Sam2Config(
    image_size=64,
    trunk=ConvolutionalTrunkConfig(widths=(8, 8, 16, 16), layers=(1, 1, 1, 1)),
    width=32,
    memory_width=16,
    attention_layers=1,
    attention_hidden=32,
    memories=3,
    pointers=3,
    tracking_masks=1,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    weights = tmp_path / "weights"
    weights.mkdir()
    return Settings(state=tmp_path / "state", weights=weights, device="cpu", precision="fp32")


def save_ours(path: Path, network: torch.nn.Module | None = None) -> str:
    header = Sam2Header(network=SMALL, frames=FrameConfig(least_mm=50))
    weights = (network or build(SMALL)).state_dict()
    return checkpoints.save(path, {key: value.half() for key, value in weights.items()}, header)


def publish(settings: Settings, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """`published`, a network by others, in the site's folder of weights."""
    assert settings.weights is not None
    (settings.weights / "catalogue.toml").write_text(
        "[published]\nkind = 'sam2'\narchitecture = 'tiny'\nfolder = 'other'\nlicence = 'none'\nsummary = 'a test'\n"
        "[[published.files]]\nname = 'published.pt'\nurl = 'https://example.org/published.pt'\n"
        f"sum = 'sha256:{hashlib.sha256(content).hexdigest()}'\nlimit = 100\n"
    )
    (settings.weights / "other").mkdir()
    (settings.weights / "other" / "published.pt").write_bytes(content)
    monkeypatch.setattr("polycl.propagate.architecture.ARCHITECTURES", {"tiny": SMALL})


class TestOurs:
    def test_by_path_and_by_name(self, settings: Settings) -> None:
        assert settings.weights is not None
        path = settings.weights / "mine.safetensors"
        sha256 = save_ours(path)
        for name in (str(path), "mine"):
            engine = load_propagator(name, settings)
            assert (engine.name, engine.sha256, engine.size) == ("mine", sha256, 64)
            assert engine.frames.least_mm == 50

    def test_at_another_size(self, settings: Settings, tmp_path: Path) -> None:
        save_ours(tmp_path / "mine.safetensors")
        assert load_propagator(str(tmp_path / "mine.safetensors"), settings, size=96).size == 96
        with pytest.raises(InputError, match="a multiple of 32 does"):
            load_propagator(str(tmp_path / "mine.safetensors"), settings, size=100)

    def test_a_segmenter_does_not_propagate(self, settings: Settings, tiny_checkpoint: Path) -> None:
        with pytest.raises(ModelError, match=r"the header of tiny\.safetensors is not one"):
            load_propagator(str(tiny_checkpoint), settings)

    def test_weights_of_another_network_are_refused(self, settings: Settings, tmp_path: Path) -> None:
        other = build(SMALL.model_copy(update={"attention_layers": 2}))
        save_ours(tmp_path / "mine.safetensors", other)
        with pytest.raises(ModelError, match="the weights of mine do not fit the network"):
            load_propagator(str(tmp_path / "mine.safetensors"), settings)

    def test_half_precision_is_all_that_is_lost(self, settings: Settings, tmp_path: Path) -> None:
        torch.manual_seed(0)
        network = build(SMALL)
        save_ours(tmp_path / "mine.safetensors", network)
        loaded = load_propagator(str(tmp_path / "mine.safetensors"), settings)
        kept = loaded._net.sam_mask_decoder.iou_token.weight  # type: ignore[attr-defined]
        torch.testing.assert_close(kept, network.sam_mask_decoder.iou_token.weight, atol=1e-3, rtol=1e-3)


class TestPublished:
    def test_a_torch_file_of_tensors(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        torch.save({"model": build(SMALL).state_dict()}, tmp_path / "file.pt")
        publish(settings, monkeypatch, (tmp_path / "file.pt").read_bytes())
        assert load_propagator("published", settings).size == USUAL_SIZE
        assert load_propagator("published", settings, size=128).size == 128

    def test_a_pickle_that_would_run_code_is_refused(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(settings, monkeypatch, pickle.dumps({"model": print}))
        with pytest.raises(ModelError, match="no file of weights, or a damaged one, or holds more than tensors"):
            load_propagator("published", settings)

    def test_an_altered_file_is_refused(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(settings, monkeypatch, b"tensors")
        assert settings.weights is not None
        (settings.weights / "other" / "published.pt").write_bytes(b"others")
        with pytest.raises(ModelError, match="is expected: fetch it again"):
            load_propagator("published", settings)

    def test_missing_weights_say_how_to_get_them(self, settings: Settings) -> None:
        with pytest.raises(ModelError, match=r"polycl models fetch sam2\.1-tiny"):
            load_propagator("sam2.1-tiny", settings)


class TestNames:
    def test_an_unknown_name_lists_those_there_are(self, settings: Settings) -> None:
        with pytest.raises(NotFoundError, match=r"is called 'sam3'; there are: medsam2, .*sam2.1-tiny"):
            load_propagator("sam3", settings)

    def test_an_engine_that_does_not_propagate_is_refused(self, settings: Settings) -> None:
        with pytest.raises(NotFoundError, match="no SAM 2 is called 'sam-vit-b'; there are: medsam2, "):
            load_propagator("sam-vit-b", settings)

    def test_without_the_default_the_others_are_named(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        catalogue = (Path(__file__).resolve().parents[2] / "model" / "catalogue.toml").read_text()
        (tmp_path / "catalogue.toml").write_text(catalogue)
        monkeypatch.setattr("polycl.catalogue.SHIPPED", tmp_path)
        with pytest.raises(ModelError, match=r"the weights of polycl-sam2-ct.* are missing; .*sam2.1-tiny"):
            load_propagator(DEFAULT, settings)
