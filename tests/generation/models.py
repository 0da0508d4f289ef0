"""Small models with every feature of their year, whose weights are all alive and take nothing away from each other."""

import torch

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM

YEARS = {
    "2025": {},
    "2026": {
        "num_key_value_heads": 2,
        "rope_theta": 100000.0,
        "query_key_scale": 1.2,
        "layer_windows": [5, 12, 65],
        "value_embedding_layers": [0, 2],
        "residual_scaling": True,
        "smear": True,
        "backout": True,
    },
}


def build_model(year: str, dtype: torch.dtype = torch.float32, **fields) -> GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = GPTForCausalLM(GPTConfig(**sizes | YEARS[year] | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or parameter.std() < 0.02:
                # lambdas of both signs cancel: then bfloat16 and float32 differ by half of the largest logit
                parameter.uniform_(0.2, 0.8) if parameter.ndim < 2 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.to(dtype)


def random_prompts(lengths: list[int], vocab_size: int = 300) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
