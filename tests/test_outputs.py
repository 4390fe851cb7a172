"""What models return: the arrays in it, refusals that name a wrapper, logits or probabilities."""

import types
from collections import OrderedDict, namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xaiutils import attribution, lime, outputs, perturb, runtime
from xaiutils.outputs import Classes
from xaiutils.perturb import Components

LOGITS = torch.tensor([[1.5, -2.0, 0.25], [0.5, 3.0, -1.0]])
X = np.random.default_rng(0).random((2, 4, 4), dtype=np.float32)
CELLS = Components(np.arange(16).reshape(4, 4) // 4)
Named = namedtuple("Named", "logits features")


class Wrapped(nn.Module):
    """A linear model whose outputs are handed to `how` before they are returned."""

    def __init__(self, how, classes=3):
        super().__init__()
        self.layers, self.how = nn.Sequential(nn.Flatten(), nn.Linear(32, classes)), how
        rng = np.random.default_rng(classes)
        for weight in self.parameters():
            weight.data = torch.from_numpy(rng.normal(size=weight.shape).astype(np.float32))

    def forward(self, x):
        return self.how(self.layers(x))


# --- the array in it ------------------------------------------------------------------------------

HOLDERS = {
    "tensor": lambda out: out,
    "object": lambda out: types.SimpleNamespace(loss=None, logits=out),
    "dict": lambda out: {"features": 2 * out, "logits": out},
    "ordered dict": lambda out: OrderedDict(logits=out),
    "named tuple": lambda out: Named(out, 2 * out),
    "rows": lambda out: list(out.unbind()),
    "sparse": lambda out: out.to_sparse(),
    "bfloat16": lambda out: out.bfloat16(),
    "float16": lambda out: out.half(),
    "array": lambda out: out.numpy(force=True),
    "long double": lambda out: out.numpy(force=True).astype(np.longdouble),
    "other byte order": lambda out: out.numpy(force=True).astype(">f4"),
    "data frame": lambda out: pd.DataFrame(out.numpy(force=True), columns=["a", "logits", "c"]),
    "lists": lambda out: out.tolist(),
    "tuples": lambda out: tuple(map(tuple, out.tolist())),
    "list of arrays": lambda out: [row.numpy(force=True) for row in out],
}


@pytest.mark.parametrize("how", HOLDERS.values(), ids=HOLDERS)
def test_the_one_array_is_found(how):
    found = outputs.as_array(how(LOGITS))
    assert isinstance(found, np.ndarray) and found.dtype in (np.float32, np.float64)
    assert_array_equal(found, LOGITS)
    tensor = outputs.as_tensor(how(LOGITS))
    assert tensor.dtype in (torch.float32, torch.float64)
    assert_array_equal(tensor, LOGITS)


@pytest.mark.parametrize("name", list(HOLDERS)[:9])
def test_tensors_keep_their_graph(name):
    weights = LOGITS.clone().requires_grad_()
    outputs.as_tensor(HOLDERS[name](weights)).sum().backward()
    assert_array_equal(weights.grad, torch.ones_like(LOGITS))


def test_whole_numbers_and_single_precision_stay_what_they_are():
    for dtype in (bool, np.uint8, np.int64, np.float32, np.float64):
        assert outputs.as_array(np.ones((2, 3), dtype)).dtype == dtype


FOREIGN = {
    "tuple": (
        lambda out: (out, 2 * out),
        r"tuple of 2 tensors; wrap it: lambda x: model\(x\)\[0\]",
    ),
    "list": (lambda out: [out], r"list of 1 tensors; .*model\(x\)\[0\]"),
    "loss first": (lambda out: (None, out), r"tuple of 2 parts; .*lambda x: model\(x\)\[1\]"),
    "columns": (lambda out: tuple(out.unbind(1)), "tuple of 3 tensors"),
    "dict": (lambda out: {"n": 3, "y": out}, r"dict with keys 'n', 'y'; .*model\(x\)\['y'\]"),
    "object": (
        lambda out: types.SimpleNamespace(scores=out),
        r"SimpleNamespace.*model\(x\)\.scores",
    ),
    "nested": (lambda out: {"logits": {"a": out}}, "dict with keys 'logits' without an array"),
    "none": (lambda out: None, "None: does its function or forward lack a return"),
    "text": (lambda out: "cat", "str without an array"),
    "complex": (lambda out: out.to(torch.complex64), "Tensor of torch.complex64: .*real numbers"),
    "objects": (lambda out: np.array([None, 1]), "ndarray of object"),
    "ragged": (lambda out: [[1.0], [2.0, 3.0]], "list of 2 parts without an array"),
    "labels": (lambda out: [{"label": "cat", "score": 0.9}], "list of 1 parts without"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_anything_else_is_named_with_the_wrapper_to_write(case):
    how, hint = FOREIGN[case]
    for read in (outputs.as_array, outputs.as_tensor):
        with pytest.raises(ValueError, match=f"model returned {hint}") as caught:
            read(how(LOGITS))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["object", "dict", "bfloat16"])
def test_explanations_take_models_that_return_holders(name):
    plain, model = (Wrapped(HOLDERS[how]).eval() for how in ("tensor", name))
    close = {"rtol": 0.02, "atol": 0.02} if name == "bfloat16" else {"atol": 1e-6}
    masks = np.random.default_rng(1).random((5, 4)) < 0.5
    expected = perturb.evaluate(plain, X, CELLS, masks)
    assert_allclose(perturb.evaluate(model, X, CELLS, masks), expected, **close)
    assert_allclose(perturb.evaluate(lambda b: model(b), X, CELLS, masks), expected, **close)
    slope = attribution.gradient(plain, X[None], [1])
    assert_allclose(attribution.gradient(model, X[None], [1]), slope, **close)


@pytest.mark.parametrize("case", ["tuple", "none"])
def test_explanations_refuse_what_holds_no_array(case):
    how, hint = FOREIGN[case]
    model = Wrapped(how).eval()
    with pytest.raises(ValueError, match=hint):
        lime.explain(lambda batch: model(batch), X, CELLS, targets=0, n_samples=16)
    with pytest.raises(ValueError, match=hint):
        attribution.gradient(model, X[None], [0])


@pytest.mark.parametrize(
    "target", [1, np.array(1), np.uint8(1), torch.tensor(1), [torch.tensor(1)]]
)
def test_a_single_target_may_be_of_any_integer_type(target):
    model = Wrapped(HOLDERS["tensor"]).eval()
    slope = attribution.gradient(model, X[None], target)
    assert_array_equal(slope[0].ravel(), model.layers[1].weight[1].detach())
    found = lime.explain(model, X, CELLS, targets=target, n_samples=32)
    assert_array_equal(
        np.ravel(found.coef), lime.explain(model, X, CELLS, targets=1, n_samples=32).coef
    )
    assert found.coef.shape == ((1, 4) if isinstance(target, list) else (4,))


@pytest.mark.parametrize("target", [0.7, [0.7, 1], True, "1", [[0, 1]], [], -1, None])
def test_other_targets_are_refused(target):
    model = Wrapped(HOLDERS["tensor"]).eval()
    with pytest.raises(ValueError, match="targets must be outputs of the model"):
        lime.explain(model, X, CELLS, targets=target, n_samples=32)
    with pytest.raises(ValueError, match="target must hold 1 output indices"):
        attribution.gradient(model, X[None], target)


@pytest.mark.parametrize("columns", [[0.7], [True, False, True], ["0"], []])
def test_columns_are_not_rounded(columns):
    with pytest.raises(ValueError, match=r"outputs must be columns 0\.\.2"):
        perturb.evaluate(Wrapped(HOLDERS["tensor"]), X, CELLS, np.eye(4), outputs=columns)


# --- NaN and infinity -----------------------------------------------------------------------------


def test_bad_rows_hold_nan_or_infinity_but_one_class_may_be_ruled_out():
    inf, nan = np.inf, np.nan
    rows = np.array([[1, 2], [nan, 2], [-inf, 2], [inf, 2], [-inf, -inf], [-inf, nan], [0, 0]])
    assert outputs.bad_rows(rows).tolist() == [1, 3, 4, 5]
    assert outputs.bad_rows(rows, strict=True).tolist() == [1, 2, 3, 4, 5]
    assert outputs.bad_rows(np.array([1, -inf])).tolist() == [1]
    assert (
        outputs.bad_rows(np.empty((3, 0))).size == outputs.bad_rows(np.ones((2, 2), int)).size == 0
    )


def test_evaluate_counts_bad_rows_and_names_the_first_mask():
    masks = np.ones((20, 4), bool)
    masks[13, 1] = masks[15, 2:] = False
    log = lambda batch: (batch.flatten(1).amin(1) - 0.01).log()[:, None]  # noqa: E731
    for value, word in ((0.0, "NaN"), (0.01, "infinity")):
        with pytest.raises(
            ValueError, match=f"{word}.* 2 of 8 .*mask 13, which hides 1 of 4"
        ) as seen:
            perturb.evaluate(log, X + 0.1, CELLS, masks, value, batch_size=8)
        assert "\n" not in str(seen.value)


def test_a_class_may_be_ruled_out_where_nobody_asks_for_it():
    def masked(batch):
        out = batch.flatten(1)[:, :3].clone()
        out[:, 2] = -torch.inf
        return out

    every = perturb.evaluate(masked, X, CELLS, np.eye(4))
    assert np.isneginf(every[:, 2]).all()
    assert_array_equal(perturb.evaluate(masked, X, CELLS, np.eye(4), outputs=[0, 1]), every[:, :2])
    with pytest.raises(ValueError, match="NaN or infinity for 4 of 4 masks"):
        perturb.evaluate(masked, X, CELLS, np.eye(4), outputs=[2])


def test_gradients_name_the_input_of_a_bad_output_or_slope():
    class Root(nn.Module):
        def forward(self, x):
            return (x.flatten(1).sum(1, keepdim=True) - 1).sqrt().repeat(1, 2)

    x = np.ones((3, 1, 2))
    x[1], x[2] = 0.0, [[0.5, 0.5]]
    with pytest.raises(ValueError, match=r"model returned NaN or infinity at 1 of 2 .*input 1"):
        attribution.gradient(Root(), x[:2], [0, 0])
    with pytest.raises(ValueError, match=r"gradient holds NaN or infinity at 1 of 2 .*input 1"):
        attribution.gradient(Root(), x[::2], [0, 0])


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        (lambda out: out.detach(), "no gradient: its forward leaves torch, detaches"),
        (lambda out: out.numpy(force=True), "no gradient"),
        (lambda out: out.argmax(1, keepdim=True), "no gradient"),
        (lambda out: out.tolist(), "no gradient"),
    ],
)
def test_outputs_without_a_gradient_are_refused(how, hint):
    with pytest.raises(ValueError, match=hint):
        attribution.gradient(Wrapped(how).eval(), X[None], [0])


