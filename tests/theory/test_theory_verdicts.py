"""Every claim has its verdict, and loses it when what it runs is broken."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from steppe.theory import CLAIMS
from steppe.theory.claim import LEVEL, Point, Power
from theory_cases import CASES, reduced


def test_every_claim_has_a_case_and_is_complete():
    assert list(CASES) == list(CLAIMS)
    for name, claim in CLAIMS.items():
        assert claim.id == name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert re.search(r"arXiv \d{4}\.\d{5}|\bours\b", claim.source)
        assert claim.statement.endswith(".")
        assert claim.formula
        assert claim.seeds == 1 or claim.seeds >= 20
        assert len({repr(p) for p in claim.grid}) == len(claim.grid)


@pytest.mark.parametrize("name", CASES)
def test_claims_have_their_verdicts(name):
    claim = reduced(name)
    found = claim.run()
    assert found.verdict == claim.expected, found.nearest
    assert found.nearest.margin == min(f.margin for f in found.findings if f.room == found.nearest.room)


@pytest.mark.parametrize("name", CASES)
def test_claims_can_fail(name, monkeypatch):
    claim, (damage, _, _) = reduced(name), CASES[name]
    damage(monkeypatch)
    if claim.expected == "holds" and not any(isinstance(check, Power) for check in claim.checks):
        assert any(finding.margin < 0 for finding in one_by_one(claim))
        return
    found = claim.run()
    assert found.verdict != claim.expected
    assert (found.nearest.margin < 0) == (found.verdict == "refuted")


def one_by_one(claim):
    """Yield what is found, as `Claim.judge` finds it, setting by setting, the short ones first: one may be enough."""
    count = sum(check.count([Point(p, {}, ()) for p in claim.grid]) for check in claim.checks)
    for p in sorted(claim.grid, key=lambda p: p["steps"]):
        point = claim.measure(p)
        for check in claim.checks:
            yield from check.findings([point], 1 - (1 - LEVEL) / count)


def test_settings_one_by_one_are_found_to_be_what_they_are_together():
    claim = reduced("sam-trap-strongly-convex")
    assert sorted(map(repr, one_by_one(claim))) == sorted(map(repr, claim.run().findings))


@pytest.mark.parametrize("name", ["sam-skewed-noise", "sam-sine-trap"])
def test_seeds_are_used_once_and_runs_repeat(name):
    claim, seen = replace(CLAIMS[name], seeds=2), []
    spy = replace(claim, simulate=lambda p, seed: seen.append(seed) or {})
    for p in spy.grid:
        spy.measure(p)
    assert seen == list(range(2 * len(claim.grid)))
    small = {**claim.grid[0], "steps": 30}
    assert claim.simulate(small, 3) == claim.simulate(small, 3) != claim.simulate(small, 4)
