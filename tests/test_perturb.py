"""The engine against loops over samples and pixels; what it and the label maps refuse."""

import numpy as np
import oracles
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from xaiutils import perturb, segment
from xaiutils.data import datasets
from xaiutils.perturb import Components

DTYPES = [np.uint8, np.float32, np.float64]

# Three components of uneven size on a 4 x 5 image, none of them a rectangle.
LABELS = np.array([[0, 0, 1, 1, 1], [0, 2, 2, 1, 0], [2, 2, 0, 0, 1], [2, 0, 1, 2, 2]])


def random_input(shape, dtype, seed=0):
    values = np.random.default_rng(seed).random(shape) * (255 if dtype == np.uint8 else 1)
    return values.astype(dtype)


def random_masks(n, d, seed=0):
    return np.random.default_rng(seed).random((n, d)) < 0.5


def pixels(batch):
    """The identity as a classifier: every pixel is an output."""
    return batch.flatten(1)


# --- components -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ([[0, 2], [2, 3]], "without gaps.*from 0 to 3"),
        ([[1, 2], [2, 3]], "from 1 to 3"),
        ([[-1, 0], [0, 1]], "from -1 to 1"),
        ([[-1, 0], [0, 2]], "from -1 to 2"),
        ([[0.0, 1.0]], "integer array, got float64"),
        ([[False, True]], "integer array, got bool"),
        (np.empty((0, 3), int), r"non-empty.*\(0, 3\)"),
    ],
)
def test_bad_labels_are_named(labels, hint):
    with pytest.raises(ValueError, match=hint):
        Components(np.array(labels))


def test_advice_of_the_message_repairs_labels():
    labels = np.array([[7, 3], [3, 9]])
    with pytest.raises(ValueError, match=r"np\.unique\(labels, return_inverse=True\)\[1\]"):
        Components(labels)
    repaired = Components(np.unique(labels, return_inverse=True)[1])
    assert repaired.d == 3
    assert repaired.labels.tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize("convert", [np.uint8, np.int32, torch.tensor, np.ndarray.tolist])
def test_labels_of_any_integer_type(convert):
    components = Components(convert(LABELS))
    assert components.d == 3
    assert_array_equal(components.labels, LABELS)


@pytest.mark.parametrize(
    ("labels", "shape", "aligned"),
    [((4, 5), (3, 4, 5), (1, 4, 5)), ((4, 5, 1), (4, 5, 3), (4, 5, 1)), ((4, 5), (4, 5), (4, 5))],
)
def test_labels_line_up_with_the_input(labels, shape, aligned):
    components = Components(LABELS.reshape(labels))
    assert components.aligned(shape).shape == aligned
    x = random_input(shape, np.float64)
    # Hiding component 1 alone changes exactly its positions, in every channel.
    shown = perturb.evaluate(pixels, x, components, [[1, 0, 1]], -1.0).reshape(shape)
    where = np.broadcast_to(LABELS.reshape(labels) == 1, shape)
    assert_array_equal(shown, np.where(where, -1.0, x))


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 5, 4), (5,), (3, 4, 1)])
def test_labels_that_do_not_fit_the_input_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(4, 5\) do not broadcast"):
        perturb.evaluate(pixels, np.zeros(shape), Components(LABELS), np.ones((1, 3)))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_means_are_those_of_a_loop(dtype, channels_last):
    x = random_input((3, 4, 5), dtype, 1)
    expected = np.empty_like(x)
    for c in range(3):
        for j in range(3):
            inside = [float(x[c, u, v]) for u, v in np.argwhere(j == LABELS)]
            mean = sum(inside) / len(inside)
            expected[c, j == LABELS] = round(mean) if dtype == np.uint8 else mean
    labels = LABELS
    if channels_last:
        x, expected, labels = x.transpose(1, 2, 0), expected.transpose(1, 2, 0), LABELS[..., None]
    means = Components(labels).means(x)
    assert means.dtype == dtype
    assert_allclose(means, expected, rtol=1e-6 if dtype == np.float32 else 1e-14)


def test_integer_means_are_rounded_not_truncated():
    assert Components(np.zeros(4, int)).means(np.array([1, 1, 1, 0], np.uint8)).tolist() == [1] * 4


