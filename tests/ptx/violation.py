"""What a kernel did that the hardware does not promise to survive."""


class Violation(AssertionError):
    """A rule that a kernel broke: which, where (instruction, block, thread), and with what values.

    Attributes
    ----------
    rule
        Such as "out of bounds", "misaligned", "race", "uninitialised", "un-awaited", "divergent barrier",
        "deadlock", "unordered metadata", "divergent warp".
    """

    def __init__(self, rule: str, message: str):
        super().__init__(f"{rule}: {message}")
        self.rule = rule
