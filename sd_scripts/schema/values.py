"""Reading the few options whose text holds several values."""

from .errors import UserError


def parse_resolution(text: str) -> tuple[int, int]:
    """Width and height in pixels from "512", "512,768" or "512x768".

    Raises:
        UserError: if the text is none of these.
    """
    parts = [part.strip() for part in str(text).lower().replace("x", ",").split(",") if part.strip()]
    if len(parts) not in (1, 2) or not all(map(_is_side, parts)):
        raise UserError(
            f"resolution is {text!r}, but must be one number or width,height in pixels.",
            "resolution",
            "For instance 512 or 512,768.",
        )
    return int(parts[0]), int(parts[-1])


def _is_side(text: str) -> bool:
    # seven digits are far beyond any picture, and Python refuses to read thousands of them
    return text.isdecimal() and len(text) < 8 and int(text) > 0


def parse_face_crop_range(text: str | None) -> tuple[float, float] | None:
    """Smallest and largest enlargement from "2.0,4.0"; None if not given.

    Raises:
        UserError: if the text is not two numbers in ascending order.
    """
    if not text:
        return None
    key = "face_crop_aug_range"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{key} is {text!r}, but must be two numbers.", key, "For instance 2.0,4.0.") from error
    if not 0 < low <= high:
        raise UserError(f"{key} is {text!r}, but the first number must be above 0 and not larger than the second.", key)
    return low, high
