"""Readers of files and some hundred damaged ones, always the same: each is read, or refused with a reason."""

from pathlib import Path

import fuzz_readers
import pytest

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]  # pydicom has much to say of such files


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_damaged_files_are_read_or_refused(reader: str, tmp_path: Path) -> None:
    fuzz_readers.run(fuzz_readers.READERS[reader](tmp_path), executions=150, seed=1)


def test_a_reader_that_fails_is_noticed() -> None:
    def read(data: bytes) -> None:
        if data != b"as it was":
            raise IndexError

    with pytest.raises(IndexError) as raised:
        fuzz_readers.run(fuzz_readers.Target([b"as it was"], read), executions=50)
    assert any("of seed 0" in note for note in raised.value.__notes__)


def test_a_reader_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        while data == b"for ever":
            pass

    monkeypatch.setattr(fuzz_readers, "SLOW_S", 0.05)
    fuzz_readers.timed(read, b"not so long")
    with pytest.raises(TimeoutError, match="processor time"):
        fuzz_readers.timed(read, b"for ever")
