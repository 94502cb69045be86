"""The body wall and what is in it: table, skin, fat, muscle, bone; and above the diaphragm, lungs and heart."""

import numpy as np

from polycl.phantom.canvas import Canvas, box_around
from polycl.phantom.labels import LABELS
from polycl.phantom.patient import Patient
from polycl.phantom.shapes import (
    Array,
    Points,
    capsule,
    ellipsoid,
    f32,
    smooth_max,
    smooth_min,
    superellipse,
    waves,
)

LENGTH = 330.0
"""Half the phantom's height, mm: beyond it there is only air."""

_CHAMBERS = (
    ((-50.0, 24.0, 108.0), (34.0, 17.0, 32.0), 0.6),
    ((-24.0, 58.0, 104.0), (36.0, 15.0, 34.0), 0.45),
    ((14.0, 26.0, 118.0), (17.0, 24.0, 30.0), 0.0),
)
"""Left ventricle, right ventricle, right atrium: centre, radii and turn."""


def spine_y(z: Array | float) -> Array:
    """Middle of the vertebral bodies: lordosis below, kyphosis above."""
    return f32(-47 - 0.0007 * (f32(z) + 60) ** 2)


def paint_trunk(canvas: Canvas, patient: Patient) -> None:
    """Everything but the abdominal organs, outside in. Leaves the distances to cavity and diaphragm in `fields`."""
    _paint_table(canvas, patient)
    _paint_wall(canvas, patient)
    _paint_back_muscles(canvas, patient)
    _paint_chest(canvas, patient)
    _paint_ribs(canvas, patient)
    _paint_spine(canvas, patient)


def _paint_table(canvas: Canvas, patient: Patient) -> None:
    """A curved carbon shell around foam: bright thin skins, almost air between."""
    x, y, _ = canvas.p
    top = -131 - patient.fat + x * x * np.float32(1 / 1500)
    under = -172 - patient.fat + x * x * np.float32(1 / 550)
    body = f32(np.maximum(np.maximum(y - top, under - y), np.abs(x) - 205))
    canvas.paint(body, 120)
    canvas.paint(body + np.float32(2.2), -985)


def _paint_wall(canvas: Canvas, patient: Patient) -> None:
    """Skin, subcutaneous fat, the muscles of the wall, and the fat of the cavity."""
    x, y, z = canvas.p
    hu = patient.hu
    bulge = np.exp(-(((z + 70) / 80) ** 2)) * np.float32(patient.belly)
    narrow = 1 - np.float32(0.05) * np.exp(-(((z + 45) / 45) ** 2)) - np.float32(0.3) * np.clip((z - 110) / 220, 0, 1)
    front = np.where(y > 12, 94 + 9 * bulge, np.float32(98))
    cavity = superellipse(x, y - 12, f32(149 * narrow), f32(front), 2.35)
    back = np.clip(-(y - 12) / 60, 0, 1) / (1 + (x / 84) ** 4)
    # The ring of muscle: thick over the flanks, thin at the linea alba, and deep beside the spine.
    muscle = f32(13 - 4 * np.exp(-((x / 22) ** 2)) * (y > 12) + 21 * back)
    low = np.clip((20 - z) / 90, 0, 1)
    fat = f32(patient.fat * (0.7 + 0.3 * low) * (1 + 0.45 * back - 0.25 * (np.abs(x) / 140)) + 4 * bulge)
    groove = 9 * np.exp(-((x / 16) ** 2)) * (y < -40)
    ends = f32(np.abs(z) - LENGTH)
    skin = f32(np.maximum(cavity - muscle - fat + groove, ends))
    canvas.paint(skin, 5)
    canvas.paint(skin + np.float32(2.2), hu["fat"])
    wall = f32(np.maximum(cavity - muscle, ends + 20))
    canvas.paint(wall, hu["muscle"] + 5 * waves(canvas.p, patient.texture, 6))
    # Between the flat muscles of the flank lie two sheets of fat.
    flank = (np.abs(x) > 70) & (z < 15) & (y > -55)
    for depth in (-4.0, -8.0):
        sheet = np.where(flank, np.abs(cavity + np.float32(depth)) - np.float32(0.6), np.float32(9))
        canvas.paint(f32(sheet), hu["fat"])
    alba = f32(np.maximum(np.maximum(np.abs(x) - 3.0, np.abs(cavity - 4.5) - 3.0), 40 - y))
    canvas.paint(alba, hu["fat"] + 40)
    block = superellipse(x, y - spine_y(z) + 32, 34.0, 36.0, 2.2)
    cavity = smooth_max(cavity, f32(-block), 16)
    cavity = f32(np.maximum(cavity, ends + 30))
    canvas.paint(cavity, hu["fat"])
    canvas.fields |= {"skin": skin, "wall": wall, "cavity": cavity, "dome": diaphragm(canvas.p, patient)}


