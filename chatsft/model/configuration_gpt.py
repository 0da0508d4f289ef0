"""Configuration of the nanochat GPT: one class for every generation of nanochat."""

from typing import ClassVar

from transformers import PreTrainedConfig

from .serving import engine_obstacles


class GPTConfig(PreTrainedConfig):
    """Describe a nanochat GPT.

    The defaults are the architecture of October 2025. Each feature that came later is a field of its own and absent by
    default, so a configuration says exactly which model it builds.

    Args:
        vocab_size: rows of the embedding and of the head; nanochat's padding rows are not part of the model.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP; 4 x hidden_size when None.
        num_key_value_heads: key/value heads (grouped-query attention); num_attention_heads when None.
        max_position_embeddings: tokens a training row may have. A longer forward pass works.
        rope_theta: base of the rotary frequencies (10000 in 2025, 100000 in 2026).
        rotary_dtype: precision of the rotary cosines and sines; "bfloat16" is what the 2025 code rounds them to.
        query_key_scale: factor on queries and keys after their norm (1.2 in 2026).
        final_logit_softcapping: logits become cap * tanh(logits / cap); None switches it off.
        layer_windows: keys each layer sees, the token itself included; None means all of them in every layer.
        value_embedding_layers: layers whose values get a gated embedding of the token id added.
        value_embedding_gate_size: channels of the layer input that feed the gate.
        value_embedding_gate_range: the gate is this factor times a sigmoid.
        residual_scaling: learn, per layer, a factor on the residual stream and one on the initial embedding.
        smear: add a gated embedding of the previous token to each token.
        smear_gate_size: channels of the embedding that feed the smear gate.
        backout: subtract a learned share of the middle layer's output before the head.
    """

    model_type = "nanochat_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_tp_plan: ClassVar[dict[str, str] | None] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, tuple[list[str], list[str]]] | None] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embed_norm": (["inputs_embeds"], ["hidden_states"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 65536
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rotary_dtype: str = "float32"
    query_key_scale: float = 1.0
    final_logit_softcapping: float | None = 15.0
    layer_windows: list[int] | None = None
    value_embedding_layers: list[int] | None = None
    value_embedding_gate_size: int = 12
    value_embedding_gate_range: float = 3.0
    residual_scaling: bool = False
    smear: bool = False
    smear_gate_size: int = 24
    backout: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self._check_shapes()
        if self.value_embedding_layers:  # their rows span all heads
            self.base_model_tp_plan = None
        if engine_obstacles(self):
            self.base_model_pp_plan = None
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def needs_input_ids(self) -> bool:
        """Whether the model looks tokens up by id beyond the input embedding."""
        return self.smear or bool(self.value_embedding_layers)

    def _check_shapes(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} attention heads of even size.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads {self.num_key_value_heads}."
            )
        if self.rotary_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"rotary_dtype is {self.rotary_dtype!r}; it may be 'float32' or 'bfloat16'.")
        if self.layer_windows is not None and len(self.layer_windows) != self.num_hidden_layers:
            raise ValueError(f"layer_windows has {len(self.layer_windows)} entries for {self.num_hidden_layers} layers.")


__all__ = ["GPTConfig"]
