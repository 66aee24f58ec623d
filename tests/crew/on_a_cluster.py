"""A comparison on a small Dask cluster of this machine: python on_a_cluster.py WORD..."""

from __future__ import annotations

import sys

from distributed import LocalCluster
from steppe import cli

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        code = cli.main([*sys.argv[1:], "--crew", cluster.scheduler_address])
    sys.exit(code)
