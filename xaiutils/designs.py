"""How masks are drawn: independent, in antithetic pairs, or as an orthogonal array."""

from __future__ import annotations

import numpy as np

# Primitive polynomials over GF(2) of degree m, as bit masks.
_PRIMITIVE = {
    4: 0b10011, 5: 0b100101, 6: 0b1000011, 7: 0b10001001, 8: 0b100011101, 9: 0b1000010001,
    10: 0b10000001001,
}  # fmt: skip


def draw(n: int, d: int, design: str, rng: np.random.Generator) -> np.ndarray:
    """Masks (n, d) bool, each row uniform on {0,1}^d.

    Parameters
    ----------
    n, d : int
    design : str
        "iid": independent rows, as LIME draws them. "paired": each row is followed by its
        complement. "orthogonal": randomised orthogonal arrays of strength 4, see
        `orthogonal_array`, as many as fit into n.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the design is unknown or cannot have n rows; names the sizes it can have.

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
    if n < 1 or d < 1:
        raise ValueError(f"n and d must be positive, got {n} masks of {d} components")
    if design == "iid":
        return rng.random((n, d)) < 0.5
    if design == "paired":
        if n % 2:
            raise ValueError(f'n_samples must be even for design="paired", got {n}')
        half = rng.random((n // 2, d)) < 0.5
        return np.stack([half, ~half], axis=1).reshape(n, d)
    if design == "orthogonal":
        m = _degree(d)
        rows = 4**m
        if n % rows:
            raise ValueError(
                f'n_samples must be a multiple of {rows} for design="orthogonal" with {d} '
                f"components, got {n}"
            )
        # The largest array that divides n: one of 1,024 rows beats four of 256.
        while m + 1 in _PRIMITIVE and n % 4 ** (m + 1) == 0:
            m += 1
        return np.vstack([_randomised(m, d, rng) for _ in range(n // 4**m)])
    raise ValueError(f'design must be "iid", "paired" or "orthogonal", got {design!r}')


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


def _randomised(m, d, rng):
    array = orthogonal_array(m)
    columns = rng.permutation(array.shape[1])[:d]
    return array[:, columns] ^ (rng.random(d) < 0.5)


def _degree(d: int) -> int:
    for m in _PRIMITIVE:
        if d <= 2**m - 1:
            return m
    raise ValueError(f'design="orthogonal" serves at most {2 ** max(_PRIMITIVE) - 1} components')
