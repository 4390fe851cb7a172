"""GANMEX: losses against numpy, networks against counts, training against a step by hand."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from xaiutils import ganmex
from xaiutils.classifiers import trained
from xaiutils.data import problems
from xaiutils.ganmex import Settings

TINY = Settings(iterations=6, per_class=2, width=4, critic_width=4, blocks=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def uniform(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape))


def cross_entropy(logits, labels):
    """Mean of log(sum exp) - logit, in numpy."""
    logits = np.asarray(logits)
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), labels])


# Losses


class Shifted(nn.Module):
    """A generator whose images are 0.8 x plus a value of the class wanted."""

    values = torch.tensor([-0.1, 0.05, 0.15], dtype=torch.float64)

    def forward(self, x, wanted):
        return 0.8 * x + self.values[wanted].view(-1, 1, 1, 1)


class LinearCritic(nn.Module):
    """Realness w.x and, for an own head, logits V.x."""

    def __init__(self, w, v=None):
        super().__init__()
        self.w, self.v = w, v

    def forward(self, x):
        return self.judge(x)[0]

    def judge(self, x):
        x = x.flatten(1)
        return x @ self.w, None if self.v is None else x @ self.v


class Losses:
    """A hand-made batch of 5 images (2, 4, 4) of 3 classes."""

    def __init__(self):
        self.x, self.fake = uniform(5, 2, 4, 4, seed=1), uniform(5, 2, 4, 4, seed=2)
        self.labels, self.wanted = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([1, 2, 0, 2, 0])
        self.mix = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
        self.w, self.v = uniform(32, seed=3), uniform(32, 3, seed=4)
        self.m = 3 * uniform(32, 3, seed=5)

    def model(self, images):
        return images.flatten(1) @ self.m

    def generator(self, settings, **replaced):
        parts = {"generator": Shifted(), "critic": LinearCritic(self.w, self.v)}
        parts |= {"model": self.model, "x": self.x, "labels": self.labels}
        parts |= {"fake": self.fake, "wanted": self.wanted} | replaced
        losses = ganmex.generator_losses(**parts, settings=settings)
        return {name: loss.item() for name, loss in losses.items()}

    def critic(self, settings, **replaced):
        parts = {"critic": LinearCritic(self.w), "x": self.x, "labels": self.labels}
        parts |= {"fake": self.fake, "mix": self.mix} | replaced
        losses = ganmex.critic_losses(**parts, settings=settings)
        return {name: loss.item() for name, loss in losses.items()}


@pytest.fixture
def batch():
    return Losses()


# Of other sizes than the defaults, and all different, so that none can stand for another.
WEIGHTS = {"classifier": 7.0, "similarity": 3.0, "cycle": 5.0, "critic": 2.0}


def expected_of_the_generator(batch, own_head=False):
    x, fake = batch.x.numpy(), batch.fake.numpy()
    there_and_back = 0.8 * fake + Shifted.values.numpy()[batch.labels][:, None, None, None]
    judged = fake.reshape(5, -1) @ batch.v.numpy()
    if not own_head:
        judged = ((fake + 1) / 2).reshape(5, -1) @ batch.m.numpy()
    return {
        "critic": -2 * np.mean(fake.reshape(5, -1) @ batch.w.numpy()),
        "classifier": 7 * cross_entropy(judged, batch.wanted),
        "similarity": 3 * np.abs(x - fake).sum() / x.size,
        "cycle": 5 * np.abs(x - there_and_back).sum() / x.size,
    }


@pytest.mark.parametrize("own_head", [False, True])
def test_losses_of_the_generator(batch, own_head):
    found = batch.generator(Settings(**WEIGHTS, own_head=own_head))
    expected = expected_of_the_generator(batch, own_head)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "name, unused",
    [("critic", "critic"), ("classifier", "model"), ("similarity", None), ("cycle", "generator")],
)
def test_without_weight_a_loss_and_what_it_asks_are_left_out(batch, name, unused):
    settings = Settings(**(WEIGHTS | {name: 0.0}))
    found = batch.generator(settings, **({unused: None} if unused else {}))
    expected = expected_of_the_generator(batch)
    del expected[name]
    assert found == pytest.approx(expected, rel=1e-12)


def test_with_an_own_head_the_classifier_is_not_asked(batch):
    with_one = batch.generator(Settings(own_head=True))
    assert batch.generator(Settings(own_head=True), model=None) == with_one


def test_absolute_differences_are_means(batch):
    """Not sums: the weights mean the same for images of any size."""

    def tiled(images):
        return images.repeat(1, 1, 2, 2)

    settings = Settings(**WEIGHTS | {"critic": 0, "classifier": 0})
    found = batch.generator(settings, x=tiled(batch.x), fake=tiled(batch.fake))
    assert found == pytest.approx(batch.generator(settings), rel=1e-12)


def test_classifier_sees_real_images_as_it_would_alone(linear, data):
    """On the way 2 x - 1, (. + 1) / 2 to the classifier, no loss and no accuracy is changed."""
    x, y, logits = data.test_images, data.test_labels, []

    def model(images):
        logits.append(linear(images))
        return logits[-1]

    given = x * 2 - 1
    settings = Settings(classifier=1, similarity=0, cycle=0, critic=0)
    (loss,) = ganmex.generator_losses(None, None, model, given, y, given, y, settings).values()
    assert_allclose(loss.item(), cross_entropy(linear(x).detach(), y), rtol=1e-5)
    accuracy = (linear(x).argmax(1) == y).float().mean()
    assert accuracy > 0.85
    assert (logits[0].argmax(1) == y).float().mean() == accuracy


def test_losses_of_the_critic(batch):
    settings = Settings(**WEIGHTS, penalty=4.0, own_head=True)
    found = batch.critic(settings, critic=LinearCritic(batch.w, batch.v))
    x, fake = (images.numpy().reshape(5, -1) for images in (batch.x, batch.fake))
    w = batch.w.numpy()
    expected = {
        "distance": np.mean(fake @ w) - np.mean(x @ w),
        "penalty": 4 * (np.linalg.norm(w) - 1) ** 2,
        "classifier": 7 * cross_entropy(x @ batch.v.numpy(), batch.labels),
    }
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("norm", [0.0, 0.25, 1.0, 3.0])
def test_penalty_of_a_linear_critic_is_two_sided(batch, norm):
    w = batch.w / batch.w.norm() * norm
    found = batch.critic(Settings(), critic=LinearCritic(w))
    assert found.keys() == {"distance", "penalty"}
    assert_allclose(found["penalty"], 10 * (norm - 1) ** 2, rtol=1e-4, atol=1e-9)


class Bent(nn.Module):
    """scale (b.tanh(A x) + |x|^2 / 3), so that the slope differs from place to place."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.a, self.b = uniform(32, 4, seed=7), uniform(4, seed=8)

    def forward(self, x):
        x = x.flatten(1)
        return self.scale * ((x @ self.a).tanh() @ self.b + x.square().sum(1) / 3)

    def judge(self, x):
        return self(x), None