def test_sums_of_a_spectrogram_and_of_a_tensor():
    values = random_input((4, 5), np.float32, 2)
    expected = [sum(float(values[u, v]) for u, v in np.argwhere(j == LABELS)) for j in range(3)]
    assert_allclose(Components(LABELS).sums(values), expected, rtol=1e-12)
    assert_allclose(Components(LABELS).sums(torch.from_numpy(values)), expected, rtol=1e-12)


def test_spread_paints_scores_on_the_map():
    painted = Components(LABELS).spread([0.5, -1.0, 2.0])
    assert painted.shape == LABELS.shape
    assert all(painted[u, v] == [0.5, -1.0, 2.0][LABELS[u, v]] for u, v in np.ndindex(4, 5))


# --- evaluate against one sample at a time --------------------------------------------------------


def count_hidden(x, components, masks):
    """A filler that depends on the sample: every hidden pixel says how many components are."""
    return (~masks).sum(axis=1).reshape(-1, 1, 1, 1)


def reversed_image(x, components, masks):
    """A filler that is the same for all samples."""
    return x[:, ::-1]


FILLERS = {
    "mean": "mean",
    "number": 7,
    "per channel": np.array([1, 2, 3]).reshape(3, 1, 1),
    "image": np.random.default_rng(3).integers(0, 9, (3, 4, 5)),
    "tensor": torch.arange(60).reshape(3, 4, 5),
    "same for all": reversed_image,
    "per sample": count_hidden,
}


def replacement_of(kind, x, mask):
    """What fills hidden pixels of one sample, by loops."""
    full = np.empty_like(x)
    for c, u, v in np.ndindex(x.shape):
        full[c, u, v] = {
            "mean": lambda c, u, v: Components(LABELS).means(x)[c, u, v],
            "number": lambda c, u, v: 7,
            "per channel": lambda c, u, v: c + 1,
            "image": lambda c, u, v: FILLERS["image"][c, u, v],
            "tensor": lambda c, u, v: 20 * c + 5 * u + v,
            "same for all": lambda c, u, v: x[c, 3 - u, v],
            "per sample": lambda c, u, v: 3 - sum(mask),
        }[kind](c, u, v)
    return full


