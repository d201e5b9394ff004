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
