"""Classifiers: published accuracy, folding, preprocessing, gradients, export, clear errors."""

import urllib.error

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

from xaiutils.classifiers import digits, imagenet
from xaiutils.data import arrays, assets, datasets

PRETRAINED = "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"
RIGHT = dict.fromkeys(PRETRAINED, 18) | {"squeezenet1_1": 15}  # of the 20 photographs
SIDES = {"efficientnet_lite1": 240, "efficientnet_lite2": 260}  # the others: 224

# Logits of the first photograph (a bull mastiff, class 243) as computed when they were added.
SOME = [0, 7, 159, 242, 243, 999]
GOLDEN = {
    "efficientnet_lite2": [-0.174, 0.339, 3.996, 4.469, 7.071, 0.753],
    "squeezenet1_1": [13.414, 12.953, 33.906, 34.347, 35.693, 12.062],
}


@pytest.fixture(scope="module")
def lite0():
    return imagenet.load("efficientnet_lite0")


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", RIGHT)
def test_most_photographs_are_recognised(name):
    model = imagenet.load(name)
    samples = datasets.imagenet_samples(model.side)
    assert digits.accuracy(model, samples.images, samples.labels) == RIGHT[name] / 20


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_before(name):
    model = imagenet.load(name)
    logits = model(datasets.imagenet_samples(model.side).images[:1])[0, SOME]
    torch.testing.assert_close(logits, torch.tensor(GOLDEN[name]), atol=2e-3, rtol=0)


def test_squeezenet_is_the_published_network_on_the_packaged_arrays():
    """Written out: BGR levels less Caffe's means, fire modules, average of the last maps."""
    with assets.path("squeezenet_weights.pkl").open("rb") as stream:
        weights = arrays.read_arrays(stream, "squeezenet_weights.pkl")

    def layer(x, name, **options):
        kernel, bias = (torch.from_numpy(w) for w in weights[name])
        return functional.relu(functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, **options))

    x = noise(2, 3, 224, 224)
    means = torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    y = layer(255 * x[:, [2, 1, 0]] - means, "conv1", stride=2)
    for fire in range(2, 10):
        if fire in (2, 4, 6):
            y = functional.max_pool2d(y, 3, 2, ceil_mode=True)
        y = layer(y, f"fire{fire}/squeeze1x1")
        wide = layer(y, f"fire{fire}/expand3x3", padding=1)
        y = torch.cat([layer(y, f"fire{fire}/expand1x1"), wide], 1)
    expected = layer(y, "conv10").mean((2, 3))
    torch.testing.assert_close(imagenet.load("squeezenet1_1")(x), expected, atol=1e-3, rtol=1e-4)


def test_weights_with_another_hash_are_refused(tmp_path, monkeypatch):
    (tmp_path / "squeezenet").mkdir()
    (tmp_path / "squeezenet" / "squeezenet_weights.pkl").write_bytes(b"other")
    monkeypatch.setenv("XAIUTILS_CACHE", str(tmp_path))
    other = lambda archive, file: file.write_bytes(b"other")  # noqa: E731
    monkeypatch.setattr(assets.downloads, "fetch_archive", other)
    pattern = r"asset 'squeezenet_weights\.pkl': .* has a wrong hash \(expected sha256 a87c0bd2"
    with pytest.raises(assets.AssetError, match=pattern) as caught:
        imagenet.load("squeezenet1_1")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("name", PRETRAINED)
def test_folding_batch_norm_keeps_the_logits(name):
    folded = imagenet.load(name)
    plain = imagenet._load(name, pretrained=True, fold=False)
    x = noise(2, 3, folded.side, folded.side)
    torch.testing.assert_close(folded(x), plain(x), atol=1e-4, rtol=0)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 15])
