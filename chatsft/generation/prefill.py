"""Cache prompts: by the model's own forward pass anywhere, or on CUDA with fewer launches and no padding."""

from itertools import accumulate, chain

import torch

from chatsft.generation.slots import SlotCache
from chatsft.model.attention import varlen_attention_forward
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTAttention, GPTForCausalLM, norm, window_masks
from chatsft.model.rotary import rotary_embeddings

try:
    import triton

    from chatsft.generation.prefill_kernel import square_relu, turn_and_cache
except ImportError:  # comes with torch for CUDA; elsewhere the model's own forward pass serves
    triton = None

BLOCK = 4096
"""Numbers that one program of an elementwise kernel takes."""


class ModelPrefill:
    """Prompts cached by the model's own forward pass, which the other kind is tested against."""

    def __init__(self, model: GPTForCausalLM, cache: SlotCache):
        self.model, self.cache = model, cache

    def __call__(self, slots: list[int], prompts: list[list[int]]) -> None:
        """Run prompts through the model, padded on the right, where a causal model never looks and rows overwrite."""
        width, upload = max(map(len, prompts)), self.cache.slots.upload
        ids = upload([prompt + [0] * (width - len(prompt)) for prompt in prompts])
        self.cache.filling = upload(slots)
        try:
            self.model.model(
                input_ids=ids,
                position_ids=torch.arange(width, device=ids.device)[None],
                attention_mask=window_masks(self.model.config, ids[..., None].to(self.cache.keys[0].dtype), None, None, None),
                past_key_values=self.cache,
                use_cache=True,
            )
        finally:
            self.cache.filling = None


class KernelPrefill:
    """Prompts cached as one packed row, with one kernel between the products and attention.

    A short prompt costs the launches of its kernels and a long one the passes over memory between its products: both are fewer than in
    the model's forward pass. Of the last layer only keys and values are computed, since the first step feeds each prompt's last token.
    """

    def __init__(self, model: GPTForCausalLM, cache: SlotCache):
        self.model, self.cache, config = model, cache, model.config
        self.constants = {  # read once: a transformers configuration takes as long to look into as a launch
            "HEADS": config.num_attention_heads,
            "KV_HEADS": config.num_key_value_heads,
            "D": config.head_dim,
            "QK_SCALE": config.query_key_scale,
            "GATE_RANGE": config.value_embedding_gate_range,
            "BLOCK_HEADS": triton.next_power_of_2(config.num_attention_heads),
            "BLOCK_KV": triton.next_power_of_2(config.num_key_value_heads),
            "BLOCK_HALF": triton.next_power_of_2(config.head_dim // 2),
            "enable_fp_fusion": False,  # the model rounds products before it adds them
        }

    def __call__(self, slots: list[int], prompts: list[list[int]]) -> None:
        trunk, config, upload, dtype = self.model.model, self.model.config, self.cache.slots.upload, self.cache.keys[0].dtype
        lengths = [len(prompt) for prompt in prompts]
        ids, bounds = upload([list(chain(*prompts))]), upload([0, *accumulate(lengths)])
        rows = torch.repeat_interleave(upload(lengths), output_size=sum(lengths))
        positions = torch.arange(sum(lengths), device=ids.device)[None] - bounds[rows]
        tables = [table.to(torch.promote_types(table.dtype, dtype)) for table in rotary_embeddings(positions, config)]
        tokens = (*tables, upload(slots)[rows], positions, ids)
        ranges = {"cu_seq_lens_q": bounds.int(), "max_length_q": max(lengths)}
        hidden = trunk.embed_norm(trunk.embed_tokens(ids).to(dtype))
        if config.smear:
            hidden = trunk.smear(hidden, ids, positions, None, None)
        initial, is_scaled = hidden, config.residual_scaling
        for index, layer in enumerate(trunk.layers):
            if is_scaled:
                hidden = trunk.resid_lambdas[index] * hidden + trunk.x0_lambdas[index] * initial
            attention = layer.self_attn
            states = self.project(index, attention, norm(hidden), tokens)
            if layer is not trunk.layers[-1]:
                attended, _ = varlen_attention_forward(attention, *states, None, attention.scaling, attention.sliding_window, **ranges)
                hidden = hidden + attention.o_proj(attended.flatten(2))
                inner = layer.mlp.up_proj(norm(hidden))
                square_relu[(triton.cdiv(inner.numel(), BLOCK),)](inner, inner.numel(), BLOCK=BLOCK)
                hidden = hidden + layer.mlp.down_proj(inner)

    def project(self, index: int, attention: GPTAttention, hidden: torch.Tensor, tokens: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Return query, key and value of a layer, (1, heads, tokens, head_dim), and cache the last two.

        Args:
            hidden: (1, tokens, width), normed.
            tokens: of each token its cosines and sines, slot, position and id.
        """
        query, key, value = attention.q_proj(hidden), attention.k_proj(hidden), attention.v_proj(hidden)
        gates = table = value  # stand for what is not read
        has_embedding = str(index) in self.model.model.value_embeddings
        if has_embedding:
            gates = attention.value_gate(hidden[..., : attention.value_gate.in_features])
            table = self.model.model.value_embeddings[str(index)].weight
        inputs = (query, key, value, *tokens, gates, table, self.cache.keys[index], self.cache.values[index], self.cache.slots.capacity)
        turn_and_cache[(hidden.shape[1],)](*inputs, VALUE_EMBEDDING=has_embedding, **self.constants)
        return [states.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for states in (query, key, value)]


def has_flash_attention(config: GPTConfig, dtype: torch.dtype) -> bool:
    """Say whether PyTorch's variable-length attention takes a model's heads.

    >>> has_flash_attention(GPTConfig(hidden_size=256, num_attention_heads=4), torch.bfloat16)
    True
    """
    return dtype.itemsize == 2 and config.head_dim % 8 == 0 and config.head_dim <= 256
