"""Properties that hold for every input, with inputs that hypothesis makes up: the same ones in each run."""

from hypothesis import HealthCheck, settings

# How long an input takes to make says something of the machine only.
repeatable = settings(derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
