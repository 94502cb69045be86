"""What differs from one phantom patient to the next, drawn from the seed alone."""

from dataclasses import dataclass

import numpy as np

from polycl.phantom.shapes import Array, Point, f32

GAS = -920.0

Rod = tuple[Point, Point, float, float]
"""A capsule: two ends and the radius at each, mm."""


@dataclass(frozen=True)
class Patient:
    """Size, shape and HU of one patient. Lengths in anatomical mm: before `scale`, x right, y front, z head.

    The origin is on the midline, 48 mm in front of a vertebral body near L1; `position` is where the middle of the
    scanner's field lies.
    """

    seed: int
    scale: Point
    position: Point
    fat: float
    belly: float
    hu: dict[str, float]
    noise: float
    warp: tuple[Array, Array]
    dome: Point
    edge: tuple[float, float, float]
    left_lobe: float
    stomach_level: float
    kidney_turn: tuple[float, float]
    spine_phase: float
    rib_phase: float
    texture: tuple[Array, Array]
    lesions: tuple[tuple[Point, Point], ...]
    hepatic: tuple[Rod, ...]
    bowel: tuple[tuple[Rod, float], ...]
    mesentery: tuple[Rod, ...]
    lung_vessels: tuple[Rod, ...]
    colon_levels: tuple[float, ...]


def make_patient(seed: int) -> Patient:
    """The patient of this seed: the same numbers on every grid. Lengths vary by a few per cent, as in adults."""
    rng = np.random.default_rng([0x504F4C59, seed])
    size = rng.normal(1.0, 0.025)
    scale = [float(np.clip(size * rng.normal(1.0, s), 0.95, 1.08)) for s in (0.015, 0.02, 0.02)]
    noise = float(rng.uniform(12, 15))
    return Patient(
        seed=seed,
        scale=(scale[0], scale[1], scale[2]),
        position=(float(rng.uniform(-10, 10)), float(rng.uniform(-30, -18)), float(rng.uniform(-6, 6))),
        fat=float(rng.uniform(12, 24)),
        belly=float(rng.uniform(0.0, 1.0)),
        hu=_attenuation(rng),
        noise=noise,
        warp=_random_waves(rng, 18, (80, 230)),
        dome=(float(rng.normal(86, 4)), float(rng.normal(70, 4)), float(rng.normal(0, 4))),
        edge=(float(rng.normal(4, 4)), float(rng.uniform(0.60, 0.70)), float(rng.uniform(0.1, 0.25))),
        left_lobe=float(rng.uniform(-10, 12)),
        stomach_level=float(rng.uniform(45, 62)),
        kidney_turn=(float(rng.uniform(-0.75, -0.45)), float(rng.uniform(0.45, 0.75))),
        spine_phase=float(rng.uniform(-6, 6)),
        rib_phase=float(rng.uniform(-8, 8)),
        texture=_random_waves(rng, 24, (7, 22)),
        lesions=_lesions(rng),
        hepatic=_hepatic_vessels(rng),
        bowel=_bowel(rng),
        mesentery=_mesentery(rng),
        lung_vessels=_lung_vessels(rng),
        colon_levels=tuple(float(v) for v in rng.uniform(-14, 14, 24)),
    )


def _attenuation(rng: np.random.Generator) -> dict[str, float]:
    """Mean HU of each tissue in the portal-venous phase; the spread is what patients and injection times give."""
    normal = {
        "fat": (-102, 4), "muscle": (58, 4), "liver": (105, 5), "spleen": (118, 6), "cortex": (190, 12),
        "medulla": (160, 10), "aorta": (155, 8), "vein": (150, 7), "vessel": (150, 6), "pancreas": (92, 6),
        "heart": (135, 8), "bowel wall": (85, 6), "bile": (8, 4), "lung": (-855, 12), "cancellous": (175, 18),
        "cortical": (660, 40), "disc": (85, 6), "lesion": (58, 5), "fluid": (22, 6), "stool": (25, 8),
    }  # fmt: skip
    return {name: float(np.clip(rng.normal(m, s), m - 2 * s, m + 2 * s)) for name, (m, s) in normal.items()}


