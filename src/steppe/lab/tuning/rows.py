"""The searches of all rows as one, so that no worker waits for the end of a row."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..crew import runner
from ..crew.runner import Watching
from ..errors import RunError
from ..judge.points import Point
from ..judge.sweep import Sweep
from ..plans.sweep import SweepPlan
from ..sweeping.search import Search
from ..trials.records import Record, TrialConfig


@dataclass(frozen=True)
class Found:
    """What has become of a setting of a row."""

    plan: SweepPlan
    point: Point


Observer: TypeAlias = Watching[Found]


class Rows:
    """Gives the trials of all rows, row by row as far as these can go on.

    Args:
        plans: The sweeps by row, all in one folder.
    """

    def __init__(self, plans: Mapping[str, SweepPlan]) -> None:
        """Take what earlier runs have left."""
        self.plans = dict(plans)
        self._searches = {name: Search(plan) for name, plan in plans.items()}
        self._of: dict[str, Search] = {}
        self.kept = self._news()

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(search.done for search in self._searches.values())

    @property
    def left(self) -> dict[str, int]:
        """How many settings of each row are not tried yet."""
        return {name: self.plans[name].count - len(search.points) for name, search in self._searches.items()}

    @property
    def found(self) -> dict[str, Sweep]:
        """What was found."""
        return {name: Sweep(self.plans[name], search.points) for name, search in self._searches.items()}

    def carry_out(self, observer: Observer, executor: Executor | None = None) -> None:
        """Try all settings.

        Args:
            observer: Is told how it proceeds.
            executor: Carries trials out, if not whom the plans name.

        Raises:
            RunError: A training failed, or settings were given up; what was finished is kept.
        """
        observer.begin(sum(plan.count for plan in self.plans.values()), self.kept)
        plan = next(iter(self.plans.values()))
        most = 0 if self.done else len(self.plans) * plan.count * len(plan.seeds)
        with runner.saying(lambda: self._said(plan.out)), runner.joined(plan.workers, most, executor) as crew:
            trials = runner.carry_trials(
                self._following,
                crew,
                plan.source,
                plan.out,
                running=observer.running,
                warn=observer.warn,
                label=lambda config: self._of[config.key].label(config),
                given_up=lambda config: self._of[config.key].given_up(config),
                host=plan.workers.place,
                processes=plan.workers.processes,
            )
            with closing(trials):
                for config, record in trials:
                    self._ended(config, record)
                    self._tell(observer)
            self._tell(observer)
        for name, search in self._searches.items():
            if any(point.state == "given up" for point in search.points):
                raise RunError(f"settings of {name} were given up, since workers died; the same command goes on")

    def _following(self) -> TrialConfig | None:
        for search in self._searches.values():
            config = search.following()
            if config is not None:
                self._of[config.key] = search
                return config
        return None

    def _ended(self, config: TrialConfig, record: Record | None) -> None:
        self._of[config.key].ended(config, record)

    def _tell(self, observer: Observer) -> None:
        for found in self._news():
            observer.finished(found)

    def _news(self) -> list[Found]:
        return [Found(self.plans[name], point) for name, search in self._searches.items() for point in search.news()]

    def _said(self, folder: Path) -> str:
        points = [point for search in self._searches.values() for point in search.points]
        done = sum(point.state != "given up" for point in points)
        return f"{done} of {sum(plan.count for plan in self.plans.values())} settings are done and kept in {folder}"
