"""The abdominal organs, in the order they are painted: what is named later lies on top."""

from itertools import pairwise

import numpy as np

from polycl.phantom.canvas import Canvas, box_around
from polycl.phantom.labels import LABELS
from polycl.phantom.liver import liver_distance, paint_liver
from polycl.phantom.patient import GAS, Patient, Rod
from polycl.phantom.shapes import Array, Point, capsule, ellipsoid, f32, smooth_max, smooth_min, waves
from polycl.phantom.trunk import spine_y

_COLON: tuple[Point, ...] = (
    (108, 0, -175), (114, -2, -120), (106, 8, -92), (84, 38, -74), (60, 74, -62), (25, 84, -58), (-15, 84, -50),
    (-60, 76, -34), (-96, 52, -12), (-116, 26, 8), (-122, -4, -14), (-120, -18, -55), (-118, -14, -110),
    (-110, -8, -175),
)  # fmt: skip
"""The colon's middle line: ascending on the right, across in front, descending on the left."""


def paint_organs(canvas: Canvas, patient: Patient) -> None:
    """All organs below the diaphragm, and the great vessels."""
    _paint_bowel(canvas, patient)
    _paint_colon(canvas, patient)
    _paint_stomach(canvas, patient)
    _paint_pancreas(canvas, patient)
    _paint_spleen(canvas, patient)
    _paint_kidney(canvas, patient, "left kidney")
    _paint_kidney(canvas, patient, "right kidney")
    paint_liver(canvas, patient)
    _paint_great_vessels(canvas, patient)


def _paint_rods(canvas: Canvas, rods: tuple[Rod, ...], hu: float) -> None:
    for a, b, ra, rb in rods:
        part = canvas.crop(box_around([a, b], max(ra, rb)))
        if part:
            part.paint(f32(np.maximum(capsule(part.p, a, b, ra, rb), part.fields["cavity"] + 1)), hu, 0)


def _paint_bowel(canvas: Canvas, patient: Patient) -> None:
    """Mesenteric vessels, then loops of small bowel: enhancing wall, and fluid, contrast medium or gas inside."""
    _paint_rods(canvas, patient.mesentery, patient.hu["vessel"])
    for (a, b, ra, rb), inside in patient.bowel:
        part = canvas.crop(box_around([a, b], max(ra, rb) + 4))
        if part is None:
            continue
        tube = smooth_max(capsule(part.p, a, b, ra, rb), part.fields["cavity"] + 2, 4)
        # A rim of fat keeps neighbouring loops apart.
        part.paint(tube - np.float32(1.8), patient.hu["fat"])
        part.paint(tube, patient.hu["bowel wall"])
        level = max(a[1], b[1]) - 2
        filling = _fluid_level(part, 30.0, level) if inside == GAS else f32(inside)
        part.paint(tube + np.float32(2.6), filling)


def _fluid_level(part: Canvas, fluid: float | Array, level: float) -> Array:
    """Gas in front of a level, fluid behind it: the patient lies on the back."""
    rise = np.clip(0.5 + (part.p[1] - np.float32(level)) / np.float32(part.blur), 0, 1)
    return f32(fluid + (GAS - fluid) * rise)


def _paint_colon(canvas: Canvas, patient: Patient) -> None:
    """A tube with haustra, stool with bubbles, and gas in front. All walls first, so that no wall crosses the lumen."""
    pieces = []
    for i, (a, b) in enumerate(pairwise(_COLON)):
        radius = (19.0, 22.0, 20.0)[i % 3] if i < 9 else 15.0
        part = canvas.crop(box_around([a, b], 30))
        if part is None:
            continue
        line = np.subtract(b, a)
        along = sum(q * np.float32(d) for q, d in zip(part.p, line / np.linalg.norm(line), strict=True))
        tube = capsule(part.p, a, b, radius, radius) + f32(2.2 * np.sin(along * np.float32(2 * np.pi / 31)))
        tube = smooth_max(tube, part.fields["cavity"] + 2, 6)
        tube = smooth_max(tube, part.fields["dome"] + 4, 6)
        level = max(a[1], b[1]) + patient.colon_levels[i]
        pieces.append((part, tube, level))
        part.paint(tube - np.float32(2), patient.hu["fat"], 0)
    for part, tube, _ in pieces:
        part.paint(tube, patient.hu["muscle"], LABELS["colon"])
    for part, tube, level in pieces:
        grain = waves(part.p, patient.texture, 10)
        stool = f32(patient.hu["stool"] + 28 * grain - 420 * np.clip((grain - 1.2) * 1.5, 0, 1))
        part.paint(tube + np.float32(2.4), _fluid_level(part, stool, level))


