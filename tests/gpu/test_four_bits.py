"""On a GPU, where bitsandbytes is: an adapter trains on a base in four bits, alone, and goes on a whole base afterwards."""

import pytest
import torch

from chatsft.model.loading import load_model_and_tokenizer
from chatsft.recipe import load_recipe
from chatsft.train import train
from tests.other_models import save_recipe
from tests.test_adapters import ADAPTER, logits, losses, save_base

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("kind", ["nanochat_gpt", "llama"])
def test_an_adapter_trains_on_a_base_in_four_bits(tmp_path, kind):
    four_bits = pytest.importorskip("bitsandbytes").nn.Linear4bit
    recipe = save_recipe(tmp_path, save_base(kind, tmp_path / "base"), **ADAPTER, load_in_4bit=True, bf16=True)
    trainer = train(load_recipe(recipe, ["use_cpu=false"]))
    base = trainer.model.get_base_model()
    assert type(base.model.layers[0].self_attn.q_proj.base_layer) is four_bits
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in trainer.model.named_parameters())
    adapted, untrained = (load_model_and_tokenizer(str(tmp_path / name))[0] for name in ("out", "base"))
    change = logits(adapted) - logits(untrained)
    assert torch.isfinite(change).all()
    assert change.abs().max() > 0.1
