"""Strength of arrays, counted; how masks are drawn, and the table of columns behind them."""

import hashlib
import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from xaiutils import design_columns, design_search, designs

ROWS = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
MOST = dict(zip(ROWS, [6, 7, 9, 16, 18, 24, 34, 64, 66], strict=True))  # columns of strength 5


def draw(n, d, design, seed=0):
    return designs.draw(n, d, design, np.random.default_rng(seed))


def uneven(masks, t, subsets=None):
    """Sets of t columns, of all or of these, in which some pattern is more frequent."""
    subsets = subsets or itertools.combinations(range(masks.shape[1]), t)
    bits = 1 << np.arange(t)
    return sum(np.ptp(np.bincount(masks[:, list(s)] @ bits, minlength=2**t)) > 0 for s in subsets)


def has_strength(masks, order):
    """Whether no characters of up to `order` columns, 2 or 4, is off balance.

    Products of order / 2 signs are orthogonal then: each product of two is a character.
    """
    signs = 1 - 2 * masks.astype(np.float32)
    first, second = np.triu_indices(masks.shape[1], 1)
    products = [np.ones((len(masks), 1), np.float32), signs]
    if order == 4:
        products.append(signs[:, first] * signs[:, second])
    products = np.hstack(products)
    return np.array_equal(products.T @ products, len(masks) * np.eye(products.shape[1]))


# --- strength -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", ROWS[:5])
def test_folded_arrays_have_strength_five(n):
    for d in range(1, min(MOST[n], 16) + 1):
        assert uneven(draw(n, d, "folded", d), min(d, 5)) == 0


