"""One exported program -> one entry function of Relax."""

from typing import Any

import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax, tirx
from tvm.relax.frontend.torch import from_exported_program
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.cached_attention import OPERATOR
from hwpq_tvm.importers.structure import supported_models
from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.kernel_attr import KERNEL_ATTR
from hwpq_tvm.schedules.kv_cache import kv_cache_update


class _AttentionCalls:
    """Lowers the attention operator to calls of TensorIR functions, one function for all layers that are alike."""

    def __init__(self, entry: str, kv_cache_shape: tuple[int, ...]) -> None:
        self.entry = entry
        self.kv_cache_shape = kv_cache_shape
        self.functions: dict[tvm.tirx.PrimFunc, tvm.ir.GlobalVar] = {}

    def _global(self, builder: relax.BlockBuilder, function: tvm.tirx.PrimFunc) -> tvm.ir.GlobalVar:
        if function not in self.functions:
            name = f"{function.attrs[KERNEL_ATTR]['op']}_{self.entry}"
            taken = {str(variable.name_hint) for variable in self.functions.values()}
            if name in taken:
                name = f"{name}_{len(taken)}"
            self.functions[function] = builder.add_func(function.with_attr("global_symbol", name), name)
        return self.functions[function]

    def __call__(self, node: fx.Node, importer: Any) -> tuple[relax.Var, relax.Var]:
        """Convert one node (`custom_convert_map` of `from_exported_program`)."""
        query, key, value, past_lengths, cache = (importer.env[arg] for arg in node.args[:5])
        constants: tuple[Any, ...] = node.args[5:]
        layer, scale, window, softcap = constants
        builder = importer.block_builder
        layers, _, batch, kv_heads, max_len, _ = self.kv_cache_shape
        _, heads, length, head_dim = query.ty.shape.values
        shape: dict[str, Any] = {
            "layers": layers,
            "batch": batch,
            "kv_heads": kv_heads,
            "head_dim": int(head_dim),
            "max_len": max_len,
            "cache_dtype": str(cache.ty.dtype),
        }
        seq_len = int(length) if isinstance(length, tirx.IntImm) else None
        update = kv_cache_update(**shape, seq_len=seq_len)
        attend = attention(
            **shape, heads=int(heads), seq_len=seq_len, scale=scale, window=window, softcap=softcap, score_bias=False
        )
        index = relax.prim_value(tirx.IntImm("int64", layer))
        cache = builder.emit(
            relax.op.call_tir_inplace(
                self._global(builder, update), [key, value, past_lengths, cache, index], [3], out_ty=cache.ty
            )
        )
        out = builder.emit(
            relax.op.call_tir(
                self._global(builder, attend),
                [query, cache, past_lengths, index],
                out_ty=relax.TensorType((batch, length, heads, head_dim), "float32"),
            )
        )
        return out, cache


def _convert_size(node: fx.Node, importer: Any) -> Any:
    """Convert a read of a dimension to the dimension: an integer where it is known (TVM makes a tensor of it)."""
    tensor, axis = node.args
    dimension = importer.shape_of(importer.env[tensor])[axis]
    return int(dimension) if isinstance(dimension, tirx.IntImm) else dimension


def _convert_move(node: fx.Node, importer: Any) -> Any:
    """Convert a move to another device: there is one only."""
    return importer.env[node.args[0]]


_CONVERTERS = {"sym_size.int": _convert_size, "to.device": _convert_move}


def translate(
    program: ExportedProgram,
    entry: str,
    *,
    weight_names: dict[str, str],
    weights: tuple[str, ...],
    kv_cache_shape: tuple[int, ...],
    architecture: str,
) -> dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc]:
    """Translate an exported forward pass to an entry function.

    Parameters
    ----------
    program
        The exported program, prepared by `make_all_inputs_plain`; for "decode" also by `keep_one_token`.
    entry
        Name of the entry function.
    weight_names
        Name of the weight for each placeholder that is one; tied placeholders have the same.
    weights
        Names of the weights in the order of the entry's parameters.
    kv_cache_shape
        Shape of the cache.
    architecture
        Name of the model for messages.

    Returns
    -------
    The entry function and the TensorIR functions that it calls.
    """
    _check_operators(program, architecture)
    convert = _AttentionCalls(entry, kv_cache_shape)
    converters = {OPERATOR: convert, **_CONVERTERS}
    try:
        module = from_exported_program(
            program, keep_params_as_input=True, custom_convert_map=converters, run_ep_decomposition=False
        )
    except Exception as error:
        raise ImportModelError(
            f"TVM can't translate {architecture} to Relax ({type(error).__name__}: {error}); {supported_models()}"
        ) from error
    function = _with_named_parameters(module["main"], weight_names, weights)
    function = _with_named_dimensions(function, max_seq_len=kv_cache_shape[4])
    kernels = {variable: module[variable] for variable in convert.functions.values()}
    return {tvm.ir.GlobalVar(entry): function.with_attr("global_symbol", entry), **kernels}


