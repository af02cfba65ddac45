"""For the tests of the core and of every member: golden data that is not in the repository, and what must not skip."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parent.parent / "shared"
REQUIRED = {"TPO_REQUIRE_SHARED": "shared", "TPO_REQUIRE_BROWSER": "browser"}
"""By variable, set to 1 where something must be there, the word in the reason of a test that skips without it: the test
then fails."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data and media beside the repository; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs shared/ (golden data) at {SHARED}")
    return SHARED


def _refuse_skip(report: Any) -> None:
    for variable, word in REQUIRED.items() if report.skipped and isinstance(report.longrepr, tuple) else ():
        if os.environ.get(variable) == "1" and word in report.longrepr[2]:
            report.outcome = "failed"
            report.longrepr = f"{variable}=1 and this was skipped: {report.longrepr[2]}"
            return


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
