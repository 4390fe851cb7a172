"""The cache of trained models: keys follow the code, files are whole or refused."""

import dataclasses
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors import safe_open
from torch import nn

from xaiutils.classifiers import digits, trained


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A committed folder and a cache that are both empty."""
    monkeypatch.setattr(trained, "COMMITTED", tmp_path / "committed")
    monkeypatch.setattr(trained, "JOURNAL", tmp_path / "build" / "retrained.txt")
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "committed").mkdir()
    return tmp_path / "committed", tmp_path / "cache" / "trained"


class Trainer:
    """Training that sets every weight to `value` and counts how often it was asked."""

    def __init__(self, value=3.0):
        self.value, self.calls = value, 0

    def __call__(self, model):
        self.calls += 1
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(self.value)
        return {"accuracy": 0.75}


def recipe(trainer, key="a" * 64, name="toy"):
    return trained.Recipe(name, lambda: nn.Linear(2, 1), trainer, key, lambda: (torch.ones(4, 2),))


def load(trainer, key="a" * 64):
    return trained.load_or_train("toy", lambda: nn.Linear(2, 1), trainer, key=key)


def function_of(source, tmp_path):
    """Import the function `f` of a source text, so that its source can be inspected."""
    file = tmp_path / f"source{len(list(tmp_path.iterdir()))}.py"
    file.write_text(source)
    namespace = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    return namespace["f"]


def test_committed_keys_match_the_code():
    """A fresh clone need not train. Fails when the training code changed: run `make retrain`."""
    expected = {f"{r.name}-{r.key[:12]}.safetensors" for r in trained.registered()}
    committed = {file.name for file in trained.COMMITTED.glob("*.safetensors")}
    assert committed == expected


def test_committed_files_are_small():
    files = list(trained.COMMITTED.glob("*.safetensors"))
    assert files
    assert all(file.stat().st_size <= 5e6 for file in files)


def test_committed_digits_are_used_without_training(monkeypatch, tmp_path):
    def never(*args, **kwargs):
        raise AssertionError("trained although weights are committed")

    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(digits.datasets, "mnist", never)
    digits.load(0)
    digits.load(0, masked=True)
    assert not list(tmp_path.iterdir())


def test_trains_once_and_then_reads_the_cache(folders):
    trainer = Trainer()
    first, second = load(trainer), load(trainer)
    assert trainer.calls == 1
    for model in first, second:
        assert torch.equal(model.weight, torch.full((1, 2), 3.0))
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    (file,) = folders[1].glob("*.safetensors")
    assert file.name == f"toy-{'a' * 12}.safetensors"
    with safe_open(file, "pt") as stored:
        facts = json.loads(stored.metadata()["trained"])
    assert len(facts.pop("weights")) == 64
    assert facts == {"name": "toy", "key": "a" * 64, "accuracy": 0.75}


def test_committed_file_wins_over_the_cache(folders):
    load(Trainer(1.0))
    trained.retrain(recipe(Trainer(2.0)))
    assert load(Trainer(3.0)).weight[0, 0] == 2


def test_another_key_trains_again(folders):
    trainer = Trainer()
    load(trainer)
    load(trainer, key="b" * 64)
    assert trainer.calls == 2


def test_failed_write_leaves_nothing(folders, monkeypatch):
    def half(file, content):
        with file.open("wb") as stream:
            stream.write(content[:10])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", half)
        with pytest.raises(OSError, match="disk full"):
            load(Trainer())
    assert not [f for f in folders[1].iterdir() if not f.name.endswith(".lock")]
    trainer = Trainer()
    load(trainer)
    assert trainer.calls == 1


def test_seeded_draws_alike_and_gives_the_global_generator_back():
    torch.manual_seed(1)
    before, drawn = torch.get_rng_state(), []
    for seed in (5, 5, 6):
        with trained.seeded(seed):
            drawn.append(nn.Linear(3, 3).weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with pytest.raises(KeyError), trained.seeded(5):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_round_to_half_is_in_place_and_to_the_nearest():
    model = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))
    weight = model[0].weight
    model[1].num_batches_tracked.fill_(2**20 + 1)
    with torch.no_grad():
        # Steps of half precision are 2^-10 just above 1, and 2^-24 just above 0.
        weight.copy_(torch.tensor([[1 + 0.6 * 2**-10], [1 + 0.4 * 2**-10], [1.4 * 2**-24]]))
        model[1].running_mean.fill_(-1 - 0.6 * 2**-10)
    trained.round_to_half(model)
    assert model[0].weight is weight
    assert weight.dtype == torch.float32
    assert weight.requires_grad
    assert weight[:, 0].tolist() == [1 + 2**-10, 1, 2**-24]
    assert (model[1].running_mean == -1 - 2**-10).all()
    assert model[1].num_batches_tracked == 2**20 + 1


HALF, SINGLE = torch.tensor([1.5, -0.25, 2.0**-24, 65504.0]), torch.tensor([1.5, 1 + 2.0**-12])
LARGE, WHOLE = torch.tensor([1.5, 1e5]), torch.tensor([3, 2**20 + 1])


def test_values_are_stored_in_half_precision_if_it_holds_them_exactly(folders):
    """One tensor at a time, and they come back bit by bit as they were."""
    stored = {"exact": HALF, "fine": SINGLE, "large": LARGE, "whole": WHOLE}
    stored["turned"] = HALF.view(2, 2).T

    def build():
        model = nn.Module()
        for name, value in stored.items():
            model.register_buffer(name, torch.zeros_like(value))
        return model

    def train(model):
        model.load_state_dict(stored)
        return {}

    trained.load_or_train("toy", build, train, key="a" * 64)
    (file,) = folders[1].glob("*.safetensors")
    with safe_open(file, "pt") as content:
        dtypes = {name: content.get_tensor(name).dtype for name in stored}
    single, half = torch.float32, torch.float16
    assert dtypes == {
        "exact": half,
        "fine": single,
        "large": single,
        "whole": torch.int64,
        "turned": half,
    }
    loaded = trained.load_or_train("toy", build, None, key="a" * 64).state_dict()
    for name, value in stored.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


@pytest.mark.parametrize("value", [HALF, SINGLE, LARGE, WHOLE], ids=["half", "1", "large", "int"])
def test_compacting_changes_no_value(value):
    compact = trained._compact(value)
    assert compact.dtype == (torch.float16 if value is HALF else value.dtype)
    assert torch.equal(compact.to(value.dtype), value)


def truncated(file):
    file.write_bytes(file.read_bytes()[:-3])


def one_bit_flipped(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def of_another_key(file):
    load(Trainer(), key="b" * 64)
    file.with_name(f"toy-{'b' * 12}.safetensors").replace(file)


def emptied(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, one_bit_flipped, of_another_key, emptied])
def test_damaged_file_is_refused(folders, damage):
    load(Trainer())
    file = folders[1] / f"toy-{'a' * 12}.safetensors"
    damage(file)
    trainer = Trainer()
    with pytest.raises(trained.TrainedError, match=r"delete it .*make retrain") as caught:
        load(trainer)
    assert str(file) in str(caught.value)
    assert trainer.calls == 0


def test_weights_of_another_shape_are_refused(folders):
    load(Trainer())
    with pytest.raises(trained.TrainedError, match="size mismatch"):
        trained.load_or_train("toy", lambda: nn.Linear(3, 1), Trainer(), key="a" * 64)


def test_retrain_replaces_outdated_files_of_its_name_only(folders):
    committed, _ = folders
    trained.retrain(recipe(Trainer(1.0), key="a" * 64))
    trained.retrain(recipe(Trainer(1.0), key="c" * 64, name="toy-other"))
    report = trained.retrain(recipe(Trainer(1.5), key="b" * 64))
    names = sorted(file.name for file in committed.iterdir())
    assert names == [f"toy-{'b' * 12}.safetensors", f"toy-other-{'c' * 12}.safetensors"]
    # On inputs of ones: 3 parameters at 1.0 against 3 at 1.5.
    assert "outputs differ by at most 1.5" in report
    assert report.count("accuracy 0.75") == 2


def test_same_weights_give_the_same_bytes(folders):
    file = folders[0] / f"toy-{'a' * 12}.safetensors"
    versions = set()
    for _ in range(8):
        trained.retrain(recipe(Trainer()))
        versions.add(file.read_bytes())
    assert len(versions) == 1


def test_retrain_replaces_a_damaged_file(folders):
    committed, _ = folders
    trained.retrain(recipe(Trainer(1.0)))
    truncated(committed / f"toy-{'a' * 12}.safetensors")
    assert "not comparable" in trained.retrain(recipe(Trainer(2.0)))
    assert load(Trainer(9.0)).weight[0, 0] == 2


def test_an_interrupted_retraining_goes_on_where_it_was(folders, monkeypatch, capsys):
    first, second = Trainer(1.0), Trainer(2.0)
    found = [recipe(first), recipe(second, name="other")]
    monkeypatch.setattr(trained, "registered", lambda: found)
    monkeypatch.setattr(found[1].train, "value", "not a number")
    with pytest.raises(TypeError):
        trained.main([])
    monkeypatch.setattr(found[1].train, "value", 2.0)
    trained.main([])
    assert (first.calls, second.calls) == (1, 2)
    assert "toy: made before the interruption" in capsys.readouterr().out
    trained.main([])
    assert (first.calls, second.calls) == (2, 3)


def test_trainings_side_by_side(folders, monkeypatch, capsys):
    trainers = [Trainer(1.0), Trainer(2.0), Trainer("not a number")]
    names = ["toy", "other", "third"]
    found = [recipe(t, name=name) for t, name in zip(trainers, names, strict=True)]
    monkeypatch.setattr(trained, "registered", lambda: found)
    # Toys are not known to other processes, so threads stand in for them.
    monkeypatch.setattr(trained, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(TypeError):
        trained.main(["--jobs", "2"])
    assert os.environ["OMP_NUM_THREADS"] == "1"
    trainers[2].value = 3.0
    trained.main(["--jobs", "2"])
    assert trainers[2].calls == 2
    assert "made before the interruption" in capsys.readouterr().out
    assert not trained.JOURNAL.exists()
    committed, _ = folders
    assert len([*committed.glob("*.safetensors")]) == 3


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_models_that_others_load_are_retrained_first(folders, monkeypatch, jobs):
    committed, _ = folders
    seen = []

    class Loading(Trainer):
        def __call__(self, model):
            seen.append({file.name.split("-")[0] for file in committed.glob("*.safetensors")})
            return super().__call__(model)

    class Slow(Trainer):
        def __call__(self, model):
            time.sleep(0.3)
            return super().__call__(model)

    later = dataclasses.replace(recipe(Loading(), name="later"), loads=True)
    found = [later, recipe(Slow(), name="one"), recipe(Slow(), name="two")]
    monkeypatch.setattr(trained, "registered", lambda: found)
    monkeypatch.setattr(trained, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    trained.main(["--jobs", jobs])
    assert seen == [{"one", "two"}]


def test_generators_load_classifiers_and_those_nothing():
    """Each kind says whether its training loads other models."""
    for made in trained.registered():
        assert made.loads == made.name.startswith("gan-")


def test_what_a_retraining_commits_meanwhile_is_not_trained_again(folders, monkeypatch):
    alone = trained._alone

    @contextmanager
    def after_waiting(filename):
        with alone(filename) as cached:
            monkeypatch.setattr(trained, "_alone", nullcontext)  # the other process's turn
            trained.retrain(recipe(Trainer(2.0)))
            yield cached

    monkeypatch.setattr(trained, "_alone", after_waiting)
    trainer = Trainer(3.0)
    assert load(trainer).weight[0, 0] == 2 and trainer.calls == 0


def test_a_retrained_model_is_committed_before_others_may_train_it(folders, monkeypatch):
    alone, there = trained._alone, []

    @contextmanager
    def watched(filename):
        with alone(filename) as cached:
            yield cached
            there.append((folders[0] / filename).exists())

    monkeypatch.setattr(trained, "_alone", watched)
    trained.retrain(recipe(Trainer()))
    assert there == [True]


def test_a_model_is_retrained_in_another_process_by_its_name(folders, monkeypatch):
    first, second = Trainer(1.0), Trainer(2.0)
    monkeypatch.setattr(
        trained, "registered", lambda: [recipe(first), recipe(second, name="other")]
    )
    assert "other" in trained._retrain_named("other")
    assert (first.calls, second.calls) == (0, 1)


def test_a_clone_that_shares_the_cache_retrains_for_itself(folders, tmp_path, monkeypatch):
    first, second = Trainer(1.0), Trainer(2.0)
    found = [recipe(first), recipe(second, name="other")]
    monkeypatch.setattr(trained, "registered", lambda: found)
    monkeypatch.setattr(found[1].train, "value", "not a number")
    with pytest.raises(TypeError):
        trained.main([])  # interrupted after the first model
    assert trained.JOURNAL.read_text() == f"toy-{'a' * 12}.safetensors\n"
    monkeypatch.setattr(found[1].train, "value", 2.0)
    monkeypatch.setattr(trained, "JOURNAL", tmp_path / "clone" / "build" / "retrained.txt")
    trained.main([])
    assert first.calls == 2


def test_the_journal_lies_in_the_clone_whatever_the_cache():
    clone = trained.COMMITTED.parents[1]
    assert clone in trained.JOURNAL.parents


def test_command_line_refuses_unknown_models(folders, capsys):
    with pytest.raises(SystemExit, match="2"):
        trained.main(["digit"])
    assert "known are digits-0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        trained.main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


BASE = """
def f(x):
    return x + 1
