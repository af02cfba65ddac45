"""For the tests of the core and of every member: golden data that is not in the repository."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parent.parent / "shared"
REQUIRE_VARIABLE = "TPO_REQUIRE_SHARED"
"""Set to 1 where the golden data must be there: a test that skips because of it then fails."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data and media beside the repository; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs shared/ (golden data) at {SHARED}")
    return SHARED


def _refuse_skip(report: Any) -> None:
    required = os.environ.get(REQUIRE_VARIABLE) == "1"
    if required and report.skipped and isinstance(report.longrepr, tuple) and "shared" in report.longrepr[2]:
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_VARIABLE}=1 and this was skipped: {report.longrepr[2]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report)
    return report