def make_all_inputs_plain(program: ExportedProgram, kv_cache_shape: tuple[int, ...]) -> None:
    """Make weights inputs like the others, and give the cache its shape.

    The importer binds buffers and copies the values of parameters; inputs it only declares.
    """
    for spec in program.graph_signature.input_specs:
        spec.kind, spec.target = InputKind.USER_INPUT, None
    program.constants.clear()
    cache = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "kv_cache")
    _set_shape(cache, kv_cache_shape)


def keep_one_token(program: ExportedProgram, architecture: str) -> None:
    """Narrow the forward pass to one token per sequence, whose logits are always asked for."""
    inputs = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    ids = inputs["input_ids"]
    _set_shape(ids, (ids.meta["val"].shape[0], 1))
    logits_at = inputs["logits_at"]
    for user in list(logits_at.users):
        if user.target is not torch.ops.aten.index.Tensor or user.args[1] not in ([None, logits_at], (None, logits_at)):
            raise ImportModelError(
                f"{architecture} uses logits_to_keep for {user.target}: expected hidden_states[:, logits_to_keep];"
                f" {supported_models()}"
            )
        # Position 0 of one position is all there is.
        user.replace_all_uses_with(user.args[0])
        program.graph.erase_node(user)
    program.graph.erase_node(logits_at)
    specs = program.graph_signature.input_specs
    specs[:] = [spec for spec in specs if spec.arg.name != logits_at.name]


def _set_shape(placeholder: fx.Node, shape: tuple[int, ...]) -> None:
    """Change the shape of an input, of which the importer asks `tensor_meta` before `val`."""
    placeholder.meta["val"] = torch.empty(shape, dtype=placeholder.meta["val"].dtype, device="meta")
    placeholder.meta.pop("tensor_meta", None)


def _check_operators(program: ExportedProgram, architecture: str) -> None:
    """Name what the importer can't convert, and the modules where it is."""
    known = ExportedProgramImporter().convert_map.keys() | {OPERATOR, *_CONVERTERS}
    missing: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in known:
            missing.setdefault(node.target.__name__, _module_path(node))
    if missing:
        places = ", ".join(f"{operator} in {path}" for operator, path in missing.items())
        raise ImportModelError(
            f"{architecture} uses operators that TVM's importer doesn't know: {places}; {supported_models()}"
        )


def _module_path(node: fx.Node) -> str:
    """Full name of the module that a node stems from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    return path.removeprefix("model.") or "the model"


def _with_named_parameters(
    function: relax.Function, weight_names: dict[str, str], weights: tuple[str, ...]
) -> relax.Function:
    """Put the inputs first, name the weights as in the model, and let tied ones share one parameter."""
    by_name: dict[str, relax.Var] = {}
    inputs = []
    replaced = {}
    for parameter in function.params:
        if parameter.name not in weight_names:
            inputs.append(parameter)
            continue
        name = weight_names[parameter.name]
        replaced[parameter] = by_name.setdefault(name, relax.Var(name, parameter.ty))
    body = function.bind_params(replaced)
    parameters = [*inputs, *(by_name[name] for name in weights)]
    return relax.Function(parameters, body.body, body.ret_ty).with_attr("num_input", len(inputs))


def _with_named_dimensions(function: relax.Function, max_seq_len: int) -> relax.Function:
    """Name the symbolic dimensions and say how large they can be."""
    names = {}
    for parameter in function.params:
        dimension = {"input_ids": ("seq_len", 1), "logits_at": ("num_logits", 0)}.get(parameter.name)
        if dimension is not None and isinstance(parameter.ty.shape.values[dimension[1]], tirx.Var):
            names[parameter.ty.shape.values[dimension[1]]] = tirx.Var(dimension[0], "int64")
    if not names:
        return function
    bounds = {str(variable.name): max_seq_len for variable in names.values()}
    return function.bind_symbolic_vars(names).with_attr("tir_var_upper_bound", bounds)
