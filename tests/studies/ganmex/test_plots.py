"""Drawings of notebook 04: what they say, that intervals and colours are those given."""

from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from xaiutils.companion import figures
from xaiutils.studies.ganmex import pictures, plots

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def estimates(n=40, **columns):
    """A table over the product of columns, with uneven intervals."""
    rows = pd.DataFrame(list(product(*columns.values())), columns=list(columns))
    value = RNG.uniform(0.3, 0.9, len(rows))
    low, high = value - RNG.uniform(0.01, 0.05, len(rows)), value + RNG.uniform(0.05, 0.1)
    return rows.assign(value=value, low=low, high=high, n=n)


def texts(fig):
    """What can be read in a figure, lines joined; all of it large enough and not too wide."""
    fig.canvas.draw()
    assert fig.get_figwidth() <= figures.WIDE + 1e-6
    shown = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert min(t.get_fontsize() for t in shown) >= figures.MIN_FONT
    return [t.get_text().replace("\n", " ") for t in shown]


def bars(ax, axis):
    """Ends (low, high) of the horizontal (axis 0) or vertical (1) intervals in a panel."""
    ends = [s[:, axis] for c in ax.containers for lines in c[2] for s in lines.get_segments()]
    return {tuple(np.round(sorted(e), 6)) for e in ends if e[0] != e[1]}


def points(container):
    return dict(zip(*container[0].get_data(), strict=True))


def ends(rows):
    return {tuple(pair) for pair in rows[["low", "high"]].to_numpy().round(6)}


def test_images_of_any_size_and_a_dash_for_those_that_are_not():
    gray, colour = RNG.random((2, 1, 6, 6)), RNG.random((1, 3, 8, 8))
    rows = pictures.examples({"x": gray, "maximum distance": 1 - gray})
    rows += pictures.examples({"x": colour})
    fig = pictures.images(rows, ["0 to 6", "1 to 4", "red to blue"])
    found = texts(fig)
    assert {"0 to 6", "red to blue", "maximum distance"} <= set(found) and found.count("-") == 1
    drawn = [ax.images[0] for ax in fig.axes if ax.images]
    assert len(drawn) == 5
    np.testing.assert_array_equal(drawn[1].get_array(), 1 - gray[0, 0])
    assert drawn[1].get_clim() == (0, 1) and drawn[1].cmap(0.0)[:3] == (0, 0, 0)
    np.testing.assert_array_equal(drawn[4].get_array(), colour[0].transpose(1, 2, 0))


def test_columns_of_images_do_not_touch():
    names = ["x", "zero", "MDTS", "class mean", "adversarial", "maximum distance", "GANMEX"]
    rows = pictures.examples(
        {name: RNG.random((1, 1, 4, 4)) for name in [*names, "a", "b", "c", "d"]}
    )
    fig = pictures.images(rows, ["0 to 6"])
    fig.canvas.draw()
    boxes = [ax.texts[0].get_window_extent() for ax in fig.axes]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert max(b.y1 for b in boxes) <= fig.bbox.y1


def test_maps_are_signed_blue_for_the_source_and_grouped_by_method():
    x = RNG.random((2, 3, 5, 5))
    m = {pair: RNG.normal(size=x.shape) for pair in product(("IG", "EG"), ("zero", "MDTS"))}
    m = {pair: m[pair] for pair in sorted(m, key=lambda pair: pair[1])}  # methods not together
    fig = pictures.saliency(x, {"MDTS": 1 - x}, m, ["0 to 6", "1 to 4"])
    found = texts(fig)
    assert {"0 to 6", "1 to 4", "x"} <= set(found) and found.count("MDTS") == 3
    assert any(
        "each map on its own scale" in t and "blue speaks for the source" in t for t in found
    )
    drawn = [ax.images[0] for ax in fig.axes]
    shown = m["EG", "zero"][1].sum(0)
    row = drawn[6:]  # x, baseline, then each method's maps
    np.testing.assert_array_equal(row[1].get_array(), (1 - x[1]).transpose(1, 2, 0))
    order = list(dict.fromkeys(method for method, _ in m))
    place = 2 + 2 * order.index("EG") + [b for q, b in m if q == "EG"].index("zero")
    np.testing.assert_array_equal(row[place].get_array(), shown)
    assert row[place].get_clim() == (-np.abs(shown).max(), np.abs(shown).max())
    red, _, blue, _ = row[place].cmap(1.0)
    assert blue > red
    header = {t.get_text(): t.get_position()[0] for t in fig.texts}
    left, right = (fig.axes[2 + 2 * order.index("EG") + i].get_position() for i in (0, 1))
    assert header["EG"] == pytest.approx((left.x0 + right.x1) / 2)


