"""How many masks a design saves, on the real classifier."""

import numpy as np
import pytest

from xaiutils import designs, limit, perturb, segment
from xaiutils import lime as ours
from xaiutils.perturb import Components

pytestmark = pytest.mark.benchmark

N, REPEATS = 1024, 200


@pytest.mark.parametrize("index", [0, 4, 16])
def test_orthogonal_masks_halve_the_error(bench, classifier, samples, index):
    x, target = samples.images[index].numpy(), int(samples.labels[index])
    components = Components(segment.grid(x.shape[1:], 3, 4))

    def probability(masks):
        return perturb.evaluate(classifier, x, components, masks, outputs=[target])[:, 0]

    f = limit.lookup(limit.tabulate(probability, components.d))
    exact = limit.exact(f, components.d).coef
    rng = np.random.default_rng(index)
    error = {}
    for design in ("iid", "paired", "orthogonal"):
        squares = []
        for _ in range(REPEATS):
            masks = designs.draw(N, components.d, design, rng)
            values = f(masks)[:, None].astype(np.float64)
            coef = ours.fit(masks, ours.kernel(masks), values, ridge=0.0)[1][0]
            squares.append(np.mean(np.square(coef - exact)))
        error[design] = np.mean(squares)
    name = samples.names[index]
    bench(f"squared error, independent / paired, {name}", error["iid"] / error["paired"], "x")
    bench(
        f"squared error, independent / orthogonal, {name}",
        error["iid"] / error["orthogonal"],
        "x",
        at_least=2,
    )
