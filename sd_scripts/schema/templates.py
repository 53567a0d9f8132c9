"""Sentences for pictures without captions of their own: those that the authors of Textual Inversion published.

`{}` stands for the new word. Their order is kept, since training draws them by number.
"""

# One line a way of showing the thing: what is drawn is "<line> {}".
_OBJECT_LINES = """
a photo of a
a rendering of a
a cropped photo of the
the photo of a
a photo of a clean
a photo of a dirty
a dark photo of the
a photo of my
a photo of the cool
a close-up photo of a
a bright photo of the
a cropped photo of a
a photo of the
a good photo of the
a photo of one
a close-up photo of the
a rendition of the
a photo of the clean
a rendition of a
a photo of a nice
a good photo of a
a photo of the nice
a photo of the small
a photo of the weird
a photo of the large
a photo of a cool
a photo of a small
"""

# What is drawn is "<line> in the style of {}".
_STYLE_LINES = """
a painting
a rendering
a cropped painting
the painting
a clean painting
a dirty painting
a dark painting
a picture
a cool painting
a close-up painting
a bright painting
a cropped painting
a good painting
a close-up painting
a rendition
a nice painting
a small painting
a weird painting
a large painting
"""

OBJECT = tuple(f"{line} {{}}" for line in _OBJECT_LINES.strip().splitlines())
STYLE = tuple(f"{line} in the style of {{}}" for line in _STYLE_LINES.strip().splitlines())


def filled(templates: tuple[str, ...], words: str) -> tuple[str, ...]:
    """The sentences with `words` in their places."""
    return tuple(template.format(words) for template in templates)
