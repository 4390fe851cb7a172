"""What GANMEX costs beside its passes through networks, and how fast neighbours are found."""

import numpy as np
import pytest
import torch
from timing import seconds

from xaiutils import baselines, constrained_gan, ganmex, runtime
from xaiutils.classifiers import small, trained
from xaiutils.data import problems

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def digits():
    return problems.load("digits", 28)


def test_a_training_step_is_its_forward_and_backward_passes(bench, digits):
    classifier = small.load("digits", 28, "strided")
    training = ganmex.Training(
        classifier, digits.train_images, digits.train_labels, ganmex.Settings(), seed=0
    )
    rows = training.batches(0)
    x, labels = digits.train_images[rows] * 2 - 1, digits.train_labels[rows]
    wanted, mix = labels.flip(0), torch.full((len(x),), 0.5)

    def passes():
        fake = training.generator(x, wanted)
        networks = (training.critic, x, labels, fake, mix, training.settings)
        sum(ganmex.critic_losses(*networks).values()).backward()
        training.critic.requires_grad_(False)
        made = ganmex.generator_losses(
            training.generator, training.critic, classifier, x, labels, fake, wanted,
            training.settings,
        )  # fmt: skip
        sum(made.values()).backward()
        training.critic.requires_grad_(True)

    with trained.one_thread():
        times = [(seconds(training.step), seconds(passes)) for _ in range(23)][3:]
    step, bare = np.median(times, axis=0)
    print(f"\nstep {1000 * step:.0f} ms, passes {1000 * bare:.0f} ms")
    bench("GAN training step / its passes", step / bare, "x", at_most=1.15)


@pytest.mark.parametrize("problem, size, per_class", [("digits", 28, 3), ("scenes", 32, 8)])
def test_a_step_of_the_constrained_training(bench, problem, size, per_class):
    """Against the published one as it is trained, on one thread, step by step in turn.

    Networks and losses are the same. Ours on one core, and with a second one for the critic. With
    two threads, whose sums are others, the published step is about as fast as the latter: printed.
    """
    data = problems.load(problem, size)
    given = (
        small.load(problem, size, small.explained(problem)),
        data.train_images,
        data.train_labels,
    )
    published = ganmex.Training(*given, ganmex.Settings(per_class=per_class), seed=0)
    settings = constrained_gan.Settings(per_class=per_class)
    ours, alone = (
        constrained_gan.Training(*given, settings, seed=0, beside=beside)
        for beside in (True, False)
    )
    with trained.one_thread():
        rows = []
        for _ in range(23):
            rows.append([seconds(step) for step in (published.step, alone.step, ours.step)])
            torch.set_num_threads(runtime.threads())
            rows[-1].append(seconds(published.step))
            torch.set_num_threads(1)
    one, ours_alone, ours_beside, threaded = np.median(rows[3:], axis=0)
    bench(
        f"published training step / ours, one core, {problem}", one / ours_alone, "x", at_least=1.15
    )
    print(f"\n{problem}: the published step on all threads / ours {threaded / ours_beside:.2f}")
    bench(f"published training step / ours, {problem}", one / ours_beside, "x", at_least=1.5)


def test_nearest_samples_of_a_thousand_digits(bench, digits):
    x, wanted = digits.test_images[:1000], (digits.test_labels[:1000] + 1) % 10
    for norm, limit in (("l1", 15), ("l2", 5)):
        search = baselines.NearestSample(digits.train_images, digits.train_labels, norm=norm)
        took = min(seconds(search.find, x, wanted) for _ in range(2))
        bench(f"nearest of 60,000 digits, {norm}, 1,000 images", took, "s", at_most=limit)