def test_padding_is_that_of_tensorflow(kernel, stride, size):
    """Output i looks at inputs i * stride - low ... with low = half the total padding, floored."""
    layer = imagenet._conv(1, 1, kernel, size, stride, activation=False).eval()
    layer = torch.nn.Sequential(*list(layer)[:-1]).requires_grad_(False)  # without batch norm
    x = noise(1, 1, size, size)
    weight = layer[-1].weight[0, 0]
    outputs = -(-size // stride)
    low = max((outputs - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(outputs, outputs)
    for i, j in np.ndindex(outputs, outputs):
        for a, b in np.ndindex(kernel, kernel):
            row, column = i * stride - low + a, j * stride - low + b
            if 0 <= row < size and 0 <= column < size:
                expected[i, j] += weight[a, b] * x[0, 0, row, column]
    torch.testing.assert_close(layer(x)[0, 0], expected)


def test_gradient_with_respect_to_the_image():
    model = imagenet.load("efficientnet_lite0").double()
    x = noise(1, 3, 260, 300, dtype=torch.float64).requires_grad_()  # through the resize as well
    direction = noise(1, 3, 260, 300, seed=1, dtype=torch.float64) - 0.5

    def logit(images):
        return model(images)[0, 7]

    (gradient,) = torch.autograd.grad(logit(x), x)
    step = 1e-8  # short enough to cross hardly any kink of the ReLU6
    with torch.no_grad():
        slope = (logit(x + step * direction) - logit(x - step * direction)) / (2 * step)
    assert abs(slope) > 1e-3
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=0)


def test_other_sizes_are_resized_and_cropped_at_the_centre(lite0):
    """Shorter side to 256 by antialiased bicubic, then the middle 224; here by interpolate."""
    x = noise(1, 3, 512, 640)
    expected = functional.interpolate(x, (256, 320), mode="bicubic", antialias=True)
    expected = expected[:, :, 16 : 16 + 224, 48 : 48 + 224]
    torch.testing.assert_close(lite0(x), lite0(expected), atol=1e-4, rtol=0)


def test_the_own_size_reaches_the_network_untouched(lite0):
    x = noise(2, 3, 224, 224)
    expected = lite0.network((x - 0.498) / 0.502)
    torch.testing.assert_close(lite0(x), expected, atol=1e-5, rtol=0)


def test_resnet50_is_the_torchvision_network_on_normalised_images():
    model = imagenet.load("resnet50", pretrained=False)
    plain = imagenet._load("resnet50", pretrained=False, fold=False)
    x = noise(2, 3, 224, 224)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = torch.from_numpy((x.numpy() - mean[:, None, None]) / std[:, None, None]).float()
    assert model(x).shape == (2, 1000)
    torch.testing.assert_close(model(x), plain.network(normalised), atol=1e-4, rtol=1e-4)


def test_resnet50_without_internet_says_what_it_needs(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    torch_home = str(tmp_path)
    monkeypatch.setenv("TORCH_HOME", torch_home)
    with pytest.raises(RuntimeError, match=r"resnet50: .*98 MB.*internet") as caught:
        imagenet.load("resnet50")
    assert torch_home in str(caught.value)


@pytest.mark.parametrize("name", imagenet.NAMES)
def test_random_weights_are_reproducible_frozen_and_leave_the_global_generator_alone(name):
    before = torch.get_rng_state()
    one = imagenet.load(name, pretrained=False)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        two = imagenet.load(name, pretrained=False)
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in pairs)
    assert not any(module.training for module in one.modules())
    assert (one.name, one.side) == (name, SIDES.get(name, 224))


def test_random_weights_are_not_the_trained_ones(lite0):
    random = imagenet.load("efficientnet_lite0", pretrained=False)
    assert not torch.equal(random.network[-1].weight, lite0.network[-1].weight)


def test_weights_are_channels_last(lite0):
    convolutions = [m for m in lite0.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 49
    memory_format = torch.channels_last
    assert all(c.weight.is_contiguous(memory_format=memory_format) for c in convolutions)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name: 'vgg16'.*efficientnet_lite0"):
        imagenet.load("vgg16")


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 224, 224),
        torch.zeros(1, 1, 224, 224),
        torch.zeros(1, 224, 224, 3),
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused(lite0, x):
    with pytest.raises(ValueError, match=r"x: expected floating-point images \(N, 3, H, W\)"):
        lite0(x)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 28, 28),
        torch.zeros(1, 784),
        torch.zeros(1, 1, 32, 32),
        torch.zeros(1, 1, 28, 28, dtype=torch.int64),
    ],
)
def test_wrong_digits_are_refused(x):
    with pytest.raises(ValueError, match=r"x: expected floating-point digits \(N, 1, 28, 28\)"):
        digits.load()(x)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "digits"])
