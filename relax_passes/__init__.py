"""Relax passes that plan, compress and optimise a model; `pipeline` strings them together."""
