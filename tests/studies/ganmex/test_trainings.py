"""Quantities over trainings: means over images first, then Student's interval over trainings."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from xaiutils import attribution, ganmex
from xaiutils.runtime import predicted
from xaiutils.studies.ganmex import cases, models, trainings


def table():
    rng = np.random.default_rng(0)
    rows = [(name, run) for name in ("MDTS", "constrained") for run in range(4)]
    rows = pd.DataFrame(rows, columns=["baseline", "run"])
    rows[list(trainings.QUANTITIES)] = rng.uniform(0.2, 0.8, (8, len(trainings.QUANTITIES)))
    rows["images"] = 20
    once = pd.DataFrame({"baseline": ["GANMEX"], "run": [0], "L1": [0.3]})
    return pd.concat([rows, once], ignore_index=True)


def student(values):
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return np.mean(values), found.low, found.high, len(values)


def test_levels_differences_and_ratios_with_students_interval():
    rows = table()
    by = {name: part["L1"].to_numpy() for name, part in rows.groupby("baseline")}
    first, second = by["constrained"], by["MDTS"]
    assert trainings.level(rows, "L1", "MDTS") == pytest.approx(student(second))
    found = trainings.compared(rows, "L1", "constrained", "MDTS")
    assert found == pytest.approx(student(first - second))
    found = trainings.compared(rows, "L1", "constrained", "MDTS", pd.Series.div)
    assert found == pytest.approx(student(first / second))


def test_a_single_training_has_no_interval():
    found = trainings.level(table(), "L1", "GANMEX")
    assert found.value == 0.3 and found.n == 1 and np.isnan([found.low, found.high]).all()
    found = trainings.compared(table(), "L1", "GANMEX", "MDTS")
    assert found.n == 1 and np.isnan(found.low)


def test_summary_leaves_out_what_was_not_measured():
    found = trainings.summary(table()).set_index(["baseline", "quantity"])
    assert len(found) == 2 * len(trainings.QUANTITIES) + 1
    assert found.loc[("GANMEX", "L1"), "value"] == 0.3
    row = found.loc[("MDTS", "in mask"), ["value", "low", "high", "n"]].astype(float)
    assert tuple(row) == pytest.approx(trainings.level(table(), "in mask", "MDTS"))


def test_means_over_the_images_of_each_training():
    """Against the case put together by hand, for one training of colours."""
    rows = trainings.measured("colours", 12, seeds=(1,)).set_index("baseline")
    assert set(rows.index) == {"zero", "MDTS", "exact", "constrained"}  # GANMEX has the first run
    case = cases.choose(models.Run("colours", 28, seed=1), 12, seed=1)
    generator = models.load(models.Run("colours", 28, "constrained", 1))
    made = ganmex.Baseline(generator)(case.images, case.target)
    row = rows.loc["constrained"]
    assert row["L1"] == pytest.approx(np.abs(made - case.images).mean())
    assert row["flips"] == (predicted(case.model, made) == case.target).mean()
    says = [predicted(judge, made) == case.target for judge in case.judges.values()]
    assert row["transfer"] == pytest.approx(np.mean(says))
    truth = cases.exact(case)
    assert row["to exact"] == pytest.approx(np.abs(made - truth.images).mean())
    m = attribution.integrated_gradients(
        case.model, case.images, made, case.source, against=case.target, steps=50, tolerance=None
    )
    inside = (np.abs(m) * truth.mask).sum((1, 2, 3)) / np.abs(m).sum((1, 2, 3))
    assert row["in mask"] == pytest.approx(inside.mean(), rel=1e-4)
    assert rows.loc["exact", "to exact"] == 0


def test_of_scenes_only_pairs_that_differ_in_the_digit_have_a_true_mask():
    rows = trainings.measured("scenes", 10, seeds=(0,)).set_index("baseline")
    case = cases.choose(models.Run("scenes", 32), 10)
    truth = cases.exact(case)
    assert 0 < truth.is_object.sum() < 10
    assert rows.loc["exact", "in mask"] == pytest.approx(1)
    assert "GANMEX" in rows.index


def test_digits_have_neither_a_true_mask_nor_another_factor():
    rows = trainings.measured("digits", 10, seeds=(0,))
    assert rows[["in mask", "to exact", "other kept"]].isna().all(axis=None)
    assert rows["L1"].notna().all()


def test_with_few_training_images_the_nearest_sample_is_one_of_them():
    rows = trainings.by_size("colours", 10).set_index(["size", "baseline", "quantity"])["value"]
    case = cases.choose(models.Run("colours", 28), 10)
    images, labels = case.problem.train_images, case.problem.train_labels
    assert set(rows.index.get_level_values("size")) == {300, 3000, len(images)}
    gaps = (images[None, :300] - torch.from_numpy(case.images)[:, None]).abs().mean((2, 3, 4))
    other = torch.from_numpy(case.target)[:, None] != labels[None, :300]
    nearest = gaps.masked_fill(other, np.inf).min(1).values.mean().item()
    assert rows[300, "MDTS", "L1"] == pytest.approx(nearest, rel=1e-5)
    generator = models.load(models.Run("colours", 28, "constrained, 300 images"))
    made = ganmex.Baseline(generator)(case.images, case.target)
    expected = np.abs(made - case.images).mean()
    assert rows[300, "constrained", "L1"] == pytest.approx(expected, rel=1e-5)


def test_means_weigh_trainings_alike_and_leave_out_what_is_not_known():
    images = pd.DataFrame(
        {
            "baseline": "MDTS",
            "run": [0, 0, 0, 1],
            "image": [0, 1, 2, 0],
            "flips": [True, True, False, True],
            "other kept": pd.array([True, False, None, None], dtype="boolean"),
        }
    )
    found = trainings.means(images).set_index("run")
    assert found["flips"].tolist() == pytest.approx([2 / 3, 1])
    assert found.loc[0, "other kept"] == 0.5 and np.isnan(found.loc[1, "other kept"])
    assert found["images"].tolist() == [3, 1] and "L1" not in found


def test_trainings_that_all_flip_have_wilsons_interval_over_images():
    rows = pd.DataFrame(
        {"baseline": "MDTS", "run": range(5), "flips": 1.0, "L1": 1.0, "images": 40}
    )
    found = trainings.level(rows, "flips", "MDTS")
    assert found == pytest.approx((1, 200 / (200 + 1.959964**2), 1, 5))
    assert trainings.level(rows, "L1", "MDTS") == (1, 1, 1, 5)
    single = trainings.level(rows[:1], "flips", "MDTS")
    assert np.isnan(single.low)


def test_shares_that_differ_alike_in_all_trainings_have_newcombes_interval():
    rows = pd.DataFrame(
        {
            "baseline": ["MDTS"] * 5 + ["constrained"] * 5,
            "run": [*range(5)] * 2,
            "flips": 1.0,
            "L1": 1.0,
            "images": 40,
        }
    )
    found = trainings.compared(rows, "flips", "constrained", "MDTS")
    below = 1 - 200 / (200 + 1.959964**2)
    assert found == pytest.approx((0, -below, below, 5))
    assert trainings.compared(rows, "L1", "constrained", "MDTS") == (0, 0, 0, 5)


def test_the_least_certain_table_decides():
    first, second = table(), table().assign(L1=lambda t: t["L1"] / 100)
    each = [trainings.compared(t, "L1", "constrained", "MDTS") for t in (first, second)]
    for above in (True, False):
        found = trainings.decide([first, second], "L1", "constrained", "MDTS", above=above)
        assert found == (
            min(each, key=lambda e: e.low) if above else max(each, key=lambda e: e.high)
        )
