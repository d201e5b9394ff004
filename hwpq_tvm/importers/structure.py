"""Models without weights: the modules of an architecture, built or copied without memory for their parameters."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.model_class import model_class

AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)

# What is replaced below belongs to the whole process: one import at a time.
_patching = threading.RLock()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give parameters that are registered inside no memory; buffers (rotary frequencies) keep their values."""
    _patching.acquire()
    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
        _patching.release()


def build_structure(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model that a configuration describes, with parameters on the meta device.

    Raises
    ------
    ImportModelError
        When transformers knows no model for the configuration, or can't build it.
    """
    name = ", ".join(config.architectures or [config.model_type])
    found = model_class(config)
    if found is None:
        raise ImportModelError(f"architecture {name} is no model of the installed transformers; {supported_models()}")
    try:
        with _parameters_on_meta():
            return found._from_config(config, dtype=torch.float32)
    except Exception as error:
        raise ImportModelError(f"transformers can't build {name} from its config.json: {error}") from error


def supported_models() -> str:
    """Say which models can be imported; ends the message of a refusal."""
    return (
        "supported are decoder-only models whose tokens meet in causal attention only (LlamaForCausalLM,"
        " GPT2LMHeadModel, BloomForCausalLM and what is built like them), encoders (BertModel,"
        " ViTForImageClassification) and encoder-decoders (T5ForConditionalGeneration, WhisperForConditionalGeneration)"
    )


def copy_without_weights(model: AnyModule) -> AnyModule:
    """Copy a model for tracing: float32 parameters that take no memory, buffers with values, in eval mode."""
    memo: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        for parameter in model.parameters()
    }
    for buffer in model.buffers():
        dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
        memo[id(buffer)] = buffer.detach().to("cpu", dtype, copy=True)
    return copy.deepcopy(model, memo).eval()


def parameter_aliases(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of every parameter, by the first of them: tied weights are one parameter with several names."""
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return {aliases[0]: aliases for aliases in names.values()}
