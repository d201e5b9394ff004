"""Decoded instructions, and their places in a report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .machine import Machine

RUN, BRANCH, EXIT, BARRIER = range(4)


@dataclass(frozen=True)
class Step:
    """A decoded instruction.

    Attributes
    ----------
    kind
        RUN for `run(machine)`, the others for what changes which lanes run.
    run
        Does it. For BRANCH returns which active lanes jump (None: all); for BARRIER the barrier and its threads.
    target
        Where a branch leads.
    """

    kind: int
    run: Callable[..., Any]
    target: int
    text: str


class Where:
    """The place of a machine in its kernel, spelt out only where a report needs it."""

    def __init__(self, machine: "Machine"):
        self.machine = machine

    def __str__(self) -> str:
        m = self.machine
        lane = int(m.lanes()[0])
        block = tuple(int(i) for i in m.blocks[lane // m.block_lanes])
        return f"`{m.steps[m.pc].text}` (#{m.pc}; first active: block {block} thread {lane % m.block_lanes})"
