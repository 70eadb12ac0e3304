"""Figures drawn once: as SVG for the page, in its colours and its font, and as PNG to take away.

In: a function that fills a matplotlib figure. Out: a `Figure`: inline SVG for wide and narrow pages, PNG
bytes, words for those who cannot see it. The SVG refers to nothing outside itself, carries no style of its
own into the page, and its colours are the page's variables, so that it follows the light and dark scheme.

Matplotlib is imported inside the functions: it costs a second, and a terminal needs none of it.
"""

from __future__ import annotations

import io
import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockexpand.reporting.methods import NUM_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK, MUTED, GRID, PAPER = "#1c2128", "#5d6672", "#dde1e6", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#997700", "#117788", "#882255")
"""Okabe and Ito's blue, vermilion and green, and four of Paul Tol's that stay apart from them; all reach 3:1 on
white. Every series has a marker of its own besides."""
REFERENCE = "#727a84"
assert len(SERIES) == NUM_COLOURS, "as many colours as methods.py counts"

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    REFERENCE: "--reference",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
_WIDE_UNITS, _NARROW_UNITS = 960, 360
"""Width of the drawing in CSS pixels: the page's column, and a phone's (390 less its margins)."""
_LEGEND_ROW = 20
"""Height of a line of a legend, in CSS pixels."""
_LONGEST_NAME = 40
_PNG_DOTS_PER_INCH = 144
_SVG = "{http://www.w3.org/2000/svg}"
_PLACES = ("d", "x", "y", "width", "height", "transform")
"""Attributes whose numbers are rounded: a hundredth of a pixel is not seen, and is half the page's size."""
_LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A finished figure."""

    name: str
    """Its file's name, without the suffix."""
    title: str
    caption: str
    alt: str
    """What it shows, in words, with the figures that matter."""
    svg_wide: str
    svg_narrow: str
    """The same for a phone; equal to the wide one where one drawing fits both."""
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is written about a figure."""

    name: str
    title: str
    caption: str
    alt: str


Draw = Callable[["Canvas", bool], None]
"""Fills a canvas; the second argument says whether it is the narrow one."""


def make_figure(words: Words, draw: Draw, heights: tuple[float, float], *, column: float | None = None) -> Figure:
    """Draw a figure for the page and for the folder.

    Args:
        words: its name, title, caption and alternative text.
        draw: fills a canvas.
        heights: of the wide and the narrow drawing, in CSS pixels.
        column: the width of a drawing that is one and the same on both.
    """
    import matplotlib

    sizes = [(column or _WIDE_UNITS, heights[0]), (column or _NARROW_UNITS, heights[1])]
    with matplotlib.rc_context(_settings(words.name)):
        wide = _canvas(sizes[0])
        draw(wide, column is not None)
        svg_wide = _to_svg(wide, f"{words.name}-w", words.alt)
        wide.set_layout_engine("none")  # laid out once is enough; it is half of the work
        png = _to_png(wide)
        svg_narrow = svg_wide
        if column is None:
            narrow = _canvas(sizes[1])
            draw(narrow, True)
            svg_narrow = _to_svg(narrow, f"{words.name}-n", words.alt)
    return Figure(**vars(words), svg_wide=svg_wide, svg_narrow=svg_narrow, png=png)


def _settings(name: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same drawing gives the same bytes
        "text.parse_math": False,  # a `$` in a name is a `$`
        "font.size": 12,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.facecolor": "none",
        "axes.titlesize": 12.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "figure.facecolor": "none",
        "legend.frameon": False,
    }


def _canvas(size: tuple[float, float]) -> Canvas:
    from matplotlib.figure import Figure as Canvas  # without pyplot: no window, no state shared between calls

    # SVG counts 72 points to the inch, so one unit of the drawing is one CSS pixel of the page.
    return Canvas(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def _to_png(canvas: Canvas) -> bytes:
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", dpi=_PNG_DOTS_PER_INCH, facecolor="#ffffff", metadata={"Software": None})
    return stream.getvalue()


def _to_svg(canvas: Canvas, prefix: str, alt: str) -> str:
    stream = io.StringIO()
    canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(stream.getvalue())
    referred = re.findall(r"url\(#([\w.-]+)\)", stream.getvalue())
    referred += [element.attrib[_LINK].lstrip("#") for element in root.iter() if _LINK in element.attrib]
    names = {name: f"{prefix}{number}" for number, name in enumerate(dict.fromkeys(referred))}
    _clean(root, names)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": alt})
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, names: dict[str, str]) -> None:
    """Take out namespaces, metadata, style sheets and names that nothing refers to; `names` renames the others."""
    element.tag = element.tag.removeprefix(_SVG)
    for child in list(element):
        # matplotlib's style sheet is for `*`, which in a page means the page.
        if not child.tag.startswith(_SVG) or child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
            element.remove(child)
        else:
            _clean(child, names)
    attributes = element.attrib
    if _LINK in attributes:
        attributes["href"] = "#" + names[attributes.pop(_LINK).lstrip("#")]
    if "id" in attributes and (name := names.get(attributes.pop("id"))):
        attributes["id"] = name
    for name, value in attributes.items():
        if name in _PLACES:
            attributes[name] = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", " ".join(value.split()))
        if name in ("style", "clip-path"):
            attributes[name] = _in_page_terms(value, names)
    if element.tag != "text":
        element.text = None
    element.tail = None
    _share_style(element)


def _in_page_terms(value: str, names: dict[str, str]) -> str:
    """Colours as the page's variables, the page's font, the new names."""
    value = re.sub(r"url\(#([\w.-]+)\)", lambda m: f"url(#{names[m[1]]})", value)
    value = re.sub(r"#[0-9a-f]{6}", lambda m: f"var({_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], value)
    return re.sub(r"font-family: [^;]+; ?", "", value)


def _share_style(group: ET.Element) -> None:
    """The hundreds of markers of a line all look alike: their style is said once, on the group around them."""
    styles = {child.attrib.get("style") for child in group}
    if group.tag == "g" and len(group) > 1 and len(styles) == 1 and {child.tag for child in group} == {"use"}:
        group.attrib["style"] = styles.pop() or ""
        for child in group:
            del child.attrib["style"]


def colour_of(number: int) -> str:
    """The colour of a method; -1 is the references' grey."""
    return REFERENCE if number < 0 else SERIES[number]


