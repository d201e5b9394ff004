"""A small float module with everything that the passes look for, written by hand."""

from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T


@I.ir_module
class TinyLM:
    """Two entries; q and k share an input, `odd` has an in_features that is no multiple of 4, the head is tied."""

    @R.function
    def decode(
        ids: R.Tensor((1, 1), "int64"),
        embed: R.Tensor((50, 16), "float32"),
        q: R.Tensor((24, 16), "float32"),
        k: R.Tensor((9, 16), "float32"),
        bias: R.Tensor((9,), "float32"),
        odd: R.Tensor((16, 33), "float32"),
    ) -> R.Tuple(R.Tensor((1, 1, 50), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            x = R.reshape(R.take(embed, R.reshape(ids, R.shape([1])), axis=0), R.shape([1, 1, 16]))
            p = R.matmul(x, R.permute_dims(q))
            s = R.add(R.matmul(x, R.permute_dims(k)), bias)
            y = R.matmul(R.concat([p, s], axis=2), R.permute_dims(odd))
            logits = R.matmul(y, R.permute_dims(embed))
            result = (logits,)
            R.output(result)
        return result

    @R.function
    def prefill(
        ids: R.Tensor((1, "seq_len"), "int64"),
        embed: R.Tensor((50, 16), "float32"),
        q: R.Tensor((24, 16), "float32"),
        k: R.Tensor((9, 16), "float32"),
        bias: R.Tensor((9,), "float32"),
        odd: R.Tensor((16, 33), "float32"),
    ) -> R.Tuple(R.Tensor((1, "seq_len", 50), "float32")):
        R.func_attr({"num_input": 1})
        seq_len = T.int64()
        with R.dataflow():
            x = R.reshape(R.take(embed, R.reshape(ids, R.shape([seq_len])), axis=0), R.shape([1, seq_len, 16]))
            p = R.matmul(x, R.permute_dims(q))
            s = R.add(R.matmul(x, R.permute_dims(k)), bias)
            y = R.matmul(R.concat([p, s], axis=2), R.permute_dims(odd))
            logits = R.matmul(y, R.permute_dims(embed))
            result = (logits,)
            R.output(result)
        return result


@I.ir_module
class UntiedLM:
    """The head is a layer of its own, which reads as many positions of a prompt as logits are asked for."""

    @R.function
    def decode(
        ids: R.Tensor((1, 1), "int64"),
        embed: R.Tensor((50, 16), "float32"),
        q: R.Tensor((24, 16), "float32"),
        head: R.Tensor((50, 24), "float32"),
    ) -> R.Tuple(R.Tensor((1, 1, 50), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            x = R.reshape(R.take(embed, R.reshape(ids, R.shape([1])), axis=0), R.shape([1, 1, 16]))
            logits = R.matmul(R.matmul(x, R.permute_dims(q)), R.permute_dims(head))
            result = (logits,)
            R.output(result)
        return result

    @R.function
    def prefill(
        ids: R.Tensor((1, "seq_len"), "int64"),
        logits_at: R.Tensor(("num_logits",), "int64"),
        embed: R.Tensor((50, 16), "float32"),
        q: R.Tensor((24, 16), "float32"),
        head: R.Tensor((50, 24), "float32"),
    ) -> R.Tuple(R.Tensor((1, "num_logits", 50), "float32")):
        R.func_attr({"num_input": 2})
        seq_len = T.int64()
        with R.dataflow():
            x = R.reshape(R.take(embed, R.reshape(ids, R.shape([seq_len])), axis=0), R.shape([1, seq_len, 16]))
            y = R.take(R.matmul(x, R.permute_dims(q)), logits_at, axis=1)
            logits = R.matmul(y, R.permute_dims(head))
            result = (logits,)
            R.output(result)
        return result


ENTRIES = ("decode", "prefill")
