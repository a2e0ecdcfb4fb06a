"""How wide words are in a file, and files whose words keep that width in any viewer's font.

A chart is laid out with the widths of Helvetica, which Arial and Liberation Sans share. A viewer without these takes another
font, whose words may be a sixth wider: then titles run out of the picture and labels into each other.
"""

from __future__ import annotations

import html
import re

__all__ = ["pinned", "text_width", "wrapped"]

# Thousandths of the font size, from the metrics that Adobe published, for the characters of ASCII from the space on.
_FIRST = 32
_PLAIN = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278 584 584"
    " 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944 667 667 611 278"
    " 278 278 469 556 333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 278 556 500 722 500 500"
    " 500 334 260 334 584"
)
_BOLD = (
    "278 333 474 556 556 889 722 238 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 333 333 584 584"
    " 584 611 975 722 722 722 722 667 611 778 722 278 556 722 611 833 722 778 667 778 722 667 611 722 667 944 667 667 611 333"
    " 278 333 584 556 333 556 611 556 611 556 333 611 611 278 278 556 278 889 611 611 611 611 389 556 333 611 556 778 556 556"
    " 500 389 280 389 584"
)
_WIDTHS = {bold: [int(width) for width in table.split()] for bold, table in ((False, _PLAIN), (True, _BOLD))}
_OTHERS = {"\N{MINUS SIGN}": 584, "\N{MULTIPLICATION SIGN}": 584, "\N{PLUS-MINUS SIGN}": 549, "\N{EN DASH}": 556}
_UNKNOWN = 611


def text_width(words: str, size: float, *, bold: bool = False) -> float:
    """The width of words in Helvetica.

    Args:
        words: The words.
        size: The font's size, in pixels.
        bold: Whether they are bold.

    Returns:
        Pixels.

    Examples:
        >>> text_width("lr", 12)
        6.66
    """
    table = _WIDTHS[bold]
    total = sum(
        table[ord(c) - _FIRST] if 0 <= ord(c) - _FIRST < len(table) else _OTHERS.get(c, _UNKNOWN) for c in words
    )
    return round(total * size / 1000, 3)


def wrapped(words: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Words in lines that are not wider than a width; a word that is wider alone has a line of its own.

    Args:
        words: The words.
        width: Pixels.
        size: The font's size, in pixels.
        bold: Whether they are bold.

    Returns:
        The lines, at least one.

    Examples:
        >>> wrapped("the loss with decay", 60, 12)
        ['the loss', 'with decay']
    """
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [words]


def pinned(svg: str) -> str:
    """An SVG whose every text has the width that it was laid out with, whatever font it is shown in.

    Args:
        svg: From Vega, whose texts name their size in pixels.

    Returns:
        The same with ``textLength`` at each text of more than one character.
    """

    def pin(found: re.Match[str]) -> str:
        attributes, content = found[1], found[2]
        size = re.search(r'font-size="([\d.]+)px"', attributes)
        if size is None:
            return found[0]
        bold = re.search(r'font-weight="(bold|[6-9]00)"', attributes) is not None

        def sized(tag: str, attributes: str, words: str) -> str:
            plain = html.unescape(words)
            if len(plain.strip()) > 1:
                length = text_width(plain, float(size[1]), bold=bold)
                attributes += f' textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
            return f"<{tag}{attributes}>{words}</{tag}>"

        if "<tspan" not in content:
            return sized("text", attributes, content)
        lines = re.sub(r"<tspan([^>]*)>([^<]*)</tspan>", lambda line: sized("tspan", line[1], line[2]), content)
        return f"<text{attributes}>{lines}</text>"

    return re.sub(r"<text( [^>]*)>((?:[^<]|</?tspan[^>]*>)*)</text>", pin, svg)
