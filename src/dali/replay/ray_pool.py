"""Processes of a Ray cluster, which may be on other machines, in the place of this machine's own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dali.errors import DaliError, UsageError

Job = TypeVar("Job")


def check_ray() -> None:
    """UsageError: it is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "Ray, which was asked for, is not installed.", "Install it: `pip install 'ray[serve]'`."
        )


@contextmanager
def ray_map(do: Callable[[Job], Any], jobs: Sequence[Job]) -> Iterator[Iterator[Any]]:
    """What `do` makes of each job, in their order, on the cores that are free in the cluster: the one that RAY_ADDRESS names, or
    that runs on this machine, else one that ends with this. Its machines need this folder under the same name, for what jobs
    read. DaliError: a job's own, or what Ray says where it fails.
    """
    import ray
    from ray.util.multiprocessing import Pool

    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(log_to_driver=False, logging_level="error")
        free = int(ray.available_resources().get("CPU", 1))
        processes = max(min(free, len(jobs)), 1)
        with Pool(processes, _enter, (os.getcwd(),), ray_remote_args={"num_cpus": 1}) as pool:
            yield _raising(pool.imap(do, jobs))
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise DaliError(
            f"Ray failed: {str(error).strip().splitlines()[-1]}",
            "See that each of its machines has dali, and this folder under the same name; `ray status` tells of them.",
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _raising(results: Iterator[Any]) -> Iterator[Any]:
    """Ray's pool gives errors as if they were results."""
    for result in results:
        if isinstance(result, Exception):
            raise getattr(result, "underlying", result)
        yield result


def _enter(folder: str) -> None:
    os.chdir(folder)
