"""Which class of transformers a configuration stands for, and which kind of model it is."""

from typing import Literal

import transformers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

ModelKind = Literal["causal_lm", "encoder", "encoder_decoder"]


def model_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Find the class that a configuration describes; None if the installed transformers has none.

    That is the first of its architectures; where it names none, the causal language model of its type, or else its
    model without a head.
    """
    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, PreTrainedModel):
            return named
    for auto in (AutoModelForCausalLM, AutoModel):
        if type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    return None


def model_kind(model: PreTrainedModel) -> ModelKind:
    """Tell how a model is run: token by token on a cache, as encoder and decoder, or all at once."""
    if model.config.is_encoder_decoder:
        return "encoder_decoder"
    # What generates has a language model head; encoders with such a head (masked language models) don't generate.
    return "causal_lm" if model.can_generate() else "encoder"
