"""Settings for all tests: hypothesis neither looks at the clock nor draws other inputs from run to run."""

from hypothesis import HealthCheck, settings

settings.register_profile("course", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("course")