def diaphragm(p: Points, patient: Patient) -> Array:
    """Distance above the diaphragm: two domes, the right one higher, steep behind and shallow in front."""
    x, y, z = p
    right, left, shift = patient.dome
    sheets = []
    for peak, centre, side, depth in ((right, 82.0, 1, 112.0), (left, -80.0, -1, 108.0)):
        out = (x - np.float32(centre)) * side
        u = out / np.where(out > 0, np.float32(78), np.float32(160))
        dy = y - np.float32(8 + shift)
        v = dy / np.where(dy > 0, np.float32(150), np.float32(98))
        rho = np.sqrt(u * u + v * v)
        fall = np.clip(rho, 0, 1.4) ** np.float32(2.4)
        slope = depth * 2.4 / 90 * np.clip(rho, 0, 1.4) ** np.float32(1.4)
        sheets.append(f32((z - peak + depth * fall) / np.sqrt(1 + slope * slope)))
    return smooth_min(sheets[0], sheets[1], 14)


def _paint_back_muscles(canvas: Canvas, patient: Patient) -> None:
    """Erector spinae with fat between, quadratus lumborum, psoas."""
    hu = patient.hu
    x, y, z = canvas.p
    yc = spine_y(z)
    seam = f32(np.maximum(np.abs(np.abs(x) - 36 - 0.25 * (y + 90)) - 1.0, np.maximum(y - yc + 34, -y - 118)))
    canvas.paint(f32(np.maximum(seam, canvas.fields["wall"] + 2)), hu["fat"] + 60)
    for side, bend in ((1, 0.0), (-1, 2.0)):
        rods = [
            ((side * 27.0, -48.0, 0.0), (side * 37.0, -44 + bend, -70.0), 7.0, 18.0),
            ((side * 37.0, -44 + bend, -70.0), (side * 54.0, -36.0, -170.0), 18.0, 26.0),
            ((side * 66.0, -70.0, -20.0), (side * 76.0, -66.0, -150.0), 9.0, 15.0),
        ]
        for a, b, ra, rb in rods:
            part = canvas.crop(box_around([a, b], max(ra, rb)))
            if part:
                part.paint(f32(capsule(part.p, a, b, ra, rb)), hu["muscle"])


def _paint_chest(canvas: Canvas, patient: Patient) -> None:
    """Lungs with their vessels, the diaphragm's muscle, heart and mediastinal fat."""
    part = canvas.crop(((-150, -120, -60), (150, 130, LENGTH)))
    if part is None:
        return
    hu, (x, y, _) = patient.hu, part.p
    cavity, dome = part.fields["cavity"], part.fields["dome"]
    sheet = f32(np.maximum(cavity, np.abs(dome + 1) - 1.6))
    part.paint(sheet, hu["muscle"])
    heart = ellipsoid(part.p, (-30, 38, 106), (64, 46, 46), 0.35)
    middle = superellipse(x + 6, y - 12, f32(22 + 16 * np.clip((y - 20) / 60, 0, 1)), 90.0, 2.5)
    lung = f32(np.maximum(cavity + 1.5, 2 - dome))
    lung = smooth_max(lung, f32(4 - heart), 6)
    lung = smooth_max(lung, f32(-middle), 8)
    grain = waves(part.p, patient.texture, 8)
    part.paint(lung, hu["lung"] + 18 * grain, LABELS["lungs"])
    heart = f32(np.maximum(heart, 4 - dome))
    part.paint(heart, hu["heart"] - 28)
    for centre, radii, turn in _CHAMBERS:
        part.paint(f32(np.maximum(ellipsoid(part.p, centre, radii, turn), heart + 4)), hu["heart"] + 22)
    part.fields["lung"] = lung
    for a, b, ra, rb in patient.lung_vessels:
        piece = part.crop(box_around([a, b], ra))
        if piece:
            piece.paint(f32(np.maximum(capsule(piece.p, a, b, ra, rb), piece.fields["lung"])), 45)


