"""Counterfactuals by autoencoder, robust classifier and flow, on models worked by hand."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional

from xaiutils import counterfactual_networks as networks
from xaiutils import counterfactuals

SIDE = 4
METHODS = ("latent_shift", "robust_gradient", "guided_flow")


class Brightness(nn.Module):
    """Logits (0, scale * (mean - middle)): class 1 is the bright one."""

    def __init__(self, scale=20.0, middle=0.5, rows=slice(None)):
        super().__init__()
        self.scale, self.middle, self.rows = nn.Parameter(torch.tensor(scale)), middle, rows

    def forward(self, x):
        bright = self.scale * (x[:, :, self.rows].mean((1, 2, 3)) - self.middle)
        return torch.stack([0 * bright, bright], 1)


class Identity(nn.Module):
    """An autoencoder that keeps everything."""

    encoder = decoder = staticmethod(lambda x: x)


def still(points, times):
    """A flow that leaves everything where it is."""
    return torch.zeros_like(points)


HELPER = {"latent_shift": Identity(), "robust_gradient": Brightness(), "guided_flow": still}


def images(n=3, seed=0):
    """Dark ones."""
    return np.random.default_rng(seed).uniform(0.1, 0.3, (n, 2, SIDE, SIDE)).astype(np.float32)


def search(method, model, x, targets, helper=None, **options):
    helper = HELPER[method] if helper is None else helper
    return getattr(counterfactuals, method)(model.eval(), helper, x, targets, **options)


def probability(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x)).softmax(1).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_the_target_is_reached_by_the_weakest_change_that_does(method):
    model, x = Brightness(), images()
    options = {"free": 1.0} if method == "guided_flow" else {}
    made = search(method, model, x, [1, 1, 1], confidence=0.9, **options)
    assert made.shape == x.shape and made.dtype == np.float32
    assert ((made >= 0) & (made <= 1)).all()
    assert (probability(model, made)[:, 1] >= 0.9).all()
    # All pixels count alike, so all move alike.
    moved = made - x
    assert_allclose(
        moved, np.broadcast_to(moved.mean((1, 2, 3), keepdims=True), x.shape), atol=1e-5
    )
    strengths = {"latent_shift": counterfactuals.SHIFTS, "guided_flow": counterfactuals.PUSHES}
    strengths = strengths.get(method, counterfactuals.LENGTHS)
    lengths = np.linalg.norm(moved.reshape(3, -1), axis=1)
    unit = {
        "latent_shift": np.linalg.norm(x.reshape(3, -1), axis=1),
        "robust_gradient": np.ones(3),
        # Half a unit of time, and images in [-1, 1] are twice as far apart.
        "guided_flow": np.full(3, 0.25),
    }[method]
    for k in range(3):
        steps = np.abs(np.log(lengths[k] / unit[k] / np.array(strengths)))
        found = steps.argmin()
        assert steps[found] < 1e-3
        weaker = x[k] + moved[k] * strengths[found - 1] / strengths[found]
        assert probability(model, weaker[None])[0, 1] < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_what_never_reaches_the_target_is_the_most_convincing(method):
    model, x = Brightness(scale=2.0), images()  # at most .73
    made = search(method, model, x, [1, 1, 1])
    strongest = search(method, model, x, [1, 1, 1], confidence=0.999)
    assert_allclose(made, strongest)
    assert (probability(model, made)[:, 1] > probability(model, x)[:, 1] + 0.01).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_change_that_goes_too_far_is_not_taken(method):
    """Class 1 is of medium brightness: beyond .5 more brightness convinces less."""

    class Medium(Brightness):
        def forward(self, x):
            peak = 2 - 8 * (x.mean((1, 2, 3)) - 0.5).abs()
            return torch.stack([0 * peak, peak], 1)

    model, x = Medium(), images()
    options = {"free": 1.0} if method == "guided_flow" else {}
    made = search(method, model, x, [1, 1, 1], **options)
    assert (np.abs(made.mean((1, 2, 3)) - 0.5) < 0.15).all()
    strengths = {"latent_shift": counterfactuals.SHIFTS, "guided_flow": counterfactuals.PUSHES}
    far = strengths.get(method, counterfactuals.LENGTHS)[-1:]
    assert (probability(model, made)[:, 1] > 0.8).all()
    if method != "robust_gradient":
        farthest = search(method, model, x, [1, 1, 1], strengths=far, **options)
        assert (probability(model, farthest)[:, 1] < 0.5).all()


@pytest.mark.parametrize("method", METHODS)
def test_images_do_not_affect_each_other(method):
    x = images(5)
    whole = search(method, Brightness(), x, [1, 0, 1, 1, 0])
    parts = search(method, Brightness(), x, [1, 0, 1, 1, 0], batch_size=2)
    assert_allclose(parts, whole, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_may_be_probabilities_if_one_says_so(method):
    model = nn.Sequential(Brightness(), nn.Softmax(1))
    x = images()
    told = search(method, model, x, [1, 1, 1], outputs_are="probabilities")
    assert_allclose(told, search(method, Brightness(), x, [1, 1, 1]), atol=1e-4)
    with pytest.raises(ValueError, match="probabilities"):
        search(method, model, x, [1, 1, 1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options, words",
    [
        ({"confidence": 1.0}, "confidence must be a probability in"),
        ({"strengths": []}, "strengths must be positive, the weakest first"),
        ({"strengths": [2.0, 1.0]}, "strengths must be positive, the weakest first"),
        ({"strengths": [0.0, 1.0]}, "strengths must be positive, the weakest first"),
        ({"outputs_are": "odds"}, "outputs_are"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_refusals(method, options, words):
    with pytest.raises(ValueError, match=words):
        search(method, Brightness(), images(), [1, 1, 1], **options)


@pytest.mark.parametrize("method", METHODS)
def test_targets_must_be_classes_of_the_model(method):
    for targets in ([1, 1], [1, 1, -1], [1.0, 1.0, 1.0], [1, 1, 2]):
        with pytest.raises(ValueError, match="target"):
            search(method, Brightness(), images(), targets)


@pytest.mark.parametrize(
    "options, words",
    [({"start": 1.0}, "start"), ({"free": 0.0}, "free"), ({"steps": 0}, "steps must be")],
)
def test_a_flow_refuses_other_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        search("guided_flow", Brightness(), images(), [1, 1, 1], **options)


def test_latent_shift_stays_where_the_decoder_reaches():
    """The decoder paints rows that are constant; so does what it shifts."""

    class Rows(nn.Module):
        encoder = staticmethod(lambda x: x.mean(3, keepdim=True))
        decoder = staticmethod(lambda z: z.expand(-1, -1, -1, SIDE))

    model = Brightness(rows=slice(0, 2))
    made = search("latent_shift", model, images(), [1, 1, 1], Rows())
    assert_allclose(made, np.broadcast_to(made[..., :1], made.shape))
    assert (probability(model, made)[:, 1] >= 0.95).all()
    assert_allclose(made[:, :, 2:], images()[:, :, 2:].mean(3, keepdims=True).repeat(SIDE, 3))


def test_the_robust_classifier_says_where_and_the_explained_one_when():
    top, bottom = Brightness(rows=slice(0, 2)), Brightness(middle=0.35)
    made = search("robust_gradient", bottom, images(), [1, 1, 1], top)
    moved = made - images()
    assert_allclose(moved[:, :, 2:], 0)
    assert (moved[:, :, :2] > 0).all()
    assert (probability(bottom, made)[:, 1] >= 0.95).all()


def test_a_flow_lets_few_pixels_go_and_keeps_the_others_as_they_were():
    class Corner(Brightness):
        def forward(self, x):
            return super().forward(x[:, :, :2, :2])

    model, x = Corner(), images()
    made = search("guided_flow", model, x, [1, 1, 1], free=4 / SIDE**2)
    moved = made - x
    assert_allclose(moved[:, :, 2:], 0, atol=1e-6)
    assert_allclose(moved[:, :, :, 2:], 0, atol=1e-6)
    assert (moved[:, :, :2, :2] > 0.1).all()


def turning(points, times):
    return torch.roll(points, 1, -1) * times.view(-1, 1, 1, 1)


def test_without_a_push_a_flow_comes_back_on_the_way_it_went():
    x = images()
    options = {"strengths": [1e-9], "steps": 200, "start": 0.3}
    made = search("guided_flow", Brightness(), x, [1, 1, 1], turning, free=1.0, **options)
    assert_allclose(made, x, atol=0.01)  # Euler's error alone


def test_pixels_that_are_never_let_go_come_back_exactly_even_in_few_steps():
    class Corner(Brightness):
        def forward(self, x):
            return super().forward(x[:, :, :1, :1])

    x = images()
    options = {"strengths": [1.0], "steps": 3, "start": 0.3, "free": 1 / SIDE**2}
    made = search("guided_flow", Corner(), x, [1, 1, 1], turning, **options)
    moved = np.abs(made - x)
    assert (moved[:, :, 0, 0] > 0.05).all()
    moved[:, :, 0, 0] = 0
    assert moved.max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_helpers_must_be_in_evaluation_mode(method):
    helper = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(32, 2))
    with pytest.raises(ValueError, match="is in training mode: call its eval"):
        search(method, Brightness(), images(), [1, 1, 1], helper)


def test_a_latent_tensor_may_be_flat():
    class Flat(nn.Module):
        encoder = staticmethod(lambda x: x.flatten(1))
        decoder = staticmethod(lambda z: z.view(-1, 2, SIDE, SIDE))

    made = search("latent_shift", Brightness(), images(), [1, 1, 1], Flat())
    assert_allclose(made, search("latent_shift", Brightness(), images(), [1, 1, 1]))


def test_tiny_gradients_have_a_direction():
    found = counterfactuals._unit(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
    assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)


# The networks


def small(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def built(kind):
    torch.manual_seed(0)
    return {
        "autoencoder": networks.Autoencoder(1, width=8, latent=4),
        "velocity": networks.Velocity(1, width=8),
        "robust": nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
    }[kind]


def bright(n=80):
    """Images (n, 1, 8, 8), dark ones of class 0 and bright ones of class 1."""
    labels = torch.arange(n) % 2
    return 0.3 * small(n, 1, 8, 8) + 0.6 * labels.view(-1, 1, 1, 1), labels


def train(kind, net, images, labels, **options):
    if kind == "robust":
        return networks.train_robust(net, images, labels, **options)
    return getattr(networks, f"train_{kind}")(net, images, **options)


KINDS = ("autoencoder", "velocity", "robust")


@pytest.mark.parametrize("kind", KINDS)
def test_trainings_depend_on_their_seed_alone(kind):
    x, y = bright()
    states = [train(kind, built(kind), x, y, steps=3, seed=seed).state_dict() for seed in (0, 0, 1)]
    first, again, other = (torch.cat([v.flatten() for v in s.values()]) for s in states)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["range", "sides", "empty", "whole numbers"])
def test_trainings_refuse_images_that_do_not_fit(kind, bad):
    x, y = bright(8)
    x = {"range": 2 * x, "sides": x[..., :6], "empty": x[:0], "whole numbers": x.long()}[bad]
    with pytest.raises(ValueError, match="images must be"):
        train(kind, built(kind), x, y[: len(x)], steps=1)


def test_a_robust_training_refuses_labels_that_do_not_fit():
    x, y = bright(8)
    with pytest.raises(ValueError, match="labels must be"):
        networks.train_robust(built("robust"), x, y[:4], steps=1)


def test_an_autoencoder_learns_its_images():
    x, _ = bright()
    error = [
        (train("autoencoder", built("autoencoder"), x, None, steps=n)(x) - x).abs().mean()
        for n in (1, 300)
    ]
    assert error[1] < 0.4 * error[0]


def test_a_flow_leads_noise_to_images():
    """Half the images are dark, half bright, none between: so are the ends of the flow."""
    x, _ = bright()
    flow = train("velocity", built("velocity"), x, None, steps=600)
    points, steps = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)), 20
    for k in range(steps):
        points = points + flow(points, torch.full((64,), k / steps)) / steps
    means = (points.mean((1, 2, 3)) + 1) / 2
    near = [((means - middle).abs() < 0.12).float().mean() for middle in (0.15, 0.45, 0.75)]
    assert near[0] > 0.3 and near[2] > 0.3 and near[1] < 0.2


def test_a_robust_training_attacks_within_the_radius_in_its_second_half():
    x, y = bright()
    net, asked, radius, steps = built("robust"), [], 0.3, 8
    net.register_forward_pre_hook(lambda _, given: asked.append(given[0].detach().clone()))
    networks.train_robust(net, x, y, steps=steps, radius=radius, attack_steps=2)
    rows = [np.random.default_rng([0, k]).integers(len(x), size=64) for k in range(steps)]
    # Steps 0 to 4 ask once (the radius grows from step 4 on, where it still is 0), others thrice.
    assert len(asked) == 5 + 3 * 3
    for k in range(5):
        assert torch.equal(asked[k], x[rows[k]])
    for k, share in ((5, 0.5), (6, 1.0), (7, 1.0)):
        first, _, last = asked[5 + 3 * (k - 5) :][:3]
        assert torch.equal(first, x[rows[k]])
        moved = (last - first).flatten(1)
        assert (moved.norm(dim=1) <= share * radius + 1e-5).all()
        assert moved.norm(dim=1).median() > 0.99 * share * radius
    with torch.no_grad():
        worse = functional.cross_entropy(net(last), y[rows[-1]])
        assert worse > functional.cross_entropy(net(first), y[rows[-1]])


def test_a_robust_training_learns_its_classes():
    """Of one class the left half is bright, of the other the right."""
    x, y = small(80, 1, 8, 8), torch.arange(80) % 2
    left = torch.arange(8) < 4
    x = 0.4 * x + 0.3 * (left == (y == 0).view(-1, 1, 1, 1)).float()
    net = networks.train_robust(built("robust"), x, y, steps=200, radius=0.3)
    assert (net(x).argmax(1) == y).all()
