"""Fuses the rotary positions of queries and keys with the update of the KV cache, straight from the projections."""

from dataclasses import dataclass, replace

import tvm
from tvm import relax, tirx
from tvm.relax.dpl import TuplePattern, is_op, wildcard

from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.rotary import rotary_update

from .columns import Columns, columns, distinct
from .dataflow import Dataflow, functions, has_known_features, is_float, is_last_axis
from .norms import Norm, either_order, find_norm
from .replace_kernels import Replacement, replace_kernels


class _Rotation:
    """Pattern of ``x * cos + concat(-x[half:], x[:half]) * sin``, as transformers writes it."""

    def __init__(self) -> None:
        x = wildcard()
        self.low = is_op("relax.strided_slice")(x, varg_default_wildcard=True)
        self.high = is_op("relax.strided_slice")(x, varg_default_wildcard=True)
        self.turned = is_op("relax.concat")(TuplePattern([is_op("relax.negative")(self.high), self.low]))
        self.by_cos = is_op("relax.multiply")(x, wildcard())
        self.by_sin = either_order("relax.multiply", self.turned, wildcard())
        self.root = is_op("relax.add")(self.by_cos, self.by_sin)


_ROTATION = _Rotation()


@dataclass(frozen=True, slots=True)
class _Heads:
    """Heads `[batch, heads, seq_len, head_dim]`, and how they are made.

    Attributes
    ----------
    source
        Their columns in the product of a linear, `[batch, seq_len, columns]`.
    bias
        What is added to them, `[heads * head_dim]`, or None.
    norm
        The normalisation of each head, or None.
    tables
        Cosines and sines `[batch or 1, seq_len, rotary_dim]`; none for heads that are not rotated.
    """

    source: Columns
    bias: relax.Expr | None
    norm: Norm | None
    tables: tuple[relax.Expr, ...] = ()


def _projected(dataflow: Dataflow, expr: relax.Expr) -> _Heads | None:
    """Follow heads back to the linear that made them: a transposition, a normalisation, a reshape, a bias, a slice."""
    if not has_known_features(expr, 4):
        return None
    batch, heads, length, head_dim = expr.ty.shape.values
    transposed = dataflow.call(expr, "relax.permute_dims")
    if transposed is None or transposed.attrs.axes is None or not isinstance(heads, tirx.IntImm):
        return None
    if [int(axis) for axis in transposed.attrs.axes] != [0, 2, 1, 3]:
        return None
    found = find_norm(dataflow, transposed.args[0])
    if found is not None and found.kind != "rms":
        return None
    reshaped = dataflow.call(transposed.args[0] if found is None else found.x, "relax.reshape")
    features = int(heads) * int(head_dim)
    if reshaped is None or not is_float(reshaped.args[0], [batch, length, features]):
        return None
    product, bias = reshaped.args[0], None
    if (added := dataflow.call(product, "relax.add")) is not None:
        bias = next((term for term in added.args if is_float(term, [features])), None)
        if bias is not None:
            product = next(term for term in added.args if not term.same_as(bias))
    source = columns(dataflow, product)
    if not has_known_features(source.tensor, 3):
        return None
    rows = [batch, length, source.tensor.ty.shape.values[-1]]
    return _Heads(source, bias, found) if is_float(source.tensor, rows) else None


def _rotated(dataflow: Dataflow, expr: relax.Expr) -> _Heads | None:
    """Follow rotated heads back to the linear that made them; all or the first of their features may be rotated."""
    if not has_known_features(expr, 4):
        return None
    head_dim = int(expr.ty.shape.values[-1])
    partial = dataflow.call(expr, "relax.concat")
    rotated, rest = expr, None
    if partial is not None:
        parts = dataflow.value(partial.args[0])
        if not isinstance(parts, relax.Tuple) or len(parts.fields) != 2:
            return None
        if not is_last_axis([partial.attrs.axis], expr.ty.ndim):
            return None
        rotated, rest = parts.fields
    found = _ROTATION.root.extract_matched_expr(dataflow.value(rotated), dataflow.values)
    if found is None or not is_last_axis([found[_ROTATION.turned].attrs.axis], expr.ty.ndim):
        return None
    x = found[_ROTATION.low].args[0]
    if not has_known_features(x, 4):
        return None
    rotary_dim = int(x.ty.shape.values[-1])
    half = rotary_dim // 2
    whole = columns(dataflow, x) if partial is not None else Columns(x, 0)
    ranges = [(found[_ROTATION.low], 0, half), (found[_ROTATION.high], half, half)]
    if rest is not None:
        ranges.append((rest, rotary_dim, head_dim - rotary_dim))
    for part, first, size in ranges:
        place = columns(dataflow, part, until=whole.tensor)
        if not place.tensor.same_as(whole.tensor) or place.first != first or int(part.ty.shape.values[-1]) != size:
            return None
    if whole.first or 2 * half != rotary_dim or int(whole.tensor.ty.shape.values[-1]) != head_dim:
        return None
    tables = (
        dataflow.operand(found[_ROTATION.by_cos], dataflow.value(x)),
        dataflow.operand(found[_ROTATION.by_sin], found[_ROTATION.turned]),
    )
    rows = [_table(dataflow, table, expr, rotary_dim) for table in tables]
    heads = _projected(dataflow, whole.tensor)
    if heads is None or rows[0] is None or rows[1] is None:
        return None
    return replace(heads, tables=(rows[0], rows[1]))


