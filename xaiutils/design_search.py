"""Search for the columns of `design_columns`: `python -m xaiutils.design_search` writes its table.

The same on every machine; about two and a half minutes of one core.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from xaiutils import design_columns
from xaiutils.design_columns import Sums

# Most vectors of F_2^m, zero among them, of which no four sum to zero: one more than the longest
# linear code of distance 5 with m checks. At m = 11 there are 48, but 43 is what the search finds.
_WITHOUT_GROUPS = {4: 6, 5: 7, 6: 9, 7: 12, 8: 18, 9: 24, 10: 34, 11: 43}
_SEARCHED = 64  # beyond it, adding vectors one by one is within 1 % of a search


def descend(m: int, start: list[int], moves: int, rng: np.random.Generator) -> list[int]:
    """As many vectors as in `start`, of which fewer groups of four sum to zero.

    Each move replaces the vector of most groups by the one outside that closes the fewest, with
    ties broken at random; what was moved rests for some moves (tabu search, Glover 1989).
    """
    sums = Sums(m, start)
    count = fewest = design_columns.zero_sums(start)
    best, rests = list(start), np.zeros(2**m, int)
    for move in range(moves):
        if not fewest:
            break
        chosen = np.array(sums.chosen)
        ties = rng.random((2, 2**m)) / 2
        weight = sums.triples + ties[0] - 1e9 * (rests > move)
        worst = int(chosen[weight[chosen].argmax()])
        sums.remove(worst)
        count -= sums.triples[worst]
        weight = sums.triples + ties[1] + 1e9 * (rests > move)
        weight[chosen] = np.inf
        least = int(weight.argmin())
        count += sums.triples[least]
        sums.add(least)
        rests[[worst, least]] = move + rng.integers([3, 2], [10, max(3, len(start) // 3)])
        if count < fewest:
            fewest, best = count, list(sums.chosen)
    return best


def without_groups(m: int) -> list[int]:
    """The longest known sets of which no four sum to zero, in the order of `in_order`."""
    if m == 12:  # Zetterberg's code: the 65th roots of unity in GF(2^12)
        powers = [1]
        while len(powers) < 2**m - 1:
            powers.append(powers[-1] << 1 ^ (0b1000001010011 if powers[-1] >> (m - 1) else 0))
        return in_order(m, [0, *powers[:: (2**m - 1) // 65]])
    for seed in itertools.count():
        rng = np.random.default_rng([m, seed])
        start = rng.choice(2**m, _WITHOUT_GROUPS[m], replace=False).tolist()
        found = descend(m, start, 4000, rng)
        if not design_columns.zero_sums(found):
            return in_order(m, found)


def in_order(m: int, vectors: list[int]) -> list[int]:
    """The same set up to an affine map: zero, the unit vectors, then few groups of six as it grows.

    Whether vectors sum to zero in even groups is unchanged by affine maps.
    """
    coordinates, k = {0: 0}, 0
    moved = [v ^ vectors[0] for v in vectors]
    for v in moved:
        if v not in coordinates:
            coordinates |= {w ^ v: c | 1 << k for w, c in coordinates.items()}
            k += 1
    sums = Sums(m, [0, *(1 << np.arange(m)).tolist()])
    left = {coordinates[v] for v in moved} - set(sums.chosen)
    while left:
        # Each five that sum to v are found in ten ways as a pair and a triple.
        pairs = np.flatnonzero(sums.pairs)
        sixes = {v: (sums.pairs[pairs] * sums.triples[pairs ^ v]).sum() for v in sorted(left)}
        sums.add(min(sixes, key=sixes.get))
        left -= set(sums.chosen)
    return sums.chosen


def rows(m: int) -> list[list[int]]:
    """Sets of vectors of F_2^m: one without groups of four, then one of each further size."""
    found = [without_groups(m)]
    for d in range(len(found[0]) + 1, min(_SEARCHED, 2 ** (m - 1)) + 1):
        rng = np.random.default_rng([m, d])
        longer = Sums(m, found[-1])
        longer.extend(d)
        starts = longer.chosen, rng.choice(2**m, d, replace=False).tolist()
        tried = [descend(m, start, 2500, rng) for start in starts]
        found.append(sorted(min(tried, key=design_columns.zero_sums)))
    for k in range(len(found) - 2, 0, -1):  # a set may be best as a part of a larger one
        sums = Sums(m, found[k + 1])
        sums.remove(max(sums.chosen, key=sums.triples.__getitem__))
        found[k] = min(found[k], sums.chosen, key=design_columns.zero_sums)
    return found


def main() -> None:
    lines = [" ".join(map(str, [m, *row])) for m in range(4, 13) for row in rows(m)]
    text = "\n".join(lines) + "\n"
    design_columns.TABLE.write_bytes(text.encode())
    print(hashlib.sha256(text.encode()).hexdigest())


if __name__ == "__main__":
    main()
