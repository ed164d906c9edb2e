"""The flow runs on the wheels' servers, and in `make prove` once more on those of the system's packages."""

from __future__ import annotations

import pytest
from fix_servers import SYSTEM, WHEEL


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server_kind" in metafunc.fixturenames:
        kinds = [WHEEL, pytest.param(SYSTEM, marks=pytest.mark.slow)]
        metafunc.parametrize("server_kind", kinds, indirect=True, scope="session")
