"""What a test has measured is told at the end of the run, whether the test has passed or not.

tell("10,000 seeds", "171 s")
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

TOLD = "told"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Tell a figure: what it is, and the figure."""
    return lambda what, figure: record_property(TOLD, f"{what}: {figure}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [each for outcome in ("passed", "failed") for each in terminalreporter.getreports(outcome)]
    told = [text for report in reports for name, text in report.user_properties if name == TOLD]
    if told:
        terminalreporter.section("measured")
        for text in told:
            terminalreporter.line(text)
