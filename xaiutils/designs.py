"""How masks are drawn: independent, in antithetic pairs, or as orthogonal or folded arrays."""

from __future__ import annotations

import numpy as np

from xaiutils import design_columns

# Primitive polynomials over GF(2) of degree m, as bit masks.
_PRIMITIVE = {
    4: 0b10011, 5: 0b100101, 6: 0b1000011, 7: 0b10001001, 8: 0b100011101, 9: 0b1000010001,
    10: 0b10000001001,
}  # fmt: skip

# Rows of a folded array, and the most columns it has with strength 5.
_STRENGTH_5 = {32: 6, 64: 7, 128: 9, 256: 16, 512: 18, 1024: 24, 2048: 34, 4096: 64, 8192: 66}
# Where a Kerdock code has strength 5 and the linear arrays at hand have not: rows, r and columns.
_KERDOCK = {256: (3, range(13, 17)), 4096: (5, range(44, 65))}


def draw(n: int, d: int, design: str, rng: np.random.Generator) -> np.ndarray:
    """Masks (n, d) bool, each row uniform on {0,1}^d.

    Parameters
    ----------
    n, d : int
    design : str
        "iid": independent rows, as LIME draws them. "paired": each row is followed by its
        complement. "orthogonal": arrays of strength 4, see `orthogonal_array`; n is a multiple of
        16, 32, 64, 128, 256, 512, 1024, 2048, 4096 for d <= 5, 6, 8, 15, 17, 23, 33, 63, 65, then
        of 4^m for d < 2^m, m = 7 ... 10. "folded": arrays in which each row is followed by its
        complement, of strength 5 where `strength` says so, see `folded_array`; n is a multiple of
        32 and of twice the least power of two that is not below d <= 4096. Both put the fewest
        equal arrays below one another, each with columns in random order, negated by fair coins.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the design is unknown or cannot have n rows; names the nearest sizes it can have.

    Examples
    --------
    >>> import numpy as np
    >>> from xaiutils import designs
    >>> designs.draw(4, 5, "paired", np.random.default_rng(0)).astype(int)
    array([[0, 1, 1, 1, 0],
           [1, 0, 0, 0, 1],
           [0, 0, 0, 0, 0],
           [1, 1, 1, 1, 1]])
    """
    rows = _rows(n, d, design)
    if design == "iid":
        return rng.random((n, d)) < 0.5
    if design == "paired":
        return _folded(rng.random((n // 2, d)) < 0.5)
    if design == "folded":
        array = folded_array(rows, d)
    elif rows in _FULL and d <= _FULL[rows]:
        array = orthogonal_array(_FULL[rows].bit_length())
    else:
        array = _halved(folded_array(2 * rows, d + 1))
    return np.vstack([_randomised(array, d, rng) for _ in range(n // rows)])


def strength(n: int, d: int, design: str) -> int:
    """Strength that `draw` guarantees: any so many columns hold each pattern equally often.

    At strength t the main effects of a function, estimated by plain averages, are not aliased with
    one another nor with its interactions of fewer than t components.

    Parameters
    ----------
    n, d, design
        As in `draw`.

    Returns
    -------
    int
        0 for "iid", 1 for "paired", 4 for "orthogonal". For "folded" 5, or 3 where d exceeds 6, 7,
        9, 16, 18, 24, 34, 64, 66 for arrays of 32, 64, ... 8192 rows.

    Raises
    ------
    ValueError
        As `draw`.

    Examples
    --------
    >>> from xaiutils import designs
    >>> [designs.strength(256, d, "folded") for d in (16, 17)]
    [5, 3]
    """
    rows = _rows(n, d, design)
    if design == "folded":
        return 5 if d <= _STRENGTH_5[rows] else 3
    return {"iid": 0, "paired": 1, "orthogonal": 4}[design]


def folded_array(n: int, d: int) -> np.ndarray:
    """Array (n, d) bool in which each row is followed by its complement, of strength 5 or 3.

    Its first half is linear: n = 2^(m+1), and row x in F_2^m holds <v_j, x> at column j. Folding it
    over frees main effects of interactions of any even number of components. With distinct v_j the
    array has strength 3. If no four v_j sum to zero it has strength 5; with v_1 = 0 the others are
    the parity checks of a code of distance 5. Otherwise `design_columns.vectors` lets few do: the
    estimate of main effect j takes in, with some sign, the interaction of the other three of each
    four that hold j, and interactions of five or more. Up to m + 1 columns hold each pattern
    equally often. 13 to 16 columns of 256 rows and 44 to 64 of 4096 are those of a Kerdock code
    instead, which is not linear and has strength 5.

    Sources: Box and Hunter, *The 2^(k-p) Fractional Factorial Designs*, Technometrics 3 (1961), for
    folding; Hedayat, Sloane and Stufken, *Orthogonal Arrays* (1999), chapters 4 and 5, for arrays
    from codes; Grassl, codetables.de, for the longest linear codes of distance 5 that are known.

    Raises
    ------
    ValueError
        If n is not a power of two from 32 to 8192 or d is not from 1 to n / 2.
    """
    if n not in _STRENGTH_5:
        raise ValueError(f"n must be one of {', '.join(map(str, _STRENGTH_5))}, got {n}")
    r, columns = _KERDOCK.get(n, (0, ()))
    if d in columns:
        return _folded(design_columns.kerdock(r)[:, :d])
    v = design_columns.vectors(n.bit_length() - 2, d)
    return _folded(np.bitwise_count(np.arange(n // 2)[:, None] & v) % 2 == 1)


def orthogonal_array(m: int) -> np.ndarray:
    """Orthogonal array of strength 4: (4^m, 2^m - 1) bool.

    Any four columns hold each of the 16 patterns equally often, so the main effects of a
    function are not aliased with its interactions of two or three components. The rows are
    the dual of the two-error-correcting BCH code: row (a, b) holds trace(a x + b x^3) at
    column x, for all field elements a, b of GF(2^m) and x != 0.

    Source: Hedayat, Sloane and Stufken, *Orthogonal Arrays* (1999), sections 4.3 and 5.
    """
    if m not in _PRIMITIVE:
        raise ValueError(f"m must be one of {sorted(_PRIMITIVE)}, got {m}")
    powers = [1]  # of the primitive element
    for _ in range(2**m - 2):
        shifted = powers[-1] << 1
        powers.append(shifted ^ _PRIMITIVE[m] if shifted >> m else shifted)
    powers = np.array(powers)
    cubes = powers[3 * np.arange(2**m - 1) % (2**m - 1)]
    # Bits of x and x^3 are 2m rows that generate the dual code; all sums are its words.
    generators = np.vstack([(v >> np.arange(m)[:, None]) & 1 for v in (powers, cubes)])
    words = (np.arange(4**m)[:, None] >> np.arange(2 * m)) & 1
    return (words.astype(np.float32) @ generators.astype(np.float32)) % 2 == 1


# Rows of the arrays of `orthogonal_array`, and their columns.
_FULL = {4**m: 2**m - 1 for m in _PRIMITIVE}


def _folded(half):
    return np.stack([half, ~half], axis=1).reshape(-1, half.shape[1])


def _halved(array):
    """The rows of an array of strength 5 that lack its first component: strength 4 in the others.

    Hedayat, Sloane and Stufken (1999), theorem 2.24.
    """
    return array[~array[:, 0], 1:]


def _randomised(array, d, rng):
    columns = rng.permutation(array.shape[1])[:d]
    return array[:, columns] ^ (rng.random(d) < 0.5)


def _rows(n: int, d: int, design: str) -> int:
    """Rows of each of the equal arrays that n masks are made of; refuses what cannot be made."""
    if n < 1 or d < 1:
        raise ValueError(f"n and d must be positive, got {n} masks of {d} components")
    if design == "iid":
        return n
    if design not in ("paired", "orthogonal", "folded"):
        raise ValueError(
            f'design must be "iid", "paired", "orthogonal" or "folded", got {design!r}'
        )
    sizes = _sizes(d, design)
    if not sizes:
        most = max(_FULL.values()) if design == "orthogonal" else max(_STRENGTH_5) // 2
        raise ValueError(f'design="{design}" serves at most {most} components, got {d}')
    least = min(sizes)
    if n % least:
        below, above = n - n % least, n - n % least + least
        raise ValueError(
            f"n_samples must be {'even' if least == 2 else f'a multiple of {least}'} for "
            f'design="{design}" with {d} components, such as '
            f"{f'{below} or {above}' if below else above}, got {n}"
        )
    fitting = [rows for rows in sizes if n % rows == 0]
    if design == "orthogonal":  # 4^m rows wherever they fit: seeds keep their masks
        fitting = [rows for rows in fitting if d <= _FULL.get(rows, 0)] or fitting
    # The largest array that divides n: one of 1,024 rows beats four of 256.
    return max(fitting)


def _sizes(d: int, design: str) -> list[int]:
    """Rows of the single arrays that serve d components."""
    if design == "paired":
        return [2]
    if design == "folded":
        return [rows for rows in _STRENGTH_5 if d <= rows // 2]
    halves = [rows // 2 for rows, most in _STRENGTH_5.items() if d < most]
    return halves + [rows for rows, most in _FULL.items() if d <= most]
