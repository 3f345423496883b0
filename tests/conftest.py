"""Settings for all tests: hypothesis neither looks at the clock nor draws other inputs from run to run; and with
`pytest -n`, who works beside whom."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("course", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("course")

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes with a thread for every core each would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who works on what: a file's tests share what one of them trained; the notebooks build on one another's run.

    In the browser each test is for itself: every process has its own copy of the course.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            if path.startswith("tests/ui/"):
                return nodeid
            return "notebooks" if path.endswith(".ipynb") else path

    return Together(config, log)