def _paint_stomach(canvas: Canvas, patient: Patient) -> None:
    """Fundus under the left dome, body, and antrum across the midline; fluid, and a bubble in front of it."""
    part = canvas.crop(((-125, -60, -50), (45, 110, 90)))
    if part is None:
        return
    sac = ellipsoid(part.p, (-72, -4, 40), (38, 42, 36))
    sac = smooth_min(sac, capsule(part.p, (-70, 18, 28), (-50, 56, -4), 30, 24), 14)
    sac = smooth_min(sac, capsule(part.p, (-50, 56, -4), (8, 52, -18), 22, 14), 12)
    sac = smooth_max(sac, part.fields["cavity"] + 3, 8)
    sac = smooth_max(sac, part.fields["dome"] + 5, 8)
    sac = smooth_max(sac, f32(2.0 - liver_distance(part, patient)), 6)
    part.paint(sac - np.float32(2), patient.hu["fat"], 0)
    part.paint(sac, patient.hu["bowel wall"], LABELS["stomach"])
    folds = 1.6 * waves(part.p, patient.texture, 8)
    inside = f32(sac + 5.0 + folds)
    part.paint(inside, _fluid_level(part, f32(patient.hu["fluid"] + 6 * folds), patient.stomach_level))


def _paint_pancreas(canvas: Canvas, patient: Patient) -> None:
    """Head beside the cava, body over the aorta, tail to the spleen; duodenum round the head; splenic vein behind."""
    hu = patient.hu
    line: list[Rod] = [
        ((30, 14, -22), (14, 24, -8), 14.0, 10.0),
        ((14, 24, -8), (-22, 22, 6), 9.5, 10.0),
        ((-22, 22, 6), (-62, -14, 20), 10.0, 8.0),
        ((-62, -14, 20), (-84, -30, 24), 8.0, 6.5),
    ]
    for a, b, ra, rb in line:
        part = canvas.crop(box_around([a, b], 18))
        if part is None:
            continue
        lobes = 1.5 * waves(part.p, patient.texture, 10)
        part.paint(f32(capsule(part.p, a, b, ra, rb) + lobes), f32(hu["pancreas"] + 6 * lobes), LABELS["pancreas"])
    duodenum: tuple[Rod, ...] = (((52, 24, -10), (54, 10, -48), 11, 11), ((54, 10, -48), (5, 2, -58), 11, 10))
    _paint_rods(canvas, duodenum, hu["bowel wall"])
    _paint_rods(canvas, tuple((a, b, ra - 3, rb - 3) for a, b, ra, rb in duodenum), hu["fluid"] + 10)
    splenic: tuple[Rod, ...] = (((14, 10, -2), (-30, 6, 10), 4.5, 4.0), ((-30, 6, 10), (-88, -32, 26), 4.0, 3.2))
    _paint_rods(canvas, splenic, hu["vein"])


def _paint_spleen(canvas: Canvas, patient: Patient) -> None:
    """A crescent between the left kidney, the stomach and the posterior wall."""
    part = canvas.crop(((-160, -110, -50), (-40, 70, 95)))
    if part is None:
        return
    body = ellipsoid(part.p, (-116, -34, 24), (40, 58, 56), 0.25)
    body = smooth_max(body, part.fields["cavity"] + 2.5, 6)
    body = smooth_max(body, part.fields["dome"] + 4, 8)
    body = smooth_max(body, -ellipsoid(part.p, (-70, 0, 30), (38, 42, 75)), 8)
    body = smooth_max(body, 7 - ellipsoid(part.p, (-68, -44, -10), (27, 27, 52)), 8)
    grain = waves(part.p, patient.texture, 8)
    part.paint(body - np.float32(2), patient.hu["fat"], 0)
    part.paint(body, f32(patient.hu["spleen"] + 2 * grain), LABELS["spleen"])


