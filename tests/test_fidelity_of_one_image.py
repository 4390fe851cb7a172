"""Fidelity of a single image: values, but no intervals."""

import numpy as np
import pytest
import torch

from xaiutils import fidelity
from xaiutils.companion import claims


def model(batch):
    total = batch.flatten(1).sum(dim=1)
    return torch.stack([total, torch.full_like(total, 3.0)], dim=1)


def curves(n):
    x = np.random.default_rng(0).random((n, 1, 4, 4)) + 0.1
    maps = {
        "value": x[:, 0],
        "inverse": -x[:, 0],
        "random": np.random.default_rng(1).random((n, 4, 4)),
    }
    return fidelity.curves(model, x, np.zeros(n, int), maps, filler=0.0, steps=8)


def test_intervals_of_one_image_are_undefined():
    one, three = curves(1), curves(3)
    table = fidelity.summary(one)
    assert table["low"].isna().all() and table["high"].isna().all() and (table["n"] == 1).all()
    assert (table["value"].isna() == fidelity.summary(three)["value"].isna()).all()
    found = fidelity.difference(one, "value", "inverse")
    assert found.value > 0 and np.isnan(found[1:3]).all()
    agreement = fidelity.rank_agreement({"a": one, "b": one})
    assert agreement["low"].isna().all()
    assert fidelity.summary(three).dropna()["low"].notna().all()


def test_values_of_one_image_are_those_of_three_copies():
    x = np.random.default_rng(0).random((1, 1, 4, 4)) + 0.1
    once, thrice = (
        fidelity.curves(
            model, np.repeat(x, n, 0), np.zeros(n, int), {"value": np.repeat(x[:, 0], n, 0)},
            filler=0.0, steps=8,
        )
        for n in (1, 3)
    )  # fmt: skip
    a, b = (fidelity.summary(found).set_index("quantity")["value"] for found in (once, thrice))
    assert a.to_dict() == pytest.approx(b.to_dict(), nan_ok=True)


@pytest.mark.parametrize("kind", ["above", "below"])
def test_a_claim_about_one_image_is_inconclusive(kind):
    claim = claims.Claim("a", 1, "s", "s", {"kind": kind, "threshold": 0, "text": "t"}, "tiny")
    found = fidelity.difference(curves(1), "value", "inverse")
    assert claim.verdict(found.low, found.high) == "inconclusive"
