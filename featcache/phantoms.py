"""Synthetic chest radiographs, drawn from ellipses, arcs and noise: something to try featcache on without any data.

They resemble an X-ray only as far as a demonstration and a test need: a thorax with lungs, heart, spine, ribs and
clavicles, different for every patient, turned and exposed a little differently in every image. "abnormal" has one to
three hazy opacities in the lungs, some of them faint; where there are four classes they differ in number and size.
Nothing learnt on them says anything about patients.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

Array = np.ndarray[Any, Any]

HEIGHT, WIDTH = 384, 352
CLASSES = ("abnormal", "normal")
FOUR_CLASSES = ("diffuse", "focal", "normal", "scattered")
GROUP_PATTERN = r"(patient\d+)"
_FORMATS = ("16-bit PNG", "8-bit PNG", "JPEG")


@dataclass(frozen=True)
class Hazes:
    """The opacities of a class, each number from a range: how many, their radius in half image widths, how bright."""

    n: tuple[int, int]
    radius: tuple[float, float]
    strength: tuple[float, float]


_HAZES = {
    "abnormal": Hazes((1, 4), (0.10, 0.25), (0.10, 0.34)),
    "diffuse": Hazes((2, 4), (0.35, 0.50), (0.12, 0.24)),
    "focal": Hazes((1, 2), (0.12, 0.20), (0.24, 0.40)),
    "scattered": Hazes((6, 11), (0.04, 0.08), (0.14, 0.28)),
}


@dataclass(frozen=True)
class Anatomy:
    """One patient's proportions; lengths in half image widths, brightness from 0 (black) to 1."""

    lung_width: float
    lung_height: float
    lung_gap: float
    heart_width: float
    heart_side: float
    rib_spacing: float
    rib_slope: float
    density: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Anatomy":
        return cls(
            lung_width=rng.uniform(0.27, 0.35),
            lung_height=rng.uniform(0.52, 0.66),
            lung_gap=rng.uniform(0.40, 0.46),
            heart_width=rng.uniform(0.22, 0.36),
            heart_side=rng.uniform(0.06, 0.16),
            rib_spacing=rng.uniform(0.125, 0.155),
            rib_slope=rng.uniform(0.5, 0.9),
            density=rng.uniform(0.85, 1.15),
        )


def radiograph(patient_seed: int, image_seed: int, abnormal: bool, kind: str = "abnormal") -> Array:
    """(384, 352) float32 in 0..1. The same seeds give the same pixels. `kind` is the class whose opacities an abnormal
    one has."""
    body = Anatomy.drawn(np.random.default_rng([patient_seed, 1]))
    rng = np.random.default_rng([patient_seed, image_seed, 2])
    u, v = _coordinates(rng)
    lungs = np.maximum(*(_ellipse(u - s * body.lung_gap, v + 0.02, body.lung_width, body.lung_height) for s in (-1, 1)))
    image = 0.62 * _ellipse(u, v - 0.25, 0.95, 1.25, softness=0.05)
    image -= 0.40 * lungs
    image += 0.24 * np.exp(-((u / 0.10) ** 2)) * (1 + 0.12 * np.sin(26 * v))  # spine
    image += 0.26 * _ellipse(u - body.heart_side, v - 0.30, body.heart_width, 0.27)
    image += 0.30 / (1 + np.exp(-(v - 0.62 - 0.10 * np.cos(3 * u)) / 0.02))  # below the diaphragm
    image += 0.09 * _ribs(u, v, body) * _ellipse(u, v, 0.88, 0.85, softness=0.05)
    image += _vessels(u, v, rng) * lungs
    if abnormal:
        rng_of_hazes = np.random.default_rng([patient_seed, image_seed, 3])
        image += _opacities(u, v, body, rng_of_hazes, _HAZES[kind]) * (0.25 + 0.75 * lungs)
    image *= body.density * rng.uniform(0.90, 1.10)
    image += 0.05 * _haze(rng, 90) + 0.02 * rng.standard_normal(image.shape, dtype=np.float32)
    pixels: Array = gaussian_filter(image, 0.7)
    return pixels.clip(0.0, 1.0).astype(np.float32)


