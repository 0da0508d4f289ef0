"""A picture as text."""


class Picture(str):
    """An SVG: text to write to a file, and a picture where a notebook shows it.

    >>> Picture("<svg/>")
    <picture, 6 characters of SVG>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<picture, {len(self):,} characters of SVG>"

    def _repr_svg_(self) -> str:
        return str(self)
