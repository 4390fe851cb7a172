"""What an explanation says: its cells in order, and as colours over the input."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from xaiutils import lime
from xaiutils.companion import report


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def explanation(coef, variance):
    """With independent coefficients of one variance."""
    coef = np.asarray(coef, float)
    covariance = np.eye(len(coef) + 1) * variance
    return lime.Explanation(0.0, coef, 1.0, covariance, np.ones((1, len(coef)), bool), *[None] * 2)


def test_cells_come_in_order_with_errors_and_whether_they_are_above_the_next():
    # Differences 0.5, 0.1, 0.9 with standard deviation sqrt(2 x 0.005) = 0.1.
    rows = report.ranking(explanation([0.4, 1.0, -0.6, 0.3], 0.005), 4)
    assert rows.index.tolist() == [1, 2, 3, 4]
    assert rows["cell"].tolist() == [1, 0, 3, 2]
    assert rows["coefficient"].tolist() == [1.0, 0.4, 0.3, -0.6]
    np.testing.assert_allclose(rows["stderr"], np.sqrt(0.005))
    assert rows["apart"].tolist() == [True, False, True, None]


def test_many_looks_ask_for_more():
    found = explanation([0.22, 0.0], 0.005)  # 2.2 standard deviations
    assert report.ranking(found, 1)["apart"].tolist() == [True]
    assert report.ranking(found, 1, looks=8)["apart"].tolist() == [False]
    assert report.ranking(found, 1, level=0.99)["apart"].tolist() == [False]


def test_the_row_of_the_stop_rule_says_what_the_rule_says():
    rng = np.random.default_rng(0)
    rule = lime.Stop(top_k=2, max_samples=400)
    for _ in range(20):
        found = explanation(rng.normal(size=5), 0.02)
        met = bool(rule.met(found.coef[None], found.covariance[None], 4))
        assert report.ranking(found, 2, looks=4)["apart"][2] is met


def test_fewer_cells_than_asked_for_are_all_listed():
    assert len(report.ranking(explanation([1, 2], 1), 9)) == 2
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        report.ranking(explanation([1, 2], 1), 0)


@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_cells_are_coloured_where_they_are_and_ranked(ax, origin):
    labels = np.repeat([[0, 1, 2]], 6, axis=0).repeat(4, axis=1)  # three columns
    ax.imshow(np.zeros(labels.shape), origin=origin)
    limits = ax.get_xlim(), ax.get_ylim()
    drawn = report.coloured_cells(ax, labels, np.array([0.1, -0.4, 0.2]), top=2)
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    assert drawn.get_clim() == (-0.4, 0.4) and drawn.origin == origin
    np.testing.assert_array_equal(drawn.get_array()[0], [0.1] * 4 + [-0.4] * 4 + [0.2] * 4)
    ranks = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert set(ranks) == {"1", "2"}
    assert labels[0, int(ranks["1"])] == 2 and labels[0, int(ranks["2"])] == 0


def test_the_innermost_pixel_of_a_ring_is_on_it():
    inside = np.zeros((9, 9), bool)
    inside[1:8, 1:8] = True
    inside[3:6, 3:6] = False
    assert inside[report.innermost(inside)]
    square = np.zeros((9, 9), bool)
    square[2:7, 3:8] = True
    assert report.innermost(square) == (4, 5)
