"""Commands on a small Dask cluster of this machine: python on_a_cluster.py WORD... [-- WORD...]..."""

from __future__ import annotations

import sys
from itertools import groupby

from distributed import LocalCluster
from steppe import cli

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        commands = [list(words) for is_end, words in groupby(sys.argv[1:], lambda word: word == "--") if not is_end]
        codes = [cli.main([*words, "--crew", cluster.scheduler_address]) for words in commands]
    sys.exit(max(codes))
