"""What vLLM, SGLang and continuous batching ask of a model: the 2025 architecture meets it, later features are refused with the reason."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel, ContinuousBatchingConfig, GenerationConfig

from chatsft import GPTConfig, GPTForCausalLM, GPTModel
from chatsft.model.serving import OBSTACLES

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
LATER = {
    "smear": True,
    "value_embedding_layers": [1, 3],
    "layer_windows": [5, 5, 5, 65],
    "residual_scaling": True,
    "backout": True,
}
LENGTHS = (5, 1, 7)


def make_model(**settings) -> GPTForCausalLM:
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(**SIZES, **settings)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def engine_attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
    """Attend as an engine does: flattened requests, told apart by what is in attention_instances, and no batch dimension in the result."""
    assert attention_mask is None
    outputs = []
    for start, end in pairwise(attention_instances[module.layer_idx]):
        states = (states[:, :, start:end] for states in (query, key, value))
        outputs.append(nn.functional.scaled_dot_product_attention(*states, is_causal=True, scale=scaling, enable_gqa=True))
    return torch.cat(outputs, dim=2).transpose(1, 2).flatten(2)[0], None


@pytest.fixture
def engine():
    """Register the attention of an engine, as vLLM does, for one test."""
    AttentionInterface.register("vllm", engine_attention)
    yield
    del AttentionInterface._global_mapping["vllm"]


@pytest.fixture
def requests() -> tuple[torch.Tensor, torch.Tensor, dict[int, list[int]]]:
    """Give flattened ids and positions, (1, tokens), and the bounds of the requests by layer."""
    ids = torch.randint(64, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    return ids, positions, dict.fromkeys(range(SIZES["num_hidden_layers"]), bounds)


def trunk_for_an_engine(model: GPTForCausalLM) -> GPTModel:
    """Build the trunk as vLLM does, from a configuration that names its attention, and give it the weights."""
    config = GPTConfig(**SIZES)
    config._attn_implementation = "vllm"
    trunk = AutoModel.from_config(config).eval()
    trunk.load_state_dict(model.model.state_dict())
    return trunk


def one_by_one(model: GPTForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.model(part, use_cache=False).last_hidden_state for part in ids.split(LENGTHS, dim=1)], dim=1)


def test_the_classes_say_that_they_can_be_served():
    assert GPTForCausalLM.is_backend_compatible()
    assert GPTModel.is_backend_compatible()
    assert GPTModel._supports_attention_backend
    assert GPTModel._can_compile_fullgraph
    model = make_model()
    assert model.model.get_decoder() is model.model  # the class that vLLM compiles
    assert model.model.supports_tp_plan
    assert model.model.supports_pp_plan


def test_a_saved_model_names_the_trunk_that_engines_build(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).auto_map == {
        "AutoConfig": "configuration_gpt.GPTConfig",
        "AutoModel": "modeling_gpt.GPTModel",
        "AutoModelForCausalLM": "modeling_gpt.GPTForCausalLM",
    }


def test_the_tensor_parallel_plan_covers_every_matrix():
    model = make_model()
    plan = model.config.base_model_tp_plan  # transformers adds the embedding, which engines replace themselves
    assert plan.items() <= model.model.tp_plan.items()
    for name, module in model.model.named_modules():
        matches = [style for pattern, style in plan.items() if re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\d+"), name)]
        reads_residual_stream = name.endswith(("q_proj", "k_proj", "v_proj", "up_proj"))
        assert matches == ([("colwise" if reads_residual_stream else "rowwise")] if isinstance(module, nn.Linear) else []), name
    assert model.tp_plan["lm_head"] == "colwise_gather_output"


def test_value_embeddings_have_no_tensor_parallel_plan():
    assert GPTConfig(**SIZES, value_embedding_layers=[1]).base_model_tp_plan is None
    assert GPTConfig(**SIZES).base_model_tp_plan is not None


def test_an_engine_gets_the_attention_and_computes_the_same(engine, requests):
    model, (ids, positions, instances) = make_model(), requests
    trunk = trunk_for_an_engine(model)
    hidden = trunk(input_ids=ids, position_ids=positions, use_cache=False, attention_instances=instances, return_dict=False)[0]
    torch.testing.assert_close(hidden, one_by_one(model, ids))
    embedded = trunk.get_input_embeddings()(ids)
    torch.testing.assert_close(trunk(inputs_embeds=embedded, position_ids=positions, attention_instances=instances)[0], hidden)


def test_an_engine_can_trace_the_forward_pass_in_one_graph(engine, requests):
    model, (ids, positions, instances) = make_model(), requests
    trunk = trunk_for_an_engine(model)
    traced = torch.compile(trunk, fullgraph=True, backend="eager")
    options = {"use_cache": False, "attention_instances": instances}
    torch.testing.assert_close(traced(ids, position_ids=positions, **options)[0], trunk(ids, position_ids=positions, **options)[0])


def test_the_forward_pass_can_be_exported(requests):
    model, (ids, positions, _) = make_model(), requests

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, position_ids):
            return self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits

    ids, positions = ids[:, :7], torch.arange(7)[None]
    exported = torch.export.export(Logits(), (ids, positions), strict=False).module()
    torch.testing.assert_close(exported(ids, positions), model(ids).logits)


class MissingLayer(nn.Identity):
    """What engines put in place of a layer that lies on another device."""

    def forward(self, *args, **kwargs):
        return args[0] if args else next(iter(kwargs.values()))


def stage(trunk: GPTModel, is_first: bool, kept: range) -> GPTModel:
    """Cut a trunk by its pipeline plan, as vLLM does."""
    names = list(trunk.config.base_model_pp_plan)
    split = names.index("layers")
    for name in names[split + 1 :] if is_first else names[:split]:
        setattr(trunk, name, MissingLayer())
    for number in set(range(len(trunk.layers))) - set(kept):
        trunk.layers[number] = MissingLayer()
    return trunk


def test_parts_of_a_pipeline_compute_the_same(engine, requests):
    model, (ids, positions, instances) = make_model(), requests
    assert [name for name, _ in model.model.named_children() if next(model.model.get_submodule(name).parameters(), None) is not None] == [
        name for name in model.config.base_model_pp_plan if "norm" not in name
    ]
    first, last = stage(trunk_for_an_engine(model), True, range(2)), stage(trunk_for_an_engine(model), False, range(2, 4))
    options = {"position_ids": positions, "use_cache": False, "attention_instances": instances}
    passed_on = first(input_ids=ids, **options)[0]
    torch.testing.assert_close(last(inputs_embeds=passed_on, **options)[0], one_by_one(model, ids))


@pytest.mark.parametrize("feature", LATER)
@pytest.mark.parametrize("attention", ["vllm", "sglang"])
def test_a_later_feature_is_refused_with_the_reason(feature, attention):
    config = GPTConfig(**SIZES, **{feature: LATER[feature]})
    config._attn_implementation = attention
    AttentionInterface.register(attention, engine_attention)
    with pytest.raises(ValueError, match=re.escape(f"This model has {feature}, which vLLM")) as refusal:
        AutoModel.from_config(config)
    assert OBSTACLES[feature] in str(refusal.value)
    del AttentionInterface._global_mapping[attention]
    assert config.base_model_pp_plan is None


def test_a_whole_2026_model_is_refused_when_an_engine_calls_it(requests):
    model, (ids, positions, instances) = make_model(**LATER), requests
    with pytest.raises(ValueError, match="smear, value_embedding_layers, layer_windows, residual_scaling, backout"):
        model.model(input_ids=ids, position_ids=positions, use_cache=False, attention_instances=instances)


def generate_in_turns(model: GPTForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(
        prompts,
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32, block_size=32),
    )
    return [output.generated_tokens for output in outputs.values()]


def test_continuous_batching_writes_what_generate_writes():
    model = make_model()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]
    assert generate_in_turns(model, prompts) == expected


TENSOR_PARALLEL = """
import sys
import torch
import torch.distributed
import chatsft
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
model = AutoModelForCausalLM.from_pretrained("model", distributed_config=DistributedConfig(tp_plan="auto"), dtype=torch.float32)
ids, expected = torch.load("expected.pt")
weight = model.model.layers[0].self_attn.q_proj.weight
assert weight.to_local().shape == (weight.shape[0] // 2, weight.shape[1])
with torch.no_grad():
    logits = model(ids, use_cache=False).logits
torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_that_share_the_matrices_compute_the_same(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    ids = torch.arange(20)[None]
    torch.save((ids, model(ids, use_cache=False).logits.detach()), tmp_path / "expected.pt")
    (tmp_path / "program.py").write_text(TENSOR_PARALLEL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "program.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
