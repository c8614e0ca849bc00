"""Programs that take an Executor, or its map, and know nothing of Slurm: their calls are jobs."""

from __future__ import annotations

import asyncio
import io
import math
import sys
from concurrent.futures import as_completed
from itertools import pairwise
from operator import itemgetter
from typing import Any

import adaptive
import cloudpickle
import dask
import dask.multiprocessing
import pytest
from scipy.integrate import quad_vec
from scipy.optimize import differential_evolution
from tqdm import tqdm

from slurm_futures import SlurmExecutor

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def valley(x: Any) -> float:
    """Rosenbrock's function, whose minimum is at (1, 1)."""
    return float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


def peak(x: float) -> float:
    """A narrow peak at 0.3."""
    return 0.01 / ((x - 0.3) ** 2 + 0.01)


def square(n: int) -> int:
    return n * n


def test_scipy_optimize(nodes: SlurmExecutor) -> None:
    """scipy: a generation of differential evolution is a map over the population."""
    bounds = [(0, 2), (0, 2)]
    options = {'maxiter': 3, 'popsize': 8, 'polish': False, 'updating': 'deferred', 'rng': 1}
    here = differential_evolution(valley, bounds, **options)
    there = differential_evolution(valley, bounds, workers=nodes.map, **options)
    assert there.x.tolist() == here.x.tolist()
    assert there.nfev == here.nfev


def test_scipy_integrate(nodes: SlurmExecutor) -> None:
    """scipy: intervals of an integral are refined in jobs."""
    result, error = quad_vec(peak, 0, 1, workers=nodes.map, epsabs=1e-6)
    assert result == pytest.approx((math.atan(7) + math.atan(3)) / 10, abs=1e-5)
    assert error < 1e-5


def test_dask(nodes: SlurmExecutor) -> None:
    """dask: the tasks of a graph run in an executor that is given as its pool."""
    squares = [dask.delayed(square)(n) for n in range(4)]
    total = dask.delayed(sum)(squares)
    with dask.config.set(pool=nodes, scheduler=dask.multiprocessing.get):
        assert total.compute() == 14


def test_adaptive(nodes: SlurmExecutor) -> None:
    """adaptive: the learner's points are computed in jobs, most of them near the peak."""
    learner = adaptive.Learner1D(peak, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=12, executor=nodes, ntasks=4)
    points = sorted(learner.data.items())
    assert [value for _, value in points] == [peak(x) for x, _ in points]
    gaps = [(b - a, a, b) for (a, _), (b, _) in pairwise(points)]
    _, a, b = min(gaps, key=itemgetter(0))
    assert abs((a + b) / 2 - 0.3) < 0.4


def test_tqdm(nodes: SlurmExecutor) -> None:
    """tqdm: a bar over as_completed advances with each result."""
    futures = [nodes.submit(square, n) for n in range(3)]
    out = io.StringIO()
    results = [f.result() for f in tqdm(as_completed(futures), total=3, file=out)]
    assert sorted(results) == [0, 1, 4]
    assert '3/3' in out.getvalue()


def test_asyncio(nodes: SlurmExecutor) -> None:
    """asyncio: run_in_executor takes the executor, and an exception comes through."""

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(nodes, math.sqrt, x) for x in (4.0, -1.0)]
        return await asyncio.gather(*calls, return_exceptions=True)

    root, error = asyncio.run(main())
    assert root == 2.0
    assert isinstance(error, ValueError)
