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
