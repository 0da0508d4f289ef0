"""The list of weight files keeps readers that take every .safetensors file away from what is not weights."""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chatsft import GPTConfig, GPTForCausalLM
from chatsft.model.weights_index import save_weights_index

CONFIG = GPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
INDEX = "model.safetensors.index.json"


def test_the_index_lists_every_tensor_and_no_other_file(tmp_path):
    model = GPTForCausalLM(CONFIG)
    model.save_pretrained(tmp_path)
    save_file({"model.embed_tokens.weight": torch.zeros(3, 32)}, tmp_path / "nanochat_extra.safetensors")
    save_weights_index(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    weights = load_file(tmp_path / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(weights, "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_the_index_of_a_sharded_model_stays(tmp_path):
    GPTForCausalLM(CONFIG).save_pretrained(tmp_path, max_shard_size="20KB")
    before = (tmp_path / INDEX).read_text()
    save_weights_index(tmp_path)
    assert (tmp_path / INDEX).read_text() == before
    assert len(set(json.loads(before)["weight_map"].values())) > 1
