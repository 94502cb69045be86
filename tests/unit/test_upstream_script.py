"""What the script makes of the outcomes of MONAI Label's own tests."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import run_upstream_tests
from run_upstream_tests import name_of, reason_of, report

pytestmark = pytest.mark.unit

KNOWN = "test_scoring.EndPointScoring.test_dice"


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        ({"a": "", "b": ""}, {"a": "", "b": ""}, 0),
        ({"a": "404", "b": ""}, {"a": "500", "b": ""}, 0),
        ({"a": "", KNOWN: "404"}, {"a": "", KNOWN: ""}, 0),
        ({"a": "404", "b": ""}, {"a": "", "b": ""}, 1),
        ({"a": "404", "b": ""}, {"b": "500"}, 1),
        ({}, {}, 1),
    ],
)
def test_only_what_fails_with_us_alone_counts(ours: dict[str, str], theirs: dict[str, str], code: int) -> None:
    assert report(ours, theirs) == code


def test_what_pytest_wrote() -> None:
    case = ElementTree.fromstring(
        '<testcase classname="tests.unit.endpoints.test_scoring.EndPointScoring" name="test_dice">'
        '<failure message="assert 404 == 200&#10;more">…</failure></testcase>'
    )
    assert (name_of(case), reason_of(case)) == (KNOWN, "assert 404 == 200")
    assert reason_of(ElementTree.fromstring("<testcase/>")) == ""


def test_a_folder_that_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run_upstream_tests.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run_upstream_tests.main()
    assert "MONAI Label's repository" in capsys.readouterr().err
