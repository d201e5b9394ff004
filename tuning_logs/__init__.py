"""MetaSchedule databases that ship with the package, one folder per device."""
