"""Hypothesis profiles, the claim marker, and the evidence that a run leaves for the ledger."""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from fop_theory import ledger

ROOT = Path(__file__).parents[1]

# `default` is deterministic, so that main stays green; `deep` looks for what it missed.
_common = {"deadline": None, "print_blob": True, "report_multiple_bugs": False}
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", max_examples=50, derandomize=True, **_common, suppress_health_check=_slow)
settings.register_profile("deep", max_examples=10_000, **_common, suppress_health_check=_slow)
settings.register_profile(
    "mutant", max_examples=50, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None, **_common,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile(os.environ.get("FOP_HYPOTHESIS", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", metavar="FILE", help="write the evidence for the ledger here")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(id, shows, by): what the test shows of a claim, and by which method")
    config.addinivalue_line("markers", "mutant: plants a fault in a formula and expects its claim's tests to fail")
    target = config.getoption("--evidence")
    if target and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_EvidenceWriter(Path(target)), "evidence-writer")


def _marks(item: pytest.Item) -> list[tuple[str, str, str]]:
    found = []
    for mark in item.iter_markers("claim"):
        if len(mark.args) != 1 or set(mark.kwargs) != {"shows", "by"}:
            raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.claim(id, shows=..., by=...)")
        shows, by = mark.kwargs["shows"], mark.kwargs["by"]
        if shows not in ledger.SHOWS or by not in ledger.METHODS:
            raise pytest.UsageError(f"{item.nodeid}: shows is one of {ledger.SHOWS}, by one of {ledger.METHODS}")
        found.append((mark.args[0], shows, by))
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        claims = _marks(item)
        if claims:
            item.user_properties.append(("claims", claims))
            is_property = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
            item.user_properties.append(("examples", settings.default.max_examples if is_property else 0))


def pytest_collection_finish() -> None:
    """Look for garbage among what the tests make, not each time anew among all that was imported."""
    gc.freeze()


@pytest.fixture
def measured(request: pytest.FixtureRequest):
    """Record our value of a claim's number: `measured("fig-1-booth-sgd", 832)`."""

    def record(claim: str, value: float) -> None:
        if claim not in {name for name, _, _ in _marks(request.node)}:
            raise ValueError(f"measured: {request.node.nodeid} is not marked with the claim {claim!r}")
        request.node.user_properties.append(("value", (claim, float(value))))

    return record


class _EvidenceWriter:
    """Collects the reports of all workers and writes them once, at the end."""

    def __init__(self, target: Path) -> None:
        self.target, self.start = target, time.time()
        self.tests: list[dict] = []
        self.values: dict[str, float] = {}
        self.mutants: dict[str, list[dict]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        properties = dict(report.user_properties)
        if "claims" in properties:
            _, line, _ = report.location
            self.tests.append({
                "id": report.nodeid, "line": line + 1, "outcome": report.outcome,
                "seconds": round(report.duration, 3), "claims": properties["claims"],
                "examples": properties["examples"],
            })  # fmt: skip
        for key, value in report.user_properties:
            if key == "value":
                self.values[value[0]] = value[1]
            elif key == "mutant":
                self.mutants.setdefault(value["claim"], []).append(value)

    def pytest_sessionfinish(self) -> None:
        evidence = {
            "digest": ledger.digest(ROOT),
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - self.start, 1),
            "python": platform.python_version(),
            "profile": os.environ.get("FOP_HYPOTHESIS", "default"),
            "tests": sorted(self.tests, key=lambda test: test["id"]),
            "values": self.values,
            "mutants": {name: sorted(rows, key=lambda row: row["number"]) for name, rows in self.mutants.items()},
        }
        self.target.parent.mkdir(parents=True, exist_ok=True)
        partial = self.target.with_suffix(".partial")
        partial.write_text(json.dumps(evidence, indent=1), encoding="utf-8")
        partial.replace(self.target)