@pytest.mark.parametrize("kind", FILLERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluate_is_one_sample_at_a_time(dtype, kind):
    x = random_input((3, 4, 5), dtype, 4)
    masks = random_masks(23, 3, 5)
    labels = np.broadcast_to(LABELS, x.shape)
    expected = np.array(
        [oracles.compose(x, replacement_of(kind, x, m), labels, m).ravel() for m in masks]
    )
    for size in (1, 5, 23, 64):  # 5 does not divide 23: the last batch is a part of the buffer
        found = perturb.evaluate(
            pixels, x, Components(LABELS), masks, FILLERS[kind], batch_size=size
        )
        assert found.dtype == dtype
        assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", FILLERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_built_with_torch_alone_are_the_same(dtype, kind):
    """The way of other devices, here on the CPU, equals numpy's bit by bit."""
    x, components = random_input((3, 4, 5), dtype), Components(LABELS)
    masks = random_masks(6, components.d)
    hidden = perturb.fill(x, components, FILLERS[kind])
    by_numpy = perturb._numpy_builder(x, components, hidden, 6)(masks)
    by_torch = perturb._torch_builder(x, components, hidden, torch.device("cpu"))(masks)
    assert by_torch.dtype == by_numpy.dtype
    assert_array_equal(by_torch, by_numpy)


def test_spectrogram_input_and_the_default_batch_size():
    x = random_input((4, 5), np.float32, 6)
    masks = random_masks(100, 3, 7)
    expected = np.where(masks[:, LABELS], x, np.float32(0)).reshape(100, -1)
    assert_array_equal(perturb.evaluate(pixels, x, Components(LABELS), masks, 0.0), expected)


def test_transposed_and_tensor_inputs():
    x = random_input((4, 5, 3), np.float32, 8).transpose(2, 0, 1)  # a view, not contiguous
    masks = random_masks(9, 3, 9)
    found = perturb.evaluate(pixels, x, Components(LABELS), masks)
    copied = perturb.evaluate(pixels, np.ascontiguousarray(x), Components(LABELS), masks)
    tensor = perturb.evaluate(pixels, torch.from_numpy(x), Components(LABELS), masks)
    assert_array_equal(found, copied)
    assert_array_equal(tensor, copied)


def test_input_and_filler_are_left_as_they_were():
    x, filler = random_input((3, 4, 5), np.float32, 10), FILLERS["image"].astype(np.float32)
    before = x.copy(), filler.copy()
    perturb.evaluate(lambda b: b.zero_().flatten(1), x, Components(LABELS), np.eye(3), filler)
    assert_array_equal(x, before[0])
    assert_array_equal(filler, before[1])


@pytest.mark.parametrize("dtype", [bool, int, np.float32])
def test_masks_of_any_type_mean_the_same(dtype):
    x, masks = random_input((3, 4, 5), np.float64, 11), random_masks(9, 3, 12)
    found = perturb.evaluate(pixels, x, Components(LABELS), masks.astype(dtype))
    assert_array_equal(found, perturb.evaluate(pixels, x, Components(LABELS), masks))


def test_callable_filler_sees_what_it_needs():
    x, masks, components = (
        random_input((3, 4, 5), np.float64),
        random_masks(7, 3),
        Components(LABELS),
    )
    seen = []

    def filler(x_given, components_given, masks_given):
        assert components_given is components
        assert_array_equal(x_given, x)
        seen.append(masks_given.copy())
        return np.zeros_like(x)

    perturb.evaluate(pixels, x, components, masks, filler, batch_size=3)
    assert [len(part) for part in seen] == [3, 3, 1]
    assert_array_equal(np.vstack(seen), masks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_callables_get_the_dtype_of_the_input(dtype):
    seen = []

    def model(batch):
        seen.append((batch.dtype, tuple(batch.shape)))
        return np.zeros((len(batch), 2))

    perturb.evaluate(model, random_input((4, 5), dtype), Components(LABELS), np.eye(3))
    assert seen == [(torch.from_numpy(np.empty(0, dtype)).dtype, (3, 4, 5))]


def test_outputs_by_index_and_by_function():
    x, masks = random_input((4, 5), np.float64, 13), random_masks(11, 3, 14)
    every = perturb.evaluate(pixels, x, Components(LABELS), masks, 0.0)

    def some(outputs):
        return perturb.evaluate(
            pixels, x, Components(LABELS), masks, 0.0, batch_size=4, outputs=outputs
        )

    assert_array_equal(some([7, 2]), every[:, [7, 2]])
    assert_array_equal(some((3,)), every[:, [3]])
    largest = some(lambda out: out.max(axis=1))
    assert largest.shape == (11,)
    assert_array_equal(largest, every.max(axis=1))


# --- what evaluate refuses ------------------------------------------------------------------------


def refuse(hint, *, model=pixels, masks=None, **options):
    masks = np.ones((2, 3)) if masks is None else masks
    with pytest.raises(ValueError, match=hint):
        perturb.evaluate(model, np.zeros((3, 4, 5)), Components(LABELS), masks, **options)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 3, 1)])
def test_masks_of_another_shape_are_refused(shape):
    refuse(r"masks must have shape \(N, 3\)", masks=np.ones(shape))


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_masks_with_other_values_are_refused(value):
    refuse("only 0 .* and 1", masks=np.array([[0, 1, value]]))


@pytest.mark.parametrize("size", [0, -4, 2.5, "8"])
def test_bad_batch_sizes_are_refused(size):
    refuse(f"batch_size.*{size}", batch_size=size)


@pytest.mark.parametrize("outputs", [[60], [-1], [[0, 1]], 3])
def test_outputs_that_the_model_does_not_have_are_refused(outputs):
    refuse("outputs must be columns 0..59", outputs=outputs)


@pytest.mark.parametrize(
    ("filler", "hint"),
    [
        ("median", "median"),
        (np.zeros((3, 5, 4)), r"\(3, 5, 4\).*\(3, 4, 5\)"),
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((2, 3, 4, 5)), r"\(2, 3, 4, 5\)"),
    ],
)
def test_bad_fillers_are_refused(filler, hint):
    refuse(hint, filler=filler)


@pytest.mark.parametrize(
    "model",
    [
        lambda batch: batch.sum(dim=(1, 2, 3)),
        lambda batch: batch.mean(dim=(2, 3))[:1],
        lambda batch: batch,
    ],
)
def test_outputs_that_are_not_a_row_per_sample_are_refused(model):
    refuse(r"\(batch, outputs\)", model=model)


def test_something_that_is_no_model_is_refused():
    refuse("model must be", model="efficientnet")


# --- label maps -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph():
    """(3, 112, 112) uint8."""
    return (datasets.imagenet_samples(112).images[0] * 255).round().to(torch.uint8).numpy()


