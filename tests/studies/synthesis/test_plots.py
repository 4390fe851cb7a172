"""Drawings of notebook 05: numbers where they belong, colours that mean it, words that fit."""

from itertools import combinations, pairwise, product

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from xaiutils.companion import figures
from xaiutils.perturb import Components
from xaiutils.studies.synthesis import matrix as synthesis
from xaiutils.studies.synthesis import plots

NAMES = (
    "random", "gradient", "SmoothGrad", "SmoothGrad²", "input × gradient", "IG, zero",
    "IG, blurred image", "IG, class mean", "expected gradients", "Grad-CAM", "occlusion", "LIME",
    "DeepLIFT", "IG, GANMEX", "|x − b|",
)  # fmt: skip
DATA = ("scenes", "photographs")
COST = pd.DataFrame({"forward": [10_000] * 14, "backward": [1] * 14}, index=NAMES[:14])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def make(name, data="scenes", explainers=NAMES, seed=0, n=20, scale=0.1, **options):
    rng = np.random.default_rng(seed)
    values = rng.normal(0.5, 1, len(explainers)) + rng.normal(size=(n, len(explainers)))
    return synthesis.Test(name, data, explainers, scale * values, **options)


def many():
    """Eleven tests on three data sets, in mixed order and of several scales."""
    names = ["planted cells", "known region", "artifact share P/D", "drop of the logit when hidden"]
    tests = [
        make(
            name, data, seed=s, scale=10.0 ** (s % 3 - 1), larger_is_better=s % 3 > 0, chance=0.125
        )
        for s, (name, data) in enumerate(product(names, DATA))
    ]
    tests += [make(name, "singing", NAMES[:10], n=8, seed=9) for name in names[:3]]
    return [tests[i] for i in (0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10)]


def shown(fig):
    """Texts that can be read: large enough, within the figure, none over another."""
    fig.canvas.draw()
    assert fig.get_figwidth() <= figures.WIDE + 1e-6 and fig.get_figheight() <= 8
    axes = [axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)]
    unseen = {
        id(tick.label1)
        for axis in axes
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    found = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
    found = [t for t in found if id(t) not in unseen]
    assert min(t.get_fontsize() for t in found) >= figures.MIN_FONT
    # Annotations count their arrows in; Text's own extent is that of the words.
    boxes = [Text.get_window_extent(t) for t in found]
    page = fig.bbox
    for text, box in zip(found, boxes, strict=True):
        fits = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert fits, f"{text.get_text()!r} leaves the page"
    for (a, first), (b, second) in combinations(zip(found, boxes, strict=True), 2):
        apart = first.x1 <= second.x0 + 0.5 or second.x1 <= first.x0 + 0.5
        apart |= first.y1 <= second.y0 + 0.5 or second.y1 <= first.y0 + 0.5
        assert apart, f"{a.get_text()!r} lies on {b.get_text()!r}"
    return [t.get_text() for t in found]


def text_at(fig, words):
    (found,) = (t for t in fig.findobj(Text) if t.get_text() == words)
    return found


def cells(fig):
    """Coloured cells of a drawing in inches: (colour, words, ink) by the centre."""
    ax = fig.axes[0]
    patches = [p for p in ax.patches if isinstance(p, Rectangle)]
    found = {}
    for patch in patches:
        x, y = patch.get_center()
        (text,) = (t for t in ax.texts if np.allclose(t.get_position(), (x, y), atol=1e-3))
        box = Text.get_window_extent(text)
        edge = patch.get_window_extent()
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1
        found[round(x, 3), round(y, 3)] = patch.get_facecolor(), text.get_text(), text.get_color()
    return found


def luminance(color):
    rgb = np.array(color[:3])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
        0.2126, 0.7152, 0.0722,
    ]  # fmt: skip


