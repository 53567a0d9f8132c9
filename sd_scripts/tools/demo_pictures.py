"""Ten small pictures of one subject, drawn here: a lighthouse by day and night, near and far, with captions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
SUBJECT = "sketchlight lighthouse"
_FINE = 4  # drawn this many times larger, then reduced, so that edges are smooth


@dataclass(frozen=True)
class Scene:
    """One picture: its colours, where the tower stands, and the words for it.

    Attributes:
        words: what follows the subject in the caption.
        top: colour of the sky above; bottom: at the horizon; sea: of the water; stripe: of the tower's bands.
        place: horizontal position of the tower, 0 (left) to 1 (right).
        reach: height of the tower as a part of the picture's height.
        extra: what else is drawn: "sun", "moon", "stars", "beam", "clouds", "snow", "rain", "boat".
        size: width and height in pixels.
    """

    words: str
    top: Colour
    bottom: Colour
    sea: Colour
    stripe: Colour
    place: float
    reach: float
    extra: tuple[str, ...]
    size: tuple[int, int]


RED, BLUE, BLACK, GREEN = (198, 52, 44), (44, 84, 170), (44, 44, 52), (40, 120, 84)
SCENES = (
    Scene(
        "on a sunny day, blue sky", (86, 160, 226), (196, 226, 244), (38, 104, 164), RED, 0.5, 0.6, ("sun",), (128, 128)
    ),
    Scene(
        "at night with a bright beam, stars",
        (10, 14, 44),
        (34, 42, 92),
        (12, 26, 58),
        RED,
        0.35,
        0.62,
        ("stars", "beam"),
        (160, 128),
    ),
    Scene(
        "at sunset, orange sky", (118, 66, 130), (250, 156, 84), (92, 70, 112), RED, 0.62, 0.55, ("sun",), (160, 128)
    ),
    Scene(
        "in falling snow, grey sky",
        (150, 160, 174),
        (216, 222, 230),
        (92, 112, 132),
        BLUE,
        0.45,
        0.58,
        ("snow",),
        (128, 160),
    ),
    Scene(
        "in the rain, dark clouds",
        (74, 84, 98),
        (132, 142, 152),
        (50, 70, 84),
        RED,
        0.5,
        0.5,
        ("clouds", "rain"),
        (128, 128),
    ),
    Scene(
        "with black stripes and white clouds",
        (104, 176, 232),
        (210, 232, 246),
        (44, 118, 176),
        BLACK,
        0.4,
        0.64,
        ("clouds",),
        (128, 160),
    ),
    Scene(
        "far away with a small boat",
        (120, 190, 234),
        (226, 238, 244),
        (46, 122, 170),
        RED,
        0.74,
        0.36,
        ("sun", "boat"),
        (192, 128),
    ),
    Scene(
        "under the moon, calm sea",
        (20, 28, 66),
        (64, 78, 130),
        (24, 40, 82),
        BLUE,
        0.55,
        0.6,
        ("moon", "stars"),
        (128, 128),
    ),
    Scene(
        "close up with green stripes",
        (146, 200, 230),
        (222, 236, 240),
        (58, 130, 160),
        GREEN,
        0.5,
        0.85,
        ("clouds",),
        (128, 192),
    ),
    Scene(
        "at dawn, pink sky, boat",
        (156, 132, 190),
        (250, 196, 196),
        (98, 110, 156),
        RED,
        0.3,
        0.5,
        ("boat",),
        (160, 128),
    ),
)


def draw_scene(scene: Scene, seed: int) -> Image.Image:
    """The picture of a scene; `seed` places stars, flakes and clouds."""
    width, height = (side * _FINE for side in scene.size)
    chance = random.Random(seed)
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image)
    horizon = int(height * 0.72)
    for row in range(horizon):
        pen.line([(0, row), (width, row)], fill=_mix(scene.top, scene.bottom, row / horizon))
    for row in range(horizon, height):
        pen.line(
            [(0, row), (width, row)], fill=_mix(scene.sea, (8, 20, 40), 0.5 * (row - horizon) / (height - horizon))
        )
    _sky(pen, scene, chance, width, horizon)
    if "boat" in scene.extra:
        _boat(pen, width, horizon, away_from=scene.place)
    _tower(pen, scene, width, height, horizon)
    _weather(pen, scene, chance, width, height)
    return image.resize(scene.size, Image.Resampling.LANCZOS)


def _mix(first: Colour, second: Colour, part: float) -> Colour:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _sky(pen: ImageDraw.ImageDraw, scene: Scene, chance: random.Random, width: int, horizon: int) -> None:
    if "stars" in scene.extra:
        for _ in range(40):
            x, y, r = chance.randrange(width), chance.randrange(int(horizon * 0.8)), chance.choice((2, 3))
            pen.ellipse([x - r, y - r, x + r, y + r], fill=(232, 232, 210))
    if "sun" in scene.extra or "moon" in scene.extra:
        x = int(width * (0.2 if scene.place > 0.4 else 0.8))
        y, r = int(horizon * 0.3), int(min(width, horizon) * 0.11)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(255, 226, 120) if "sun" in scene.extra else (236, 236, 226))
    if "clouds" in scene.extra:
        shade = _mix(scene.bottom, (255, 255, 255), 0.5)
        for _ in range(4):
            x, y, r = chance.randrange(width), int(horizon * chance.uniform(0.1, 0.45)), int(width * 0.06)
            for shift, size in ((-1.1, 0.8), (0, 1.1), (1.1, 0.8)):
                pen.ellipse(
                    [x + shift * r - size * r, y - size * r, x + shift * r + size * r, y + size * r], fill=shade
                )


def _tower(pen: ImageDraw.ImageDraw, scene: Scene, width: int, height: int, horizon: int) -> None:
    """Rock, tapered tower with four bands, gallery, lamp, roof; and the beam where the scene has one."""
    x, foot = int(width * scene.place), int(horizon + height * 0.06)
    tall = int(height * scene.reach)
    head = foot - tall
    low, high = tall * 0.15, tall * 0.09
    pen.ellipse([x - low * 2.6, foot - tall * 0.08, x + low * 2.6, foot + tall * 0.16], fill=(84, 76, 70))
    lamp = head + tall * 0.14
    for band in range(7):
        upper, lower = lamp + (foot - lamp) * band / 7, lamp + (foot - lamp) * (band + 1) / 7
        a, b = high + (low - high) * band / 7, high + (low - high) * (band + 1) / 7
        corners = [(x - a, upper), (x + a, upper), (x + b, lower), (x - b, lower)]
        pen.polygon(corners, fill=(242, 240, 234) if band % 2 else scene.stripe)
    if "beam" in scene.extra:
        middle = head + tall * 0.09
        pen.polygon(
            [(x, middle), (width, middle - height * 0.16), (width, middle + height * 0.1)], fill=(250, 240, 160)
        )
    pen.rectangle([x - high * 1.3, lamp - tall * 0.02, x + high * 1.3, lamp + tall * 0.02], fill=(60, 60, 66))
    pen.rectangle([x - high * 0.7, head + tall * 0.05, x + high * 0.7, lamp - tall * 0.02], fill=(255, 236, 150))
    pen.polygon([(x - high, head + tall * 0.05), (x + high, head + tall * 0.05), (x, head)], fill=scene.stripe)


def _boat(pen: ImageDraw.ImageDraw, width: int, horizon: int, away_from: float) -> None:
    x, r = int(width * (0.25 if away_from > 0.5 else 0.75)), int(width * 0.06)
    y = horizon + r
    pen.polygon([(x - r, y), (x + r, y), (x + r * 0.6, y + r * 0.5), (x - r * 0.6, y + r * 0.5)], fill=(110, 62, 40))
    pen.polygon([(x, y - r * 1.8), (x, y - r * 0.1), (x + r * 0.9, y - r * 0.1)], fill=(246, 244, 238))


def _weather(pen: ImageDraw.ImageDraw, scene: Scene, chance: random.Random, width: int, height: int) -> None:
    if "snow" in scene.extra:
        for _ in range(70):
            x, y, r = chance.randrange(width), chance.randrange(height), chance.choice((4, 5, 7))
            pen.ellipse([x - r, y - r, x + r, y + r], fill=(250, 250, 252))
    if "rain" in scene.extra:
        for _ in range(60):
            x, y = chance.randrange(width), chance.randrange(height)
            pen.line([(x, y), (x - 6, y + 26)], fill=(186, 198, 210), width=3)


def write_pictures(folder: Path) -> list[Path]:
    """Draw all scenes into `folder` as PNG files with a caption file beside each; returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, scene in enumerate(SCENES, 1):
        path = folder / f"lighthouse_{number:02d}.png"
        draw_scene(scene, seed=number).save(path)
        path.with_suffix(".txt").write_text(f"a {SUBJECT} {scene.words}", encoding="utf-8")
        written.append(path)
    return written
