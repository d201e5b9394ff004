"""Checkpoints that are quantized already give the floats that their own formats stand for, or say what to do."""

import json
import re

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.importers.converted_checkpoint import ConvertedCheckpoint
from hwpq_tvm.importers.model_folder import read_folder
from hwpq_tvm.importers.packed_weights import unpack_words
from hwpq_tvm.importers.structure import build_structure
from tests.tiny_hf import save, tiny_llama

# Sizes that the formats can store: out_features of 8, in_features of groups of 32.
SIZES = {"num_hidden_layers": 1, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "head_dim": 32}
DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save(tiny_llama(**SIZES), tmp_path_factory.mktemp("original"))


@pytest.fixture
def rewrite(original, tmp_path):
    """Write the folder anew with other tensors and a quantization."""

    def write(change, quantization):
        tensors = change(load_file(original / WEIGHTS))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
        config = json.loads((original / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
        return tmp_path

    return write


def is_linear(name):
    return name.endswith("proj.weight")


def open_folder(folder):
    found = read_folder(folder, needs_weights=True)
    return ConvertedCheckpoint(found.stored, build_structure(found.config), source=str(folder)), found


def pack(numbers, bits):
    """`[count, columns]` unsigned -> `[count * bits / 32, columns]` int32, by arithmetic on large integers."""
    words = np.empty((numbers.shape[0] * bits // 32, numbers.shape[1]), np.uint32)
    for column in range(numbers.shape[1]):
        large = sum(int(number) << (bits * i) for i, number in enumerate(numbers[:, column]))
        for row in range(len(words)):
            words[row, column] = large >> (32 * row) & 0xFFFFFFFF
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 7, 8])
def test_numbers_without_gaps_are_unpacked(bits):
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, (64, 3))
    np.testing.assert_array_equal(unpack_words(pack(numbers, bits), bits, 64), numbers)
    np.testing.assert_array_equal(unpack_words(pack(numbers, bits), bits, 41), numbers[:41])


class GPTQ:
    """Quantizes at random: the format is of interest, not how well it is done."""

    def __init__(self, bits, *, order=False, offset=1):
        self.bits, self.order, self.offset = bits, order, offset
        self.expected = {}

    def __call__(self, tensors):
        random = np.random.default_rng(self.bits)
        result = {}
        for name, tensor in tensors.items():
            if not is_linear(name):
                result[name] = tensor
                continue
            n, k = tensor.shape
            groups = k // 32
            q, z = (random.integers(0, 1 << self.bits, shape) for shape in ((k, n), (groups, n)))
            scales = torch.from_numpy(random.uniform(0.5, 1, (groups, n))).half()
            g_idx = np.arange(k) // 32
            if self.order:
                g_idx = random.permutation(g_idx)
            weight = (q - z[g_idx]) * scales.float().numpy()[g_idx]
            self.expected[name] = weight.T
            path = name.removesuffix(".weight")
            stored_zeros = (z - self.offset) % (1 << self.bits)
            result |= {
                f"{path}.qweight": pack(q, self.bits),
                f"{path}.qzeros": pack(stored_zeros.T, self.bits).T,
                f"{path}.scales": scales,
            }
            if self.order:
                result[f"{path}.g_idx"] = torch.from_numpy(g_idx).int()
        return result


@pytest.mark.parametrize(
    ("bits", "order", "layout"),
    [(4, False, "gptq"), (4, True, "gptq_v2"), (3, True, "gptq"), (2, 0, "gptq"), (8, 0, "gptq")],
)
def test_gptq(rewrite, bits, order, layout):
    quantizer = GPTQ(bits, order=order, offset=1 if layout == "gptq" else 0)
    method = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": layout}
    checkpoint, found = open_folder(rewrite(quantizer, method))
    assert len(quantizer.expected) == 7
    for name, expected in quantizer.expected.items():
        assert checkpoint.shape(name) == expected.shape
        np.testing.assert_allclose(checkpoint.load(name), expected, rtol=1e-6, atol=1e-6)
    assert found.format == f"safetensors (gptq {bits} bit)"
    assert re.search(f"^7 weights were stored as gptq in {bits} bits: they are dequantized", found.notes[0])


def test_a_quantized_folder_is_imported_with_a_note(rewrite):
    quantizer = GPTQ(4)
    imported = import_model(rewrite(quantizer, {"quant_method": "gptq", "bits": 4}), max_seq_len=16)
    assert imported.metadata.source_format == "safetensors (gptq 4 bit)"
    assert "7 weights were stored as gptq in 4 bits" in imported.notes[0]
    np.testing.assert_allclose(imported.parameters.load(f"{UP}.weight"), quantizer.expected[f"{UP}.weight"], rtol=1e-6)
    np.testing.assert_array_equal(
        imported.parameters.load_index(f"{UP}.weight", 5), imported.parameters.load(f"{UP}.weight")[5]
    )


@pytest.mark.parametrize("version", ["gemm", None])
def test_awq(rewrite, version):
    expected = {}

    def columns(numbers):
        """`[rows, N]` -> `[rows, N / 8]`: AutoAWQ puts columns 0, 2, 4, 6, 1, 3, 5, 7 into a word."""
        words = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
        for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words |= numbers[:, column::8].astype(np.uint32) << (4 * place)
        return torch.from_numpy(words.view(np.int32))

    def quantize(tensors):
        random = np.random.default_rng(0)
        result = dict(tensors)
        for name in filter(is_linear, tensors):
            n, k = result.pop(name).shape
            q, z = (random.integers(0, 16, (rows, n)) for rows in (k, k // 32))
            scales = torch.from_numpy(random.uniform(0.5, 1, z.shape)).half()
            expected[name] = ((q - z.repeat(32, 0)) * scales.float().numpy().repeat(32, 0)).T
            path = name.removesuffix(".weight")
            result |= {f"{path}.qweight": columns(q), f"{path}.qzeros": columns(z), f"{path}.scales": scales}
        return result

    method = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": version}
    checkpoint, found = open_folder(rewrite(quantize, method))
    for name, weight in expected.items():
        np.testing.assert_allclose(checkpoint.load(name), weight, rtol=1e-6, atol=1e-6)
    assert found.format == "safetensors (awq 4 bit)"


@pytest.mark.parametrize("block", [(48, 64), None])
def test_fp8_with_scales_by_block(rewrite, block):
    expected = {}

    def quantize(tensors):
        result = {}
        for name, tensor in tensors.items():
            if not is_linear(name):
                result[name] = tensor
                continue
            n, k = tensor.shape
            small = tensor.to(torch.float8_e4m3fn)
            rows, columns = block or (n, k)
            grid = torch.rand(-(-n // rows), -(-k // columns)) + 0.5
            whole = grid.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
            expected[name] = (small.float() * whole).numpy()
            result |= {name: small, f"{name}_scale_inv": grid if block else grid.reshape(())}
            result[name.replace("weight", "activation_scale")] = torch.ones(())
        return result

    method = {"quant_method": "fp8", "weight_block_size": list(block) if block else None}
    checkpoint, found = open_folder(rewrite(quantize, method))
    for name, weight in expected.items():
        np.testing.assert_array_equal(checkpoint.load(name), weight)
    assert "7 weights were stored as fp8 (7 of float8_e4m3fn)" in found.notes[0]
    assert "7 scales of activations in the checkpoint are left out" in found.notes[1]


def arguments(**values):
    return QuantizationArgs(**{"num_bits": 8, "symmetric": True, **values})


FORMATS = {
    "pack-quantized 4 bit, groups": ("pack-quantized", arguments(num_bits=4, strategy="group", group_size=32)),
    "pack-quantized 4 bit, zero points": (
        "pack-quantized",
        arguments(num_bits=4, strategy="group", group_size=32, symmetric=False),
    ),
    "pack-quantized 3 bit, channels": ("pack-quantized", arguments(num_bits=3, strategy="channel")),
    "int-quantized": ("int-quantized", arguments(strategy="channel")),
    "int-quantized, zero points": ("int-quantized", arguments(strategy="channel", symmetric=False)),
    "float-quantized": ("float-quantized", arguments(type="float", strategy="channel")),
    "float-quantized, one scale": ("float-quantized", arguments(type="float", strategy="tensor")),
    "float-quantized, blocks": (
        "float-quantized",
        arguments(type="float", strategy="block", block_structure=[48, 64]),
    ),
    "naive-quantized": ("naive-quantized", arguments(num_bits=8, strategy="group", group_size=32)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_compressed_tensors(rewrite, name):
    kind, args = FORMATS[name]
    compressor, scheme = (
        BaseCompressor.get_value_from_registry(kind),
        QuantizationScheme(targets=["Linear"], weights=args),
    )
    expected = {}

    def quantize(tensors):
        generator = torch.Generator().manual_seed(3)
        result = dict(tensors)
        for name in filter(is_linear, tensors):
            weight = result.pop(name)
            n, k = weight.shape
            shape = {"group": (n, k // 32), "channel": (n, 1), "tensor": (1,), "block": (-(-n // 48), -(-k // 64))}
            scale = torch.rand(shape[args.strategy], generator=generator) * 0.02 + 0.02
            state = {"weight": weight, "weight_scale": scale}
            if not args.symmetric:
                half = 1 << (args.num_bits - 1)
                zeros = torch.randint(-half, half, scale.shape, generator=generator)
                state["weight_zero_point"] = zeros.to(torch.int8)
            packed = compressor.compress(state, scheme)
            expected[name] = compressor.decompress(dict(packed), scheme)["weight"].float().numpy()
            path = name.removesuffix("weight")
            result |= {path + part: tensor for part, tensor in packed.items()}
        return result

    groups = {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}}
    method = {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups}
    checkpoint, found = open_folder(rewrite(quantize, method))
    assert len(expected) == 7
    for layer, weight in expected.items():
        assert np.unique(weight).size > 5
        np.testing.assert_allclose(checkpoint.load(layer), weight, rtol=1e-6, atol=1e-7)
    assert "7 weights were stored as compressed-tensors (7 of" in found.notes[0]


@pytest.mark.parametrize("structure", ["2:4", "unstructured"])
@pytest.mark.parametrize("quantized", [False, True])
def test_sparse_compressed_tensors(rewrite, structure, quantized):
    expected = {}

    def compress(tensors):
        result = dict(tensors)
        for name in filter(is_linear, tensors):
            weight = result.pop(name)
            n, k = weight.shape
            if structure == "2:4":
                order = weight.reshape(n, -1, 4).abs().argsort(-1).argsort(-1)
                mask = (order >= 2).reshape(n, k)
            else:
                mask = weight.abs() > weight.abs().median()
            path = name.removesuffix("weight")
            stored, factor = weight * mask, 1.0
            if quantized:
                stored, factor = (stored * 40).round().clamp(-127, 127).to(torch.int8), 0.025
                result[path + "weight_scale"] = torch.full((n, 1), factor)
                mask = stored != 0
            expected[name] = stored.float().numpy() * np.float32(factor)
            values = stored[mask]
            result |= {
                path + "compressed": values.reshape(n, k // 2) if structure == "2:4" and not quantized else values,
                path + "bitmask": torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little")),
                path + "shape": torch.tensor([n, k]),
            }
            if structure == "unstructured":
                result[path + "row_offsets"] = torch.cumsum(mask.sum(1), 0)
        return result

    kind = "sparse-24-bitmask" if structure == "2:4" else "sparse-bitmask"
    method = {
        "quant_method": "compressed-tensors",
        "sparsity_config": {"format": kind, "sparsity_structure": structure},
    }
    checkpoint, found = open_folder(rewrite(compress, method))
    for name, weight in expected.items():
        np.testing.assert_allclose(checkpoint.load(name), weight, rtol=1e-6)
        assert (checkpoint.load(name) == 0).mean() > 0.4
    assert "(7 of sparse" in found.notes[0]


def test_scales_of_what_is_stored_as_floats_are_left_out_with_a_note(rewrite, original):
    def add(tensors):
        scales = {
            f"{path}.weight_scale": torch.full((tensors[f"{path}.weight"].shape[0], 1), 7.0) for path in (UP, DOWN)
        }
        return {**tensors, **scales, f"{UP}.weight_zero_point": torch.zeros(160, 1, dtype=torch.int8)}

    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}
    imported = import_model(
        rewrite(add, {"quant_method": "compressed-tensors", "config_groups": groups}), max_seq_len=16
    )
    assert imported.notes == (
        "2 weights were stored as floats beside their scales: they are read as they are, and the scales are left out",
    )
    expected = load_file(original / WEIGHTS)[f"{UP}.weight"]
    np.testing.assert_array_equal(imported.parameters.load(f"{UP}.weight"), expected.numpy())


@pytest.mark.parametrize("method", [{"quant_method": "gptq", "checkpoint_format": None}])
def test_what_is_null_has_its_default(rewrite, method):
    quantizer = GPTQ(4)
    checkpoint, _ = open_folder(rewrite(quantizer, method))
    np.testing.assert_allclose(checkpoint.load(f"{UP}.weight"), quantizer.expected[f"{UP}.weight"], rtol=1e-6)


REFUSED = {
    "bitsandbytes": r"\(bitsandbytes\).*can be read are gptq, awq.*call its dequantize\(\)",
    "mxfp4": r"\(mxfp4\).*Mxfp4Config\(dequantize=True\)",
    "aqlm": r"\(aqlm\).*give the original model, from before it was quantized",
}


@pytest.mark.parametrize("method", REFUSED)
def test_formats_that_are_not_read(rewrite, method):
    folder = rewrite(dict, {"quant_method": method})
    with pytest.raises(ImportModelError, match=REFUSED[method]) as caught:
        import_model(folder, max_seq_len=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', expected 'gptq' or"),
        ({"quant_method": "gptq"}, r"there is no tensor named \*\.qweight"),
        ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv', expected 'gemm'"),
        (
            {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}},
            "its activations are transformed as well",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"W8A8": ["Linear"], "group_1": {}}},
            r"config_groups names schemes without saying what they are \(W8A8\)",
        ),
    ],
)
def test_variants_that_are_not_read(rewrite, quantization, message):
    with pytest.raises(ImportModelError, match=f"in a way that can't be read: {message}.*give the original model"):
        open_folder(rewrite(dict, quantization))


def test_all_layers_that_do_not_fit_their_format_are_named(rewrite):
    def damage(tensors):
        result = GPTQ(4)(tensors)
        del result[f"{UP}.scales"]
        result[f"{DOWN}.qzeros"] = result[f"{DOWN}.qzeros"][:, :-1]
        return result

    with pytest.raises(ImportModelError, match=f"the shapes of {DOWN} do not fit.*; {UP} lacks scales"):
        open_folder(rewrite(damage, {"quant_method": "gptq"}))
    nothing = {"quant_method": "fp8"}
    with pytest.raises(ImportModelError, match=f"{DOWN}.weight has no {DOWN}.weight_scale_inv"):
        open_folder(
            rewrite(
                lambda tensors: {**tensors, f"{DOWN}.weight": tensors[f"{DOWN}.weight"].to(torch.float8_e4m3fn)},
                nothing,
            )
        )


def test_integers_of_an_unknown_format_are_no_weights(rewrite):
    folder = rewrite(lambda tensors: {n: t.to(torch.int8) if is_linear(n) else t for n, t in tensors.items()}, None)
    with pytest.raises(ImportModelError, match=rf"stored as int8.*{DOWN}.weight.*quantization_config"):
        import_model(folder, max_seq_len=16)


def test_live_models_that_are_quantized():
    model = tiny_llama(num_hidden_layers=1)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.ones(44, 36, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(
        ImportModelError, match=rf"quantized already \(unknown method\) \({UP}.weight\).*original model"
    ):
        import_model(model, max_seq_len=16)

    class Quantizer:
        class quantization_config:
            quant_method = "bitsandbytes"

    model = tiny_llama(num_hidden_layers=1)
    model.hf_quantizer = Quantizer()
    with pytest.raises(ImportModelError, match=r"quantized already \(bitsandbytes\).*call its dequantize\(\)"):
        import_model(model, max_seq_len=16)
