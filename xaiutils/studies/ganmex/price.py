"""The price of a counterfactual: rivals of GANMEX, how good they are and what they cost.

Cost is counted in multiplications and additions of convolutions and matrix products, which are the
same on every machine, unlike seconds. How sure the classifier must be, and how far a flow goes
back, is chosen as the networks of the GAN are, see `choice`:
``python -m xaiutils.studies.ganmex.price`` tries all settings on images held out (half an hour).
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
from torch.utils._python_dispatch import TorchDispatchMode

from xaiutils import baselines, counterfactuals, sanity
from xaiutils.constrained_gan import Training
from xaiutils.data import assets
from xaiutils.studies.ganmex import cases, choice, maps, models, quality, rivals

MADE = 1000  # counterfactuals that one training is to serve
UNTRAINED = ("MDTS", "adversarial")
JUDGED = 200  # images held out, a setting
_SURE = {"confidence": (0.95, 0.999, 0.99999)}
SETTINGS = {
    "adversarial": _SURE,
    "robust gradient": _SURE,
    "latent shift": _SURE,
    "guided flow": _SURE | {"start": (0.3, 0.6)},
}
METHODS = (*UNTRAINED, *rivals.STEPS, models.CONSTRAINED)
_FILE = choice.FOLDER / "rivals.json"
QUANTITIES = ("flips", "transfer", "L1", "other kept", "in mask", "flip size", "score")


def measured(problem: str, n: int) -> pd.DataFrame:
    """Summaries over `n` test images, one training each.

    Columns problem, method, size (training images N, 0 where none is used; rivals of the GAN leave
    out those held out), teraflop (10^12 operations for the training and `MADE` counterfactuals),
    quantity (see `quality.measure`; "in mask" as `trainings.measured` has it; "flip size" and
    "score" of `one_vs_one.mask_test`), value, low, high, n.
    """
    case = cases.choose(models.Run(problem, rivals.PROBLEMS[problem]), n)
    truth, many, images, facts = cases.exact(case), len(case.problem.train_images), {}, {}
    for method in METHODS:
        every = many - rivals.HELD_OUT if method in rivals.STEPS else many
        once = training(case, method)
        for size in (0,) if method == "adversarial" else (rivals.FEW, every):
            name = f"{method} {size}"
            images[name], operations = _made(case, method, size)
            cost = once + MADE / len(case.images) * operations
            facts[name] = {"method": method, "size": size, "teraflop": cost / 1e12}
    ours = {("IG", name): maps.explain(case, made, "IG") for name, made in images.items()}
    known = truth.is_object | (problem != "scenes")
    shares = [np.where(known, sanity.localisation(m, truth.mask), np.nan) for m in ours.values()]
    table = quality.measure(case, images).assign(**{"in mask": np.concatenate(shares)})
    parts = maps.mask_test(case, ours, images)
    table[["flip size", "score"]] = parts[["flip size", "score"]].to_numpy()
    found = quality.summary(table).rename(columns={"baseline": "method"})
    about = pd.DataFrame([facts[name] for name in found["method"]])
    found[about.columns] = about
    return found[found["quantity"].isin(QUANTITIES)].assign(problem=problem)


class Operations(TorchDispatchMode):
    """Multiplications and additions of what runs inside, in `total`.

    By the formulas of `torch.utils.flop_counter.FlopCounterMode`, whose hooks on modules fail under
    `torch.autograd.grad` (torch 2.14.1).
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        from torch.utils.flop_counter import flop_registry  # imports a compiler, a second

        out = func(*args, **kwargs or {})
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **kwargs or {}, out_val=out)
        return out


def _made(case: cases.Case, method: str, size: int) -> tuple[np.ndarray, float]:
    """Counterfactuals of a method given `size` training images, and the operations spent."""
    x, target, problem = case.images, case.target, case.problem
    whole = size != rivals.FEW
    if method == "MDTS":
        labels = problem.train_labels[:size]
        # A subtraction, an absolute value and a sum for each value of each image of the class.
        values = (labels[:, None] == labels.new_tensor(target)).sum().item() * x[0].size
        return cases.nearest_samples(case, None if whole else size), 3.0 * values
    if method == models.CONSTRAINED:
        variant = method if whole else f"{method}, {size} images"
        models.load(case.run._replace(variant=variant))  # outside the count
    net = None
    if method in rivals.STEPS:
        net = rivals.load(method, problem.name, None if whole else size)
        net.to(next(case.model.parameters()).device)
    with Operations() as counter:
        if method == "adversarial":
            made = _search(method)(case.model, None, x, target, **chosen(method, problem.name))
        elif method == models.CONSTRAINED:
            made = cases.generated(case, variant)
        else:
            made = _search(method)(case.model, net, x, target, **chosen(method, problem.name))
    return made, float(counter.total)


def training(case: cases.Case, method: str) -> float:
    """Operations of a training; batches are as large whatever the number of training images."""
    if method in UNTRAINED:
        return 0.0
    problem, some = case.problem, slice(rivals.FEW)
    images, labels = problem.train_images[some], problem.train_labels[some]
    if method == models.CONSTRAINED:
        settings = models.settings(case.run._replace(variant=method))
        steps = Training(case.model, images, labels, settings, 0, beside=False)
        with Operations() as counter:
            steps.step()
        return float(counter.total * settings.iterations)
    counts = []
    for short in (3, 5):  # so that what is done once does not count for each step
        net = rivals.build(method, problem.name)
        with Operations() as counter:
            rivals.fit(method, net, images, labels, short)
        counts.append(counter.total)
    return (counts[1] - counts[0]) / 2 * rivals.STEPS[method]


def tried() -> pd.DataFrame:
    """What `main` has measured: columns problem, method, those of `SETTINGS`, `choice.follow`'s."""
    return pd.DataFrame(json.loads(_FILE.read_text()))


def chosen(method: str, problem: str) -> dict[str, float]:
    """The setting of a method that the rule of `choice` takes."""
    table = tried()
    rows = table[(table["method"] == method) & (table["problem"] == problem)]
    best = choice.nearest_accepted(rows, JUDGED)
    return {name: float(best[name]) for name in SETTINGS[method]}


def main() -> None:
    """Measure all settings of all methods."""
    rows = []
    for problem, pixels in rivals.PROBLEMS.items():
        held = choice.held_out(problem, pixels, JUDGED)
        for method, options in SETTINGS.items():
            net = rivals.load(method, problem) if method in rivals.STEPS else None
            search = _search(method)
            for values in itertools.product(*options.values()):
                setting = dict(zip(options, values, strict=True))
                made = search(held.model, net, held.x, held.target, **setting)
                row = {"problem": problem, "method": method} | setting | held.judged(made)
                rows.append(row)
                print(row, flush=True)
    with assets.replacing(_FILE) as temporary:
        text = pd.DataFrame(rows).to_json(orient="records", indent=1, double_precision=5)
        temporary.write_text(text)


def _search(method: str):
    """Function of a model, what the method has trained, images, targets and settings."""
    if method == "adversarial":
        return lambda model, _, *given, **setting: baselines.adversarial(model, *given, **setting)
    return getattr(counterfactuals, method.replace(" ", "_"))


if __name__ == "__main__":
    main()
