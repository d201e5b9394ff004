"""Keeps torch.export from printing what it was about when it fails: the error says so, and its traceback the rest."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator

_LOGGER = "torch.fx.experimental.symbolic_shapes"


@contextlib.contextmanager
def quiet_failure() -> Iterator[None]:
    """Show what is written to stderr inside only if nothing is raised; of a failure torch prints the whole graph."""
    written = io.StringIO()
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(written):
            yield
    finally:
        logger.setLevel(level)
    sys.stderr.write(written.getvalue())
