"""Which trial of a sweep comes next, given what came of those before."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from ..errors import RunError
from ..judge.points import Point, SeedResult, point
from ..judge.pruning import Medians, falls_behind
from ..plans.grid import Setting, words
from ..plans.sweep import SweepPlan
from ..store import records
from ..store import settings as kept_settings
from ..store.settings import Kept
from ..trials.records import Curve, Record, TrialConfig

AT_A_TIME = 4
"""So many settings are tried at a time where one depends on what came of others."""


@dataclass
class _Slot:
    """A setting with its trials, by their keys and seed by seed, and the medians that it is compared with."""

    number: int
    setting: Setting
    trials: dict[str, TrialConfig]
    bars: tuple[float, ...] | None
    for_now: bool  # it depends on one that was given up, which may come to its end in another run
    given_up: bool = False

    @property
    def first(self) -> str:
        return next(iter(self.trials))


class Search:
    """Gives the trials of a sweep one by one, and takes what came of them.

    A setting that depends on others, since a sampler learns or bad settings are pruned, depends on all before it but
    the last three, and waits for them. So what is tried, and what comes of it, does not depend on who carries trials
    out, or how many at a time. Of each setting the first seed is trained first; if that diverges, no other one is.

    Args:
        plan: The sweep.

    Raises:
        UserError: What an earlier run has left cannot be read; likewise from what asks for the next trial.
    """

    def __init__(self, plan: SweepPlan) -> None:
        """Take what earlier runs have left."""
        self._plan, self._key = plan, plan.key
        self._grid = plan.settings
        self._waits = self._plan.prune or self._plan.sampler == "tpe"
        if not self._grid:
            from .sampling import Sampler

            self._sampler = Sampler(self._plan)
        self._points: dict[int, Point] = {}
        self._news: list[Point] = []
        self._in_order = self._opened = 0
        # Of the settings that the next one depends on: how many they are, and what they say.
        self._learned = 0
        self._medians = Medians()
        self._for_now = False
        self._live: dict[int, _Slot] = {}
        # By the keys of trials, which settings that are equal share.
        self._slots: dict[str, list[_Slot]] = {}
        self._running: set[str] = set()
        self._results: dict[str, SeedResult] = {}
        self._stopped: dict[str, tuple[float, ...]] = {}
        while self._open(only_kept=True):
            pass

    @property
    def points(self) -> tuple[Point, ...]:
        """What has become of the settings that are settled, in order."""
        return tuple(point for _, point in sorted(self._points.items()))

    def news(self) -> list[Point]:
        """Return what has become of settings since this was last asked."""
        found, self._news = self._news, []
        return found

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return len(self._points) == self._plan.count

    def following(self) -> TrialConfig | None:
        """Return the next trial; None while others must end first, or if none is left."""
        while True:
            for slot in self._live.values():
                for key, config in self._due(slot).items():
                    if key not in self._running:
                        self._running.add(key)
                        return config
            if not self._open():
                return None

    def label(self, config: TrialConfig) -> str:
        """Say which trial that is."""
        return f"the trial {config.label}, {words(self._slots[config.key][0].setting)}"

    def goes_on(self, config: TrialConfig, curve: Curve) -> bool:
        """Look at how far a trial is, and return whether it is worth the rest."""
        key, so_far = config.key, tuple(curve.validation_metric)
        slots = self._slots[key]
        if not all(slot.first == key and self._behind(slot, so_far) for slot in slots):
            return True
        self._stopped[key] = so_far
        for slot in slots:
            self._keep(slot)
        return False

    def ended(self, config: TrialConfig, record: Record | None) -> None:
        """Take what came of a trial; None if it was stopped."""
        self._running.discard(config.key)
        if record is not None:
            if record.final is not None and record.final.validation_metric is None:
                raise RunError(
                    f"{self._plan.source.name} has not told run.report {self._plan.metric_name!r} on validation data, "
                    "by which settings are chosen"
                )
            self._results[config.key] = SeedResult.of(record)
        self._look(config.key)

    def given_up(self, config: TrialConfig) -> bool:
        """Take it that workers die at a trial, and return whether its setting had not been given up before."""
        slots = self._slots[config.key]
        new = not all(slot.given_up for slot in slots)
        for slot in slots:
            slot.given_up = True
        self.ended(config, None)
        return new

    def _open(self, *, only_kept: bool = False) -> bool:
        """Begin with one more setting if that is possible yet; if asked, only where an earlier run has chosen it."""
        number = self._opened
        if number == self._plan.count or (self._waits and number - AT_A_TIME >= self._in_order):
            return False
        kept = self._read(number)
        if kept is None and only_kept and not self._grid:
            return False
        if self._waits:
            self._learn(number - AT_A_TIME + 1)
        setting = self._grid[number] if self._grid else self._choose(number, kept)
        configs = [self._plan.trial(setting, seed) for seed in self._plan.seeds]
        bars = self._medians.bars if self._plan.prune else None
        slot = _Slot(number, setting, {config.key: config for config in configs}, bars, self._for_now)
        if kept is None and not self._grid:
            self._keep(slot)
        if kept is not None and kept.stopped is not None:
            self._stopped[slot.first] = kept.stopped
        for key in slot.trials:
            self._slots.setdefault(key, []).append(slot)
        self._live[number] = slot
        self._opened += 1
        self._read_records(slot)
        self._look(slot.first)
        return True

    def _learn(self, count: int) -> None:
        """Take it to heart what has become of the first settings, so many of them."""
        for number in range(self._learned, count):
            found = self._points[number]
            self._medians.add(found)
            self._for_now |= found.state == "given up"
            if not self._grid:
                self._sampler.learn(found)
            self._learned = number + 1

    def _choose(self, number: int, kept: Kept | None) -> Setting:
        if kept is None:
            return self._sampler.choose(number)
        self._sampler.remember(number, kept.setting)
        return kept.setting

    def _read(self, number: int) -> Kept | None:
        if self._grid and not self._plan.prune:
            return None
        return kept_settings.read(self._plan.out, self._key, number, lambda setting: self._fits(number, setting))

    def _fits(self, number: int, setting: Setting) -> bool:
        if self._grid:
            return setting == self._grid[number]
        axes = {axis.name: axis for axis in self._plan.grid}
        return list(setting) == list(axes) and all(axes[name].has(value) for name, value in setting.items())

    def _keep(self, slot: _Slot) -> None:
        if slot.for_now:
            return
        kept = Kept(setting=slot.setting, stopped=self._stopped.get(slot.first))
        try:
            kept_settings.write(self._plan.out, self._key, slot.number, kept)
        except OSError as error:
            raise RunError(f"a setting cannot be written to {self._plan.out}: {error.strerror}") from error

    def _read_records(self, slot: _Slot) -> None:
        while due := self._due(slot):
            found = [record for config in due.values() if (record := records.read(self._plan.out, config)) is not None]
            self._results.update((record.key, SeedResult.of(record)) for record in found)
            if len(found) < len(due):
                return

    def _due(self, slot: _Slot) -> dict[str, TrialConfig]:
        """Return the trials of a setting that may be trained now, and those that are."""
        if slot.given_up or self._stop(slot) is not None:
            return {}
        if slot.first not in self._results:
            return {slot.first: slot.trials[slot.first]}
        due = {}
        for key, config in slot.trials.items():
            if key not in self._results:
                due[key] = config
            elif self._results[key].diverged is not None:  # those after it would change nothing
                break
        return due

    def _stop(self, slot: _Slot) -> tuple[float, ...] | None:
        """Return how far the first seed came, or would have come, until the setting was given up for it."""
        found = self._results.get(slot.first)
        curve = found.curve if found is not None else self._stopped.get(slot.first, ())
        epoch = self._behind(slot, curve)
        return None if epoch is None else curve[:epoch]

    def _behind(self, slot: _Slot, curve: tuple[float, ...]) -> int | None:
        return None if slot.bars is None else falls_behind(curve, slot.bars, self._plan.higher_is_better)

    def _look(self, key: str) -> None:
        """Judge the settings that have a trial, if nothing of them runs or is left to do."""
        for slot in self._slots[key]:
            if slot.number in self._points or self._due(slot) or not self._running.isdisjoint(slot.trials):
                continue
            results = [self._results[key] for key in takewhile(self._results.__contains__, slot.trials)]
            found = point(slot.number, slot.setting, results, stopped=self._stop(slot), given_up=slot.given_up)
            self._points[slot.number] = found
            del self._live[slot.number]
            while self._in_order in self._points:
                self._in_order += 1
            self._news.append(found)