def panels(canvas: Canvas, num_panels: int, narrow: bool, *, share_y: bool = False) -> list[Axes]:
    """Axes side by side, or one under another on the narrow canvas."""
    shape = (num_panels, 1) if narrow else (1, num_panels)
    grid = canvas.subplots(*shape, squeeze=False, sharey=share_y and not narrow)
    return list(grid.flatten())


def legend_height(labels: Sequence[str]) -> tuple[int, int]:
    """What a legend of these labels adds to the wide and the narrow drawing, in CSS pixels."""
    labels = [_legend_name(label) for label in labels]
    wide, narrow = (-(-len(labels) // _legend_columns(labels, narrow)) for narrow in (False, True))
    return _LEGEND_ROW * wide, _LEGEND_ROW * narrow


def show_legend(canvas: Canvas, axes: Axes, narrow: bool) -> None:
    """The legend above everything, in as many columns as there is room for."""
    handles, names = axes.get_legend_handles_labels()
    labels = [_legend_name(name) for name in names]
    canvas.legend(handles, labels, loc="outside upper left", ncols=_legend_columns(labels, narrow))


def _legend_columns(labels: Sequence[str], narrow: bool) -> int:
    widest = max((len(label) for label in labels), default=1)
    room = (_NARROW_UNITS if narrow else _WIDE_UNITS) // (55 + 8 * widest)
    return max(1, min(len(labels), room))


def row_name(name: str, narrow: bool) -> str:
    """A name beside a row, in lines that leave room for the row."""
    return textwrap.fill(name, 18 if narrow else 32, max_lines=2, placeholder="\u2026")


def _legend_name(name: str) -> str:
    """A name in a legend, cut where it would push the drawing off its canvas."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\u2026"
