"""Ids that clients give: whatever they hold, what is made of them lies in its folder."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polycl.monailabel.folders import BadRequest, check_id, is_within

pytestmark = pytest.mark.unit


@given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "/", "\\", "a", "\0", "~", " "])).map("".join))
@example("..")
@example("a/../..")
@example("/etc/passwd")
@example("C:\\x")
def test_an_accepted_id_is_one_part_of_a_path(text: str) -> None:
    folder = Path("/store/labels")
    try:
        check_id("tag", text)
    except BadRequest as error:
        assert text not in ("a", "1.2.840.113619", "Müller 3")
        assert "tag" in str(error)  # noqa: PT017
        return
    assert (folder / text).parent == (folder if text else folder.parent)
    assert is_within(folder, folder / text)
    assert not text.startswith(".")
    assert text.isprintable()


@pytest.mark.parametrize(
    "text", ["lps", "1.2.840.113619.2", "scan.1", "CT Abdomen (2)", "Müller_é-1", "最終", "a" * 200, ""]
)
def test_usual_ids_are_accepted(text: str) -> None:
    if len(text.encode()) <= 200:
        check_id("image", text)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    assert is_within(tmp_path / "in", tmp_path / "in" / "x")
    assert not is_within(tmp_path / "in", tmp_path / "in" / "link" / "x")
    assert not is_within(tmp_path / "in", tmp_path / "in" / ".." / "x")
