"""Sizes of rivals by the formulas of their formats, written down here once more."""

import tiny_model

from hwpq_tvm.inspection.rival_sizes import rival_sizes
from hwpq_tvm.runtime.manifest import GenerationSpec

from . import artifacts


def generation(**changes) -> GenerationSpec:
    from dataclasses import replace

    return replace(tiny_model.manifest().generation, vocab_size=artifacts.VOCABULARY, **changes)


def expected(body_bits, head_bits):
    """Bytes, `bits(N, K)` being those of one row of scales and weights."""
    total = artifacts.OTHER_BYTES
    for N, K in artifacts.SHAPES.values():
        total += artifacts.BLOCKS * N * body_bits(K) / 8
    return total + artifacts.VOCABULARY * head_bits(artifacts.HIDDEN) / 8


def test_dense_formats_count_weights_and_scales(tmp_path):
    found = rival_sizes(artifacts.artifact(tmp_path / "a", generation=generation()))
    int8 = lambda K: 8 * K + 32  # noqa: E731
    assert found["float16"] == expected(lambda K: 16 * K, lambda K: 16 * K)
    assert found["dense int8"] == expected(int8, int8)
    assert found["dense int4 g64"] == expected(lambda K: 4 * K + 16 * K // 64, int8)


def test_what_is_no_language_model_has_no_head(tmp_path):
    found = rival_sizes(artifacts.artifact(tmp_path / "a", generation=None))
    int4 = lambda K: 4 * K + 16 * K // 64  # noqa: E731
    assert found["dense int4 g64"] == expected(int4, int4)


def test_an_artefact_in_the_format_of_its_rival_has_its_size(tmp_path):
    """8 bits and a scale of 32 bits for a row of 64 or 128, as the packed format has it."""
    content = artifacts.report("dense int8", 8.5)
    for layer in content["layers"]:
        layer["bits_per_weight"] = 8 + 32 / layer["shape"][1]
    stored = sum(each["shape"][0] * each["shape"][1] * each["bits_per_weight"] / 8 for each in content["layers"])
    content["model"]["weight_bytes"] = round(stored) + artifacts.OTHER_BYTES
    found = artifacts.artifact(tmp_path / "a", content, generation=generation())
    assert rival_sizes(found)["dense int8"] == found.weight_bytes
