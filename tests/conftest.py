"""Hypothesis profiles: the same examples every time by default; more, random ones with the profile "thorough"."""

from hypothesis import HealthCheck, settings

_ALL = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("ci", derandomize=True, max_examples=100, database=None, **_ALL)
settings.register_profile("thorough", derandomize=False, max_examples=1000, **_ALL)
settings.load_profile("ci")
