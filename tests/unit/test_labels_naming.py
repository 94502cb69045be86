"""Values a client sent, their names, and the values that are stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polycl.errors import InputError
from polycl.labels.naming import listed, name_labels, sent_names, vocabulary

pytestmark = pytest.mark.unit

KNOWN = {"liver": 1, "spleen": 2}
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)


def by_position(*given: str) -> dict[int, str]:
    """As a client sends them, with misleading `idx` and `id`."""
    return sent_names({"label_info": [{"name": name, "idx": 9 - i, "id": 40 + i} for i, name in enumerate(given)]})


def test_a_value_is_a_position_whatever_the_entry_says() -> None:
    naming = name_labels(by_position("spleen", "liver"), [1, 2], KNOWN)
    assert naming.labels == {"spleen": 2, "liver": 1}
    assert naming.table[:3].tolist() == [0, 2, 1]
    assert naming.unknown == ()
    assert naming.notes == ()


def test_empty_segments_count_too() -> None:
    naming = name_labels(by_position("liver", "spleen"), [2], KNOWN)
    assert naming.labels == {"liver": 1, "spleen": 2}
    assert naming.table[2] == 2


def test_unknown_names_are_kept_after_those_of_the_models() -> None:
    naming = name_labels(by_position("cyst", "spleen", "Kyste 2"), [1, 2, 3], KNOWN)
    assert naming.labels == {"cyst": 3, "spleen": 2, "Kyste 2": 4}
    assert naming.unknown == ("cyst", "Kyste 2")
    assert [note for note in naming.notes if "cyst" in note]


def test_names_match_without_regard_to_case_and_blanks() -> None:
    naming = name_labels(by_position(" Portal  Vein", "LIVER"), [1, 2], {"liver": 1, "portal_vein": 2})
    assert naming.labels == {"portal_vein": 2, "liver": 1}
    assert len(naming.notes) == 2


def test_segments_of_one_name_become_one() -> None:
    naming = name_labels(by_position("liver", "liver"), [1, 2], KNOWN)
    assert naming.labels == {"liver": 1}
    assert naming.table[1:3].tolist() == [1, 1]
    assert "more than once" in naming.notes[0]


def test_values_without_a_name() -> None:
    naming = name_labels(by_position("liver"), [1, 7], KNOWN)
    assert naming.labels == {"liver": 1, "label_7": 3}
    assert naming.unknown == ("label_7",)
    assert "value 7" in naming.notes[0]


def test_without_label_info_the_values_are_the_models_own() -> None:
    naming = name_labels({}, [2, 5], KNOWN)
    assert naming.labels == {"spleen": 2, "label_5": 3}
    assert naming.table[2] == 2


def test_slicers_own_segments_are_no_labels() -> None:
    naming = name_labels(by_position("background", "liver", "foreground_scribbles"), [1, 2, 3], KNOWN)
    assert naming.labels == {"liver": 1}
    assert naming.table[:4].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("sent", "complete", "expected"),
    [
        (("liver", "spleen"), None, ()),
        (("liver", "spleen"), False, ()),
        (("liver", "spleen"), True, ("liver", "spleen")),
        (("liver", "spleen"), ["Spleen"], ("spleen",)),
        (("liver",), ["spleen"], ("spleen",)),
        (("liver", "Complete"), None, ("liver",)),
        (("complete", "liver"), ["spleen"], ("liver", "spleen")),
    ],
)
def test_what_is_complete(sent: tuple[str, ...], complete: object, expected: tuple[str, ...]) -> None:
    naming = name_labels(by_position(*sent), [], KNOWN, complete)
    assert naming.complete == expected
    assert set(expected) <= set(naming.labels)
    assert "Complete" not in naming.labels


def test_the_mark_is_no_label() -> None:
    with pytest.raises(InputError, match="must be empty"):
        name_labels(by_position("liver", "complete"), [2], KNOWN)


@pytest.mark.parametrize("value", ["yes", 1, {}, [1], [""]])
def test_a_complete_that_is_none(value: object) -> None:
    with pytest.raises(InputError, match="complete must be"):
        name_labels({}, [], KNOWN, value)


@pytest.mark.parametrize("info", [[1], [{}], [{"name": 3}], "liver", {"name": "liver"}, 7])
def test_a_label_info_that_is_none(info: object) -> None:
    with pytest.raises(InputError, match="label_info must be"):
        sent_names({"label_info": info})


def test_names_of_a_reply() -> None:
    assert sent_names({"params": {"label_names": {"liver": 3}}}) == {3: "liver"}
    assert sent_names({"params": {"label_names": ["liver"]}}) == {}
    assert sent_names({}) == {}


def test_more_names_than_values() -> None:
    with pytest.raises(InputError, match="255"):
        name_labels({value: f"n{value}" for value in range(1, 300)}, [], KNOWN)
    with pytest.raises(InputError, match="200"):
        name_labels({1: "x" * 201}, [], KNOWN)


@given(st.lists(st.dictionaries(names.filter(bool), st.integers(1, 60), max_size=4), max_size=4))
def test_the_first_model_keeps_its_values(models: list[dict[str, int]]) -> None:
    models = [{name: value for value, name in {v: n for n, v in model.items()}.items()} for model in models]
    table = vocabulary(models)
    assert len(set(table.values())) == len(table)
    assert set(table) == {name for model in models for name in model}
    if models:
        assert models[0].items() <= table.items()


@given(st.lists(names, min_size=1, max_size=20), st.sets(st.integers(1, 255), max_size=12))
def test_no_voxel_is_lost_and_none_changes_its_name(sent: list[str], present: set[int]) -> None:
    sent = [name if name.strip().casefold() != "complete" else "whole" for name in sent]
    naming = name_labels(by_position(*sent), present, KNOWN)
    stored = {value: name for name, value in naming.labels.items()}
    assert len(stored) == len(naming.labels)
    assert set(stored) <= set(range(1, 256))
    for value in present:
        name = " ".join(sent[value - 1].split()) if value <= len(sent) else ""
        if name in ("background", "foreground_scribbles", "background_scribbles"):
            assert naming.table[value] == 0
        else:
            given_back = stored[int(naming.table[value])]
            assert given_back.casefold().replace("_", " ") == (name or f"label_{value}").casefold().replace("_", " ")
    assert naming.table[0] == 0


def test_what_clients_read_back_names_by_position() -> None:
    info = listed({"cyst": 4}, KNOWN)
    assert [entry["name"] for entry in info] == ["liver", "spleen", "label_3", "cyst"]
    back = name_labels(sent_names({"label_info": info}), [4], {**KNOWN, "kidney": 3})
    assert np.flatnonzero(back.table == back.labels["cyst"]).tolist() == [4]