def slopes_by_differences(critic, points, h=1e-5):
    """Norm of the gradient at each of `points`, by central differences."""
    norms = []
    for point in points:
        steps = h * torch.eye(point.numel(), dtype=torch.float64).view(-1, *point.shape)
        with torch.no_grad():
            gradient = (critic(point + steps) - critic(point - steps)) / (2 * h)
        norms.append(gradient.norm().item())
    return np.array(norms)


def test_penalty_is_taken_on_the_way_from_real_to_made(batch):
    """Against finite differences, and its own derivative by the critic's scale in closed form."""
    critic = Bent(0.4)
    losses = ganmex.critic_losses(
        critic, batch.x, batch.labels, batch.fake, batch.mix, Settings(penalty=3.0)
    )
    at = batch.mix.view(-1, 1, 1, 1)
    points = at * batch.fake + (1 - at) * batch.x
    norms = slopes_by_differences(critic, points)
    assert np.ptp(norms) > 0.1
    assert_allclose(losses["penalty"].item(), 3 * np.mean((norms - 1) ** 2), rtol=1e-7)
    losses["penalty"].backward()
    expected = 3 * np.mean(2 * (norms - 1) * norms / 0.4)
    assert_allclose(critic.scale.grad.item(), expected, rtol=1e-7)


