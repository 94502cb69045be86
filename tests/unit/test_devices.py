"""What a device gives back."""

from pathlib import Path

import pytest

from polycl import devices

pytestmark = pytest.mark.unit

STATM = Path("/proc/self/statm")


def resident_pages() -> int:
    return int(STATM.read_text().split()[1])


@pytest.mark.skipif(devices._heap_trim() is None or not STATM.exists(), reason="the C library has no malloc_trim")
def test_what_was_freed_below_what_is_kept_goes_back_to_the_system() -> None:
    devices.return_memory()
    blocks = [bytearray(b"x") * 50_000 for _ in range(4000)]
    full = resident_pages()
    kept = blocks[-1]
    del blocks
    before = resident_pages()
    devices.return_memory()
    freed = (full - resident_pages()) * 4096
    assert freed > 0.8 * 4000 * 50_000
    assert before - resident_pages() > 0.5 * (full - resident_pages()), "it would have stayed otherwise"
    assert len(kept) == 50_000


def test_a_c_library_without_it_is_none_the_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_heap_trim", lambda: None)
    devices.return_memory()
