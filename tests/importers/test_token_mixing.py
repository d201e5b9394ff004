"""Operators on tokens are told apart by whether tokens meet in them."""

import pytest
import torch
from torch.nn import functional as F

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.importers.exported_program import Origin, export, simplify
from hwpq_tvm.importers.token_mixing import check_token_mixing
from tests.tiny_hf import tiny, tiny_llama

FEATURES = 12


class Inner(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = torch.nn.Linear(FEATURES, FEATURES)
        self.table = torch.nn.Embedding(50, FEATURES)
        self.register_buffer("places", torch.randn(50, FEATURES))

    def forward(self, x):
        return self.function(self, x)


class Model(torch.nn.Module):
    """Embeds tokens, does something with them, and picks those that are asked for."""

    def __init__(self, function):
        super().__init__()
        self.embedding = torch.nn.Embedding(30, FEATURES)
        self.inner = Inner(function)

    def forward(self, input_ids, logits_at):
        return self.inner(self.embedding(input_ids))[:, logits_at]


def convolved(m, x):
    """A causal convolution over time, as of state space models."""
    return F.conv1d(F.pad(x.transpose(1, 2), (2, 0)), m.linear.weight[:, None, :3], groups=FEATURES).transpose(1, 2)


def attended(m, x):
    return (x @ x.transpose(1, 2)).softmax(-1) @ x


def recurrent(m, x):
    """The first half of each token's features, from the token before."""
    return torch.cat([F.pad(x[:, :-1], (0, 0, 1, 0))[..., :6], x[..., 6:]], dim=-1)


MIXING = {
    "attended": attended,
    "convolved": convolved,
    "counted": lambda m, x: x + m.table(torch.arange(x.shape[1])),
    "cumulated": lambda m, x: x.cumsum(1),
    "fused attention": lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "highest": lambda m, x: x - x.amax(dim=(1, 2), keepdim=True),
    "narrowed table": lambda m, x: x + m.places.narrow(0, 0, x.shape[1]),
    "normalised over tokens": lambda m, x: x.transpose(1, 2).softmax(-1).transpose(1, 2),
    "pooled": lambda m, x: x - x.mean(1, keepdim=True),
    "read otherwise": lambda m, x: x.transpose(1, 2).flatten(1).unflatten(1, (-1, FEATURES)),
    "recurrent": recurrent,
    "regrouped": lambda m, x: x.flatten(1).unflatten(1, (FEATURES, -1)).transpose(1, 2),
    "reversed": lambda m, x: x.flip(1),
    "rolled": lambda m, x: x.roll(1, 1),
    "sliced table": lambda m, x: x + m.places[: x.shape[1]],
    "summed up": lambda m, x: x / x.sum(),
}
APART = {
    "chosen features": lambda m, x: x[..., [3, 1, 2]],
    "constants": lambda m, x: x + torch.zeros(x.shape[1], FEATURES) + m.places[:1].expand(x.shape[1], -1),
    "flat": lambda m, x: x.flatten(1).tanh().unflatten(1, (-1, FEATURES)),
    "gate": lambda m, x: x * m.linear(x).sigmoid(),
    "head rows": lambda m, x: F.normalize(x.reshape(-1, 4), dim=-1).view(*x.shape[:2], 3, 4).flatten(2),
    "heads": lambda m, x: m.linear(x).view(*x.shape[:2], 3, 4).transpose(1, 2).softmax(-1).transpose(1, 2).flatten(2),
    "largest features": lambda m, x: x.topk(3, dim=-1).values,
    "norm": lambda m, x: F.layer_norm(x, (FEATURES,)) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "parts": lambda m, x: torch.cat([part.tanh() for part in x.chunk(3, dim=-1)], dim=-1),
    "pairs": lambda m, x: torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2),
    "rows": lambda m, x: m.linear(x.reshape(-1, FEATURES)).view(x.shape),
    "small products": lambda m, x: (x.unsqueeze(-2) @ x.unsqueeze(-1)).squeeze(-1) * x,
    "table": lambda m, x: x + m.table((x.sum(-1).abs() * 5).to(torch.int64).clamp(max=49)),
}


def check(function):
    origin = Origin("Model", "", "give another")
    inputs = (torch.zeros(2, 7, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    shapes = ({1: torch.export.Dim("seq_len", min=4, max=50)}, {0: torch.export.Dim("chosen")})
    program = export(Model(function), inputs, shapes, origin)
    simplify(program)
    check_token_mixing(program, origin, tokens="input_ids", chosen="logits_at")


@pytest.mark.parametrize("name", MIXING)
def test_tokens_that_meet_are_noticed(name):
    with pytest.raises(ImportModelError, match=r"Model mixes tokens outside of attention.* in inner.*; give another"):
        check(MIXING[name])


@pytest.mark.parametrize("name", APART)
def test_what_keeps_tokens_apart_is_no_matter(name):
    check(APART[name])


def test_a_layer_whose_past_is_no_attention_is_refused_though_no_configuration_says_so():
    class Shifted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + F.pad(x[:, :-1], (0, 0, 1, 0))

    model = tiny_llama()
    model.model.layers[1].mlp = Shifted(model.model.layers[1].mlp)
    with pytest.raises(ImportModelError, match=r"LlamaForCausalLM mixes tokens .* in model\.layers\.1\.mlp") as caught:
        import_model(model, max_seq_len=16)
    assert "\n" not in str(caught.value)


# Architectures that the package does not know of, and what is said of them.
REFUSED = {
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "has layers of conv by its configuration"),
    "mamba": ({}, "has layers of linear_attention by its configuration"),
    "rwkv": ({}, "RwkvForCausalLM can't be exported|mixes tokens"),
    "gpt_oss": ({"num_local_experts": 4, "head_dim": 12}, "GptOssAttention asks for an attention that has s_aux"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_in_one_line(name):
    overrides, words = REFUSED[name]
    with pytest.raises(ImportModelError, match=words) as caught:
        import_model(tiny(name, **overrides), max_seq_len=16)
    message = str(caught.value)
    assert "\n" not in message and "supported are" in message