def test_a_full_matrix_fits():
    tests = many()
    fig = plots.matrix(tests, synthesis.estimates(tests, draws=50), COST)
    found = shown(fig)
    assert {"scenes\nn = 20", "photographs\nn = 20", "singing\nn = 8", *NAMES} <= set(found)
    assert {"planted cells ↓\nchance .125", "known region ↑\nchance .12"} <= set(found)
    places = [text_at(fig, words).get_window_extent() for words in (
        "planted cells ↓\nchance .125", "known region ↑\nchance .12",  # scenes
        "planted cells ↑\nchance .12", "known region ↓\nchance .12",  # photographs
    )]  # fmt: skip
    middle = [text_at(fig, f"{data}\nn = 20").get_window_extent() for data in DATA]
    assert all(a.x1 < b.x0 for a, b in pairwise(places))
    assert places[0].x0 < middle[0].x0 < places[2].x0 < middle[1].x0
    assert found.count("10,000") == 14 and found.count("–") == 3 * 5 + 2
    assert any("± half the width of the 95 % interval" in words for words in found)
    assert len(cells(fig)) == 8 * 15 + 3 * 10
    for color, _, ink in cells(fig).values():
        high, low = sorted([luminance(color), 1.0 if ink == "white" else 0.0], reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4.5


def test_matrix_writes_each_number_in_its_cell_brighter_for_better():
    tests = [make("a", explainers=("IG", "LIME", "random")), make("b", explainers=("LIME", "new"))]
    tests[1] = synthesis.Test("b", "scenes", ("LIME", "new"), tests[1].values,
                              larger_is_better=False)  # fmt: skip
    table = synthesis.estimates(tests, draws=20)
    table[["value", "low", "high"]] = [
        [0.721, 0.65, 0.784], [1, 0.9, 1.2], [-0.001, -0.05, 0.05],
        [0.02, 0.011, 0.025], [0.0041, 0.002, 0.006],
    ]  # fmt: skip
    fig = plots.matrix(tests, table, COST)
    assert any("score, 95 % interval" in words for words in shown(fig))
    column = {h: text_at(fig, h).get_position()[0] for h in ("a ↑", "b ↓")}
    row = {e: text_at(fig, e).get_position()[1] for e in ("IG", "LIME", "random", "new")}
    found = cells(fig)
    expected = {
        ("a ↑", "IG"): (".72\n[.65, .78]", 0.722 / 1.001),
        ("a ↑", "LIME"): ("1.00\n[.90, 1.20]", 1.0),
        ("a ↑", "random"): (".00\n[−.05, .05]", 0.0),
        ("b ↓", "LIME"): (".0200\n[.0110, .0250]", 0.0),
        ("b ↓", "new"): (".0041\n[.0020, .0060]", 1.0),
    }
    assert len(found) == len(expected)
    for (test, explainer), (words, good) in expected.items():
        color, written, _ = found[round(column[test], 3), round(row[explainer], 3)]
        assert written == words and same_color(color, plt.get_cmap("viridis")(good))


def test_half_widths_are_half_the_interval():
    tests = many()
    table = synthesis.estimates(tests, draws=50)
    first = (table["data"] == "scenes") & (table["test"] == "planted cells")
    table.loc[first & (table["explainer"] == "LIME"), ["value", "low", "high"]] = -0.05, -0.14, 0.02
    table.loc[first & (table["explainer"] != "LIME"), ["value", "low", "high"]] = 0.4, 0.3, 0.5
    written = [words for _, words, _ in cells(plots.matrix(tests, table, COST)).values()]
    assert written.count("−.05\n±.08") == 1 and written.count(".40\n±.10") == 14


def test_equal_scores_are_neither_good_nor_bad():
    test = make("a", explainers=("IG", "LIME"))
    table = synthesis.estimates([test], draws=20).assign(value=0.3)
    colors = [color for color, *_ in cells(plots.matrix([test], table, COST)).values()]
    assert len(colors) == 2 and all(same_color(c, plt.get_cmap("viridis")(0.5)) for c in colors)


def test_agreement_of_ten_tests_fits_and_is_symmetric_about_zero():
    tests = many()[:10]
    table = synthesis.agreement(tests, draws=50)
    table.loc[0, ["value", "low", "high"]] = -0.5, -0.75, 0.25
    table.loc[1, ["value", "low", "high"]] = np.nan
    fig = plots.agreement(table)
    found = shown(fig)
    assert any("rank correlation of the explainers" in words for words in found)
    assert found.count("–\nn = 13") == 1
    written = cells(fig)
    assert len(written) == 44
    for color, words, _ in written.values():
        value = float(words.split("\n")[0].replace("−", "-"))
        assert np.allclose(color, plt.get_cmap(figures.SIGNED_CMAP)((value + 1) / 2), atol=0.03)
    for row in table[table["second"] == tests[8].label].itertuples():
        heads = [t for t in fig.axes[0].texts if t.get_text().replace("\n", " ") == row.first]
        (x,) = (t.get_position()[0] for t in heads if t.get_rotation() == 90)
        sides = [t for t in fig.axes[0].texts if t.get_text().replace("\n", " ") == row.second]
        (y,) = (t.get_position()[1] for t in sides if t.get_rotation() == 0)
        words = written[round(x, 3), round(y, 3)][1]
        assert float(words.split("\n")[0].replace("−", "-")) == pytest.approx(row.value, abs=0.0051)
        assert words.endswith(f"n = {row.n}")
    assert fig.axes[1].get_xlim() == (-1, 1)
    assert next(c for c in written.values() if c[1].startswith("−.50"))[1].split("\n")[1] in (
        "[−.75, .25]",
        "±.50",
    )


def test_agreement_of_two_tests_fits():
    table = synthesis.agreement([make("a"), make("b", seed=1)], draws=20)
    assert len(cells(plots.agreement(table))) == 1
    shown(plots.agreement(table))


def test_pairs_label_every_explainer_with_both_intervals():
    first = make("fidelity F", seed=1, chance=0.0)
    second = make("artifact share P/D", seed=2, larger_is_better=False)
    other = make("planted cells", "photographs", NAMES[1:12], seed=3, n=9)
    third = make("fidelity F", "photographs", seed=4, n=9)
    fig = plots.pairs({"scenes": (first, second), "photographs": (third, other)})
    found = shown(fig)
    assert {f"{k} {name}" for k, name in enumerate(NAMES, 1)} <= set(found)
    assert {"artifact share P/D ↓ (axis\u00a0reversed)", "fidelity F ↑", "dashed: chance"} <= set(
        found
    )
    row = synthesis.agreement([first, second]).iloc[0]
    head = fig.axes[0].get_title().split("\n")
    assert head[0] == "scenes" and head[2] == "13 explainers, n = 20"
    numbers = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    assert head[1] == "rank correlation " + numbers.replace("0.", ".").replace("-", "−")
    ax = fig.axes[0]
    assert ax.yaxis_inverted() and not ax.xaxis_inverted()
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [set(line.get_xdata()) for line in dashed] == [{0.0}]
    assert not [line for line in fig.axes[1].lines if line.get_linestyle() == "--"]
    x, y = (synthesis.estimates([t]) for t in (first, second))
    ends = [s for c in ax.containers for bars in c[2] for s in bars.get_segments()]
    across = {tuple(np.round(s[:, 0], 6)) for s in ends if s[0, 0] != s[1, 0]}
    upright = {tuple(np.round(s[:, 1], 6)) for s in ends if s[0, 1] != s[1, 1]}
    assert across == {tuple(e) for e in x[["low", "high"]].to_numpy().round(6)}
    assert upright == {tuple(e) for e in y[["low", "high"]].to_numpy().round(6)}
    points = {t.get_text(): t.xy for t in ax.texts}
    assert len(points) == 15
    for k, explainer in enumerate(NAMES, 1):
        expected = [t.set_index("explainer").loc[explainer, "value"] for t in (x, y)]
        np.testing.assert_allclose(points[str(k)], expected)
    hollow = [c[0] for c in ax.containers if same_color(c[0].get_markerfacecolor(), "white")]
    assert [len(line.get_xdata()) for line in hollow] == [2]
    assert {t.get_text() for t in fig.axes[1].texts} == {str(k) for k in range(2, 13)}


def test_numbers_of_crowded_points_do_not_overlap():
    values = np.tile(np.linspace(0.4, 0.41, 15), (5, 1))
    values[:, 0], values[:, 14] = 0.0, 1.0
    a, b = (synthesis.Test(name, "scenes", NAMES, values) for name in "ab")
    fig = plots.pairs({"scenes": (a, b), "again": (a, b), "and again": (b, a)})
    shown(fig)


def scene(side, cells, planted, chosen):
    rng = np.random.default_rng(side)
    clean = rng.uniform(0.2, 0.8, (3, side, side))
    attacked = clean + 0.03 * cells.spread(planted) * rng.choice([-1, 1], clean.shape)
    return {"clean": clean, "attacked": attacked, "planted": planted, "chosen": chosen}


def grid(side, k):
    index = np.arange(side) * k // side
    return Components(index[:, None] * k + index)


def boxes(ax, color):
    """Bounding boxes (left, right, top, bottom) and dashes of the outlines of one colour."""
    lines = [line for line in ax.lines if same_color(line.get_color(), color)]
    found = [(*line.get_data(),) for line in lines]
    ends = [(x.min(), x.max(), y.min(), y.max()) for x, y in found]
    return np.array(ends), {line.is_dashed() for line in lines}


@pytest.mark.parametrize("side", [32, 224])
def test_examples_outline_the_cells_that_were_chosen(side):
    cells, planted = grid(side, 4), np.isin(np.arange(16), [0, 5])
    chosen = {"IG": np.isin(np.arange(16), [5, 6]), "LIME": planted}
    fig = plots.examples(
        [scene(side, cells, planted, chosen)] * 2,
        ["bull mastiff → teapot", "a → b"],
        [cells] * 2,
        ["IG", "LIME"],
    )
    found = shown(fig)
    assert {"clean", "attacked", "difference\n×\u00a016", "IG", "bull mastiff →\nteapot"} <= set(
        words.replace("difference ×", "difference\n×") for words in found
    )
    assert found.count("1 of 2") == found.count("2 of 2") == 2
    tiles = fig.axes[1:6]
    size = side / 4
    place = {j: np.array([j % 4, j % 4 + 1, j // 4, j // 4 + 1]) * size - 0.5 for j in range(16)}
    blue, red = figures.OKABE_ITO[:2]
    for ax, color, expected, dashed in (
        (tiles[2], "black", [0, 5], False), (tiles[3], blue, [5], False),
        (tiles[3], red, [6], True), (tiles[4], blue, [0, 5], False),
    ):  # fmt: skip
        ends, dashes = boxes(ax, color)
        assert dashes == {dashed}
        inside = np.array([place[j] for j in expected])
        assert (ends[:, ::2] > inside[:, ::2]).all() and (ends[:, 1::2] < inside[:, 1::2]).all()
        np.testing.assert_allclose(ends, inside, atol=side / 40)
    assert not len(boxes(tiles[4], red)[0]) and not tiles[0].lines and not tiles[1].lines


def test_examples_amplify_the_difference_as_they_say():
    cells, planted = grid(32, 4), np.isin(np.arange(16), [3])
    row = scene(32, cells, planted, {"IG": planted})
    fig = plots.examples([row], ["a → b"], [cells], ["IG"])
    tiles = [ax.images[0].get_array() for ax in fig.axes[1:]]
    np.testing.assert_allclose(tiles[0], row["clean"].transpose(1, 2, 0))
    change = (row["attacked"] - row["clean"]).transpose(1, 2, 0)
    np.testing.assert_allclose(tiles[2], 0.5 + 16 * change)  # 0.5 / 0.03, rounded down
    assert tiles[2].min() == pytest.approx(0.02) and tiles[3].min() >= 0.55
    still = row | {"attacked": row["clean"]}
    assert "difference" in [
        t.replace("\n", " ") for t in shown(plots.examples([still], ["a"], [cells], ["IG"]))
    ]
