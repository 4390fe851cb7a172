"""The constrained GAN: against `ganmex` where both are the same, by hand where they are not."""

import copy
import dataclasses
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from xaiutils import constrained_gan, ganmex, runtime
from xaiutils.classifiers import trained
from xaiutils.constrained_gan import Settings

TINY = Settings(iterations=6, per_class=2, width=4, critic_width=4, blocks=1, learning_rate=2e-4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with trained.one_thread():
        yield


def uniform(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape))


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture
def toy():
    """A frozen linear classifier of three classes and 18 images (2, 16, 16) that it knows."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(size=(18, 2, 16, 16)).astype("float32"))
    with trained.seeded(5):
        model = nn.Sequential(nn.Flatten(), nn.Linear(512, 3)).eval().requires_grad_(False)
    return model, images, torch.from_numpy(rng.permutation(np.arange(18) % 3))


# Networks


def fresh(form, channels=3, classes=4):
    with trained.seeded(0):
        return constrained_gan.Generator(channels, classes, form=form, width=8, blocks=2, ends=3)


def answer(network, x, wanted):
    """h, from the layers alone."""
    maps = functional.one_hot(wanted, 4).to(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return network.layers(torch.cat([x, maps], 1))


def test_paint_is_the_published_generator():
    with trained.seeded(0):
        published = ganmex.Generator(3, 4, width=8, blocks=2, ends=3)
    network = fresh("paint")
    # Norms are of another class, but hold the same weights under the same names.
    network.load_state_dict(published.state_dict())
    x, wanted = uniform(2, 3, 16, 16).float(), torch.tensor([0, 3])
    torch.testing.assert_close(network(x, wanted), published(x, wanted))


def test_identity_starts_as_the_image():
    x, wanted = uniform(2, 3, 16, 16).float(), torch.tensor([0, 3])
    network = fresh("identity")
    made, mask = network.compose(x, wanted)
    torch.testing.assert_close(made, 0.98 * x)
    assert mask is None
    with torch.no_grad():
        network.layers[-1].weight.fill_(0.01)
    expected = torch.tanh(torch.atanh(0.98 * x) + answer(network, x, wanted))
    torch.testing.assert_close(network(x, wanted), expected)
    assert (network(x, wanted) - 0.98 * x).abs().max() > 0.01


def test_mask_says_where_is_painted():
    x, wanted = uniform(2, 3, 16, 16).float(), torch.tensor([0, 3])
    network = fresh("mask")
    made, mask = network.compose(x, wanted)
    assert mask.shape == (2, 1, 16, 16) and mask.min() > 0 and mask.max() < 1
    h = answer(network, x, wanted)
    torch.testing.assert_close(mask, torch.sigmoid(h[:, 3:]))
    torch.testing.assert_close(made, mask * torch.tanh(h[:, :3]) + (1 - mask) * x)
    torch.testing.assert_close(network(x, wanted), made)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"form": "blot"}, "form must be one of paint, identity, mask, got 'blot'"),
        ({"bound": 0.0}, "bound must be above 0 and finite, got 0.0"),
        ({"bound": float("nan")}, "bound must be above 0 and finite, got nan"),
        ({"weight": float("inf")}, "weight must be above 0 and finite, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def told_critic(size, told):
    critic, classes = constrained_gan.Critic(2, size, width=2, told=told).double(), None
    if told:
        classes = torch.tensor([1, 0, 1])
        with torch.no_grad():
            critic.of_class.copy_(uniform(*critic.of_class.shape, seed=8))
    return critic, classes


@pytest.mark.parametrize("told", [0, 2])
@pytest.mark.parametrize("size", [16, 28, 32, 48, 256])
def test_slope_is_that_of_autograd_and_so_is_its_derivative(size, told):
    critic, classes = told_critic(size, told)
    x = uniform(3, 2, size, size).requires_grad_()
    (wanted,) = torch.autograd.grad(critic(x, classes).sum(), x, create_graph=True)
    found = critic.slope(x.detach(), classes)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
    weights, direction = [*critic.parameters()], uniform(*x.shape, seed=3)
    wanted = torch.autograd.grad((wanted**2 * direction).sum(), weights)
    found = torch.autograd.grad((found**2 * direction).sum(), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_realness_as_an_image_of_a_class():
    critic, classes = told_critic(16, 2)
    x = uniform(3, 2, 16, 16)
    features = critic.layers(x)
    plain = critic.realness(features).mean((1, 2, 3))
    extra = [features[i].mean((1, 2)) @ critic.of_class[c] for i, c in enumerate(classes)]
    torch.testing.assert_close(critic(x, classes), plain + torch.stack(extra))
    untold, _ = told_critic(16, 0)
    untold.load_state_dict({k: v for k, v in critic.state_dict().items() if k != "of_class"})
    torch.testing.assert_close(untold(x), plain)


def test_a_critic_that_is_told_compares_with_real_images_of_the_class(toy, monkeypatch):
    training = constrained_gan.Training(*toy, dataclasses.replace(TINY, told=True), seed=0)
    losses_of, seen = constrained_gan.critic_losses, []

    def spy(critic, x, fake, wanted, *rest):
        seen.append((x, wanted))
        return losses_of(critic, x, fake, wanted, *rest)

    monkeypatch.setattr(constrained_gan, "critic_losses", spy)
    for _ in range(5):
        training.step()
    labels = {tuple((x * 2 - 1).flatten()[:9].tolist()): y for x, y in zip(*toy[1:], strict=True)}
    for x, wanted in seen:
        found = [labels[tuple(image.flatten()[:9].tolist())] for image in x]
        assert torch.equal(torch.stack(found), wanted)
    assert training.critic.of_class.abs().max() > 0


# Losses


def test_losses_of_the_critic_are_the_published_ones():
    critic, x = constrained_gan.Critic(2, 16, width=4).double(), uniform(5, 2, 16, 16, seed=1)
    fake, mix = uniform(5, 2, 16, 16, seed=2), uniform(5, seed=3).abs()
    labels = torch.zeros(5, dtype=torch.int64)
    found = constrained_gan.critic_losses(critic, x, fake, labels, mix, Settings(penalty=7.0))
    wanted = ganmex.critic_losses(critic, x, labels, fake, mix, ganmex.Settings(penalty=7.0))
    assert found.keys() == wanted.keys()
    for name, loss in wanted.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-10, atol=1e-12)


EVERY_LOSS = dataclasses.replace(
    TINY, form="mask", similarity=3.0, cycle=5.0, mask=9.0, bound=0.3, weight=11.0
)


def test_losses_of_the_generator_and_their_gradient(toy, monkeypatch):
    training = constrained_gan.Training(*toy, EVERY_LOSS, seed=0)
    x, labels = toy[1][:5] * 2 - 1, torch.tensor([0, 2, 1, 1, 0])
    wanted, mix = torch.tensor([1, 2, 0, 2, 0]), torch.full((5,), 0.5)
    monkeypatch.setattr(training, "_batch", lambda: (x, labels, wanted, mix))
    before = copy.deepcopy(training.generator)
    found = training.step()
    fake, mask = before.compose(x, wanted)
    entropy = functional.cross_entropy(toy[0]((fake + 1) / 2), wanted, reduction="none")
    expected = {
        "critic": -training.critic(fake).mean(),  # as it is after its own step
        "classifier": 11 * entropy.mean(),
        "similarity": 3 * (x - fake).abs().mean(),
        "cycle": 5 * (x - before(fake, labels)).abs().mean(),
        "mask": 9 * mask.mean(),
    }
    for name, loss in expected.items():
        assert found[f"generator {name}"] == pytest.approx(loss.item(), rel=1e-5)
    slopes = torch.autograd.grad(sum(expected.values()), [*before.parameters()])
    for weight, slope in zip(training.generator.parameters(), slopes, strict=True):
        torch.testing.assert_close(weight.grad, slope, rtol=1e-4, atol=1e-6)
    # Only images that change class count for the bound.
    told = entropy[wanted != labels].mean().item()
    assert training.multiplier.mean == pytest.approx(0.95 * 0.3 + 0.05 * told, rel=1e-5)


@pytest.mark.parametrize("settings", [EVERY_LOSS, dataclasses.replace(TINY, told=True)])
def test_a_critic_beside_takes_the_same_steps(toy, monkeypatch, settings):
    monkeypatch.setattr(runtime, "threads", lambda: 2)
    alone = constrained_gan.Training(*toy, settings, seed=0, beside=False)
    beside = constrained_gan.Training(*toy, settings, seed=0)
    where, losses_of = [], constrained_gan.critic_losses

    def spy(*arguments):
        where.append((threading.current_thread(), torch.get_num_threads()))
        return losses_of(*arguments)

    monkeypatch.setattr(constrained_gan, "critic_losses", spy)
    for _ in range(4):
        assert alone.step() == beside.step()
    here, apart = {where[0], where[2]}, {where[1], where[3]}
    assert here == {(threading.current_thread(), 1)}
    assert len(apart) == 1 and apart != here and apart.pop()[1] == 1
    for name in ("generator", "critic", "average"):
        pair = (getattr(training, name).parameters() for training in (alone, beside))
        for one, other in zip(*pair, strict=True):
            assert_same(one, other)


def test_a_step_of_the_critic_does_not_outlive_a_training_that_fails(toy, monkeypatch):
    ended, began, losses_of = [], threading.Event(), constrained_gan.critic_losses

    def slow(*arguments):
        began.set()
        time.sleep(0.5)
        ended.append(losses_of(*arguments))
        return ended[0]

    def fails(*arguments):
        began.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "threads", lambda: 2)
    monkeypatch.setattr(constrained_gan, "critic_losses", slow)
    monkeypatch.setattr(constrained_gan.Training, "kept_losses", fails)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        constrained_gan.train(*toy, TINY)
    assert len(ended) == 1 and threading.active_count() == before


def test_without_weight_a_loss_is_left_out(toy):
    settings = dataclasses.replace(TINY, similarity=0.0, cycle=0.0)
    names = constrained_gan.Training(*toy, settings, seed=0).step().keys()
    made = {name for name in names if name.startswith("generator")}
    assert made == {"generator critic", "generator classifier"}


def test_multiplier_rises_above_the_bound_and_falls_below():
    found = constrained_gan.Multiplier(0.5, 2.0)
    found.update([])
    assert (found.weight, found.mean) == (2.0, 0.5)
    found.update([1.0, 3.0])
    mean = 0.95 * 0.5 + 0.05 * 2
    weight = 2 * np.exp(0.005 * (mean / 0.5 - 1))
    assert (found.weight, found.mean) == pytest.approx((weight, mean))
    for _ in range(20):
        found.update([1e6])
    assert found.weight == pytest.approx(weight * np.exp(0.005 * 20))  # no step is larger
    high = found.weight
    for _ in range(4000):
        found.update([0.0])
    assert found.weight < high / 5
    for value, limit in ((1e9, 1e3), (0.0, 1e-2)):
        for _ in range(4000):
            found.update([value])
        assert found.weight == limit


# Training


def test_a_step_is_the_published_one_while_the_weight_stands_still(toy, monkeypatch):
    """Same networks, same losses, same optimiser: the same weights after three steps.

    In double precision, as Adam makes a whole step of what rounding leaves of a gradient of 0.
    """
    monkeypatch.setattr(constrained_gan.Multiplier, "RATE", 0.0)
    toy = toy[0].double(), toy[1].double(), toy[2]
    new = constrained_gan.Training(*toy, TINY, seed=3)
    fixed = ganmex.Settings(
        iterations=6, per_class=2, width=4, critic_width=4, blocks=1, classifier=1.0
    )
    published = ganmex.Training(*toy, fixed, seed=3)
    for name in ("generator", "critic", "average"):
        weights = getattr(published, name).double().state_dict()
        getattr(new, name).double().load_state_dict(weights)
    for _ in range(3):
        assert new.step() == pytest.approx(published.step(), rel=1e-7)
    for name in ("generator", "critic", "average"):
        theirs = getattr(published, name).state_dict()
        for key, value in getattr(new, name).state_dict().items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-9, msg=key)


@pytest.mark.parametrize("start", [0.05, 200.0])
def test_the_weight_is_found_that_keeps_the_classifiers_loss_at_the_bound(toy, start, monkeypatch):
    """From below and from above."""
    monkeypatch.setattr(constrained_gan.Multiplier, "RATE", 0.02)
    settings = dataclasses.replace(
        TINY, cycle=0.0, weight=start, bound=0.6, learning_rate=5e-3, per_class=6
    )
    training = constrained_gan.Training(*toy, settings, seed=0)
    for _ in range(900):
        training.step()
    assert training.multiplier.mean == pytest.approx(0.6, rel=0.15)


@pytest.mark.parametrize("form", constrained_gan.FORMS)
def test_interrupted_training_resumes_bit_by_bit(toy, form, tmp_path, monkeypatch):
    settings = dataclasses.replace(TINY, form=form, bound=0.01)
    whole = constrained_gan.train(*toy, settings, seed=1)
    checkpoint, step, taken = tmp_path / "state", constrained_gan.Training.step, []

    def stopping(self):
        taken.append(self.iteration)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(ganmex, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(constrained_gan.Training, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        constrained_gan.train(*toy, settings, seed=1, checkpoint=checkpoint)
    again = constrained_gan.train(*toy, settings, seed=1, checkpoint=checkpoint)
    assert taken == [0, 1, 2, 3, 4, 4, 5]
    assert_same(again.state_dict(), whole.state_dict())
    assert not checkpoint.exists()


def test_checkpoint_keeps_the_weight_that_was_found(toy, tmp_path):
    training = constrained_gan.Training(*toy, TINY, seed=1)
    training.multiplier.update([5.0])
    training.save(tmp_path / "state")
    other = constrained_gan.Training(*toy, TINY, seed=1)
    other.resume(tmp_path / "state")
    assert other.multiplier.state_dict() == training.multiplier.state_dict()
    with pytest.raises(trained.TrainedError, match="another seed or settings"):
        constrained_gan.Training(*toy, TINY, seed=2).resume(tmp_path / "state")


def test_a_model_in_training_mode_is_refused(toy):
    model = nn.Sequential(nn.Dropout(), *toy[0]).train()
    with pytest.raises(ValueError, match="training mode"):
        constrained_gan.train(model, *toy[1:], TINY)


def test_a_generator_serves_as_baseline(toy):
    generator = constrained_gan.train(*toy, dataclasses.replace(TINY, form="identity"))
    made = ganmex.Baseline(generator, batch_size=4)(toy[1], (toy[2] + 1) % 3)
    assert made.shape == toy[1].shape and made.min() >= 0 and made.max() <= 1
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())
