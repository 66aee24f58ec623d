"""A trial in several processes, which share every batch: started by torch's own launcher."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError, describe
from .jobs import Job
from .local import worker_context
from .processes import end_with_parent

if TYPE_CHECKING:
    from ..tasks.sources import TaskSource
    from ..trials.records import Record, TrialConfig

_LOOK = 0.1  # seconds between two looks at the processes


def job(source: TaskSource, config: TrialConfig, label: str, keep_weights: bool, processes: int, device: str) -> Job:
    """Return the job that runs a trial in so many processes; its result is as of `workers.job`."""
    return Job(config.key, label, run, (source, config, keep_weights, processes, device), source.paths)


def run(
    source: TaskSource, config: TrialConfig, keep_weights: bool, processes: int, device: str, say: object
) -> tuple[Record, bytes | None]:
    """Run a trial in so many processes, which accelerate brings together: by gloo on the CPU, by nccl on GPUs.

    Args:
        source: Where the task comes from.
        config: What to run.
        keep_weights: Whether to return the final weights too.
        processes: How many.
        device: ``cpu``, or the kind of accelerator.
        say: Is not told anything: no trial of several processes is stopped.

    Raises:
        RunError: A process failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=_LOOK,
        start_method=worker_context().get_start_method(),
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            found: dict[int, Any] = elastic_launch(launch, _one)(source, config, keep_weights, device, folder)
        except ChildFailedError as error:
            said = sorted(Path(folder).iterdir(), key=lambda path: path.stat().st_mtime)
            code = error.get_first_failure()[1].exitcode
            raise RunError(said[0].read_text() if said else f"a process ended with code {code}") from error
    record, weights = found[0]
    return record, weights


def _one(
    source: TaskSource, config: TrialConfig, keep_weights: bool, device: str, folder: str
) -> tuple[Record, bytes | None] | None:
    """Run a trial in one of its processes."""
    end_with_parent()
    os.environ["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if "bf16" in config.versions.get("host", "") else "no"
    from ..trials.host import AcceleratedHost
    from . import workers

    try:
        host = AcceleratedHost()
        found = workers.run(source, config, keep_weights, host, None)
        return found if host.rank == 0 else None
    except BaseException as error:
        text = str(error) if isinstance(error, RunError) else describe(error, *source.paths)
        Path(folder, f"process-{os.environ.get('RANK')}").write_text(text)
        raise