def write(
    folder: Path,
    n_patients: int = 160,
    images_per_patient: int = 3,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
) -> int:
    """Writes `folder/{train,test}/{normal,abnormal}/patientNNN-K.{png,jpg}` and returns the number of images.

    The classes, `CLASSES` or `FOUR_CLASSES`, have equally many patients; three in ten patients are in `test`. File
    formats (16-bit PNG, 8-bit PNG, JPEG) go round over the images of each class alike, so that they give nothing away.
    """

    def draw(patient: int) -> None:
        label = classes[patient % len(classes)]
        target = folder / ("test" if patient % 20 >= 14 else "train") / label
        target.mkdir(parents=True, exist_ok=True)
        for k in range(images_per_patient):
            kind = {} if label == "normal" else {"kind": label}
            pixels = radiograph(seed * 1_000_003 + patient, k, bool(kind), **kind)
            _save(target / f"patient{patient:03d}-{k}", pixels, _FORMATS[(patient // 2 + k) % 3])

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, range(n_patients)))
    return n_patients * images_per_patient


def _save(stem: Path, pixels: Array, kind: str) -> None:
    if kind == "16-bit PNG":
        deep = Image.fromarray(np.round(pixels * 65_535).astype(np.uint16))
        deep.save(stem.with_suffix(".png"), compress_level=1)
        return
    gray = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    if kind == "8-bit PNG":
        gray.save(stem.with_suffix(".png"), compress_level=1)
    else:
        gray.save(stem.with_suffix(".jpg"), quality=92)


def _coordinates(rng: np.random.Generator) -> tuple[Array, Array]:
    """u to the right and v downwards, about -1 to 1, turned, shifted and scaled a little: a patient never stands twice
    alike."""
    v, u = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (HEIGHT, WIDTH)), indexing="ij")
    angle, size = rng.uniform(-0.06, 0.06), rng.uniform(0.94, 1.06)
    u, v = u + rng.uniform(-0.05, 0.05), v + rng.uniform(-0.06, 0.06)
    across, down = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    return across * size, down * size


def _ellipse(u: Array, v: Array, a: float, b: float, softness: float = 0.035) -> Array:
    """1 inside, 0 outside, a soft edge between."""
    radius = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip((radius - 1) / softness * min(a, b), -60, 60))))


def _ribs(u: Array, v: Array, body: Anatomy) -> Array:
    """Nine arcs that fall away from the spine on both sides, and the two clavicles."""
    below_first = v + 0.72 - body.rib_slope * (np.abs(u) - 0.12) ** 2
    nearest = np.clip(np.round(below_first / body.rib_spacing), 0, 8) * body.rib_spacing
    ribs = np.exp(-(((below_first - nearest) / 0.022) ** 2))
    clavicles = np.exp(-(((v + 0.70 - 0.22 * np.abs(u)) / 0.03) ** 2)) * (np.abs(u) < 0.75)
    return np.asarray(ribs + 1.3 * clavicles)


def _vessels(u: Array, v: Array, rng: np.random.Generator) -> Array:
    """Texture that fades with the distance from the hila: what a faint opacity has to be told from."""
    distance = np.minimum(np.hypot(u - 0.2, v - 0.05), np.hypot(u + 0.2, v - 0.05))
    return np.asarray(0.10 * np.maximum(_haze(rng, 12), 0) * np.exp(-distance / 0.35))


def _opacities(u: Array, v: Array, body: Anatomy, rng: np.random.Generator, hazes: Hazes) -> Array:
    total = np.zeros_like(u)
    for _ in range(rng.integers(*hazes.n)):
        side = rng.choice((-1.0, 1.0))
        x, y = side * body.lung_gap + rng.uniform(-0.15, 0.15), rng.uniform(-0.35, 0.45)
        radius, strength = rng.uniform(*hazes.radius), rng.uniform(*hazes.strength)
        total += strength * np.exp(-(np.hypot(u - x, v - y) ** 2) / (2 * radius**2))
    return np.asarray(total * (1 + 0.35 * _haze(rng, 20)))


def _haze(rng: np.random.Generator, size: float) -> Array:
    """Smooth noise of about unit variance, from a coarse grid with `size` pixels between its points."""
    coarse = rng.standard_normal((round(HEIGHT / size) + 2, round(WIDTH / size) + 2)).astype(np.float32)
    noise = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return np.asarray(noise / noise.std())
