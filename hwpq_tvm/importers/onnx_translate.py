"""An ONNX graph -> one Relax function over named weights."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import GraphProto, NodeProto, ValueInfoProto, helper
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.onnx_call import Call, Value, computed_dtype, dtype_of, shape_of
from hwpq_tvm.importers.onnx_constants import (
    ADOPTED,
    computed_constants,
    constant,
    inferred_types,
    numbers,
    value_shape,
)
from hwpq_tvm.importers.onnx_file import STANDARD, OnnxFile, Stored, expand_functions, names_of, stored_tensor
from hwpq_tvm.importers.onnx_operators import CONVERTERS, FROM_TVM, convert_by_tvm
from hwpq_tvm.importers.onnx_quantized import QUANTIZED
from hwpq_tvm.importers.onnx_values import Dimensions, Known, compute_symbolically
from hwpq_tvm.relax_passes.linears import OUTPUT_NAMES

# Constants of integers, such as masks and positions, stay in the function up to this size in bytes.
_LARGEST_CONSTANT = 1 << 20


@dataclass(frozen=True, slots=True)
class OnnxFunction:
    """A graph in Relax.

    Attributes
    ----------
    module
        Its function, `main`.
    weights
        Constants of the graph by the names of the function's parameters.
    notes
        What is computed in another way than the graph says.
    """

    module: tvm.IRModule
    weights: dict[str, Stored]
    notes: tuple[str, ...]


def translate_graph(
    file: OnnxFile, dynamic_shapes: Mapping[str, Mapping[int, int | str]] | None = None
) -> OnnxFunction:
    """Translate a graph.

    Parameters
    ----------
    file
        The model.
    dynamic_shapes
        For inputs: sizes of axes, or names of dimensions, that stand for those of the file.

    Raises
    ------
    ImportModelError
        Naming all nodes that can't be translated.
    """
    known = CONVERTERS.keys() | QUANTIZED.keys() | FROM_TVM | {"If", "Constant", "Shape", "Size"}
    return _Translator(expand_functions(file, known)).run(dynamic_shapes or {})


class _Translator:
    """One graph on its way to Relax; `values` holds what its names stand for so far."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.opset = file.opset
        self.dimensions = Dimensions()
        self.values: dict[str, Value | None] = {name: constant(each) for name, each in file.initializers.items()}
        self.values[""] = None
        self.builder = relax.BlockBuilder()
        self.parameters: dict[Stored, relax.Var] = {}
        self.weights: dict[str, Stored] = {}
        self.failures: list[str] = []
        self.failed: set[str] = set()

    def run(self, dynamic_shapes: Mapping[str, Mapping[int, int | str]]) -> OnnxFunction:
        graph = self.file.graph
        inputs = [self._input(each, dynamic_shapes.get(each.name, {})) for each in graph.input]
        if unknown := dynamic_shapes.keys() - {each.name for each in graph.input}:
            raise ImportModelError(
                f"dynamic_shapes names {names_of(sorted(unknown))}: the inputs of {self.file.source} are"
                f" {names_of(each.name for each in graph.input)}"
            )
        # A builder wants its function to be finished: what failed is told after that.
        with self.builder.function("main", params=inputs):
            with self.builder.dataflow():
                for node in graph.node:
                    self.translate(node)
                results = [] if self.failures else [self.tensor(self.values[each.name], None) for each in graph.output]
                output = self.builder.emit_output(relax.Tuple(results))
            self.builder.emit_func_output(output)
        self._raise_failures()
        module = self.builder.get()
        body = module["main"]
        function = relax.Function([*inputs, *self.parameters.values()], body.body, body.ret_ty)
        attributes: dict[str, Any] = {
            "global_symbol": "main",
            "num_input": len(inputs),
            OUTPUT_NAMES: [each.name for each in graph.output],
        }
        if self.dimensions.limits:
            attributes["tir_var_upper_bound"] = dict(self.dimensions.limits)
        module["main"] = function.with_attrs(attributes)
        relax.analysis.well_formed(module)  # raises
        return OnnxFunction(module, self.weights, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        if count := sum(each.dequantized for each in self.weights.values()):
            yield f"{count} weights are stored as integers: they were dequantized when they were read"
        narrow = sorted({str(each.dtype) for each in self.weights.values() if computed_dtype(each.dtype) != each.dtype})
        if narrow:
            yield f"weights of {names_of(narrow)} are computed with in float32"
        products = [
            self.values[node.output[0]]
            for node in self.file.graph.node
            if node.op_type in ("ConvInteger", "MatMulInteger")
        ]
        if count := sum(isinstance(each, relax.Expr) and dtype_of(each) == "int32" for each in products):
            yield (
                f"{count} products of integers (MatMulInteger, ConvInteger) are summed in float32: sums above 2^24 are"
                " rounded"
            )
        if count := sum(node.op_type == "DynamicQuantizeLinear" for node in self.file.graph.node):
            yield (
                f"{count} activations that the model rounds to 8 bits as they come (DynamicQuantizeLinear) stay floats:"
                " closer to the model before it was quantized than to the file"
            )

    def _raise_failures(self) -> None:
        if self.failures:
            listed = "; ".join(self.failures[:10])
            more = f"; and {len(self.failures) - 10} more" if len(self.failures) > 10 else ""
            raise ImportModelError(f"{self.file.source} can't be imported: {listed}{more}")

    def _input(self, info: ValueInfoProto, given: Mapping[int, int | str]) -> relax.Var:
        kind = info.type.tensor_type
        if info.type.WhichOneof("value") != "tensor_type" or kind.elem_type in (0, onnx.TensorProto.STRING):
            raise ImportModelError(f"the input {info.name} of {self.file.source} is no tensor of numbers")
        if not kind.HasField("shape"):
            raise ImportModelError(f"the input {info.name} of {self.file.source} has no shape: export it with one")
        shape: list[Any] = []
        for axis, size in enumerate(kind.shape.dim):
            name = size.dim_param or f"{info.name}_{axis}"
            found: int | str = given.get(axis, size.dim_value if size.HasField("dim_value") else name)
            shape.append(found if isinstance(found, int) else self.dimensions.parse(found))
        dtype = computed_dtype(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
        variable = relax.Var(info.name, relax.TensorType(shape, dtype))
        self.values[info.name] = variable
        return variable

    def translate(self, node: NodeProto) -> None:
        """Find out what the outputs of a node stand for."""
        if any(name in self.failed for name in node.input):
            self._fail_outputs(node)
            return
        try:
            found = self._values(node)
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            self._fail(node, reason if isinstance(error, ImportModelError) else f"{type(error).__name__}: {reason}")
            return
        self.values.update({name: value for name, value in zip(node.output, found, strict=False) if name})

    def _fail_outputs(self, node: NodeProto) -> None:
        # An empty name is an output that is left out; as an input, one that is not given.
        self.failed.update(name for name in node.output if name)

    def _fail(self, node: NodeProto, reason: str) -> None:
        self._fail_outputs(node)
        name = module_path(node) or node.name or next(filter(None, node.output), "")
        self.failures.append(f"{node.op_type} {name}: {reason}")

    def _values(self, node: NodeProto) -> Sequence[Value | None]:
        inputs = tuple(self.values[name] for name in node.input)
        if node.domain == "com.microsoft" and node.op_type in ADOPTED:
            adopted = NodeProto()
            adopted.CopyFrom(node)
            adopted.ClearField("domain")
            node = adopted
        if node.op_type == "If":
            return self._branch(node, inputs[0])
        if node.domain in STANDARD:
            known = computed_constants(node, inputs, self.opset) or self._integers(node, inputs)
            if known is not None:
                return known
        call = Call(node, inputs, self.opset, self.dimensions, self.builder, self.tensor)
        results = self._convert(call)
        for name, result in zip(node.output, results, strict=False):
            if name and isinstance(result, relax.Expr) and not _has_shape(result):
                raise ImportModelError(
                    f"the shape of its result depends on data, or on whether dimensions of {_shapes(inputs)} are equal:"
                    " give equal ones one name, or fixed sizes (dynamic_shapes)"
                )
        return results

    def _branch(self, node: NodeProto, condition: Value | None) -> Sequence[Value | None]:
        """Take the branch that a condition leaves."""
        number = numbers(condition)
        if number is None or not number.is_number:
            raise ImportModelError(
                "which branch is taken depends on data or on sizes; export the model with fixed shapes there"
            )
        branches = {each.name: each.g for each in node.attribute}
        graph: GraphProto = branches["then_branch" if number.values.all() else "else_branch"]
        self.values.update({each.name: constant(stored_tensor(each, None)) for each in graph.initializer})
        for each in graph.node:
            self.translate(each)
        if any(each.name in self.failed for each in graph.output):
            self._fail_outputs(node)
            return []
        return [self.values[each.name] for each in graph.output]

    def _integers(self, node: NodeProto, inputs: tuple[Value | None, ...]) -> list[Value] | None:
        """Outputs that are made of dimensions."""
        if node.op_type in ("Shape", "Size"):
            shape = value_shape(inputs[0])
            if node.op_type == "Size":
                return [Known.of(self.dimensions.product(shape), np.int64)]
            ends = {each.name: each.i for each in node.attribute}
            return [Known.of(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)]
        known = [None if each is None else numbers(each) for each in inputs]
        if any(value is not None and found is None for value, found in zip(inputs, known, strict=True)):
            return None
        found = compute_symbolically(node, known, self.opset, self.dimensions)
        return None if found is None else [found]

    def _convert(self, call: Call) -> Sequence[Value | None]:
        """Outputs of a node by their places, None for those that are left out."""
        node = call.node
        name = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
        if name in CONVERTERS:
            result = CONVERTERS[name](call)
        elif name in QUANTIZED:
            result = QUANTIZED[name](call)
        elif name in FROM_TVM:
            result = convert_by_tvm(call)
        else:
            raise ImportModelError(_way_out(node))
        if isinstance(result, list):
            return result
        if not isinstance(result, relax.Tuple):
            result = self.builder.emit(result) if isinstance(result, tvm.ir.Call) else result
            if isinstance(result.ty, relax.TupleType):
                result = relax.Tuple([relax.TupleGetItem(result, index) for index in range(len(result.ty.fields))])
            else:
                result = relax.Tuple([result])
        if any(node.output[1:]) and node.op_type not in ("Split", "TopK"):
            raise ImportModelError(f"has the outputs {names_of(filter(None, node.output))}: expected its first only")
        found = [
            None if not name else each if isinstance(each, relax.Var) else self.builder.emit(each)
            for name, each in zip(node.output, result.fields, strict=False)
        ]
        if name in FROM_TVM:
            self._check(node, call.inputs, found)
        return found

    def _check(self, node: NodeProto, inputs: tuple[Value | None, ...], found: list[relax.Expr | None]) -> None:
        """Hold what TVM made of a node against the standard's shapes and types."""
        for kind, each in zip(inferred_types(node, inputs, self.opset) or [], found, strict=False):
            if kind is None or each is None:
                continue
            tensor = kind.tensor_type
            dtype = computed_dtype(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
            sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
            shape = shape_of(each) if _has_shape(each) else sizes
            wrong = tensor.HasField("shape") and (
                len(shape) != len(sizes)
                or any(isinstance(a, int) and b not in (None, a) for a, b in zip(shape, sizes, strict=True))
            )
            if wrong or str(each.ty.dtype) != dtype:
                raise ImportModelError(f"TVM makes a {each.ty} of it, expected {dtype} {sizes}")

    def tensor(self, value: Value | None, node: NodeProto | None) -> relax.Expr:
        """What a value is in the function: a variable, a parameter or a constant."""
        if isinstance(value, relax.Expr):
            return value
        if isinstance(value, Known):
            return self._of_numbers(value)
        assert value is not None
        integer = value.dtype.kind in "iub"
        if value.size <= 1 or (integer and value.size * value.dtype.itemsize <= _LARGEST_CONSTANT):
            return self._of_numbers(Known(value.read(), value.dtype))
        if value not in self.parameters:
            name = self._name(value, node)
            self.weights[name] = value
            kind = relax.TensorType(value.shape, computed_dtype(value.dtype))
            self.parameters[value] = relax.Var(name, kind)
        return self.parameters[value]

    def _of_numbers(self, value: Known) -> relax.Expr:
        dtype = computed_dtype(value.dtype)
        if value.is_number:
            return relax.const(value.values.astype(dtype), dtype)
        flat = relax.op.shape_to_tensor(relax.ShapeExpr(list(value.values.ravel())))
        tensor = self.builder.emit(relax.op.reshape(flat, value.values.shape))
        return tensor if dtype == "int64" else self.builder.emit(relax.op.astype(tensor, dtype))

    def _name(self, value: Stored, node: NodeProto | None) -> str:
        """Name of a parameter: as in the file, or of the module that uses it where the file has a number only."""
        path = module_path(node) if node is not None else ""
        name = f"{path}.weight" if path and len(value.shape) > 1 and "." not in value.name else value.name
        taken = Counter([*self.weights, *(each.name for each in self.file.graph.input)])
        while name in taken:
            name = f"{name}_{len(self.weights)}"
        return name


def module_path(node: NodeProto) -> str:
    """Full name of the module that a node stems from, where its exporter said so; otherwise empty."""
    for each in node.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            scopes = json.loads(each.value.replace("'", '"'))
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ".".join(node.name.strip("/").split("/")[:-1]) if node.name.startswith("/") else ""


def _way_out(node: NodeProto) -> str:
    if node.domain in STANDARD:
        return "this operator is not supported; export the model in another way, or leave that part out"
    if "Q" in node.op_type or "Integer" in node.op_type or "Quantize" in node.op_type:
        return (
            f"this operator of {node.domain} is not supported; quantize with QDQ or MatMulNBits, or give the model of"
            " floats"
        )
    return (
        f"this operator of {node.domain} is not supported; give the model as it was before onnxruntime's optimizations"
    )


def _has_shape(result: relax.Expr) -> bool:
    return isinstance(result.ty, relax.TensorType) and isinstance(result.ty.shape, relax.ShapeExpr)


def _shapes(inputs: tuple[Value | None, ...]) -> str:
    return " and ".join(str([str(size) for size in value_shape(each)]) for each in inputs if each is not None)
