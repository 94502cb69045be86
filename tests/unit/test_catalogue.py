"""The catalogue: names to files."""

import hashlib
import shutil
from pathlib import Path

import pytest

from polycl.catalogue import SHIPPED, Catalogue
from polycl.errors import ModelError, NotFoundError

pytestmark = pytest.mark.unit


def listing(folder: Path, checkpoint: Path, digest: str | None = None) -> Catalogue:
    shutil.copy(checkpoint, folder / "tiny.safetensors")
    digest = digest or hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    (folder / "catalogue.toml").write_text(
        f'[small]\nkind = "segmenter"\nfile = "tiny.safetensors"\nsha256 = "{digest}"\n'
        'card = "small.md"\nsummary = "for tests"\n'
    )
    return Catalogue.read(folder)


def test_a_listed_model_is_found_and_verified(tmp_path: Path, tiny_checkpoint: Path) -> None:
    catalogue = listing(tmp_path, tiny_checkpoint)
    assert catalogue.names() == ["small"]
    entry = catalogue.entry("small")
    assert entry.verify() == entry.sha256
    assert entry.header().labels == {"liver": 1, "spleen": 2}


def test_an_altered_file_fails_verification(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="is expected"):
        listing(tmp_path, tiny_checkpoint, "0" * 64).entry("small").verify()


def test_a_missing_file_says_where_to_put_it(tmp_path: Path, tiny_checkpoint: Path) -> None:
    entry = listing(tmp_path, tiny_checkpoint).entry("small")
    entry.path.unlink()
    with pytest.raises(ModelError, match=r"no tiny\.safetensors") as raised:
        entry.header()
    assert raised.value.hint == f"put it into {entry.path.parent}"


def test_an_unknown_name_lists_the_known(tmp_path: Path, tiny_checkpoint: Path) -> None:
    catalogue = listing(tmp_path, tiny_checkpoint)
    with pytest.raises(NotFoundError, match="there are: small"):
        catalogue.entry("big")
    with pytest.raises(NotFoundError, match="no encoder"):
        catalogue.entry("small", "encoder")


def test_a_site_folder_wins_and_adds_its_own_files(tmp_path: Path, tiny_checkpoint: Path) -> None:
    site, shipped = tmp_path / "site", tmp_path / "shipped"
    site.mkdir()
    shipped.mkdir()
    listing(shipped, tiny_checkpoint)
    shutil.copy(tiny_checkpoint, site / "small.safetensors")
    shutil.copy(tiny_checkpoint, site / "ours.safetensors")
    catalogue = Catalogue.read(site, shipped, tmp_path / "absent")
    assert catalogue.names() == ["ours", "small"]
    assert catalogue.entry("small").path.parent == site


def test_a_path_is_a_model(tiny_checkpoint: Path) -> None:
    assert Catalogue([]).entry(str(tiny_checkpoint)).path == tiny_checkpoint


def test_what_ships_is_whole_and_has_a_card() -> None:
    catalogue = Catalogue.read(SHIPPED)
    assert "polycl-liver" in catalogue.names("segmenter")
    for name in catalogue.names("segmenter") + catalogue.names("encoder"):
        entry = catalogue.entry(name)
        entry.verify()
        assert entry.header().kind == entry.kind
        assert entry.path.stat().st_size <= 16 * 2**20
        assert entry.card is not None
        assert "licence" in entry.card.read_text().lower()
