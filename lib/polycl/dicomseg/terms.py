"""What a structure's name means: its SNOMED CT code, its side, and the colour it is usually shown in.

Codes are those of DICOM PS3.16; a test compares them with pydicom's copy. Colours are close to those of 3D Slicer's
table of anatomy. A name that is not here gets a code in a private scheme, and a colour that follows from the name.
"""

from __future__ import annotations

import colorsys
import hashlib
import re
from dataclasses import dataclass, replace

SNOMED = "SCT"
PRIVATE_SCHEME = "99POLYCL"
LONGEST_MEANING = 64
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Code:
    """A coded concept: value, coding scheme, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Term:
    """What a segment holds. `side` modifies the type, `region` is where a finding lies, `colour` is sRGB."""

    category: Code
    kind: Code
    colour: Colour
    side: Code | None = None
    region: Code | None = None


ANATOMICAL = Code("123037004", SNOMED, "Anatomical Structure")
ABNORMAL = Code("49755003", SNOMED, "Morphologically Abnormal Structure")
TISSUE = Code("85756007", SNOMED, "Tissue")
SIDES = {"left": Code("7771000", SNOMED, "Left"), "right": Code("24028007", SNOMED, "Right")}


def _organ(value: str, meaning: str, colour: Colour) -> Term:
    return Term(ANATOMICAL, Code(value, SNOMED, meaning), colour)


def _finding(value: str, meaning: str, colour: Colour) -> Term:
    return Term(ABNORMAL, Code(value, SNOMED, meaning), colour)


_BONE: Colour = (241, 214, 145)
_VEIN: Colour = (0, 151, 206)
TERMS: dict[str, Term] = {
    "liver": _organ("10200004", "Liver", (221, 130, 101)),
    "spleen": _organ("78961009", "Spleen", (157, 108, 162)),
    "kidney": _organ("64033007", "Kidney", (185, 102, 83)),
    "aorta": _organ("15825003", "Aorta", (224, 97, 76)),
    "stomach": _organ("69695003", "Stomach", (216, 132, 105)),
    "vertebra": _organ("51282000", "Vertebra", (255, 255, 207)),
    "spine": _organ("421060004", "Spine", (226, 202, 134)),
    "lung": _organ("39607008", "Lung", (197, 165, 145)),
    "gallbladder": _organ("28231008", "Gallbladder", (139, 150, 98)),
    "inferior vena cava": _organ("64131007", "Inferior Vena Cava", _VEIN),
    "portal vein": _organ("32764006", "Portal Vein", (0, 120, 190)),
    "splenic vein": _organ("35819009", "Splenic Vein", (40, 130, 200)),
    "hepatic vein": _organ("8993003", "Hepatic Vein", (60, 140, 210)),
    "pulmonary artery": _organ("81040000", "Pulmonary artery", (0, 122, 171)),
    "pancreas": _organ("15776009", "Pancreas", (249, 180, 111)),
    "colon": _organ("71854001", "Colon", (204, 168, 143)),
    "small intestine": _organ("30315005", "Small intestine", (205, 167, 142)),
    "large intestine": _organ("14742008", "Large intestine", (204, 160, 130)),
    "rectum": _organ("34402009", "Rectum", (200, 150, 120)),
    "duodenum": _organ("38848004", "Duodenum", (255, 253, 229)),
    "esophagus": _organ("32849002", "Esophagus", (211, 171, 143)),
    "adrenal gland": _organ("23451007", "Adrenal gland", (249, 186, 150)),
    "urinary bladder": _organ("89837001", "Bladder", (222, 154, 132)),
    "prostate": _organ("41216001", "Prostate", (230, 158, 140)),
    "uterus": _organ("35039007", "Uterus", (255, 181, 158)),
    "heart": _organ("80891009", "Heart", (206, 110, 84)),
    "trachea": _organ("44567001", "Trachea", (182, 228, 255)),
    "thyroid": _organ("69748006", "Thyroid", (62, 162, 114)),
    "larynx": _organ("4596009", "Larynx", (150, 208, 243)),
    "brain": _organ("12738006", "Brain", (250, 250, 225)),
    "brain stem": _organ("119238007", "Brain stem", (200, 200, 175)),
    "cerebellum": _organ("113305005", "Cerebellum", (215, 200, 160)),
    "spinal cord": _organ("2748008", "Spinal cord", (244, 214, 49)),
    "optic chiasm": _organ("244453006", "Optic chiasm", (255, 230, 120)),
    "optic nerve": _organ("18234004", "optic nerve", (234, 234, 80)),
    "eye": _organ("81745001", "Eye", (194, 142, 0)),
    "lens": _organ("78076003", "Lens", (153, 210, 250)),
    "parotid gland": _organ("45289007", "Parotid gland", (240, 200, 120)),
    "submandibular gland": _organ("54019009", "Submandibular gland", (230, 180, 100)),
    "mandible": _organ("91609006", "Mandible", (222, 198, 101)),
    "bone": _organ("272673000", "Bone", _BONE),
    "skull": _organ("89546000", "Skull", _BONE),
    "rib": _organ("113197003", "Rib", (253, 232, 158)),
    "sternum": _organ("56873002", "Sternum", (244, 217, 154)),
    "scapula": _organ("79601000", "Scapula", (235, 205, 140)),
    "clavicle": _organ("51299004", "Clavicle", (238, 210, 150)),
    "humerus": _organ("85050009", "Humerus", (230, 200, 150)),
    "femur": _organ("71341001", "Femur", (255, 238, 170)),
    "sacrum": _organ("54735007", "Sacrum", (212, 188, 102)),
    "muscle": _organ("71616004", "Muscle", (192, 104, 88)),
    "fat": Term(TISSUE, Code("256674009", SNOMED, "Fat"), (230, 220, 70)),
    "tumor": _finding("108369006", "Neoplasm", (144, 238, 144)),
    "cyst": _finding("367643001", "Cyst", (205, 205, 100)),
    "lesion": _finding("52988006", "Lesion", (220, 245, 20)),
}
ALIASES = {
    "lungs": "lung",
    "kidneys": "kidney",
    "vertebrae": "vertebra",
    "vertebral column": "spine",
    "gall bladder": "gallbladder",
    "ivc": "inferior vena cava",
    "postcava": "inferior vena cava",
    "small bowel": "small intestine",
    "large bowel": "large intestine",
    "oesophagus": "esophagus",
    "adrenal": "adrenal gland",
    "bladder": "urinary bladder",
    "thyroid gland": "thyroid",
    "brainstem": "brain stem",
    "eyeball": "eye",
    "parotid": "parotid gland",
    "submandibular": "submandibular gland",
    "ribs": "rib",
    "bones": "bone",
    "tumour": "tumor",
    "neoplasm": "tumor",
    "lesions": "lesion",
    "tumors": "tumor",
    "tumours": "tumor",
    "cysts": "cyst",
}
_SIDE = re.compile(r"^(?P<first>left|right) (?P<rest>.+)$|^(?P<before>.+) (?P<last>left|right|l|r)$")


def term_of(name: str) -> Term:
    """What the structure called `name` is. Case, underscores and blanks do not matter; any name gets a term.

    >>> term_of("Right_Kidney").kind.meaning, term_of("kidney left").side.meaning
    ('Kidney', 'Left')
    >>> term_of("liver tumour").kind.meaning, term_of("liver tumour").region.meaning
    ('Neoplasm', 'Liver')
    """
    plain = " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()
    return _known(plain) or _sided(plain) or _found_in(plain) or _private(name, plain)


def _known(plain: str) -> Term | None:
    return TERMS.get(ALIASES.get(plain, plain))


def _sided(plain: str) -> Term | None:
    match = _SIDE.match(plain)
    if match is None:
        return None
    term = _known(match["rest"] or match["before"])
    side = SIDES["left" if (match["first"] or match["last"]).startswith("l") else "right"]
    return None if term is None else replace(term, side=side)


def _found_in(plain: str) -> Term | None:
    """A finding in an organ, as "liver tumour"."""
    where, _, what = plain.rpartition(" ")
    finding, organ = _known(what), _known(where) or _sided(where)
    if finding is None or organ is None or finding.category != ABNORMAL:
        return None
    return replace(finding, region=organ.kind)


def _private(name: str, plain: str) -> Term:
    digest = hashlib.sha256(plain.encode()).hexdigest()
    meaning = " ".join(name.replace("\\", " ").split())[:LONGEST_MEANING].strip() or "unnamed"
    red, green, blue = colorsys.hsv_to_rgb(int(digest[:4], 16) / 0xFFFF, 0.65, 0.95)
    colour = (round(red * 255), round(green * 255), round(blue * 255))
    return Term(TISSUE, Code(digest[:12].upper(), PRIVATE_SCHEME, meaning), colour)


def cielab(colour: Colour) -> tuple[int, int, int]:
    """An sRGB colour as DICOM's RecommendedDisplayCIELabValue: L*, a*, b* for white D50 in 16 bits (PS3.3 C.10.7.1.1).

    sRGB to XYZ by IEC 61966-2-1, adapted to D50 by the Bradford matrix (Lindbloom).
    """
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    rows = ((0.4360747, 0.3850649, 0.1430804), (0.2225045, 0.7168786, 0.0606169), (0.0139322, 0.0971045, 0.7141733))
    white = (0.96422, 1.0, 0.82521)
    ratios = [sum(m * v for m, v in zip(row, linear, strict=True)) / w for row, w in zip(rows, white, strict=True)]
    x, y, z = (r ** (1 / 3) if r > 216 / 24389 else (24389 / 27 * r + 16) / 116 for r in ratios)
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    scaled = (lightness / 100, (a + 128) / 255, (b + 128) / 255)
    low, middle, high = (min(0xFFFF, max(0, round(value * 0xFFFF))) for value in scaled)
    return low, middle, high
