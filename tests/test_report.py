from rich.console import Console
from tiny_model import report

from hwpq_tvm.report import layer_table, megabytes, model_lines


def text(renderable, width=240):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_every_layer_has_a_row_with_its_figures():
    lines = text(layer_table(report())).splitlines()
    assert "2 layers" in lines[0]
    pruned = next(line for line in lines if line.startswith("model.up_proj")).split()
    assert pruned[:7] == ["model.up_proj", "258", "x", "258", "5.03", "0.2100", "12.5"]
    skipped = next(line for line in lines if line.startswith("model.odd_proj"))
    assert "ignored by '.*[od]dd_proj'" in skipped
    assert "avx2.dense_int8.gemm (default), avx2.dense_int8.gemv (portable)" in skipped


def test_a_plan_has_no_measurements_yet():
    layer = {"name": "a", "shape": [8, 4], "scheme": "2:4 int8", "kernel": None, "schedule": None}
    layer |= {"bits_per_weight": 5.0, "relative_error": None, "sqnr_db": None, "skipped": None, "warnings": ["odd"]}
    row = text(layer_table({"layers": [layer]})).splitlines()[-1]
    assert row.split() == ["a", "8", "x", "4", "5.00", "2:4", "int8", "odd"]


def test_lines_of_the_model():
    value = report()
    value["calibration"] = {"source": "calibration.txt", "tokens": 4096}
    assert model_lines(value) == [
        "model: TinyForCausalLM from tiny (torch)",
        "size: source 0.5 MB, weights 0.5 MB, 5.50 bits per weight",
        "calibration: 4096 tokens of calibration.txt",
        "seconds: 1.8 (import 0.5, compile 1.2)",
        "warning: pruned by magnitude",
    ]


def test_megabytes_are_decimal():
    assert megabytes(98_400_000) == "98.4 MB"


def test_kernels_on_a_gpu_are_shown_with_predicted_times_and_what_bounds_them():
    value = report()
    kernel = {"parameters": "", "why": ""}
    ranges = [
        {**kernel, "max_tokens": 4, "kernel": "gemv", "predicted_us": 3.18, "bound": "memory latency"},
        {**kernel, "max_tokens": 64, "kernel": "mma 64x32", "predicted_us": 4.26, "bound": "L2"},
        {**kernel, "max_tokens": None, "kernel": "mma 128x128", "predicted_us": 61.0, "bound": "tensor cores"},
    ]
    one = [{**kernel, "max_tokens": 1, "kernel": "gemv", "predicted_us": 2.96, "bound": "DRAM"}]
    value["layers"][0]["predicted"] = {
        "prefill": {"device": "A100 SXM 40GB", "kernels": ranges},
        "decode": {"device": "A100 SXM 40GB", "kernels": one},
    }
    shown = text(layer_table(value), width=400)
    assert "predicted, bound by" in shown.splitlines()[1]
    pruned = next(line for line in shown.splitlines() if line.startswith("model.up_proj"))
    assert (
        "prefill: gemv 3.2 us (memory latency) to 4 tokens, mma 64x32 4.3 us (L2) to 64, "
        "mma 128x128 61.0 us (tensor cores) for more; decode: gemv 3.0 us (DRAM)"
    ) in pruned
    line = next(line for line in model_lines(value) if line.startswith("kernel times"))
    assert "predicted from the datasheet of A100 SXM 40GB, not measured" in line


def test_entries_of_which_nothing_is_predicted_are_not_shown():
    value = report()
    kernel = {"max_tokens": 1, "kernel": "gemv", "predicted_us": 2.96, "bound": "DRAM"}
    value["layers"][0]["predicted"] = {
        "prefill": {"device": "RTX 4090", "kernels": []},
        "decode": {"device": "RTX 4090", "kernels": [kernel]},
    }
    shown = text(layer_table(value), width=400)
    assert "decode: gemv 3.0 us (DRAM)" in shown
    assert "prefill:" not in shown


def test_nothing_is_predicted_for_a_cpu():
    assert "predicted" not in text(layer_table(report())) + "".join(model_lines(report()))


def test_device_code_is_summed_up():
    kernel = {"name": "a_kernel", "registers": 40, "stack_bytes": 0, "spill_store_bytes": 0, "spill_load_bytes": 0}
    code = {"bytes": 2_500_000, "architecture": "sm_90a", "ptx_architecture": "sm_90", "cuda_version": [13, 5]}
    value = {**report(), "device_code": {**code, "kernels": [kernel, {**kernel, "registers": 96}]}}
    (line,) = (each for each in model_lines(value) if each.startswith("device code"))
    assert line == (
        "device code: 2.5 MB, binary for sm_90a and PTX for GPUs newer than it (from sm_90), nvcc 13.5; 2 kernels of "
        "at most 96 registers, none of which spills any"
    )
    value["device_code"]["kernels"].append({**kernel, "name": "b_kernel", "stack_bytes": 16})
    (line,) = (each for each in model_lines(value) if each.startswith("device code"))
    assert line.endswith("3 kernels of at most 96 registers, in local memory beyond them: b_kernel")


def tuned():
    """The report with a layer whose kernels are by records, and what was measured of it in both formats."""
    value = report()
    layer = value["layers"][0]
    layer["schedule"] = {"prefill": "tuned", "decode": "default"}
    layer["record"] = {"prefill": "x86_64-znver4: 4, 16 tokens, others as by default"}
    layer["rivals"] = {
        "1": {"sparse24_int8": 2.04, "dense_int8": 3.1},
        "256": {"sparse24_int8": 80.0, "dense_int8": 71.26},
    }
    layer["chosen"] = "auto chose 2:4"
    layer["warnings"] = ["2:4 does not pay at M = 256"]
    value["tuning"] = {
        "kernels": 3,
        "records": ["x86_64-znver4: 1 token", "x86_64-znver4: 4, 16 tokens, others as by default"],
        "ignored": ["x86_64-znver3 was ignored: they are of znver3, and the target is znver4"],
    }
    return value


def test_a_tuned_layer_says_by_which_records_and_what_its_rival_takes():
    table = text(layer_table(tuned()), width=500).splitlines()
    assert "measured us, 2:4 | dense" in table[1]
    row = next(line for line in table if line.startswith("model.up_proj"))
    assert "gemm (tuned by x86_64-znver4: 4, 16 tokens, others as by default), avx2.sparse24_int8.gemv (default)" in row
    assert "M = 1: 2.0 | 3.1, 256: 80.0 | 71.3" in row
    assert "auto chose 2:4; 2:4 does not pay at M = 256" in row
    assert "measured" not in text(layer_table(report()))


def test_lines_say_which_records_were_used_and_which_were_not():
    assert [line for line in model_lines(tuned()) if line.startswith("tuning")] == [
        "tuning: 3 kernels by records of x86_64-znver4",
        "tuning: x86_64-znver3 was ignored: they are of znver3, and the target is znver4",
    ]
    assert not any(line.startswith("tuning") for line in model_lines(report()))


def test_records_of_other_threads_are_told_where_none_is_for_the_target():
    value = tuned()
    note = "x86_64-znver4: 9 records ignored, measured with 1 threads, where the target has 2"
    value["tuning"]["ignored"] = [note]
    assert "1 threads" not in "".join(model_lines(value))
    value["tuning"] = {"kernels": 0, "records": [], "ignored": [note]}
    assert f"tuning: {note}" in model_lines(value)