def test_critic_gives_no_gradient_to_the_generator(batch):
    fake = batch.fake.clone().requires_grad_()
    critic = Bent(0.4)
    losses = ganmex.critic_losses(critic, batch.x, batch.labels, fake, batch.mix, Settings())
    sum(losses.values()).backward()
    assert fake.grad is None
    assert critic.scale.grad is not None


# Networks


def test_generator_has_the_authors_weights():
    network = ganmex.Generator(1, 10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(m.bias is None for m in convolutions)
    assert sum(m.weight.numel() for m in convolutions) == 8_426_240
    # Instance norm after every convolution but the last: scale and shift of each channel.
    normed = [64, 128, 256, *[256] * 12, 128, 64]
    assert sum(p.numel() for p in network.parameters()) == 8_426_240 + 2 * sum(normed)


def test_critic_has_the_authors_weights():
    network = ganmex.Critic(1, 28)
    assert sum(p.numel() for p in network.parameters()) == 2_758_144


@pytest.mark.parametrize("size, layers", [(16, 3), (28, 4), (32, 4), (48, 5), (256, 6)])
@pytest.mark.parametrize("classes", [0, 3])
def test_critic_by_hand(size, layers, classes):
    """Halved until a side is below 3, at most 6 times; leaky, without norm; a map and its mean."""
    critic = ganmex.Critic(3, size, width=2, classes=classes).double()
    weights = [m.weight for m in critic.layers if isinstance(m, nn.Conv2d)]
    assert [len(w) for w in weights] == [2 * 2**i for i in range(layers)]
    assert len([*critic.parameters()]) == layers + 1 + bool(classes)
    x = uniform(3, 3, size, size)
    features = x
    for weight in weights:
        features = functional.conv2d(features, weight, stride=2, padding=1)
        features = torch.where(features > 0, features, 0.01 * features)
    side = features.shape[-1]
    assert side < 3 or layers == 6
    realness = functional.conv2d(features, critic.realness.weight, padding=1).mean((1, 2, 3))
    torch.testing.assert_close(critic(x), realness)
    found, logits = critic.judge(x)
    torch.testing.assert_close(found, realness)
    if classes:
        expected = torch.einsum("bdhw,kdhw->bk", features, critic.head.weight)
        torch.testing.assert_close(logits, expected)
    else:
        assert logits is None


def fresh(channels=1, classes=4, **options):
    with ganmex.trained.seeded(0):
        return ganmex.Generator(channels, classes, **{"width": 8, "blocks": 2, **options})


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 16, 20)])
def test_generator_keeps_the_shape(shape):
    x = uniform(2, *shape).float()
    made = fresh(shape[0])(x, torch.tensor([0, 3]))
    assert made.shape == x.shape
    assert made.min() < 0 < made.max()
    assert made.abs().max() <= 1


