"""Sphinx extension: formulas become MathML at build time, set in a font that the site carries.

So no script runs in the reader's browser and nothing is fetched from elsewhere.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from fontTools import subset
from latex2mathml.converter import convert

# Letters and marks, Greek, arrows, operators, brackets, mathematical alphabets.
_RANGES = (
    *((0x20, 0x17F), (0x2C6, 0x3FF), (0x2010, 0x22FF), (0x2308, 0x230B), (0x27E6, 0x27EB)),
    *((0x2A00, 0x2AFF), (0x1D400, 0x1D503), (0x1D538, 0x1D56B), (0x1D6A4, 0x1D7CB)),
)
# What browsers space or stretch badly: slashes, bars, infinity, tildes, negative space.
_SPACING = {
    "<mo>(&#x000(2F|7C);|&#x02016;)": r'<mo stretchy="false" lspace="0" rspace="0">\1',
    '<mo stretchy="true">&#x000AF;': '<mo stretchy="true">&#x0203E;',
    "<mo>(&#x0221E;)</mo>": r"<mi>\1</mi>",
    r"<mover>(<mi>[^<]*</mi><mo [^>]*>&#x0007E;)": r'<mover accent="true">\1',
    r'<mspace width="negative\w+" />': "",
}


def render(tex, display):
    """MathML of a formula.

    Parameters
    ----------
    tex : str
        LaTeX without delimiters.
    display : str
        "inline" or "block".

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If a command is not known: it would be shown as it stands.
    """
    # The delimiter of \Big\{ is left as it is; alone latex2mathml knows every delimiter.
    found = re.sub(r">(\\[^<]+)</mo>", _delimiter, convert(tex, display=display))
    for pattern, better in _SPACING.items():
        found = re.sub(pattern, better, found)
    if "\\" in found:
        raise ValueError(f"formula {tex!r} holds a command that latex2mathml does not know")
    return found


def _delimiter(match):
    symbol = re.search(r">[^<]+</mo>", convert(match[1]))
    return symbol[0] if symbol else match[0]


def _inline(translator, node):
    translator.body.append(render(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator, node):
    formula = render(node.astext(), "block")
    translator.body.append(f'<div class="math-block" tabindex="0">{formula}</div>\n')
    raise nodes.SkipNode


def _write_font(app, error):
    """Put the part of STIX Two Math (SIL Open Font License) that formulas use beside the pages."""
    if error:
        return
    package = Path(find_spec("ziamath").origin).parent  # comes with the font; not imported
    source = package / "fonts" / "STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls", "flac"])
    font = subset.load_font(str(source), options)
    shrunk = subset.Subsetter(options)
    shrunk.populate(unicodes={code for first, last in _RANGES for code in range(first, last + 1)})
    shrunk.subset(font)
    subset.save_font(font, str(Path(app.outdir) / "_static" / "math.woff"), options)


def setup(app):
    """Register the renderer; `html_math_renderer = "mathml"` selects it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("build-finished", _write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