def _table(dataflow: Dataflow, expr: relax.Expr, heads: relax.Expr, rotary_dim: int) -> relax.Expr | None:
    """The table of cosines or sines that is broadcast over heads."""
    call = dataflow.call(expr, "relax.expand_dims")
    if call is None or [int(axis) for axis in call.attrs.axis] != [1]:
        return None
    batch, _, length, _ = heads.ty.shape.values
    table = call.args[0]
    return table if any(is_float(table, [rows, length, rotary_dim]) for rows in (1, batch)) else None


def _query(dataflow: Dataflow, update: relax.Var) -> tuple[int, relax.Var] | None:
    """Number of query heads, and the queries, of the one attention that reads an updated cache."""
    calls = [dataflow.kernel(reader, "attention") for reader in dataflow.readers.get(update, ())]
    found = [(call[0]["heads"], call[1][0]) for call in calls if call is not None]
    return found[0] if len(found) == 1 else None


def _match(dataflow: Dataflow, update: relax.Var) -> Replacement | None:
    """What takes the place of the update of a cache and of the rotation of its queries and keys."""
    kernel = dataflow.kernel(update, "kv_cache_update")
    if kernel is None or not isinstance(update, relax.DataflowVar) or (reader := _query(dataflow, update)) is None:
        return None
    fields, (key, value, past_lengths, cache, layer) = kernel
    heads, query = reader
    if not isinstance(query, relax.DataflowVar) or dataflow.position[query] > dataflow.position[update]:
        return None
    found = [_rotated(dataflow, query), _rotated(dataflow, key), _projected(dataflow, value)]
    parts = [part for part in found if part is not None]
    if len(parts) < 3 or parts[2].norm is not None:
        return None
    tables = parts[0].tables
    if not all(a.same_as(b) for a, b in zip(tables, parts[1].tables, strict=True)):
        return None
    tensors, inputs = distinct([part.source for part in parts])
    norms = [part.norm for part in parts[:2]]
    dims = {name: fields[name] for name in ("layers", "batch", "kv_heads", "head_dim", "max_len", "cache_dtype")}
    table_rows, _, rotary_dim = tables[0].ty.shape.values
    func = rotary_update(
        **dims,
        heads=heads,
        rotary_dim=int(rotary_dim),
        seq_len=None if fields["seq_len"] == -1 else fields["seq_len"],
        table_batch=int(table_rows),
        columns=[int(tensor.ty.shape.values[-1]) for tensor in tensors],
        inputs=inputs,
        first=[part.source.first for part in parts],
        biases=[part.bias is not None for part in parts],
        epsilons=[None if each is None else each.epsilon for each in norms],
    )
    args = [*tensors, *(part.bias for part in parts if part.bias is not None)]
    args += [*(each.weight for each in norms if each is not None), *tables, past_lengths, cache, layer]
    out = [update.ty, query.ty]
    return Replacement(update, func, args, out, {update: 0, query: 1}, inplace={0: len(args) - 2})


@tvm.transform.module_pass(opt_level=0, name="FuseRotary")
class FuseRotary:
    """Call one kernel for what stands between the projections of an attention layer and its cache.

    That is the slices of the projections, their biases, transpositions to heads, a normalisation of each head, rotary
    positions in the half-split order (of all features of a head or of the first ones), and the update of the cache.
    The kernel writes to the cache in place and returns the rotated queries. An attention layer of which any part is
    something else stays as it is.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with fused updates, and without the update kernels that nothing calls any more."""
        return _without_unused_updates(replace_kernels(mod, _match))


def _without_unused_updates(mod: tvm.IRModule) -> tvm.IRModule:
    """Drop the update kernels that nothing calls: they have names of their own, so dead code elimination keeps them."""
    called: set[str] = set()

    def note(expr: relax.Expr) -> None:
        if isinstance(expr, tvm.ir.GlobalVar):
            called.add(expr.name_hint)

    for _, function in functions(mod):
        relax.analysis.post_order_visit(function, note)
    every = dict(mod.functions_items())
    kept = {}
    for gvar, function in every.items():
        fields = description(function) if isinstance(function, tirx.PrimFunc) else None
        if gvar.name_hint in called or fields is None or fields["op"] != "kv_cache_update":
            kept[gvar] = function
    if len(kept) == len(every):
        return mod
    return tvm.IRModule(kept, attrs=mod.attrs, global_infos=mod.global_infos)
