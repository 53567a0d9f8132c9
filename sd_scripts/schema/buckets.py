"""Aspect buckets: which training size a picture gets, how it is resized and where it is cropped.

Plain arithmetic, so that the page can show what the trainer will do. Sizes are (width, height) in pixels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from sd_scripts.schema.errors import DataError, UserError

Size = tuple[int, int]
LONGEST = 32_768
_MOST_KNOWN = 4096
TOLERANCE = 2
"""Pixels by which a side may differ once the other picture is scaled to the size of the picture."""


@dataclass(frozen=True)
class Bucketing:
    """How pictures of one dataset are sorted into training sizes.

    resolution: training area as (width, height); enabled: several sizes instead of the one; minimum, maximum: range of
    a bucket's side; step: every side is a multiple of it; no_upscale: never enlarge, sizes follow the pictures.
    """

    resolution: Size
    enabled: bool = False
    minimum: int = 256
    maximum: int = 1024
    step: int = 64
    no_upscale: bool = False

    def rounded_range(self) -> tuple[int, int]:
        """Range with the minimum rounded down, to one step at least, and the maximum up to a multiple of the step."""
        return max(self.step, self.minimum // self.step * self.step), -(-self.maximum // self.step) * self.step


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one picture goes: its bucket, the size it has before cropping, and by how much the shapes differ."""

    image: Size
    bucket: Size
    resized: Size
    ar_error: float

    @property
    def pixel_crop(self) -> Size:
        """Left and top of the centre crop inside the resized picture."""
        return centre_crop(self.resized, self.bucket)

    @property
    def crop_ltrb(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the whole picture fitted into the bucket (the size conditioning of SDXL)."""
        return crop_ltrb(self.bucket, self.image)


def check_bucketing(rule: Bucketing, multiple: int = 8) -> None:
    """Raises UserError where sizes do not go together; sides of buckets must be multiples of `multiple` pixels."""
    if rule.step < 8 or rule.step % 8 or (rule.enabled and rule.step % multiple):
        why = "a multiple of 8, the pixels of one latent cell"
        if rule.enabled and multiple != 8:
            why = f"a multiple of {multiple} for this family of models"
        raise UserError(f"bucket_reso_steps is {rule.step}, but must be {why}.", key="bucket_reso_steps")
    if not rule.enabled and (rule.resolution[0] % 8 or rule.resolution[1] % 8):
        width, height = rule.resolution
        raise UserError(f"resolution is {width}x{height}, but both sides must be multiples of 8.", key="resolution")
    if not rule.enabled or rule.no_upscale:
        return
    low, high = rule.rounded_range()
    if min(rule.resolution) < low:
        raise UserError(
            f"min_bucket_reso is {rule.minimum}, larger than the resolution's side of {min(rule.resolution)}.",
            key="min_bucket_reso",
            hint="Lower min_bucket_reso or raise the resolution.",
        )
    if max(rule.resolution) > high:
        raise UserError(
            f"max_bucket_reso is {rule.maximum}, smaller than the resolution's side of {max(rule.resolution)}.",
            key="max_bucket_reso",
            hint="Raise max_bucket_reso or lower the resolution.",
        )


def bucket_sizes(resolution: Size, minimum: int, maximum: int, step: int) -> list[Size]:
    """All bucket sizes of about the area of `resolution`, both orientations, ascending."""
    area = resolution[0] * resolution[1]
    side = math.isqrt(area) // step * step
    sizes = {(side, side)}
    for width in range(minimum, maximum + 1, step):
        height = min(maximum, area // width // step * step)
        if height >= minimum:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def centre_crop(resized: Size, bucket: Size) -> Size:
    """Left and top of the crop that keeps the middle."""
    return max(0, resized[0] - bucket[0]) // 2, max(0, resized[1] - bucket[1]) // 2


def crop_ltrb(bucket: Size, image: Size) -> tuple[float, float, float, float]:
    """Box of the whole picture letterboxed into the bucket; left and top are rounded down to whole pixels."""
    bucket_ar, image_ar = bucket[0] / bucket[1], image[0] / image[1]
    if bucket_ar > image_ar:
        width, height = bucket[1] * image_ar, float(bucket[1])
    else:
        width, height = float(bucket[0]), bucket[0] / image_ar
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height


def cover(image: Size, bucket: Size) -> Size:
    """Smallest size with the picture's shape that covers the bucket."""
    scale = bucket[1] / image[1] if image[0] / image[1] > bucket[0] / bucket[1] else bucket[0] / image[0]
    return int(image[0] * scale + 0.5), int(image[1] * scale + 0.5)


def same_shape(size: Size, other: Size) -> bool:
    """Whether a picture scaled to the size of another one fills it, but for rounding."""
    width, height = cover(other, size)
    return abs(width - size[0]) <= TOLERANCE and abs(height - size[1]) <= TOLERANCE


@dataclass
class Bucketer:
    """Assigns pictures to buckets; remembers answers, as data sets repeat sizes."""

    bucketing: Bucketing
    sizes: list[Size] = field(init=False)
    _known: dict[Size, Placement] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        rule = self.bucketing
        if not rule.enabled:
            self.sizes = [rule.resolution]
        elif rule.no_upscale:
            self.sizes = []
        else:
            self._refuse_endless()
            low, high = rule.rounded_range()
            self.sizes = bucket_sizes(rule.resolution, low, high, rule.step)

    def _refuse_endless(self) -> None:
        """Raise DataError for sides whose buckets would take hours to count."""
        for key, side in (("resolution", max(self.bucketing.resolution)), ("max_bucket_reso", self.bucketing.maximum)):
            if side > LONGEST:
                raise DataError(f"{key} is {side}, above {LONGEST} pixels", key=key, hint="512 to 2048 is usual.")

    def use_sizes(self, sizes: Iterable[Size]) -> None:
        """Take exactly these buckets (a metadata file that names the training resolution of every picture)."""
        self.sizes = sorted(set(sizes))
        self._known.clear()

    def select(self, width: int, height: int) -> Placement:
        """Placement of a picture of this size.

        Raises DataError where the picture is smaller than one bucket step and may not be enlarged.
        """
        size = (width, height)
        known = self._known.get(size)
        if known is None:
            known = self._place_freely(size) if self.follows_pictures else self._place_fixed(size)
            if len(self._known) < _MOST_KNOWN:
                self._known[size] = known
        return known

    def place_in(self, size: Size, bucket: Size) -> Placement:
        """Placement of a picture in a bucket that is already decided."""
        return Placement(size, bucket, cover(size, bucket), bucket[0] / bucket[1] - size[0] / size[1])

    @property
    def follows_pictures(self) -> bool:
        """Whether buckets are not fixed, but made from the pictures' own sizes (`no_upscale`)."""
        return self.bucketing.enabled and self.bucketing.no_upscale

    def _place_fixed(self, size: Size) -> Placement:
        image_ar = size[0] / size[1]
        if size in self.sizes:
            bucket = size
        else:
            bucket = min(self.sizes, key=lambda b: abs(b[0] / b[1] - image_ar))
        return self.place_in(size, bucket)

    def _place_freely(self, size: Size) -> Placement:
        rule = self.bucketing
        area = rule.resolution[0] * rule.resolution[1]
        resized = size if size[0] * size[1] <= area else self._shrink(size, area)
        bucket = (resized[0] // rule.step * rule.step, resized[1] // rule.step * rule.step)
        if not all(bucket):
            raise DataError(
                f"a picture of {size[0]}x{size[1]} pixels is smaller than one bucket step of {rule.step}",
                key="bucket_no_upscale",
                hint="Take the picture out, enlarge it, or switch off bucket_no_upscale.",
            )
        return Placement(size, bucket, resized, bucket[0] / bucket[1] - size[0] / size[1])

    def _shrink(self, size: Size, area: int) -> Size:
        """Size of the given area at most, one side a multiple of the step: the side that keeps the shape better."""
        ar = size[0] / size[1]
        width = self._round(math.sqrt(area * ar))
        height = self._round(area / math.sqrt(area * ar))
        if not width or not height:
            return int(math.sqrt(area * ar) + 0.5), int(area / math.sqrt(area * ar) + 0.5)
        other_height, other_width = self._round(width / ar), self._round(height * ar)
        error_by_width = abs(width / other_height - ar) if other_height else math.inf
        error_by_height = abs(other_width / height - ar)
        if error_by_width < error_by_height:
            return width, int(width / ar + 0.5)
        return int(height * ar + 0.5), height

    def _round(self, value: float) -> int:
        return int(value + 0.5) // self.bucketing.step * self.bucketing.step
