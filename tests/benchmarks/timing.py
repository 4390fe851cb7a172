"""Clocks that the benchmarks share."""

import time


def seconds(call, *arguments, **options):
    """Wall time of one call."""
    start = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - start


def over_model(monkeypatch, forward, explain, rounds):
    """Time that `explain(seed)` takes beside its model calls, over theirs, for each of some rounds.

    Each call of the model is repeated on the batch just made: noise of the machine hits both, and
    the second call, the bare one, has its input in the processor's cache.
    """
    bare = [0.0]

    def twice(batch, call=forward._call):
        outputs = call(batch)
        bare[0] += seconds(call, batch)
        return outputs

    monkeypatch.setattr(forward, "_call", twice)
    ratios = []
    for seed in range(rounds):
        bare[0] = 0.0
        both = seconds(explain, seed)
        ratios.append((both - bare[0]) / bare[0])
    return ratios
