import pytest
import torch
from tiny_hf import save, tiny_llama

from hwpq_tvm.evaluate import evaluate
from hwpq_tvm.evaluation.original import load_original


def test_a_source_model_is_compiled_as_it_is(tmp_path):
    source = tiny_llama(3)
    folder = save(source, tmp_path / "hf")
    original = load_original(folder, max_seq_len=24, progress=False)
    ids = torch.randint(3, 101, (60,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(source(ids[None, :24]).logits[0, :-1].double(), ids[1:24])
    found = evaluate({"m": original}, ids.numpy(), original=original, windows=1, window_length=24)
    assert found["original"].perplexity.perplexity == pytest.approx(loss.exp().item(), rel=1e-5)
    assert found["m"].divergence.maximum == 0

    original.save(tmp_path / "artifact")
    loaded = load_original(tmp_path / "artifact", max_seq_len=9, progress=False)
    assert loaded.generation.max_seq_len == 24
    assert evaluate({"m": loaded}, ids.numpy(), windows=1, window_length=24)["m"].perplexity == (found["m"].perplexity)
