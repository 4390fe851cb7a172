"""What drawings of several notebooks share."""

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest

from xaiutils.companion import drawing, figures


@pytest.mark.parametrize(
    ("values", "limit"), [([[1, -3], [np.nan, 2]], 3.0), ([0.5], 0.5), ([0, 0], 1.0)]
)
def test_signed_limits_are_symmetric_about_zero(values, limit):
    assert drawing.signed_limits(values) == (-limit, limit)


def test_signed_limits_need_a_number():
    with pytest.raises(ValueError, match="none is finite"):
        drawing.signed_limits([np.nan])


def test_dots_span_their_intervals():
    rows = pandas.DataFrame({"value": [0.5, 0.2], "low": [0.1, 0.15], "high": [0.6, 0.4]})
    fig, ax = plt.subplots()
    drawing.dots(ax, rows, [3, 7], style=2, label="ours")
    (bars,) = ax.containers
    line, caps, (spans,) = bars.lines
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 3], [0.2, 7]])
    np.testing.assert_allclose(spans.get_segments(), [[[0.1, 3], [0.6, 3]], [[0.15, 7], [0.4, 7]]])
    assert (line.get_color(), line.get_marker()) == (figures.OKABE_ITO[2], "^")
    assert line.get_linestyle() == "None" and len(caps) == 2
    assert ax.get_legend_handles_labels()[1] == ["ours"]
    drawing.dots(ax, rows, [3, 7], style=2, color="black", marker="")
    assert (ax.containers[1].lines[0].get_color(), ax.containers[1].lines[0].get_marker()) == (
        "black",
        "",
    )
    plt.close(fig)