def test_outputs_that_forget_x_are_refused():
    class Constant(Wrapped):
        def forward(self, x):
            return self.layers[1].bias.expand(len(x), 3)

    with pytest.raises(ValueError, match="do not depend on x"):
        attribution.gradient(Constant(None), X[None], [0])
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module"):
        attribution.gradient(lambda batch: batch.flatten(1), X[None], [0])


# --- logits or probabilities ----------------------------------------------------------------------


def settled(*batches, kind=None):
    classes = Classes(kind)
    for out in batches:
        classes.check(outputs.as_array(out))
    classes.settle()
    return classes


def random_logits(n, k, seed=0, scale=3.0):
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=(n, k)))


@pytest.mark.parametrize("k", [2, 3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("scale", [0.1, 5.0, 80.0])
def test_probabilities_are_recognised_in_each_precision(k, dtype, n, scale):
    rows = random_logits(n, k, seed=k + n, scale=scale).to(dtype).softmax(1)
    with pytest.raises(ValueError, match=r'outputs are probabilities.*outputs_are="probabilities"'):
        settled(rows)
    settled(rows, kind="logits")
    settled(rows, kind="probabilities")


def test_probabilities_that_were_rounded_or_clipped_are_recognised():
    rows = random_logits(20, 10).softmax(1)
    for changed in (rows.numpy().round(4), rows.clamp(1e-5, 1 - 1e-5), rows.tolist()):
        with pytest.raises(ValueError, match="probabilities"):
            settled(changed)


def taken_for_probabilities(rows):
    try:
        settled(rows)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("k", [2, 3])
def test_logits_are_hardly_ever_taken_for_probabilities(k):
    """Even of logits that are positive and sum to about 1, one row is; several rows are not."""
    rows = 1 / k + 0.1 * random_logits(20_000, k, scale=1.0).numpy().astype(np.float32)
    near = rows[(rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < 0.02)]
    assert len(near) > 1000
    assert np.mean([taken_for_probabilities(row[None]) for row in near]) < 0.02
    assert not any(taken_for_probabilities(near[i : i + 3]) for i in range(0, 1000, 3))


def test_one_row_that_is_no_distribution_settles_it():
    rows = random_logits(8, 3).softmax(1)
    rows[5] *= 1.01
    settled(rows)
    settled(rows[:5], rows[5:])
    settled(rows[:5] * 0.9 + 0.01)
    settled()  # nothing seen, nothing said


def test_log_probabilities_are_logits():
    logits = random_logits(8, 3)
    classes = settled(logits.log_softmax(1))
    expected = logits.softmax(1)
    assert_allclose(classes.probabilities(logits.log_softmax(1).numpy()), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", [None, *outputs.KINDS])
def test_single_columns_and_bad_rows_are_refused_whatever_was_said(kind):
    with pytest.raises(ValueError, match=r"\(5, 1\): of a logit z make torch\.cat\(\[torch\.zeros"):
        settled(torch.full((5, 1), 0.5), kind=kind)
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 2 rows"):
        settled([[0.5, 0.5], [np.nan, 1.0]], kind=kind)


def test_advice_for_a_single_column_is_right():
    z = torch.linspace(-3, 3, 7)[:, None]
    two = torch.cat([torch.zeros_like(z), z], dim=1)
    assert_allclose(settled(two).probabilities(two.numpy())[:, 1:], z.sigmoid(), rtol=1e-6)
    p = z.sigmoid()
    assert_allclose(torch.cat([1 - p, p], dim=1), two.softmax(1), rtol=1e-6, atol=1e-7)


def test_what_is_told_is_checked():
    with pytest.raises(ValueError, match=r"outputs_are must be None or one of .*got 'softmax'"):
        Classes("softmax")
    with pytest.raises(ValueError, match=r'is "probabilities", but .* in \[-2, 3\]'):
        settled(LOGITS, kind="probabilities")
    settled(torch.tensor([[0.9, 0.8, 0.1]]), kind="probabilities")  # of labels that may coincide


def test_probabilities_stay_as_they_are_and_logits_are_their_logarithms():
    rows = np.array([[0.5, 0.25, 0.0], [0.9, 0.8, 0.1]], np.float32)
    classes = settled(rows, kind="probabilities")
    assert_array_equal(classes.probabilities(rows), rows.astype(float))
    assert_allclose(classes.logits(rows)[0], [np.log(0.5), np.log(0.25), -np.inf])
    logits = LOGITS.numpy()
    assert settled(logits).logits(logits) is logits


def test_winners_need_two_classes():
    assert outputs.winners(LOGITS.numpy()).tolist() == [0, 1]
    assert outputs.winners(LOGITS.softmax(1).numpy()).tolist() == [0, 1]
    model = Wrapped(lambda out: out[:, :1]).eval()
    with pytest.raises(ValueError, match="two or more classes"):
        runtime.predicted(model, X[None])
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 2 rows"):
        runtime.predicted(Wrapped(lambda out: out * np.nan).eval(), np.stack([X, X]))
