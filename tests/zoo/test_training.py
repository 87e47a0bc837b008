"""Training at toy size: a resumed run is the run, and an exported model is the model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from quire.zoo import model_path
from quire.zoo.data import Batches, Recipe
from quire.zoo.distill import distillation_loss
from quire.zoo.model import Config, Llama, document_mask, load
from quire.zoo.muon import orthogonalize
from quire.zoo.train import fit

TOY = Config(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8
)
RECIPE = Recipe(seed=3, rows=2, length=256, total_steps=4)


def toy_run(out: Path, stops: list[int], **more) -> dict[str, torch.Tensor]:
    for stop in stops:
        torch.manual_seed(0)
        tokenizer = model_path("pocket")
        fit(Llama(TOY), RECIPE, out, tokenizer, lr=1e-3, warm_up=2, stop=stop, save_every=100, **more)
    return load_file(out / "model" / "model.safetensors")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, resumed = toy_run(tmp_path / "a", [4]), toy_run(tmp_path / "b", [2, 4])
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_distillation_runs_and_moves_the_student(tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = Llama(TOY).eval().requires_grad_(False)
    first, second = (toy_run(tmp_path / str(n), [n], loss_fn=distillation_loss(teacher)) for n in (1, 3))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_batch_depends_only_on_seed_and_step() -> None:
    batches = [Batches(model_path("pocket") / "tokenizer.json", RECIPE) for _ in range(2)]
    batches[0][0]
    for name, tensor in batches[0][3].items():
        assert torch.equal(tensor, batches[1][3][name])
    assert not torch.equal(batches[0][2]["tokens"], batches[0][3]["tokens"])


def test_transformers_computes_the_same_logits(tmp_path: Path) -> None:
    toy_run(tmp_path, [1])
    ours = load(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.randint(0, 4096, (1, 50))
    with torch.no_grad():
        logits = ours(tokens, torch.arange(50)[None], document_mask(torch.ones(1, 50)))
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_documents_in_one_row_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = Llama(TOY)
    tokens = torch.randint(0, 4096, (1, 20))
    documents = torch.tensor([[1] * 8 + [2] * 12])
    positions = torch.tensor([[*range(8), *range(12)]])
    with torch.no_grad():
        packed = model(tokens, positions, document_mask(documents))
        alone = model(tokens[:, 8:], positions[:, 8:], document_mask(documents[:, 8:]))
    torch.testing.assert_close(packed[:, 8:], alone)


@pytest.mark.parametrize("shape", [(3, 16, 32), (2, 16, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), steps=8))
    assert values.min() > 0.4 and values.max() < 1.4
