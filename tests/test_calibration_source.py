"""What models without a KV cache are calibrated on: text, ids, inputs as they are, or nothing, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.calibration_source import calibration_source
from hwpq_tvm.calibration_text import Calibration
from hwpq_tvm.errors import CalibrationError


@I.ir_module
class Encoder:
    @R.function
    def main(
        input_ids: R.Tensor(("batch", "seq_len"), "int64"),
        attention_mask: R.Tensor(("batch", "seq_len"), "int32"),
        token_type_ids: R.Tensor((2, "seq_len"), "int64"),
        table: R.Tensor((100, 4), "float32"),
    ):
        R.func_attr({"num_input": 3, "tir_var_upper_bound": {"seq_len": 7}})
        batch = T.int64()
        seq_len = T.int64()
        with R.dataflow():
            x = R.take(table, input_ids, axis=0)
            R.output(x)
        return x


@I.ir_module
class Vision:
    @R.function
    def main(pixels: R.Tensor(("batch", 3), "float32"), w: R.Tensor((3, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            x = R.matmul(pixels, w)
            R.output(x)
        return x


def encoder(tokenizer=True):
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(100)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="w98 $A w99", special_tokens=[("w98", 98), ("w99", 99)])
    made.enable_padding(length=50)
    return SimpleNamespace(
        module=Encoder,
        entries=("main",),
        example_inputs=None,
        tokenizer_files={"tokenizer.json": made.to_str().encode()} if tokenizer else {},
        metadata=SimpleNamespace(causal_lm=None),
    )


def vision(example=None):
    return SimpleNamespace(
        module=Vision,
        entries=("main",),
        example_inputs=example,
        tokenizer_files={},
        metadata=SimpleNamespace(causal_lm=None),
    )


def test_a_text_is_cut_into_windows_with_special_tokens_and_without_padding():
    text = " ".join(f"w{i}" for i in range(20))
    source = calibration_source(Calibration([text], length=64), encoder())
    assert (source.entries, source.notes) == (("main",), ())
    data = source.read()
    ids, mask, types = zip(*data.inputs["main"], strict=True)
    # No window is longer than the model's positions: 7 tokens, two of them special.
    assert [each[0].tolist() for each in ids] == [[98, *range(i, i + 5), 99] for i in (0, 5, 10, 15)]
    assert all(each.dtype == np.int32 and each.shape == (1, 7) and each.all() for each in mask)
    assert all(each.shape == (2, 7) and not each.any() for each in types)
    assert (data.count, data.unit) == (28, "tokens")


def test_token_ids_are_windows_of_an_encoder():
    data = calibration_source([[1, 2, 3], [4]], encoder()).read()
    assert [sample[0].tolist() for sample in data.inputs["main"]] == [[[1, 2, 3]], [[4]]]
    with pytest.raises(CalibrationError, match="token 100 is none of the model's, which are 0 to 99"):
        calibration_source([[1, 100]], encoder()).read()
    with pytest.raises(CalibrationError, match=r"seq_len is 8 .*: the model was compiled for at most 7"):
        calibration_source([list(range(8)), [1]], encoder()).read()


def test_without_text_the_example_inputs_are_better_than_nothing():
    example = (np.ones((2, 3), np.float32),)
    source = calibration_source("default", vision(example))
    assert source.entries == ("main",) and "example inputs alone" in source.notes[0]
    np.testing.assert_array_equal(source.read().inputs["main"][0][0], example[0])
    for model in (vision(), encoder(tokenizer=False)):
        nothing = calibration_source("default", model)
        assert nothing.entries == () and "nothing was calibrated" in nothing.notes[0]
    assert calibration_source(None, vision()).notes == ()


def test_inputs_are_given_as_they_are_or_by_name_or_by_entry():
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for given in ([(x,)], [{"pixels": x}], {"main": [x]}, [x]):
        data = calibration_source(given, vision()).read()
        np.testing.assert_array_equal(data.inputs["main"][0][0], x)
        assert (data.count, data.unit, data.entries) == (1, "samples", ("main",))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"prefill": []}, "inputs for 'prefill': the model has the entries main"),
        ("a text file", "takes inputs that can't be made of one"),
        ([(np.zeros((2, 4), np.float32),)], r"sample 0 \(from 0\) of main: input pixels is float32 of shape \(2, 4\)"),
        ([{"x": np.zeros((2, 3), np.float32)}], "expected the inputs of main: pixels"),
        ([], "there is no calibration sample for main"),
    ],
)
def test_what_is_no_calibration_data_is_refused(given, words):
    with pytest.raises(CalibrationError, match=words):
        calibration_source(given, vision()).read()
