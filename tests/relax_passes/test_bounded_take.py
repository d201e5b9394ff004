"""Look-ups beyond a table give its last row, and TVM warns of none."""

import numpy as np
import tvm
from tvm import relax

from hwpq_tvm.relax_passes.pipeline import optimise

from ..schedules import reference


def test_indices_beyond_the_table(capfd):
    builder = relax.BlockBuilder()
    table = relax.Var("table", relax.TensorType([5, 3], "float32"))
    ids = relax.Var("ids", relax.TensorType([4], "int64"))
    with builder.function("main", [table, ids]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.take(table, ids, axis=0))
        builder.emit_func_output(result)
    mod = optimise(builder.get())
    (function,) = (each for each in mod.functions.values() if isinstance(each, tvm.tirx.PrimFunc))
    run = reference.compiled(function, reference.TARGETS["portable"])
    rows = np.random.default_rng().standard_normal((5, 3)).astype("float32")
    indices = np.array([4, 0, 10**9, 5], "int64")
    out = reference.untouched((4, 3), "float32")
    run(rows, indices, out)
    np.testing.assert_array_equal(out, rows[[4, 0, 4, 4]])
    assert "Fast mode" not in capfd.readouterr().err
