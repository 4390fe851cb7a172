"""Columns of arrays of strength 5: linear ones from a table, nonlinear ones from Kerdock codes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Written by `python -m xaiutils.design_search`. Its hash makes the choice part of the source.
TABLE = Path(__file__).with_suffix(".txt")
_SHA256 = "ffd0a7854355979f88e0ef135e2d4fb582f3be3ca8aa5db3de7d37d5a172d0bc"

# x^r = sum of c_i x^i over Z4, by the lift of a primitive polynomial of degree r.
_LIFTED = {3: (1, 3, 2), 5: (1, 2, 1, 0, 0)}


class Sums:
    """A set of vectors of F_2^m, written as integers, and its pairs and triples by their sum.

    A vector outside the set closes as many groups of four that sum to zero as there are triples
    that sum to it; a vector of the set is in that many.

    Parameters
    ----------
    m : int
    vectors : iterable of int
        Distinct, below 2^m.

    Attributes
    ----------
    chosen : list of int
    pairs, triples : ndarray (2^m,)
        How many of distinct chosen vectors sum to each vector.
    """

    def __init__(self, m: int, vectors: Iterable[int] = ()):
        self.chosen = []
        self.pairs, self.triples = np.zeros((2, 2**m), int)
        self._all = np.arange(2**m)
        for v in vectors:
            self.add(v)

    def add(self, v: int) -> None:
        self.triples += self.pairs[self._all ^ v]
        self.pairs[np.array(self.chosen, int) ^ v] += 1
        self.chosen.append(v)

    def remove(self, v: int) -> None:
        self.chosen.remove(v)
        self.pairs[np.array(self.chosen, int) ^ v] -= 1
        self.triples -= self.pairs[self._all ^ v]

    def extend(self, d: int) -> None:
        """Add vectors until there are d, each where it closes the fewest groups of four."""
        while len(self.chosen) < d:
            outside = self.triples.copy()
            outside[self.chosen] = np.iinfo(int).max
            self.add(int(outside.argmin()))


def zero_sums(vectors: Iterable[int]) -> int:
    """How many groups of four of these distinct vectors sum to zero.

    A group sums to zero in three ways as two pairs of the same sum.
    """
    vectors = np.asarray(vectors, int)
    first, second = np.triu_indices(len(vectors), 1)
    pairs = np.bincount(vectors[first] ^ vectors[second])
    return int((pairs * (pairs - 1) // 2).sum() // 3)


def vectors(m: int, d: int) -> np.ndarray:
    """Distinct vectors of F_2^m of which few groups of four sum to zero.

    None does for d <= 6, 7, 9, 12, 18, 24, 34, 43, 66 at m = 4 ... 12; then the first is zero and
    the next m are unit vectors, so that up to m + 1 make a full factorial. Up to 64 vectors were
    searched for each d, more are added one by one where they close the fewest groups. Of more than
    half of all vectors the complement is chosen: it determines the groups of the set.

    Parameters
    ----------
    m : int
        From 4 to 12.
    d : int
        From 1 to 2^m.

    Returns
    -------
    ndarray (d,) of int
        The components of a vector are the bits.

    Raises
    ------
    ValueError
        If m or d is out of range.

    Examples
    --------
    >>> from xaiutils import design_columns
    >>> design_columns.vectors(4, 6)
    array([ 0,  1,  2,  4,  8, 15])
    >>> [design_columns.zero_sums(design_columns.vectors(4, d)) for d in (6, 7, 8, 16)]
    [0, 2, 5, 140]
    """
    table = _table()
    if m not in table:
        raise ValueError(f"m must be one of {sorted(table)}, got {m}")
    if not 1 <= d <= 2**m:
        raise ValueError(f"d must be from 1 to {2**m} for m={m}, got {d}")
    return np.array(_vectors(m, d))


@functools.lru_cache(maxsize=64)
def _vectors(m, d):
    if d == 2**m:
        return range(d)
    if d > 2 ** (m - 1):
        left_out = set(_vectors(m, 2**m - d))
        return [v for v in range(2**m) if v not in left_out]
    rows = _table()[m]  # the shortest is without groups of four, and so is what it begins with
    sums = Sums(m, rows[max((k for k in rows if k <= d), default=min(rows))][:d])
    sums.extend(d)
    return sums.chosen


@functools.cache
def _table():
    content = TABLE.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise ValueError(f"{TABLE} is damaged; make it anew: python -m xaiutils.design_search")
    found = {}
    for line in content.decode().splitlines():
        m, *row = map(int, line.split())
        found.setdefault(m, {})[len(row)] = row
    return found


def kerdock(r: int) -> np.ndarray:
    """Half of the words of a Kerdock code; with their complements an array of strength 5.

    The words are those of a linear code over Z4, c_t = e + <a, x^t>, with two bits for each digit
    (0, 1, 2, 3 as 00, 01, 11, 10); adding 2 everywhere is the complement. The shorter code is that
    of Nordstrom and Robinson.

    Source: Hammons, Kumar, Calderbank, Sloane and Solé, *The Z4-linearity of Kerdock, Preparata,
    Goethals and related codes*, IEEE Transactions on Information Theory 40 (1994); Hedayat, Sloane
    and Stufken, *Orthogonal Arrays* (1999), chapter 5.

    Parameters
    ----------
    r : int
        3 or 5.

    Returns
    -------
    ndarray (2^(2r+1), 2^(r+1)) of bool

    Raises
    ------
    ValueError
        If r is another number.
    """
    if r not in _LIFTED:
        raise ValueError(f"r must be one of {sorted(_LIFTED)}, got {r}")
    points = np.zeros((2**r, r), int)  # zero and the powers of x
    points[1, 0] = 1
    for t in range(2, 2**r):
        points[t, 1:] = points[t - 1, :-1]
        points[t] += points[t - 1, -1] * np.array(_LIFTED[r])
        points[t] %= 4
    digits = (np.arange(4**r)[:, None] >> 2 * np.arange(r)) & 3
    words = digits @ points.T % 4
    words = np.vstack([words, (words + 1) % 4])
    return np.hstack([words >= 2, (words == 1) | (words == 2)])
