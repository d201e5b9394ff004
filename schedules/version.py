"""The version of the kernels that tuning records are for."""

# Raise it when a kernel that has a search space changes so much that times measured with it say nothing any more:
# records of other versions are ignored (tests/schedules/test_version.py notices the change).
KERNELS_VERSION = 1