def test_quality_has_a_panel_per_quantity_and_a_mark_per_problem():
    tables = {
        "digits": estimates(baseline=["MDTS", "GANMEX", "unused"], quantity=["flips", "L1"]),
        "scenes": estimates(baseline=["MDTS", "GANMEX"], quantity=["flips", "L1"], n=30),
    }
    unknown = dict(baseline="exact", quantity="L1", value=np.nan, low=np.nan, high=np.nan, n=0)
    tables["digits"] = pd.concat([tables["digits"], pd.DataFrame([unknown])])
    fig = plots.quality(tables, ["GANMEX", "MDTS", "exact"], ["L1", "flips"])
    found = texts(fig)
    assert {"digits (n = 40)", "scenes (n = 30)", "L1: mean |x - b|", "exact"} <= set(found)
    both = pd.concat(tables.values())
    both = both[(both["baseline"] != "unused") & both["value"].notna()]
    for ax, quantity in zip(fig.axes, ("L1", "flips"), strict=True):
        assert bars(ax, 0) == ends(both[both["quantity"] == quantity])
    shown = points(fig.axes[0].containers[0])
    row = tables["digits"].query("baseline == 'MDTS' and quantity == 'L1'")
    assert shown[row["value"].item()] == pytest.approx(0.9)  # second row, the first mark above it


def test_an_absent_quantity_is_named():
    table = estimates(baseline=["MDTS"], quantity=["L1"])
    with pytest.raises(ValueError, match=r"'flips' has no value.*\['L1'\]"):
        plots.quality({"digits": table}, ["MDTS"], ["flips"])


def test_matrix_writes_intervals_and_frames_the_own_filler():
    table = estimates(ranking=["random", "MDTS", "GANMEX"], filler=["GANMEX", "zero"])
    table.loc[0, ["value", "low", "high"]] = -0.001, -0.2, 0.25
    fig = plots.matrix(table, ["GANMEX", "MDTS", "random"], ["zero", "GANMEX"], what="AOPC, logits")
    (ax,) = fig.axes
    found = {t.get_text(): t.get_position() for t in ax.texts}
    assert found["0.00\n[-0.20, 0.25]"] == (1, 2) and len(found) == 6
    assert ax.images[0].get_array()[2, 1] == -0.001
    (frame,) = (p for p in ax.patches if isinstance(p, Rectangle))
    assert np.allclose(frame.get_center(), (1, 0))
    assert "AOPC, logits [95 % interval], n = 40" in texts(fig)


def test_shares_with_the_chance_of_each_panel():
    panels = ["digit differs", "scene differs"]
    keys = {"method": ["IG", "|x - b|"], "baseline": ["zero", "GANMEX"], "quantity": ["in region"]}
    table = estimates(panel=panels, **keys)
    table.loc[0, "n"] = 38
    arguments = table, keys["method"], keys["baseline"], "in region"
    fig = plots.shares(*arguments, chance={"digit differs": 0.25})
    found = texts(fig)
    assert {"digit differs (n = 38 to 40)", "scene differs (n = 40)", "GANMEX", "chance"} <= set(
        found
    )
    for ax, panel in zip(fig.axes, panels, strict=True):
        assert bars(ax, 0) == ends(table[table["panel"] == panel])
    dashed = [[line for line in ax.lines if line.get_linestyle() == "--"] for ax in fig.axes]
    assert [len(lines) for lines in dashed] == [1, 0] and set(dashed[0][0].get_xdata()) == {0.25}
    fig = plots.shares(*arguments, chance=0.5)
    assert all(any(set(line.get_xdata()) == {0.5} for line in ax.lines) for ax in fig.axes)


def test_cascade_by_number_of_random_layers():
    table = estimates(baseline=["zero", "GANMEX"], layers=[2, 0, 1], quantity=["signed", "ssim"])
    fig = plots.cascade(table, ["ssim"])
    (ax,) = fig.axes
    assert {"SSIM (n = 40)", "randomised layers", "GANMEX"} <= set(texts(fig))
    assert bars(ax, 1) == ends(table[table["quantity"] == "ssim"])
    assert [round(x) for x in ax.containers[0][0].get_xdata()] == [0, 1, 2]


