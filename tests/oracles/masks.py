"""How masks are drawn."""

import math
from itertools import combinations

import numpy as np

from oracles.registry import oracle_of
from xaiutils import design_columns, designs

# --- masks ----------------------------------------------------------------------------------------


@oracle_of(
    designs.draw,
    lambda rng: {"n": 12, "d": 5, "rng": rng},
    [{"design": "iid"}, {"design": "paired"}, {"design": "paired", "n": 2, "d": 1}],
)
def draw(n, d, design, rng):
    """Fair coins, one after the other; in pairs a row is followed by its complement."""
    rows = []
    while len(rows) < n:
        rows.append([rng.random() < 0.5 for _ in range(d)])
        if design == "paired":
            rows.append([not on for on in rows[-1]])
    return np.array(rows)


def balance(masks, columns):
    """How often each pattern of 16 occurs in any four of the first `columns` columns."""
    bits = 1 << np.arange(4)
    chosen = combinations(range(columns), 4)
    return np.array(
        [np.bincount(masks[:, four] @ bits, minlength=16) for four in map(list, chosen)]
    )


def balanced(rows, columns):
    """Each pattern as often as any other: an orthogonal array of strength 4."""
    return np.full((math.comb(columns, 4), 16), rows / 16)


@oracle_of(
    designs.draw,
    lambda rng: {"n": 512, "d": 12, "rng": rng},
    [
        {},
        {"n": 256, "d": 15},
        {"n": 1024, "d": 16},
        {"n": 2048, "d": 18},
        {"n": 128, "d": 15},
        {"n": 512, "d": 20},
    ],
    call=lambda n, d, rng: balance(designs.draw(n, d, "orthogonal", rng), min(d, 12)),
)
def draw_orthogonal(n, d, rng):
    return balanced(n, 12)


@oracle_of(
    designs.draw,
    lambda rng: {"rngs": rng.spawn(800)},
    call=lambda rngs: shares([designs.draw(256, 4, "orthogonal", rng)[5] for rng in rngs]),
    rtol=0,
    atol=0.03,
)
def draw_uniform(rngs):
    """Any one row, here the sixth, is each of the 16 patterns with the same probability."""
    return np.full(16, 1 / 16)


def shares(rows):
    return np.bincount(rows @ (1 << np.arange(4)), minlength=16) / len(rows)


@oracle_of(
    designs.orthogonal_array,
    lambda rng: {},
    [{"m": 4}, {"m": 5}, {"m": 6}],
    call=lambda m: (balance(designs.orthogonal_array(m), 12), designs.orthogonal_array(m).shape),
)
def orthogonal_array(m):
    return balanced(4**m, 12), (4**m, 2**m - 1)


@oracle_of(
    designs.draw,
    lambda rng: {"n": 256, "d": 12, "rng": rng},
    [{}, {"n": 128, "d": 11}, {"n": 96, "d": 10}, {"n": 512, "d": 16}],
    call=lambda n, d, rng: folded_columns(designs.draw(n, d, "folded", rng)),
)
def draw_folded(n, d, rng):
    """A row and its complement in turns; each pattern of any three columns as often as another."""
    return np.ones((n // 2, d)), np.full((math.comb(d, 3), 8), n / 8)


def folded_columns(masks):
    half, complements = masks[::2].astype(int), masks[1::2].astype(int)
    return half + complements, patterns(masks, 3)


def patterns(masks, t):
    """How often each pattern occurs in any t columns."""
    chosen = combinations(range(masks.shape[1]), t)
    bits = 1 << np.arange(t)
    return np.array([np.bincount(masks[:, c] @ bits, minlength=2**t) for c in map(list, chosen)])


@oracle_of(
    designs.strength,
    lambda rng: {"n": 64, "d": 6},
    [
        {"design": "iid"},
        {"design": "paired"},
        *({"design": "orthogonal", "n": n, "d": d} for n, d in [(32, 6), (128, 15), (256, 17)]),
        *({"design": "folded", "n": n, "d": d} for n, d in [(32, 6), (32, 7), (96, 7), (64, 7)]),
        *({"design": "folded", "n": n, "d": d} for n, d in [(64, 8), (256, 16), (256, 17)]),
    ],
)
def strength(n, d, design):
    """The most columns, up to five, of which any choice holds each pattern equally often."""
    masks = designs.draw(n, d, design, np.random.default_rng(0))
    even = [np.ptp(patterns(masks, t), axis=1).max() == 0 for t in range(1, 6)]
    return [*even, False].index(False)


@oracle_of(
    designs.folded_array,
    lambda rng: {"n": 32, "d": 7},
    [{}, {"d": 5}, {"d": 8}, {"d": 10}],
    call=lambda n, d: int((np.ptp(patterns(designs.folded_array(n, d), 4), axis=1) > 0).sum()),
)
def folded_array(n, d):
    """As few groups of four columns as possible hold some patterns more often than others."""
    return fewest_zero_sums(4, d)


# --- columns --------------------------------------------------------------------------------------


@oracle_of(
    design_columns.zero_sums, lambda rng: {"vectors": rng.choice(32, 12, replace=False)}, [{}] * 3
)
def zero_sums(vectors):
    return sum(a ^ b ^ c ^ d == 0 for a, b, c, d in combinations(vectors, 4))


def fewest_zero_sums(m, d):
    """By trying every set that holds zero: affine maps take any vector there."""
    sets = combinations(range(1, 2**m), d - 1)
    return min(zero_sums((0, *others)) for others in sets)


@oracle_of(
    design_columns.vectors,
    lambda rng: {"m": 4},
    [{"d": d} for d in (1, 5, 6, 7, 11, 14, 16)],
    call=lambda m, d: (len(set(found := design_columns.vectors(m, d).tolist())), zero_sums(found)),
)
def vectors(m, d):
    return d, fewest_zero_sums(m, d)


def vectors_but_one():
    """Vectors of F_2^5, with one more in between that is taken out again."""
    sums = design_columns.Sums(5, [3, 9, 30, 4, 17, 8])
    sums.remove(4)
    return sums


@oracle_of(
    design_columns.Sums,
    lambda rng: {"m": 5, "vectors": [3, 9, 30, 17, 8]},
    [{}],
    call=lambda m, vectors: vectors_but_one(),
)
def sums(m, vectors):
    def by_sum(size):
        totals = [np.bitwise_xor.reduce(some) for some in combinations(vectors, size)]
        return np.array([totals.count(v) for v in range(2**m)])

    return {"chosen": np.array(vectors), "pairs": by_sum(2), "triples": by_sum(3)}


@oracle_of(
    design_columns.kerdock,
    lambda rng: {},
    [{"r": 3}, {"r": 5}],
    call=lambda r: distances(design_columns.kerdock(r)),
)
def kerdock(r):
    """Distances from any word of the Kerdock code of length 2^(r+1) to all its words.

    The cosets of the first-order Reed-Muller code in it are bent functions: MacWilliams and Sloane,
    *The Theory of Error-Correcting Codes* (1977), chapter 15.
    """
    n = 2 ** (r + 1)
    expected = np.zeros((n**2 // 2, n + 1))
    expected[:, [0, n]] = 1
    expected[:, n // 2] = 2 * n - 2
    expected[:, [(n - math.isqrt(n)) // 2, (n + math.isqrt(n)) // 2]] = n * (n // 2 - 1)
    return expected


def distances(half):
    n = half.shape[1]
    apart = np.array([(half != word).sum(axis=1) for word in half])
    return np.array([np.bincount(np.r_[row, n - row], minlength=n + 1) for row in apart])