KIDNEYS: dict[str, tuple[Point, Point]] = {
    "left kidney": ((-68, -44, -10), (27, 30, 52)),
    "right kidney": ((66, -46, -32), (26, 30, 52)),
}
"""Centre and radii: the left one lies higher."""


def _paint_kidney(canvas: Canvas, patient: Patient, name: str) -> None:
    """Perirenal fat, cortex, darker pyramids, and a sinus of fat and urine that opens towards the middle and front."""
    hu = patient.hu
    centre, radii = KIDNEYS[name]
    side = 1.0 if centre[0] > 0 else -1.0
    part = canvas.crop(box_around([centre], max(radii) + 16))
    if part is None:
        return
    turn = patient.kidney_turn[0 if side > 0 else 1]
    bean = ellipsoid(part.p, centre, radii, turn)
    fat = smooth_max(f32(bean - 11), part.fields["cavity"] + 1, 5)
    fat = f32(np.maximum(fat, part.fields["dome"] + 4))
    part.paint(fat, hu["fat"], 0)
    cx, cy, cz = centre
    hilum = ellipsoid(part.p, (cx - side * 22, cy + 14, cz), (24, 13, 24), -side * 0.55)
    bean = smooth_max(bean, -hilum, 7)
    bean = smooth_max(bean, part.fields["cavity"] + 3, 5)
    part.paint(bean, hu["cortex"], LABELS[name])
    rays = waves(part.p, patient.texture, 6)
    pyramids = f32(np.maximum(bean + 7 + 2 * rays, 3 - hilum))
    part.paint(pyramids, hu["medulla"])
    pelvis = ellipsoid(part.p, (cx - side * 10, cy + 7, cz), (11, 7, 17), -side * 0.55)
    part.paint(f32(np.maximum(pelvis - 3, bean + 8)), hu["fat"] + 30)
    part.paint(f32(pelvis + 1), 12)
    stalk: tuple[Rod, ...] = (((cx - side * 16, cy + 12, cz), (side * 14.0, -14.0, cz + 6), 4.5, 5.5),)
    _paint_rods(canvas, stalk, hu["vein"])


def _paint_great_vessels(canvas: Canvas, patient: Patient) -> None:
    """Aorta in front of the spine on the left with its branches, cava on the right, portal and mesenteric veins."""
    hu = patient.hu
    heights = np.arange(-190.0, 331.0, 40.0)
    for name, x, gap, radius, tone, top in (
        ("aorta", -9.0, 26.0, 9.5, hu["aorta"], 330.0),
        ("inferior vena cava", 24.0, 25.0, 10.5, hu["vein"] - 8, 95.0),
    ):
        for low, high in pairwise(heights):
            if low >= top:
                continue
            end = min(float(high), top)
            ys = [float(spine_y(z)) + gap for z in (low, end)]
            xs = [x * (1 + 0.25 * float(np.clip(-z / 150, -0.4, 1)) * (1 if x > 0 else -0.6)) for z in (low, end)]
            a, b = (xs[0], ys[0], float(low)), (xs[1], ys[1], end)
            part = canvas.crop(box_around([a, b], radius))
            if part:
                part.paint(capsule(part.p, a, b, radius, radius), tone, LABELS[name])
    branches: tuple[Rod, ...] = (
        ((-9, -18, 22), (-6, 2, 20), 4.0, 3.5),
        ((-9, -18, 4), (-4, 4, -14), 4.0, 3.5),
        ((-4, 4, -14), (0, 14, -100), 3.5, 2.5),
    )
    _paint_rods(canvas, branches, hu["aorta"])
    portal: tuple[Rod, ...] = (((10, 12, -90), (14, 10, -4), 4.5, 6.0), ((14, 10, -4), (30, 8, 12), 6.5, 6.5))
    gullet: tuple[Rod, ...] = (((-10, -6, 70), (-12, -12, 230), 7, 7),)
    _paint_rods(canvas, portal, hu["vein"])
    _paint_rods(canvas, gullet, 50)