def test_onnx_export_with_dynamic_batch(name, tmp_path, lite0):
    model, shape = (digits.load(), (1, 28, 28)) if name == "digits" else (lite0, (3, 224, 224))
    file = tmp_path / "model.onnx"
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(
        model, (noise(2, *shape),), dynamo=True, dynamic_shapes=batch, verbose=False
    )
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = noise(5, *shape, seed=1)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_committed_digit_classifier_is_accurate_and_frozen(masked):
    model, data = digits.load(masked=masked), datasets.mnist()
    assert digits.accuracy(model, data.test_images, data.test_labels) >= 0.985
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_accuracy_counts_over_batches():
    images = functional.one_hot(torch.arange(1200) % 7, 7).float()
    labels = torch.arange(1200) % 7
    labels[:300] = 7  # never predicted
    assert digits.accuracy(torch.nn.Identity(), images, labels) == 0.75


def test_digit_training_depends_on_its_seed_alone():
    data = datasets.mnist()
    threads_before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)

    def trained(seed, order_seed):
        model = digits._build(seed)
        model.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
        subset = data.train_images[:1024], data.train_labels[:1024]
        digits._train(model, *subset, order_seed, epochs=3, batch_size=64, learning_rate=5e-3)
        return model

    state = torch.get_rng_state()
    one = trained(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)  # another state of the global generator
        two = trained(0, 0)
    assert seen == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads_before)
    x = data.test_images[:500]
    assert torch.equal(one(x), two(x))
    for other in trained(1, 0), trained(0, 1):
        assert not torch.allclose(one(x), other(x), atol=0.1)
    assert digits.accuracy(one, x, data.test_labels[:500]) > 0.7
    assert digits.accuracy(digits._build(0), x, data.test_labels[:500]) < 0.4


def test_training_on_masked_digits_makes_the_classifier_robust_to_masks():
    data = datasets.mnist()
    x, labels = data.test_images[:2000], data.test_labels[:2000]
    hidden = x * (noise(*x.shape) >= 0.25)
    plain, masked = (digits.accuracy(digits.load(masked=m), hidden, labels) for m in (False, True))
    assert masked > plain + 0.01
    assert masked > 0.97


def masking(**changes):
    """Augmentation of the identity, so that its output is the masked input."""
    return digits.Masking(torch.nn.Identity(), 0, **(digits._MASKING | changes))


def test_masking_leaves_half_of_the_batches_alone_and_is_reproducible():
    x = 0.5 + noise(4, 1, 28, 28) / 2
    one, two = masking(), masking()
    batches = [one(x) for _ in range(400)]
    assert all(torch.equal(batch, two(x)) for batch in batches)
    untouched = sum(torch.equal(batch, x) for batch in batches)
    assert 160 < untouched < 240
    assert all(((batch == x) | (batch == 0)).all() for batch in batches)


def test_densities_of_masks_are_uniform_up_to_the_largest():
    always = masking(share_of_batches=1.0, share_of_boxes=0.0)
    x = torch.ones(64, 1, 28, 28)
    shares = torch.stack([1 - always(x).mean((1, 2, 3)) for _ in range(200)])
    density = shares.mean(1)  # one for each batch
    assert 0.24 < density.max() < 0.26
    assert abs(density.mean() - 0.125) < 0.015
    assert shares.std(1).max() < 0.025  # within a batch, binomial alone


def test_a_masked_pixel_may_grow_to_the_right_and_down():
    """Rare seeds, all of which grow: squares of side 1, 2 or 3, cut off at the border."""
    always = masking(share_of_batches=1.0, max_density=4e-4, share_of_boxes=1.0)
    hidden = always(torch.ones(4000, 1, 28, 28))[:, 0] == 0
    sides = []
    for one in hidden[hidden.any((1, 2))]:
        rows, columns = torch.nonzero(one, as_tuple=True)
        if rows.max() < 27 and columns.max() < 27:
            side = int(rows.max() - rows.min()) + 1
            if len(rows) == side**2 == side * (int(columns.max() - columns.min()) + 1):
                sides.append(side)
    shares = torch.bincount(torch.tensor(sides), minlength=4) / len(sides)
    assert len(sides) > 200
    assert torch.allclose(shares, torch.tensor([0, 1, 1, 1]) / 3, atol=0.1)


def test_masks_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    masking()(torch.ones(2, 1, 28, 28))
    assert torch.equal(torch.get_rng_state(), before)