def _paint_ribs(canvas: Canvas, patient: Patient) -> None:
    """All ribs at once: the distance to the nearest of a stack of slanting hoops in the wall."""
    part = canvas.crop(((-175, -140, -75), (175, 140, LENGTH)))
    if part is None:
        return
    hu, (x, y, z) = patient.hu, part.p
    pitch = np.float32(27)
    # Angle from the spine (0) round the side (pi/2) to the sternum (pi); a rib falls 75 mm on its way.
    angle = np.abs(np.arctan2(np.abs(x), -(y - 10)))
    height = z + 115 * (1 - np.cos(np.clip(angle, 0, 2.2))) / 1.6 - np.float32(patient.rib_phase) + np.sign(x) * 3
    number = np.round(height / pitch)
    along = (height - number * pitch) / np.float32(1.35)
    # Ribs grow longer upwards: number 0 at the level of L1 is a stub at the back.
    reach = np.clip(0.85 + 0.42 * number, 0, 2.15)
    depth = part.fields["cavity"] - np.where(y < -40, np.float32(5.5), np.float32(5))
    section = np.sqrt((depth / np.float32(3.6)) ** 2 + (along / np.float32(5.4)) ** 2)
    bone = f32((section - 1) * 3.6)
    bone = f32(np.maximum(bone, np.maximum((angle - reach) * 90, (0.3 - angle) * 90)))
    bone = f32(np.maximum(bone, np.where(number < 0, np.float32(9), np.float32(-9))))
    gristle = f32(np.maximum((section - 1) * 3.6, np.maximum((reach - angle) * 90, (angle - reach - 0.75) * 90)))
    gristle = f32(np.maximum(gristle, np.where(number < 3, np.float32(9), np.float32(-9))))
    part.paint(gristle, 110)
    core = np.clip(0.5 + (-bone - 2.0) / 1.0, 0, 1)
    part.paint(bone, f32(hu["cortical"] * 0.8 - 300 * core))
    sternum = f32(
        np.maximum(np.maximum(np.abs(x + 1) - 16, np.abs(part.fields["cavity"] - 5) - 4.5), np.maximum(95 - z, 40 - y))
    )
    part.paint(sternum, hu["cancellous"])


def _paint_spine(canvas: Canvas, patient: Patient) -> None:
    """Vertebrae every 34 mm with discs between; the canal, pedicles, laminae and processes."""
    part = canvas.crop(((-55, -150, -LENGTH + 25), (55, -10, LENGTH - 25)))
    if part is None:
        return
    hu, (x, y, z) = patient.hu, part.p
    period = np.float32(34)
    turn = (z + np.float32(patient.spine_phase)) / period
    t = (turn - np.round(turn)) * period
    dy = y - spine_y(z)
    flare = 2.5 * (np.abs(t) / 14) ** 3
    body = superellipse(x, f32(dy), f32(21.5 + flare), f32(15.5 + 0.6 * flare), 2.4)
    disc = f32(np.maximum(body + 0.5, 12.5 - np.abs(t)))
    canal = superellipse(x, f32(dy + 25), 11.5, 9.0, 2.0)
    arch = f32(np.maximum(superellipse(x, f32(dy + 26), 17.0, 15.5, 2.3), np.abs(t + 3) - 10))
    roots = f32(np.maximum(np.maximum(np.abs(np.abs(x) - 13.5) - 4, np.abs(dy + 18) - 8), np.abs(t - 4) - 6))
    wing = f32(np.maximum(np.sqrt((dy + 27) ** 2 + (t - 3) ** 2) - 4.5, np.abs(x) - 39))
    spine = f32(
        np.maximum(
            np.maximum(np.abs(x - 0.5) - 3.2, np.maximum(-dy - 66, dy + 38)), np.abs(t + 6 - 0.1 * (dy + 50)) - 9
        )
    )
    bone = f32(np.maximum(body, np.abs(t) - 12.5))
    bone = f32(np.minimum(np.minimum(bone, arch), np.minimum(np.minimum(roots, wing), spine)))
    bone = f32(np.maximum(bone, 1.0 - canal))
    part.paint(f32(np.maximum(canal - 2, np.abs(dy + 25) - 14)), hu["fat"] + 50)
    part.paint(disc, hu["disc"])
    core = np.clip(0.5 + (-bone - 2.4) / 1.4, 0, 1)
    grain = waves(part.p, patient.texture, 6)
    part.paint(bone, f32(hu["cortical"] + (hu["cancellous"] + 14 * grain - hu["cortical"]) * core), LABELS["vertebrae"])
    part.paint(superellipse(x, f32(dy + 25), 7.5, 6.0, 2.0), 38)
