"""The liver: its outline, vessels and lesions, and the gallbladder under it."""

import numpy as np

from polycl.phantom.canvas import Canvas, box_around
from polycl.phantom.labels import LABELS
from polycl.phantom.patient import Patient
from polycl.phantom.shapes import Array, capsule, ellipsoid, f32, smooth_max, waves

_GALLBLADDER = ((52.0, 62.0, -22.0), (60.0, 34.0, -8.0), 14.0, 9.0)


def liver_distance(part: Canvas, patient: Patient) -> Array:
    """Distance to the liver: under the right dome, against the wall, above and in front of the viscera."""
    x, y, z = part.p
    level, slope, tilt = patient.edge
    liver = f32(np.maximum(part.fields["cavity"] + 1.5, part.fields["dome"] + 3))
    # The lower surface falls from the tip of the left lobe to the tip of the right one at the flank.
    dx = x - 20
    floor = level - np.where(dx > 0, slope, 0.45 * slope) * dx + tilt * y + 0.0008 * np.clip(x - 40, 0, None) ** 2
    under = f32((floor - z) / np.float32(np.sqrt(1 + slope * slope)))
    # Seen from below, the back edge runs from the right of the spine forwards to the left.
    reach = np.clip(y + 24, 0, None)
    lobe = 1 + patient.left_lobe / 100
    middle = 24 - lobe * (0.80 * reach + 0.0036 * reach * reach) + 0.12 * np.clip(-24 - y, 0, None)
    slant = np.sqrt(1 + (0.8 + 0.0072 * np.clip(reach, 0, 90)) ** 2)
    liver = smooth_max(liver, under, 10)
    liver = smooth_max(liver, f32((middle - x) / np.where(y > -24, slant, np.float32(1))), 14)
    # The right kidney, its fat and all that is behind it.
    liver = smooth_max(liver, 3 - ellipsoid(part.p, (58, -64, -32), (40, 52, 64)), 10)
    liver = smooth_max(liver, f32(11.5 - np.hypot(x - 24, y + 23)), 3)
    # The fissure between the lobes, and the porta.
    bend = x + 6 - 0.25 * (y - 55) + 2.5 * np.sin(y / 9) - 0.1 * z
    cleft = np.maximum(np.abs(bend) - 1.0 - 0.05 * np.clip(30 - z, 0, 40), np.maximum(12 - y, z - 34 - 0.1 * y))
    liver = smooth_max(liver, f32(-cleft), 3)
    liver = smooth_max(liver, -capsule(part.p, (4, 18, -12), (42, 12, 8), 14, 8), 6)
    a, b, ra, rb = _GALLBLADDER
    return smooth_max(liver, -capsule(part.p, a, b, ra, rb) + 1, 4)


def paint_liver(canvas: Canvas, patient: Patient) -> None:
    """Liver with its veins, then lesions (their own label, inside the liver), then the gallbladder."""
    part = canvas.crop(((-120, -110, -130), (150, 130, 110)))
    if part is None:
        return
    hu = patient.hu
    liver = liver_distance(part, patient)
    rim = f32(np.maximum(liver - 2, part.fields["cavity"] + 2))
    part.paint(f32(np.maximum(rim, part.fields["dome"] + 4)), hu["fat"], 0)
    grain = waves(part.p, patient.texture, 8)
    part.paint(liver, f32(hu["liver"] + 2.5 * grain), LABELS["liver"])
    part.fields["liver"] = liver
    for a, b, ra, rb in patient.hepatic:
        piece = part.crop(box_around([a, b], ra))
        if piece:
            vein = np.maximum(capsule(piece.p, a, b, ra, rb), piece.fields["liver"] + 3)
            piece.paint(f32(vein), hu["vessel"])
    for centre, radii in patient.lesions:
        piece = part.crop(box_around([centre], max(radii) + 4))
        if piece:
            ragged = 1.2 * waves(piece.p, patient.texture, 12)
            lump = f32(np.maximum(ellipsoid(piece.p, centre, radii) + ragged, piece.fields["liver"] + 2))
            piece.paint(lump - np.float32(1.5), hu["liver"] - 15)
            piece.paint(lump, hu["lesion"], LABELS["lesion"])
    a, b, ra, rb = _GALLBLADDER
    piece = canvas.crop(box_around([a, b], ra + 4))
    if piece:
        sac = f32(np.maximum(capsule(piece.p, a, b, ra, rb), piece.fields["cavity"] + 2))
        piece.paint(sac, hu["bowel wall"], LABELS["gallbladder"])
        piece.paint(sac + np.float32(1.8), hu["bile"])
