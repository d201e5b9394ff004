"""Perplexity and divergence as people read them."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from ..evaluate import ORIGINAL, Evaluation


def perplexity_line(evaluation: Evaluation) -> str:
    """The perplexity of one model, and over how much it was taken."""
    return f"perplexity {evaluation.perplexity.perplexity:.4f} ({_amount(evaluation)})"


def amount_lines(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Over how much the perplexities were taken: one line if all were over the same, else one for each model."""
    found = {name: _amount(evaluation) for name, evaluation in evaluations.items()}
    amounts = set(found.values())
    return list(amounts) if len(amounts) == 1 else [f"{name}: {text}" for name, text in found.items()]


def _amount(evaluation: Evaluation) -> str:
    result = evaluation.perplexity
    overlap = "" if result.stride is None else f", one every {result.stride} tokens"
    return f"{result.tokens} tokens, {result.windows} windows of at most {result.window_length}{overlap}"


def evaluation_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """What `evaluate` found, a row for each model; columns of the comparison with the original only if there is one."""
    original = evaluations.get(ORIGINAL)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    headings = ["perplexity", "bits/byte"]
    headings += ["/ original", "same token", "KL mean", "median", "99 %", "maximum"] if original else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, evaluation in evaluations.items():
        perplexity, divergence = evaluation.perplexity.perplexity, evaluation.divergence
        cells = [f"{perplexity:.4f}", f"{evaluation.bits_per_byte:.4f}" if evaluation.bits_per_byte else ""]
        if original and divergence:
            kl = (divergence.mean, divergence.median, divergence.percentile_99, divergence.maximum)
            cells += [f"{perplexity / original.perplexity.perplexity:.4f}", f"{divergence.greedy_agreement:.2%}"]
            cells += [f"{value:.4f}" for value in kl]
        table.add_row(escape(name), *cells)
    return table
