"""Matches the weights of a model with those of its checkpoint."""

from collections.abc import Collection, Mapping

from hwpq_tvm.errors import ImportModelError

# That many names are listed; a checkpoint of another model differs in every one.
_LISTED = 12


def match_names(
    available: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, tuple[str, ...]],
    *,
    source: str,
    optional: Collection[str] = (),
) -> dict[str, str]:
    """Find every weight of a model in its checkpoint.

    Parameters
    ----------
    available
        Shapes of the tensors of the checkpoint, by name.
    expected
        Shapes of the weights of the model, by name.
    aliases
        All names that a weight has in the model (tied weights have several).
    source
        The checkpoint's name for messages.
    optional
        Weights of `expected` that the checkpoint may lack.

    Returns
    -------
    For each weight that is there, its name in the checkpoint.

    Raises
    ------
    ImportModelError
        Naming all weights that are missing, that have another shape, or for which the model has no place.
    """
    found = {}
    for name in expected:
        candidates = [alias for alias in aliases.get(name, (name,)) if alias in available]
        if candidates:
            found[name] = candidates[0]
    problems = []
    if missing := [name for name in expected if name not in found and name not in optional]:
        problems.append(f"lacks {_listed(missing)}")
    wrong = [
        f"{theirs} is {list(available[theirs])}, expected {list(expected[name])}"
        for name, theirs in found.items()
        if available[theirs] != expected[name]
    ]
    if wrong:
        problems.append(f"has other shapes than its configuration says ({_listed(wrong, '; ')})")
    known = {alias for name in expected for alias in aliases.get(name, (name,))}
    if extra := sorted(name for name in available if name not in known):
        problems.append(
            f"has weights for which the model that its configuration describes has no place ({_listed(extra)})"
        )
    if problems:
        raise ImportModelError(
            f"{source} {', and '.join(problems)}: the configuration and the weights must be of the same model"
        )
    return found


def _listed(things: list[str], separator: str = ", ") -> str:
    rest = len(things) - _LISTED
    return separator.join(things[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