def test_words_of_a_panel_of_the_cascade_stay_clear_of_the_next_panel():
    quantities = ["signed", "absolute", "within", "ssim"]
    table = estimates(baseline=["zero", "GANMEX"], layers=[0, 1, 4], quantity=quantities)
    fig = plots.cascade(table, quantities)
    fig.canvas.draw()
    spans = [ax.get_tightbbox() for ax in fig.axes]
    assert all(a.x1 < b.x0 for a, b in pairwise(spans))


def test_a_data_set_looks_the_same_in_all_figures():
    every = ["digits", "coloured digits", "colours", "scenes"]
    found = {}
    for chosen in (every, every[1:], ["scenes", "digits"]):
        tables = {name: estimates(baseline=["MDTS"], quantity=["L1"]) for name in chosen}
        for container in plots.quality(tables, ["MDTS"], ["L1"]).axes[0].containers:
            line, name = container[0], container.get_label().split(" (")[0]
            look = line.get_color(), line.get_marker(), line.get_fillstyle()
            found.setdefault(name, set()).add(look)
    assert sorted(found) == sorted(every) and all(len(looks) == 1 for looks in found.values())
    assert len(set.union(*found.values())) == 4


def test_conversion_by_pair_and_baseline():
    pairs, baselines = ["8 to 3", "9 to 1"], ["zero", "GANMEX"]
    table = estimates(pair=pairs, baseline=baselines, quantity=["converted", "drop"])
    fig = plots.conversion(table, pairs[::-1], baselines)
    assert {"n = 40 per pair", "8 to 3", "zero", "share converted to the target"} <= set(texts(fig))
    for ax, quantity in zip(fig.axes, ("drop", "converted"), strict=True):
        assert bars(ax, 1) == ends(table[table["quantity"] == quantity])
    x, y = fig.axes[0].containers[1][0].get_data()
    row = table.query("pair == '8 to 3' and baseline == 'GANMEX' and quantity == 'drop'")
    assert y[np.argmax(x)] == row["value"].item() and 1 < max(x) < 1.5


def test_grid_of_weights():
    table = estimates(
        classifier=[100.0, 10.0], similarity=[20.0, 2.0, 100.0], quantity=["L1", "transfer"]
    )
    fig = plots.grid(table)
    assert {"weight of the classifier", "L1: mean |x - b| (n = 40)", "2", "10"} <= set(texts(fig))
    row = table.query("classifier == 10 and similarity == 100 and quantity == 'L1'").iloc[0]
    ax = fig.axes[1]
    assert ax.images[0].get_array()[0, 2] == row["value"]
    words = f"{row['value']:.2f}\n[{row['low']:.2f}, {row['high']:.2f}]"
    assert {t.get_position() for t in ax.texts if t.get_text() == words} == {(2, 0)}


def test_effects_have_a_row_per_test_and_a_mark_per_rival():
    tests = ["perturbation, blur", "mask test", "region"]
    table = estimates(test=tests, rival=["zero", "MDTS", "noise"])
    colours = table[table["test"] != "region"]
    fig = plots.effects({"colours": colours, "scenes": table}, ["zero", "MDTS"])
    shown = texts(fig)
    assert {"against zero", "against MDTS", "scenes (n = 40)", *tests} <= set(shown)
    assert "against noise" not in shown
    for ax, rows in zip(fig.axes, (colours, table), strict=True):
        assert bars(ax, 0) == ends(rows[rows["rival"] != "noise"])
        assert len([line for line in ax.lines if list(line.get_xdata()) == [0, 0]]) == 1


def test_doses_stand_in_order_with_the_best_on_top():
    names = ["exact", "half", "noise"]
    table = estimates(test=["good", "blind"], baseline=[*names[::-1]])
    table[["value", "low", "high"]] *= 3
    few = table[table["test"] == "good"]
    fig = plots.doses({"colours": few, "scenes": table}, names)
    assert {"exact", "noise", "as they are", "good", "blind"} <= set(texts(fig))
    for ax, rows in zip(fig.axes, (few, table), strict=True):
        assert bars(ax, 1) == ends(rows)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]
        for container, test in zip(ax.containers, ("good", "blind"), strict=False):
            wanted = rows[rows["test"] == test].set_index("baseline")["value"][names]
            np.testing.assert_allclose(container[0].get_ydata().astype(float), wanted)


