"""What is no model, or not one that can be imported, is refused with a message that says what to do."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from tests.tiny_hf import save, tiny_llama

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return save(tiny_llama(), tmp_path)


def refused(model, *words, **options):
    with pytest.raises(ImportModelError) as caught:
        import_model(model, **{"max_seq_len": 16, **options})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_missing_path(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist", r"expected the folder .* a \.gguf")


def test_folder_without_config(tmp_path):
    refused(tmp_path, r"holds no config\.json", "expected the folder of a transformers model")


def test_random_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(100)))
    refused(
        path,
        "is no model",
        r"expected a \.gguf.* or the folder of a transformers model",
        "give the folder that holds it",
    )


def test_no_model_at_all():
    refused(3.5, "can't import a builtins.float", "expected the folder")
    refused(torch.nn.Linear(2, 2), "Linear is a torch module", "give example_inputs")


@pytest.mark.parametrize("content", ["{", "[1]", '{"model_type": "no such thing"}', "{}"])
def test_damaged_config(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json", "damaged|expected a JSON object|expected the config.json of a model")


def test_code_of_a_model_is_not_run(folder):
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (folder / "modeling.py").write_text("raise SystemExit")
    refused(folder, "auto_map", "never run")


def test_everything_that_is_wrong_with_a_folder_is_told_at_once(folder):
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    (folder / "generation_config.json").write_text("{")
    (folder / "tokenizer_config.json").write_text("nothing")
    refused(
        folder,
        r"auto_map.*; the weights in .* are pickled \(pytorch_model.bin\).*; .*generation_config.json is no JSON.*;"
        r" .*tokenizer_config.json is no JSON",
    )


def test_architectures_of_another_kind():
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20, state_size=4)
    refused(
        MambaForCausalLM(config),
        "MambaForCausalLM has layers of linear_attention",
        "supported are .*LlamaForCausalLM.*encoders .*BertModel.*T5For",
    )


def test_what_a_model_asks_of_its_attention():
    model = tiny_llama()
    model.model.layers[1].self_attn.is_causal = False
    refused(model, "LlamaAttention asks for an attention that has attention to later tokens: there is no kernel")
    model = tiny_llama()
    model.config.layer_types = ["full_attention", "chunked_attention"]
    refused(model, r"has layers of chunked_attention by its configuration \(layer_types\)", "supported are")
    model = tiny_llama()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    refused(model, "should attend as .*sliding_attention.* but as .*full_attention")


def test_an_unknown_operator_is_named_with_its_module():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    model = tiny_llama()
    model.model.layers[1].mlp.act_fn = Odd()
    refused(model, r"special_bessel_j0\.default in model\.layers\.1\.mlp\.act_fn", "LlamaForCausalLM", "supported are")


def test_a_model_that_branches_on_its_inputs(capfd):
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = tiny_llama()
    model.model.layers[1].mlp.act_fn = Branch()
    capfd.readouterr()
    refused(model, r"can't be exported by torch\.export", "data-dependent")
    assert capfd.readouterr().err == ""


def test_weights_that_do_not_fit(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(44, 35)
    tensors["model.layers.0.self_attn.k_proj.bias"] = torch.zeros(12)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    save_file(tensors, folder / WEIGHTS)
    refused(
        folder,
        r"lacks model\.layers\.0\.self_attn\.k_proj\.weight, model\.norm\.weight,",
        r"model\.layers\.1\.mlp\.up_proj\.weight is \[44, 35\], expected \[44, 36\]",
        r"no place \(model\.layers\.0\.self_attn\.k_proj\.bias\)",
        "must be of the same model",
    )


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, "holds no weights", "expected model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    refused(
        folder,
        r"pickled \(pytorch_model\.bin\), expected safetensors",
        r"transformers\.LlamaForCausalLM\.from_pretrained\(folder\)\.save_pretrained",
    )
    change_config(folder, architectures=["BertForMaskedLM"], model_type="bert")
    refused(folder, r"transformers\.BertForMaskedLM\.from_pretrained")
    change_config(folder, architectures=None)
    refused(folder, r"transformers\.AutoModel\.from_pretrained")


def test_damaged_weights(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])
    refused(folder, r"model\.safetensors \(.*\): damaged or not copied whole", "fetch it again")


def test_missing_shards(tmp_path):
    save(tiny_llama(), tmp_path, shards=True)
    missing = min(tmp_path.glob("*.safetensors"))
    missing.unlink()
    refused(tmp_path, f"lacks shards that model.safetensors.index.json names: {missing.name}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, "index.json can't be read", "expected JSON with a 'weight_map'")


def test_limits():
    model = tiny_llama()
    refused(model, "max_batch is 0: expected at least 1", max_batch=0)
    refused(model, "max_seq_len is 0: expected at least 1", max_seq_len=0)
    refused(model, "max_seq_len is 65, but the model has 64 positions", "at most 64", max_seq_len=65)


def test_weights_on_the_meta_device():
    refused(tiny_llama().to("meta"), "are on the meta device: model.embed_tokens.weight", "load them")
