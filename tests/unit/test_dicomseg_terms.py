"""What the names of structures mean in DICOM: codes, terms for any name, colours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydicom.sr._concepts_dict import concepts

from polycl.dicomseg import term_of
from polycl.dicomseg.terms import ALIASES, TERMS, cielab

pytestmark = pytest.mark.unit


def test_codes_are_those_of_dicom() -> None:
    known: dict[str, set[str]] = {}
    for codes in concepts["SCT"].values():
        for value, (meaning, _) in codes.items():
            known.setdefault(value, set()).add(meaning)
    for term in TERMS.values():
        for code in (term.category, term.kind, term_of("left lung").side):
            assert code is not None
            assert code.meaning in known[code.value], code
    assert set(ALIASES.values()) <= set(TERMS)


def test_names_that_nobody_knows_differ() -> None:
    first, second = term_of("my structure"), term_of("my other structure")
    assert first.kind.scheme == "99POLYCL"
    assert first.kind.value != second.kind.value
    assert term_of("My_Structure").kind.value == first.kind.value


@given(st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_every_name_has_a_term(name: str) -> None:
    term = term_of(name)
    assert 0 < len(term.kind.meaning) <= 64
    assert len(term.kind.value) <= 16
    assert all(0 <= value <= 0xFFFF for value in cielab(term.colour))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (221, 130, 101), (0, 151, 206), (10, 200, 30)])
def test_colours_are_those_of_littlecms(colour: tuple[int, int, int]) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    theirs = np.asarray(ImageCms.applyTransform(Image.new("RGB", (1, 1), colour), to_lab))[0, 0].astype(int)
    theirs[1:] = np.where(theirs[1:] > 127, theirs[1:] - 256, theirs[1:])
    ours = np.array(cielab(colour)) / 0xFFFF * (100, 255, 255) - (0, 128, 128)
    np.testing.assert_allclose(ours, theirs * (100 / 255, 1, 1), atol=1.5)
