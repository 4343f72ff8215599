from itertools import islice

import numpy as np
import pytest

from cluster.bench.arrivals import arrival_times


def gaps(burstiness: float, seed: int = 1) -> np.ndarray:
    times = list(islice(arrival_times(4.0, burstiness, np.random.default_rng(seed)), 20_000))
    return np.diff([0.0, *times])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_mean_rate_is_the_one_asked_for_whatever_the_burstiness(burstiness):
    assert gaps(burstiness).mean() == pytest.approx(1 / 4.0, rel=0.05)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_squared_variation_of_gaps_is_one_over_the_burstiness(burstiness):
    found = gaps(burstiness)
    assert found.var() / found.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.1)


def test_gaps_of_a_poisson_process_are_exponential():
    found = gaps(1.0)
    for share in (0.25, 0.5, 0.9):
        assert np.quantile(found, share) == pytest.approx(-np.log(1 - share) / 4.0, rel=0.05)


def test_the_same_seed_makes_the_same_times():
    assert (gaps(1.0, seed=5) == gaps(1.0, seed=5)).all()
    assert (gaps(1.0, seed=5) != gaps(1.0, seed=6)).any()
