"""The choice of network, bound and stopping time: its rule, and that the models follow it."""

import numpy as np
import pandas as pd
import pytest
import torch

from xaiutils import ganmex
from xaiutils.classifiers import small
from xaiutils.data import problems
from xaiutils.runtime import predicted
from xaiutils.studies.ganmex import choice, models

ROWS = pd.DataFrame(
    {
        "taken": [0.76, 0.8, 0.9, 0.99],
        "distance": [0.01, 0.06, 0.05, 0.2],
        "iterations": 500,
        "problem": "digits",
        "mdts taken": 0.8,
        "mdts distance": 0.1,
    }
)


def test_the_nearest_of_those_that_the_referee_accepts_is_taken():
    assert choice.best(ROWS).name == 2
    # Of 600 images .80 has a lower end of .766, .76 one of .724: enough, and too little, for .75.
    assert choice.best(ROWS.iloc[:2]).name == 1


def test_a_training_that_is_too_long_is_not_taken():
    late = ROWS.assign(iterations=[500, 500, 751, 500])
    assert choice.best(late).name == 1
    assert choice.best(late.assign(problem="scenes")).name == 2


def test_if_none_is_accepted_the_most_convincing_one_is_taken():
    assert choice.best(ROWS.assign(**{"mdts taken": 1.1})).name == 3


def test_the_referee_neither_is_explained_nor_judges():
    for problem in models.MAIN:
        family = choice.referee(problem)
        assert family in small.FAMILIES
        assert family not in (small.explained(problem), *models.JUDGES)


def test_models_follow_the_choice():
    table = choice.load()
    assert list(dict.fromkeys(table["problem"])) == list(models.MAIN)
    for problem, rows in table.groupby("problem"):
        best = choice.best(rows)
        assert models.CHOSEN[problem] == tuple(best[["form", "bound", "told", "iterations"]])


def test_every_candidate_was_measured_at_every_time():
    table = choice.load()
    for candidate in choice.CANDIDATES:
        found = table[(table[list(candidate._fields)] == list(candidate)).all(axis=1)]
        times = range(choice.EVERY, choice.iterations(candidate) + 1, choice.EVERY)
        assert found["iterations"].tolist() == list(times)


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Two steps, on 200 images."""
    whole = problems.load("small digits", 16)
    few = whole._replace(
        train_images=whole.train_images[:200], train_labels=whole.train_labels[:200]
    )
    monkeypatch.setattr(problems, "load", lambda name, size: few)
    net = small.load("small digits", 16, "strided")
    monkeypatch.setattr(small, "load", lambda *_: net)
    for name, value in {"HELD_OUT": 50, "EVERY": 1, "ITERATIONS": 2}.items():
        monkeypatch.setattr(choice, name, value)
    monkeypatch.setattr(choice, "FOLDER", tmp_path / "choice")
    candidates = [choice.Candidate("digits", 16, form, 0.1, False) for form in ("identity", "mask")]
    monkeypatch.setattr(choice, "CANDIDATES", candidates)
    return few, net


def test_candidates_are_measured_on_images_held_out(short, monkeypatch):
    few, net = short
    given, made = [], []

    class Baseline(ganmex.Baseline):
        def __call__(self, x, targets):
            given.append((torch.as_tensor(x), targets))
            made.append(super().__call__(x, targets))
            return made[-1]

    monkeypatch.setattr(ganmex, "Baseline", Baseline)
    rows = choice.follow(choice.CANDIDATES[0])
    assert rows["iterations"].tolist() == [1, 2] and len(made) == 2
    x, target = given[0]
    assert torch.equal(x, few.train_images[150:])
    assert (target != few.train_labels[150:].numpy()).all()
    row = rows.iloc[-1]
    assert row["taken"] == (predicted(net, made[-1]) == target).mean()
    assert row["distance"] == pytest.approx(np.abs(made[-1] - x.numpy()).mean())
    gaps = (few.train_images[:150][None] - x[:, None]).abs().mean((2, 3, 4))
    other = torch.from_numpy(target)[:, None] != few.train_labels[None, :150]
    nearest = gaps.masked_fill(other, np.inf).min(1).values
    assert row["mdts distance"] == pytest.approx(nearest.mean().item(), rel=1e-5)


def test_an_interrupted_measurement_goes_on(short, monkeypatch):
    follow, done = choice.follow, []

    def stopping(candidate):
        done.append(candidate)
        if len(done) == 2:
            raise KeyboardInterrupt
        return follow(candidate)

    monkeypatch.setattr(choice, "follow", stopping)
    with pytest.raises(KeyboardInterrupt):
        choice.main([])
    kept = choice.load()
    choice.main([])
    assert [c.form for c in done] == ["identity", "mask", "mask"]
    found = choice.load()
    assert len(found) == 4 and found["form"].tolist() == ["identity"] * 2 + ["mask"] * 2
    pd.testing.assert_frame_equal(found.iloc[:2], kept)
    choice.main(["digits"])
    assert len(done) == 3