def assert_contiguous(labels, shape):
    assert labels.shape == shape
    assert np.issubdtype(labels.dtype, np.integer)
    assert np.unique(labels).tolist() == list(range(labels.max() + 1))


def test_quickshift_does_not_depend_on_the_dtype(photograph):
    labels = segment.quickshift(photograph)
    assert_contiguous(labels, (112, 112))
    assert 5 <= labels.max() + 1 <= 60
    single = segment.quickshift((photograph / 255).astype(np.float32))
    assert single.max() == labels.max()
    assert (single == labels).mean() > 0.99
    assert_array_equal(segment.quickshift(photograph / 255), labels)
    assert_array_equal(segment.quickshift(torch.from_numpy(photograph)), labels)


def test_slic_starts_at_zero_and_follows_the_wished_number(photograph):
    counts = []
    for wished in (10, 60):
        labels = segment.slic(photograph, n_segments=wished)
        assert_contiguous(labels, (112, 112))
        counts.append(labels.max() + 1)
    assert 5 <= counts[0] <= 15 < 40 <= counts[1] <= 80


def test_gray_images_have_superpixels_too(photograph):
    gray = photograph[:1]
    assert_array_equal(segment.quickshift(gray), segment.quickshift(gray.repeat(3, axis=0)))


@pytest.mark.parametrize("method", [segment.quickshift, segment.slic])
@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (np.full((3, 8, 8), 128.0), r"\[0, 1\].*128"),
        (np.full((3, 8, 8), -0.1, np.float32), "-0.1"),
        (np.full((3, 8, 8), 1, np.int64), "int64"),
        (np.zeros((8, 8, 3)), r"\(8, 8, 3\)"),
        (np.zeros((8, 8)), r"\(8, 8\)"),
    ],
)
def test_images_of_unclear_range_or_layout_are_refused(method, image, hint):
    with pytest.raises(ValueError, match=hint):
        method(image)


@pytest.mark.parametrize(
    ("shape", "rows", "cols"), [((6, 8), 3, 4), ((8, 11), 3, 4), ((5, 3), 5, 3), ((9, 9), 1, 1)]
)
def test_grid_cells_differ_by_at_most_one_row_and_column(shape, rows, cols):
    labels = segment.grid(shape, rows, cols)
    assert_contiguous(labels, shape)
    assert labels.max() + 1 == rows * cols
    for j in range(rows * cols):
        where = np.argwhere(labels == j)
        height, width = np.ptp(where, axis=0) + 1
        assert len(where) == height * width  # a rectangle
        assert height in (shape[0] // rows, shape[0] // rows + 1)
        assert width in (shape[1] // cols, shape[1] // cols + 1)


@pytest.mark.parametrize(("rows", "cols"), [(0, 2), (2, 0), (-1, 2), (5, 2), (2, 7)])
def test_grid_refuses_more_cells_than_positions(rows, cols):
    with pytest.raises(ValueError, match=rf"{rows}, {cols} must be within 1..4, 1..6"):
        segment.grid((4, 6), rows, cols)


@pytest.mark.parametrize("filler", [-1, 300, 0.5, np.nan])
def test_filler_that_an_integer_input_cannot_hold_is_refused(filler):
    x = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="uint8"):
        perturb.fill(x, Components(np.zeros((4, 4), int)), filler)


@pytest.mark.parametrize("filler", [None, "median", ["a"]])
def test_filler_of_another_kind_is_refused(filler):
    with pytest.raises(ValueError, match="filler must be"):
        perturb.fill(np.zeros((4, 4)), Components(np.zeros((4, 4), int)), filler)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
def test_kept_and_hidden_values_arrive_bit_by_bit(dtype):
    x = np.array([0.0, -0.0, 1.0, 7.0], "float64").astype(dtype)
    filler = np.array([1.0, 0.0, -0.0, 3.0], "float64").astype(dtype)
    if x.dtype.kind == "f":
        x[2], filler[3] = np.nan, np.inf
    masks = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]], bool)
    seen = []

    def model(batch):
        seen.append(batch.numpy().copy())
        return torch.zeros(len(batch), 1)

    perturb.evaluate(model, x, Components(np.arange(4)), masks, filler, batch_size=2)
    expected = np.where(masks, x, filler)
    assert np.concatenate(seen).tobytes() == expected.tobytes()