def test_choice_follows_each_network_beside_the_nearest_sample():
    rows = pd.DataFrame(
        list(product(("digits", "scenes"), ("mask", "paint"), (250, 500))),
        columns=["problem", "form", "iterations"],
    ).assign(told=False, bound=0.1)
    again = rows[(rows["problem"] == "scenes") & (rows["form"] == "mask")].assign(told=True)
    rows = pd.concat([rows, again, again.assign(bound=0.03)], ignore_index=True)
    numbers = RNG.uniform(0.1, 0.9, (3, len(rows)))
    rows = rows.assign(taken=numbers[0], distance=numbers[1], weight=numbers[2])
    rows = rows.assign(**{"mdts taken": 0.8, "mdts distance": 0.05})
    chosen = {"digits": rows.iloc[1], "scenes": rows.iloc[-1]}
    fig = plots.choice(rows, chosen, published=100.0)
    names = {"mask", "mask, critic told", "mask, critic told, bound 0.03", "paint", "chosen"}
    assert names | {"scenes", "MDTS", "authors'"} <= set(texts(fig))
    axes = np.array(fig.axes).reshape(3, 2)
    for column, problem in enumerate(("digits", "scenes")):
        part = rows[(rows["problem"] == problem) & (rows["form"] == "paint")]
        levels = (0.8, 0.05, 100.0)
        for ax, quantity, level in zip(
            axes[:, column], ("taken", "distance", "weight"), levels, strict=True
        ):
            lines = {line.get_label(): line for line in ax.get_lines()}
            assert dict(zip(*lines["paint"].get_data(), strict=True)) == dict(
                zip(part["iterations"], part[quantity], strict=True)
            )
            known = next(v for k, v in lines.items() if k in ("MDTS", "authors'"))
            assert set(known.get_ydata()) == {level}
            ((x, y),) = ax.collections[0].get_offsets()
            assert (x, y) == (chosen[problem]["iterations"], chosen[problem][quantity])


def test_sizes_against_the_number_of_training_images():
    table = estimates(
        problem=["digits", "scenes"],
        size=[300, 3000],
        baseline=["MDTS", "constrained"],
        quantity=["transfer", "L1"],
    )
    fig = plots.sizes(table, ["transfer", "L1"])
    assert {"MDTS", "constrained", "digits (n = 40)"} <= set(texts(fig))
    axes = np.array(fig.axes).reshape(2, 2)
    for r, quantity in enumerate(("transfer", "L1")):
        for c, problem in enumerate(("digits", "scenes")):
            part = table[(table["problem"] == problem) & (table["quantity"] == quantity)]
            assert bars(axes[r, c], 1) == ends(part)


def test_price_of_each_method_with_fewer_images_hollow():
    table = estimates(
        problem=["colours", "scenes"],
        method=["MDTS", "guided flow"],
        size=[300, 20000],
        quantity=["transfer", "L1"],
    )
    once = table[(table["method"] == "MDTS") & (table["size"] == 300)]
    table = pd.concat([table, once.assign(method="adversarial", size=0)], ignore_index=True)
    table["teraflop"] = RNG.uniform(1, 100, len(table))
    fig = plots.price(table, ["transfer", "L1"])
    assert {"MDTS", "guided flow", "adversarial", "hollow: 300 training images"} <= set(texts(fig))
    axes = np.array(fig.axes).reshape(2, 2)
    for r, problem in enumerate(("colours", "scenes")):
        for c, quantity in enumerate(("transfer", "L1")):
            part = table[(table["problem"] == problem) & (table["quantity"] == quantity)]
            assert bars(axes[r, c], 1) == ends(part)
            hollow = [
                found
                for found in axes[r, c].containers
                if found[0].get_fillstyle() == "none" and len(found[0].get_xdata())
            ]
            at = {float(v) for found in hollow for v in found[0].get_xdata()}
            few = part[(part["size"] == 300) & (part["method"] != "adversarial")]
            assert at >= set(few["teraflop"])
            assert not at & set(part.loc[part["size"] == 20000, "teraflop"])
