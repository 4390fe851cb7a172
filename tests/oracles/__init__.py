"""Slow, naive reference computations: definitions written as loops or plain matrix algebra.

Each is written from its definition in a paper or a docstring and registered beside the function of
the package that it stands for, see `registry`; `test_oracles` compares all of them. They share no
formula with the package.
"""

from oracles import (
    attacks,
    attributions,
    checks,
    counterfactuals,
    engine,
    estimators,
    fillers,
    hiding,
    masks,
    resampling,
    surrogates,
)
from oracles.limits import (
    alpha_by_integers,
    clt_diagonal,
    coin_slopes,
    compose,
    cosine_weight,
    cube,
    limit_by_lstsq,
    relative_error,
    ridge_lstsq,
    shapley_by_orders,
    table_of_images,
    weights_of,
)

__all__ = [
    "alpha_by_integers",
    "attacks",
    "attributions",
    "checks",
    "clt_diagonal",
    "coin_slopes",
    "compose",
    "cosine_weight",
    "counterfactuals",
    "cube",
    "engine",
    "estimators",
    "fillers",
    "hiding",
    "limit_by_lstsq",
    "masks",
    "relative_error",
    "resampling",
    "ridge_lstsq",
    "shapley_by_orders",
    "surrogates",
    "table_of_images",
    "weights_of",
]