"""
SAME = """
def f(x):
    '''Adds.'''

    # one
    return (x
            + 1)
"""


def test_key_ignores_comments_docstrings_and_formatting(tmp_path):
    base, same = function_of(BASE, tmp_path), function_of(SAME, tmp_path)
    assert trained.key(base) == trained.key(same)


@pytest.mark.parametrize("change", [("+ 1", "+ 2"), ("x", "y"), ("return x", "return -x")])
def test_key_follows_the_code(tmp_path, change):
    base, changed = function_of(BASE, tmp_path), function_of(BASE.replace(*change), tmp_path)
    assert trained.key(base) != trained.key(changed)


def test_key_follows_parameters_but_not_their_order():
    assert trained.key({"a": 1, "b": 2}) == trained.key({"b": 2, "a": 1})
    different = [{"a": 1, "b": 2}, {"a": 1, "b": 2.5}, {"a": 1}, [1, 2], [2, 1]]
    assert len({trained.key(parts) for parts in different}) == len(different)


@pytest.mark.parametrize("part", ["_TRAINING", "hash", "_train"])
def test_key_of_the_digits_follows_parameters_data_and_code(monkeypatch, part):
    before = digits.recipes()[0].key
    if part == "_TRAINING":
        monkeypatch.setitem(digits._TRAINING, "epochs", 6)
    elif part == "hash":
        monkeypatch.setattr(digits.assets, "hashes", lambda: {"mnist.pkl.gz": "0" * 64})
    else:
        monkeypatch.setattr(digits, "_train", digits._build)
    assert digits.recipes()[0].key != before
    assert digits._recipe(1).key != before


@pytest.mark.parametrize("part", ["_MASKING", "Masking", "_train"])
def test_key_of_the_masked_digits_follows_the_masking_too(monkeypatch, part):
    plain, masked = (recipe.key for recipe in digits.recipes())
    if part == "_MASKING":
        monkeypatch.setitem(digits._MASKING, "max_density", 0.3)
    else:
        monkeypatch.setattr(digits, part, digits._build)
    assert digits.recipes()[1].key != masked
    assert (digits.recipes()[0].key == plain) == (part != "_train")