@pytest.mark.parametrize("n", ROWS)
def test_longest_folded_arrays_have_strength_five(n):
    # a row and its complement cancel in characters of odd order, so strength 4 is strength 5
    masks = draw(n, MOST[n], "folded")
    assert has_strength(masks, 4)
    rng = np.random.default_rng(n)
    some = [rng.choice(MOST[n], 5, replace=False) for _ in range(300)]
    assert uneven(masks, 5, some) == 0


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("more", [1, 40])
def test_longer_folded_arrays_have_strength_three(n, more):
    d = min(MOST[n] + more, n // 2)
    masks = draw(n, d, "folded")
    assert has_strength(masks, 2)  # and three by the complements
    rng = np.random.default_rng(n)
    assert uneven(masks, 3, [rng.choice(d, 3, replace=False) for _ in range(300)]) == 0
    assert designs.strength(n, d, "folded") == 3


@pytest.mark.parametrize(("n", "d"), [(32, 8), (64, 10), (128, 12), (256, 17), (512, 20)])
def test_uneven_groups_of_a_folded_array_are_those_that_sum_to_zero(n, d):
    zero_sums = design_columns.zero_sums(design_columns.vectors(n.bit_length() - 2, d))
    assert uneven(draw(n, d, "folded"), 4) == zero_sums > 0


@pytest.mark.parametrize("n", [32, 128, 512])
def test_few_columns_of_a_folded_array_hold_every_mask(n):
    d = n.bit_length() - 1
    assert len(np.unique(draw(n, d, "folded"), axis=0)) == 2**d == n


@pytest.mark.parametrize(
    ("n", "d"),
    [
        *((n // 2, MOST[n] - 1) for n in ROWS),
        *((n // 2, MOST[n] - 3) for n in ROWS),
        *[(384, 11), (768, 17), (1536, 20), (3072, 33), (6144, 40), (8192, 64)],
    ],
)
def test_orthogonal_arrays_have_strength_four(n, d):
    assert has_strength(draw(n, d, "orthogonal"), 4)
    assert designs.strength(n, d, "orthogonal") == 4


@pytest.mark.parametrize(("n", "d"), [(16, 5), (32, 6), (64, 8), (128, 11), (256, 17)])
def test_patterns_of_orthogonal_arrays_are_counted(n, d):
    assert uneven(draw(n, d, "orthogonal"), 4) == 0


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(32, 5), (96, 16), (256, 14), (640, 20), (12288, 70)])
def test_folded_masks_are_pairs_of_balanced_columns(n, d):
    masks = draw(n, d, "folded")
    assert masks.shape == (n, d) and masks.dtype == bool
    assert_array_equal(masks[1::2], ~masks[::2])
    assert (masks.sum(axis=0) == n // 2).all()
    assert_array_equal(masks, draw(n, d, "folded"))
    assert (masks != draw(n, d, "folded", seed=1)).any()


def test_stacked_arrays_are_randomised_apart():
    first, second, third = np.split(draw(96, 12, "folded"), 3)
    assert (first != second).any() and (second != third).any()
    first, second, third = np.split(draw(384, 11, "orthogonal"), 3)
    assert (first != second).any() and (second != third).any()


def test_one_large_array_is_taken_where_it_fits():
    assert has_strength(draw(512, 18, "folded"), 4)  # two of 256 rows would have strength 3
    assert designs.strength(512, 18, "folded") == 5
    assert designs.strength(768, 18, "folded") == 3


@pytest.mark.parametrize(
    ("n", "d", "design"),
    [(32, 5, "folded"), (256, 16, "folded"), (128, 15, "orthogonal"), (32, 6, "orthogonal")],
)
def test_each_row_is_uniform(n, d, design):
    rng = np.random.default_rng(3)
    rows = np.array([designs.draw(n, d, design, rng)[7, :4] for _ in range(800)])
    shares = np.bincount(rows @ [1, 2, 4, 8], minlength=16) / 800
    assert np.abs(shares - 1 / 16).max() < 0.035


def test_main_effects_of_a_folded_array_are_free_of_interactions_of_four():
    rng = np.random.default_rng(0)
    sets = [s for order in range(5) for s in itertools.combinations(range(8), order)]
    sizes = rng.normal(size=len(sets))

    def errors(masks):
        signs = 2.0 * masks - 1
        f = sum(a * signs[:, s].prod(axis=1) for a, s in zip(sizes, map(list, sets), strict=True))
        return np.abs(signs.T @ f / len(masks) - sizes[1:9]).max()

    assert errors(draw(128, 8, "folded")) < 1e-12
    assert errors(draw(64, 7, "folded").repeat([1] * 6 + [2], axis=1)) > 0.01
    assert errors(draw(128, 8, "paired")) > 0.1


def test_orthogonal_draws_of_four_to_the_m_rows_never_change():
    found = hashlib.sha256()
    for n, d in [
        (256, 1), (256, 15), (512, 11), (768, 6), (1024, 15), (1024, 16), (1024, 31), (2048, 18),
        (3072, 31), (4096, 15), (4096, 40), (4096, 63), (16384, 100),
    ]:  # fmt: skip
        rng = np.random.default_rng([n, d])
        found.update(np.packbits(designs.draw(n, d, "orthogonal", rng)))
        found.update(rng.bytes(4))  # nothing more was drawn
    expected = "3140ebe7a243f635fa73cecd12199e1a57b1ed2f90f8c2522150ef584a0a6273"
    assert found.hexdigest() == expected


@pytest.mark.parametrize(
    ("n", "d", "design", "hint"),
    [
        (0, 4, "iid", "positive, got 0 masks of 4"),
        (7, 4, "paired", "even.*6 or 8, got 7"),
        (1, 4, "paired", "such as 2, got 1"),
        (200, 15, "orthogonal", "multiple of 128.*15.*128 or 256, got 200"),
        (255, 18, "orthogonal", "multiple of 512.*18 components, such as 512, got 255"),
        (5000, 65, "orthogonal", "multiple of 4096.*65.*4096 or 8192, got 5000"),
        (4096, 66, "orthogonal", "multiple of 16384.*66.*16384, got 4096"),
        (2**20, 1024, "orthogonal", "at most 1023 components, got 1024"),
        (100, 12, "folded", "multiple of 32.*12.*96 or 128, got 100"),
        (32, 17, "folded", "multiple of 64.*17.*such as 64, got 32"),
        (8192, 4097, "folded", "at most 4096 components, got 4097"),
        (8, 4, "antithetic", "antithetic"),
    ],
)
def test_designs_name_what_they_allow(n, d, design, hint):
    for ask in (designs.draw, lambda n, d, design, rng: designs.strength(n, d, design)):
        with pytest.raises(ValueError, match=hint):
            ask(n, d, design, np.random.default_rng(0))


@pytest.mark.parametrize("m", [3, 11])
def test_orthogonal_arrays_name_their_degrees(m):
    with pytest.raises(ValueError, match=rf"4, 5, 6, 7, 8, 9, 10.*got {m}"):
        designs.orthogonal_array(m)


@pytest.mark.parametrize(("n", "d"), [(48, 4), (16384, 4), (32, 17), (64, 0)])
def test_folded_arrays_name_what_they_allow(n, d):
    with pytest.raises(ValueError, match=r"one of 32, .*, 8192, got|from 1 to"):
        designs.folded_array(n, d)


# --- columns --------------------------------------------------------------------------------------


def by_size(m):
    """Rows of the table: number of vectors, and groups of four that sum to zero, counted."""
    rows = [list(map(int, line.split())) for line in design_columns.TABLE.read_text().splitlines()]
    found = {}
    for _, *row in (row for row in rows if row[0] == m):
        assert len(set(row)) == len(row) and 0 <= min(row) <= max(row) < 2**m
        sums = [a ^ b for a, b in itertools.combinations(row, 2)]
        found[len(row)] = sum(k * (k - 1) // 2 for k in np.bincount(sums).tolist()) // 3
    return found


@pytest.mark.parametrize("m", range(4, 13))
def test_table_holds_few_groups_of_four(m):
    groups = by_size(m)
    longest = dict(zip(range(4, 13), [6, 7, 9, 12, 18, 24, 34, 43, 66], strict=True))[m]
    assert min(groups) == longest and groups.pop(longest) == 0
    assert list(groups) == list(range(longest + 1, min(64, 2 ** (m - 1)) + 1))
    for d, count in groups.items():
        assert count == design_columns.zero_sums(design_columns.vectors(m, d)) > 0
        # one by one from nothing is what the search must beat
        greedy = design_columns.Sums(m)
        greedy.extend(d)
        assert count <= design_columns.zero_sums(greedy.chosen)
        # and of a larger set some vector is in as many groups as all are on average
        if d + 1 in groups:
            assert count <= groups[d + 1] * (d - 3) // (d + 1)


@pytest.mark.parametrize("m", [4, 7, 12])
def test_vectors_begin_with_zero_and_units(m):
    assert design_columns.vectors(m, m + 1).tolist() == [0, *(1 << np.arange(m))]
    for d in (m + 3, 2 ** (m - 1), 2 ** (m - 1) + 1, 2**m - 5, 2**m):
        assert len(set(design_columns.vectors(m, d).tolist())) == d


@pytest.mark.parametrize(("m", "d"), [(3, 4), (13, 4), (4, 0), (4, 17)])
def test_vectors_name_what_they_allow(m, d):
    with pytest.raises(ValueError, match=r"m must be one of \[4, .*12\]|d must be from 1 to 16"):
        design_columns.vectors(m, d)


def test_kerdock_names_its_sizes():
    with pytest.raises(ValueError, match=r"\[3, 5\], got 4"):
        design_columns.kerdock(4)


def test_a_damaged_table_is_refused(tmp_path, monkeypatch):
    damaged = tmp_path / "columns.txt"
    damaged.write_text(design_columns.TABLE.read_text().replace("1", "2", 1))
    monkeypatch.setattr(design_columns, "TABLE", damaged)
    with pytest.raises(ValueError, match=r"columns.txt is damaged.*design_search"):
        design_columns._table.__wrapped__()


def test_search_finds_what_the_table_holds():
    lines = design_columns.TABLE.read_text().splitlines()
    found = [" ".join(map(str, [4, *row])) for row in design_search.rows(4)]
    assert found == [line for line in lines if line.startswith("4 ")]
    for m in (8, 12):
        longest = design_search.without_groups(m)
        assert longest == design_columns.vectors(m, len(longest)).tolist()