def _random_waves(rng: np.random.Generator, count: int, lengths: tuple[float, float]) -> tuple[Array, Array]:
    """Wave vectors [count, 3] in rad/mm in random directions, and phases [count]."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = rng.uniform(*lengths, size=(count, 1))
    return f32(direction * 2 * np.pi / length), f32(rng.uniform(0, 2 * np.pi, count))


def _lesions(rng: np.random.Generator) -> tuple[tuple[Point, Point], ...]:
    """Centre and radii of one to three lesions, apart from each other and well inside the right lobe."""
    places = [(104.0, 5.0, 8.0), (75.0, 25.0, 42.0), (108.0, -38.0, 28.0)]
    order = rng.permutation(3)[: int(rng.integers(1, 4))]
    found = []
    for rank, i in enumerate(order):
        radius = rng.uniform(13, 18) if rank == 0 else rng.uniform(6, 11)
        x, y, z = (float(c + rng.uniform(-5, 5)) for c in places[int(i)])
        r = [float(radius * rng.uniform(0.85, 1.15)) for _ in range(3)]
        found.append(((x, y, z), (r[0], r[1], r[2])))
    return tuple(found)


def _branches(rng: np.random.Generator, start: Point, ends: list[Point], radius: float, depth: int) -> list[Rod]:
    """A tree of tapering rods: each end sprouts two thinner twigs, `depth` times."""
    rods: list[Rod] = []
    for end in ends:
        rods.append((start, end, radius, radius * 0.65))
        if depth:
            step = np.subtract(end, start)
            length = float(np.linalg.norm(step))
            twigs = []
            for _ in range(2):
                turned = step / length + rng.normal(0, 0.45, 3)
                tip = np.asarray(end) + turned / np.linalg.norm(turned) * length * rng.uniform(0.55, 0.8)
                twigs.append((float(tip[0]), float(tip[1]), float(tip[2])))
            rods += _branches(rng, end, twigs, radius * 0.65, depth - 1)
    return rods


def _hepatic_vessels(rng: np.random.Generator) -> tuple[Rod, ...]:
    """Three hepatic veins from the cava near the dome, and the portal vein's branches from the porta."""
    veins = _branches(rng, (27, -22, 58), [(82, -12, 48), (52, 22, 45), (8, 28, 50)], 4.6, 2)
    portal = _branches(rng, (30, 8, 12), [(66, -2, 18), (80, 18, 2), (10, 42, 38)], 5.5, 2)
    return tuple(veins + portal)


def _bowel(rng: np.random.Generator) -> tuple[tuple[Rod, float], ...]:
    """Loops of small bowel in the middle and lower abdomen: each a short rod, and the HU of what it holds."""
    loops = []
    for _ in range(170):
        x, y, z = rng.uniform(-92, 75), rng.uniform(2, 84), rng.uniform(-185, -30)
        if (x - 62) ** 2 + (y - 40) ** 2 < 900 and z > -70:  # the gallbladder and the hepatic flexure are there
            continue
        step = rng.normal(0, 1, 3) * (20, 13, 11)
        a, b = (float(x), float(y), float(z)), (float(x + step[0]), float(max(y + step[1], 4)), float(z + step[2]))
        radius = float(rng.uniform(9, 14))
        inside = (
            -850.0
            if y > 60 and rng.random() < 0.25
            else float(rng.choice([20.0, 45.0, 70.0, 230.0], p=[0.4, 0.35, 0.2, 0.05]))
        )
        loops.append(((a, b, radius, radius * 0.95), inside))
    return tuple(loops)


def _mesentery(rng: np.random.Generator) -> tuple[Rod, ...]:
    """Vessels in the mesenteric fat, fanning out from the root."""
    rods: list[Rod] = []
    for _ in range(26):
        angle, drop, reach = rng.uniform(-1.3, 1.3), rng.uniform(-95, 5), rng.uniform(30, 60)
        start = (float(rng.normal(0, 8)), float(rng.uniform(5, 18)), float(drop + 12))
        end = (float(reach * np.sin(angle) * 1.2), float(15 + reach * np.cos(angle)), float(drop - 8))
        rods.append((start, end, 2.6, 1.3))
    return tuple(rods)


def _lung_vessels(rng: np.random.Generator) -> tuple[Rod, ...]:
    """Vessels from each hilum towards the bases."""
    rods: list[Rod] = []
    for side in (1, -1):
        hilum = (side * 45.0, 0.0, 165.0)
        ends: list[Point] = []
        for _ in range(9):
            x, y = side * rng.uniform(50, 115), rng.uniform(-75, 60)
            ends.append((float(x), float(y), float(rng.uniform(70, 130))))
        rods += _branches(rng, hilum, ends, 4.0, 1)
    return tuple(rods)