def test_generator_depends_on_the_class_through_its_borders():
    """With mirrored borders, instance norm erases the constant maps of the class; zeros save them.

    It needs the norm right behind the first layer, and the class nowhere else.
    """
    network, x = fresh().double(), uniform(1, 1, 28, 28).expand(4, -1, -1, -1)
    wanted = torch.arange(4)
    made = network(x, wanted)
    assert all((made[i] - made[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    network.layers[0].padding_mode = "reflect"
    made = network(x, wanted)
    assert (made - made[:1]).abs().max() < 1e-5


def test_generator_by_hand():
    """Norm and rectifier behind each layer; in a block behind its first one, then a norm; tanh."""
    network = fresh(classes=2, blocks=1, ends=5).double()
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 1:  # scales and shifts, which start as ones and zeros
                p.copy_(uniform(len(p), seed=len(p)) + (p == 1))
    p, x = dict(network.named_parameters()), uniform(2, 1, 16, 16)
    layers = {int(name.split(".")[1]) for name in p if name.endswith(".weight")}
    first, down1, down2, block, up1, up2, last = sorted(layers - {1, 4, 7, 11, 14})

    def normed(features, name):
        mean, var = features.mean((2, 3), keepdim=True), features.var((2, 3), False, keepdim=True)
        scale, shift = (p[f"layers.{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return (features - mean) / (var + 1e-5).sqrt() * scale + shift

    def weight(name):
        return p[f"layers.{name}.weight"]

    maps = torch.zeros(2, 2, 16, 16, dtype=torch.float64)
    maps[0, 1], maps[1, 0] = 1, 1
    h = functional.conv2d(torch.cat([x, maps], 1), weight(first), padding=2)
    h = normed(h, first + 1).clamp(min=0)
    for layer in (down1, down2):
        h = functional.conv2d(h, weight(layer), stride=2, padding=1)
        h = normed(h, layer + 1).clamp(min=0)
    inner = functional.conv2d(h, weight(f"{block}.layers.0"), padding=1)
    inner = normed(inner, f"{block}.layers.1").clamp(min=0)
    inner = functional.conv2d(inner, weight(f"{block}.layers.3"), padding=1)
    h = h + normed(inner, f"{block}.layers.4")
    for layer in (up1, up2):
        h = functional.conv_transpose2d(h, weight(layer), stride=2)[:, :, 1:-1, 1:-1]
        h = normed(h, layer + 1).clamp(min=0)
    expected = functional.conv2d(h, weight(last), padding=2).tanh()
    torch.testing.assert_close(network(x, torch.tensor([1, 0])), expected)


def test_sides_not_divisible_by_4_are_refused(toy):
    with pytest.raises(ValueError, match=r"sides divisible by 4, got \(2, 1, 30, 30\)"):
        fresh()(torch.zeros(2, 1, 30, 30), torch.tensor([0, 1]))
    model, images, labels = toy
    with pytest.raises(ValueError, match="H divisible by 4"):
        ganmex.train(model, functional.pad(images, (1, 1, 1, 1)), labels, TINY)


# Batches

COUNTS = (5, 12, 2)


@pytest.fixture
def uneven():
    return torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([0, 1, 2], COUNTS)))


def test_batches_are_balanced(uneven):
    batches = ganmex.Batches(uneven, 3, seed=0)
    for iteration in range(9):
        assert uneven[batches(iteration)].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_no_class_is_cut_to_the_smallest(uneven):
    """In one epoch of the largest class all images are seen; a class's own come equally often."""
    batches = ganmex.Batches(uneven, 3, seed=0)
    assert {row.item() for i in range(4) for row in batches(i)} == set(range(19))
    rows = torch.cat([batches(i) for i in range(20)])  # 60 of each class, whole epochs
    seen = rows.bincount(minlength=19)
    for k, count in enumerate(COUNTS):
        assert (seen[uneven == k] == 60 // count).all()


def test_order_changes_between_epochs_and_with_the_seed(uneven):
    def epoch(seed, turn):
        batches = ganmex.Batches(uneven, 4, seed)
        rows = torch.cat([batches(3 * turn + i) for i in range(3)])
        return rows[uneven[rows] == 1].tolist()

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert epoch(1, 1) == orders[3]


@pytest.mark.parametrize("labels", [[0, 2, 2], [1, 2, 1]])
def test_a_missing_class_is_refused(toy, labels):
    with pytest.raises(ValueError, match=r"labels must show each class 0\.\.2"):
        ganmex.Training(toy[0], toy[1][:3], torch.tensor(labels), TINY, 0)


# Training


class Classifier(nn.Module):
    """Of 3 classes and 16 pixels, with dropout, running statistics and a part that is frozen."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(256, 8), nn.Dropout(), nn.Linear(8, 3)
        )
        self.layers[2].requires_grad_(False)

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def toy():
    """A classifier, 18 images and their labels."""
    rng = np.random.default_rng(0)
    with ganmex.trained.seeded(0):
        model = Classifier().eval()
    model.layers[0].running_mean.fill_(0.3)
    images = torch.from_numpy(rng.random((18, 1, 16, 16), dtype=np.float32))
    return model, images, torch.from_numpy(rng.permutation(np.arange(18) % 3))


def state_of(training):
    """Everything a training holds, nested, for comparison bit by bit."""
    networks = {
        name: getattr(training, name).state_dict() for name in ("generator", "critic", "average")
    }
    optimisers = {name: o.state_dict()["state"] for name, o in training.optimisers.items()}
    return {"networks": networks, "optimisers": optimisers, "iteration": training.iteration}


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def differ(a, b):
    return any(not torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("own_head", [False, True])
def test_steps_by_hand(toy, own_head, monkeypatch):
    """A step descends the critic's losses, then the generator's under the critic so improved."""
    model, images, labels = toy
    settings = dataclasses.replace(TINY, own_head=own_head)
    training = ganmex.Training(model, images, labels, settings, seed=3)
    mine = {name: copy.deepcopy(getattr(training, name)) for name in ("critic", "generator")}
    adams = {
        name: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for name, net in mine.items()
    }
    calls, losses_of = [], (ganmex.critic_losses, ganmex.generator_losses)

    def spied(function):
        def spy(*arguments):
            calls.append(arguments)
            return function(*arguments)

        return spy

    monkeypatch.setattr(ganmex, "critic_losses", spied(losses_of[0]))
    monkeypatch.setattr(ganmex, "generator_losses", spied(losses_of[1]))
    for step in range(3):
        calls.clear()
        training.step()
        (_, x, y, _, mix, _), (*_, wanted, _) = calls
        rows = training.batches(step)
        assert_same(x, images[rows] * 2 - 1)
        assert_same(y, labels[rows])
        fake = mine["generator"](x, wanted)
        losses = losses_of[0](mine["critic"], x, y, fake, mix, settings)
        adams["critic"].zero_grad()
        sum(losses.values()).backward()
        adams["critic"].step()
        losses = losses_of[1](
            mine["generator"], mine["critic"], model, x, y, fake, wanted, settings
        )
        adams["generator"].zero_grad()
        sum(losses.values()).backward()
        adams["generator"].step()
        assert not differ(mine["critic"], training.critic)
        assert not differ(mine["generator"], training.generator)


def test_generator_step_gives_no_gradient_to_the_critic(toy, monkeypatch):
    training, seen = ganmex.Training(*toy, TINY, seed=0), {}
    losses_of = ganmex.generator_losses

    def spy(generator, critic, *arguments):
        seen["generator"] = [p.grad for p in generator.parameters()]
        seen["critic"] = [p.grad.clone() for p in critic.parameters()]
        return losses_of(generator, critic, *arguments)

    monkeypatch.setattr(ganmex, "generator_losses", spy)
    training.step()
    assert seen["generator"] == [None] * len(seen["generator"])
    assert_same(seen["critic"], [p.grad for p in training.critic.parameters()])
    assert all(p.requires_grad for p in training.critic.parameters())


def test_wanted_classes_are_uniform_and_the_own_one_among_them(toy, monkeypatch):
    model, images, labels = toy
    settings = dataclasses.replace(TINY, per_class=20)
    training, table, mixes = ganmex.Training(model, images, labels, settings, 0), [], []
    monkeypatch.setattr(training, "_descend", lambda *_: None)
    monkeypatch.setattr(ganmex, "critic_losses", lambda *a: mixes.append(a[4]) or {})
    monkeypatch.setattr(ganmex, "generator_losses", lambda *a: table.append(3 * a[4] + a[6]) or {})
    for _ in range(40):
        training.step()
    counts = torch.cat(table).bincount(minlength=9)
    # Each of 9 pairs has 267 +- 15 of the 2,400.
    assert ((counts - 2400 / 9).abs() < 60).all()
    mix = torch.cat(mixes)
    assert len(mix.unique()) > 2390
    assert_allclose(np.histogram(mix, 5, (0, 1))[0], 480, atol=80)


def test_average_by_hand(toy):
    """Weights so far count min(decay, (1 + t) / (10 + t)) at step t, the new ones the rest."""
    for decay in (0.999, 0.2):
        settings = dataclasses.replace(TINY, average=decay, learning_rate=0.01)
        training = ganmex.Training(*toy, settings, seed=0)
        expected = [p.detach().double().numpy() for p in training.generator.parameters()]
        for t in range(5):
            training.step()
            d = min(decay, (1 + t) / (10 + t))
            now = [p.detach().double().numpy() for p in training.generator.parameters()]
            expected = [d * a + (1 - d) * b for a, b in zip(expected, now, strict=True)]
        for found, wanted in zip(training.average.parameters(), expected, strict=True):
            assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-7)


def test_training_returns_the_average_ready_for_use(toy):
    training = ganmex.Training(*toy, TINY, seed=2)
    for _ in range(TINY.iterations):
        training.step()
    generator = ganmex.train(*toy, TINY, seed=2)
    assert not differ(generator, training.average)
    assert differ(generator, training.generator)
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())


@pytest.mark.parametrize("own_head", [False, True])
def test_classifier_is_left_as_it_was(toy, own_head):
    model, images, labels = toy
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    assert set(flags) == {True, False}
    ganmex.train(model, images, labels, dataclasses.replace(TINY, own_head=own_head))
    assert_same(model.state_dict(), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(part.training for part in model.modules())


def test_classifier_is_thawed_after_a_failure(toy, monkeypatch):
    flags = [p.requires_grad for p in toy[0].parameters()]

    def fail(training):
        assert not any(p.requires_grad for p in training.model.parameters())
        raise KeyboardInterrupt

    monkeypatch.setattr(ganmex.Training, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        ganmex.train(*toy, TINY)
    assert [p.requires_grad for p in toy[0].parameters()] == flags


@pytest.mark.parametrize("layer", [0, 3])
def test_classifier_in_training_mode_is_refused(toy, layer):
    toy[0].layers[layer].train()
    with pytest.raises(ValueError, match=r"training mode; call model\.eval"):
        ganmex.train(*toy, TINY)


class Unasked(nn.Module):
    """Has a weight, so that it has a device, and no answer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        raise AssertionError("the classifier was asked")


def test_own_head_is_trained_on_labels_without_the_classifier(toy):
    """Each class is bright in a third of its own: the head of the critic soon knows them."""
    _, images, labels = toy
    images = 0.5 * images
    for image, label in zip(images, labels, strict=True):
        image[:, 5 * label : 5 * label + 5] += 0.5
    settings = dataclasses.replace(TINY, own_head=True, learning_rate=2e-3)
    training = ganmex.Training(Unasked(), images, labels, settings, seed=0)
    for _ in range(40):
        losses = training.step()
    assert {"critic classifier", "generator classifier"} <= losses.keys()
    with torch.no_grad():
        _, logits = training.critic.judge(images * 2 - 1)
    assert (logits.argmax(1) == labels).float().mean() == 1


def test_without_weight_the_critic_is_not_trained(toy):
    training = ganmex.Training(*toy, dataclasses.replace(TINY, critic=0), seed=0)
    critic, generator = copy.deepcopy(training.critic), copy.deepcopy(training.generator)
    for _ in range(2):
        losses = training.step()
    assert losses.keys() == {f"generator {k}" for k in ("classifier", "similarity", "cycle")}
    assert not differ(critic, training.critic)
    assert all(p.grad is None for p in training.critic.parameters())
    assert differ(generator, training.generator)


def test_losses_of_a_step_are_reported(toy):
    losses = ganmex.Training(*toy, TINY, seed=0).step()
    names = ["critic distance", "critic penalty"]
    names += [f"generator {k}" for k in ("critic", "classifier", "similarity", "cycle")]
    assert list(losses) == names
    assert all(isinstance(loss, float) for loss in losses.values())


def test_weights_depend_on_the_seed_alone(toy):
    found = []
    for seed, state in ((5, 1), (5, 2), (6, 1)):
        with ganmex.trained.seeded(state):
            before = torch.get_rng_state()
            found.append(ganmex.train(*toy, TINY, seed=seed))
            assert torch.equal(torch.get_rng_state(), before)
    assert not differ(found[0], found[1])
    assert differ(found[0], found[2])


def test_two_seeds_start_from_other_weights_and_both_networks_follow(toy):
    one, two = (ganmex.Training(*toy, TINY, seed=seed) for seed in (0, 1))
    assert differ(one.generator, two.generator)
    assert differ(one.critic, two.critic)
    assert not differ(one.average, one.generator)


# Stop and resume


@pytest.mark.parametrize("own_head", [False, True])
def test_resumed_state_is_that_of_an_uninterrupted_training(toy, own_head, tmp_path):
    def training():
        return ganmex.Training(*toy, dataclasses.replace(TINY, own_head=own_head), seed=4)

    whole, first, second = training(), training(), training()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    first.save(tmp_path / "state")
    second.resume(tmp_path / "state")
    assert_same(state_of(second), state_of(first))
    for _ in range(3):
        second.step()
    assert_same(state_of(second), state_of(whole))
    assert state_of(second)["optimisers"]["critic"][0]["step"] == 6


def test_interrupted_training_goes_on_from_its_last_checkpoint(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(ganmex, "CHECKPOINT_EVERY", 2)
    checkpoint, step, taken = tmp_path / "new" / "state", ganmex.Training.step, []

    def counted(training):
        if len(taken) == 5 and taken[-1] != "stopped":
            taken.append("stopped")
            raise KeyboardInterrupt
        taken.append(training.iteration)
        return step(training)

    whole = ganmex.train(*toy, TINY, seed=1)
    monkeypatch.setattr(ganmex.Training, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        ganmex.train(*toy, TINY, seed=1, checkpoint=checkpoint)
    assert checkpoint.exists()
    resumed = ganmex.train(*toy, TINY, seed=1, checkpoint=checkpoint)
    assert taken == [0, 1, 2, 3, 4, "stopped", 4, 5]
    assert not differ(whole, resumed)
    assert not [*checkpoint.parent.iterdir()]


def test_checkpoints_of_another_training_are_refused(toy, tmp_path):
    file = tmp_path / "state"
    ganmex.Training(*toy, TINY, seed=0).save(file)
    for other in (
        ganmex.Training(*toy, TINY, seed=1),
        ganmex.Training(*toy, dataclasses.replace(TINY, cycle=1.0), seed=0),
    ):
        with pytest.raises(trained.TrainedError, match="another seed or settings"):
            other.resume(file)


def test_damaged_checkpoints_are_refused(toy, tmp_path):
    file = tmp_path / "state"
    training = ganmex.Training(*toy, TINY, seed=0)
    training.save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(trained.TrainedError, match="delete it to train from nothing"):
        ganmex.train(*toy, TINY, checkpoint=file)


def test_wrong_images_and_labels_are_refused(toy):
    model, images, labels = toy
    broken = images.clone()
    broken[0, 0, 0, 0] = torch.nan
    for wrong in (images * 255, images * 2 - 1, broken, images.to(torch.uint8), images[0]):
        with pytest.raises(ValueError, match="images must be floating point"):
            ganmex.train(model, wrong, labels, TINY)
    for wrong in (labels[:-1], labels.float(), labels[:0]):
        with pytest.raises(ValueError, match="labels must be int64"):
            ganmex.train(model, images, wrong, TINY)
    with pytest.raises(ValueError, match=r"classes 0\.\.1, but the model has 3 outputs"):
        ganmex.train(model, images, labels.clamp(max=1), TINY)


# A trained generator, and baselines


@pytest.fixture(scope="module")
def data():
    return problems.load("small digits", 16)


@pytest.fixture(scope="module")
def linear(data):
    """A linear classifier of the small digits, frozen."""
    fit = LogisticRegression(max_iter=200)
    fit.fit(data.train_images.flatten(1).numpy(), data.train_labels.numpy())
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)).eval().requires_grad_(False)
    model[1].weight.copy_(torch.from_numpy(fit.coef_))
    model[1].bias.copy_(torch.from_numpy(fit.intercept_))
    return model


@pytest.fixture(scope="module")
def generator(linear, data):
    settings = Settings(
        iterations=120, per_class=2, width=8, critic_width=8, blocks=1, learning_rate=2e-3
    )
    return ganmex.train(linear, data.train_images, data.train_labels, settings)


@pytest.fixture(scope="module")
def others(data):
    """For each of 200 test images any class but its own."""
    labels = data.test_labels[:200].numpy()
    return (labels + np.random.default_rng(0).integers(1, 10, 200)) % 10


def test_trained_generator_makes_the_wanted_class(generator, linear, data, others):
    x, y = data.test_images[:200], data.test_labels[:200].numpy()
    baseline = ganmex.Baseline(generator)
    other, own = baseline(x, others), baseline(x, y)
    flipped = linear(torch.from_numpy(other)).argmax(1).numpy() == others
    assert flipped.mean() > 0.9
    near, far = (np.abs(b - x.numpy()).mean((1, 2, 3)) for b in (own, other))
    assert near.mean() < 0.9 * far.mean()
    assert (near < far).mean() > 0.8


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_baselines_are_the_generators_images_in_0_1(generator, data, others, kind):
    x = data.test_images[:20]
    found = ganmex.Baseline(generator)(kind(x), kind(others[:20]))
    assert found.dtype == np.float32
    assert found.shape == (20, 1, 16, 16)
    with torch.no_grad():
        made = generator(2 * x - 1, torch.as_tensor(others[:20])).numpy()
    assert made.min() < -0.5
    assert_allclose(found, (made + 1) / 2, atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1


def test_baselines_do_not_depend_on_the_batch(generator, data, others):
    x = data.test_images[:20]
    whole = ganmex.Baseline(generator)(x, others[:20])
    for batch_size in (1, 7, 20):
        found = ganmex.Baseline(generator, batch_size=batch_size)(x, others[:20])
        assert_allclose(found, whole, atol=1e-5)


def test_each_baseline_is_of_its_own_target(generator, data):
    """Row i belongs to targets[i]: in any order, and each target gives another image."""
    x, baseline = data.test_images[:1].expand(10, -1, -1, -1), ganmex.Baseline(generator)
    ordered = baseline(x, np.arange(10))
    mixed = np.random.default_rng(1).permutation(10)
    assert_allclose(baseline(x, mixed), ordered[mixed], atol=1e-5)
    assert all(np.abs(ordered[i] - ordered[j]).max() > 0.05 for i in range(10) for j in range(i))


def test_baseline_leaves_the_images_alone(generator, data, others):
    x = data.test_images[:5].numpy()
    before = x.copy()
    ganmex.Baseline(generator)(x, others[:5])
    assert (x == before).all()


@pytest.mark.parametrize("targets", [[0, 10], [0, -1], [0], [0.0, 1.0], 3])
def test_unknown_targets_are_refused(generator, data, targets):
    with pytest.raises(ValueError, match=r"targets must be 2 ints within 0\.\.9"):
        ganmex.Baseline(generator)(data.test_images[:2], targets)


def test_wrong_images_have_no_baseline(generator, data):
    for wrong in (data.test_images[:0], data.test_images[0], data.test_images[:2] + 1):
        with pytest.raises(ValueError, match="x must be images"):
            ganmex.Baseline(generator)(wrong, [0, 1][: len(wrong)])
