"""Settings for all tests: hypothesis neither looks at the clock nor draws other inputs from run to run; and with
`pytest -n`, who works beside whom."""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("course", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("course")

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes with a thread for every core each would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share what one of them trained; the notebooks build on one another, in one run."""
    for item in items:
        group = item.path.parent.name if item.path.suffix == ".ipynb" else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
