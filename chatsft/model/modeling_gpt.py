"""The nanochat GPT as a transformers model: October 2025 and every later generation in one file.

Parameter-free RMSNorm everywhere (after the embedding too), rotary positions before the query/key norm, squared ReLU, untied
head, softcapped logits. What 2026 added (windows, value embeddings, residual scaling, smear, backout) is switched on by the
configuration.
"""

import os
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch._functorch import config as functorch_config
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, sliding_window_overlay
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import VARLEN, eager_attention_forward, varlen_attention_forward
from .configuration_gpt import GPTConfig
from .head import GPTHead
from .positions import count_positions, exchange_last_ids, restarts
from .rotary import rotary_embeddings, rotate
from .serving import ENGINES, check_engine, runs_in_engine


def norm(hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply RMSNorm over the last dimension, without learned parameters."""
    return F.rms_norm(hidden_states, (hidden_states.shape[-1],))


class GPTNorm(nn.Module):
    """`norm` as a module, which inference engines can replace, or leave out of the parts of a model that was cut between layers."""

    def __init__(self):
        super().__init__()
        self.eps = torch.finfo(torch.float32).eps  # what rms_norm takes by itself, in every dtype

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, (hidden_states.shape[-1],), eps=self.eps)


def window_masks(
    config: GPTConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
    **unused,
) -> dict[int | None, torch.Tensor | None]:
    """Build one causal mask for each distinct window of the layers; masks built before are handed through."""
    if isinstance(attention_mask, dict):
        return attention_mask
    return {
        window: create_causal_mask(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            and_mask_function=sliding_window_overlay(window) if _window_bites(window, inputs_embeds, past_key_values) else None,
        )
        for window in set(config.layer_windows or [None])
    }


class GPTAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.sliding_window = None if config.layer_windows is None else config.layer_windows[layer_idx]
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        if layer_idx in (config.value_embedding_layers or []):
            self.value_gate = nn.Linear(config.value_embedding_gate_size, config.num_key_value_heads, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        value_embedding: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads)
        if value_embedding is not None:
            gate = torch.sigmoid(self.value_gate(hidden_states[..., : self.config.value_embedding_gate_size]))
            value = value + self.config.value_embedding_gate_range * gate[..., None] * value_embedding.view(heads)
        query, key = (norm(rotate(states, *position_embeddings)) for states in (query, key))
        if self.config.query_key_scale != 1.0:
            query, key = query * self.config.query_key_scale, key * self.config.query_key_scale

        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, sliding_window=self.sliding_window, dropout=0.0, **kwargs
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class GPTMLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.relu(self.up_proj(hidden_states)).square())


class GPTDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each on the normed residual stream; 2026 models first mix the embeddings back in, by learned scales."""

    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.self_attn = GPTAttention(config, layer_idx)
        self.mlp = GPTMLP(config)
        self.memory_budget: float | None = None  # set where the layer is compiled

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if self.memory_budget is None or not self.training:
            return self.run(hidden_states, **kwargs)
        return _compiled(GPTDecoderLayer.run, self.memory_budget)(self, hidden_states, **kwargs)

    def run(
        self,
        hidden_states: torch.Tensor,
        initial: torch.Tensor | None = None,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if scales is not None:
            hidden_states = scales[0] * hidden_states + scales[1] * initial
        hidden_states = hidden_states + self.self_attn(norm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(norm(hidden_states))


class GPTPreTrainedModel(PreTrainedModel):
    config: GPTConfig
    config_class = GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTDecoderLayer, "attentions": GPTAttention}  # noqa: RUF012

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Visit every module: for code outside transformers the base class would pass over those without own parameters."""
        super()._initialize_weights(module)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True) -> nn.Embedding:
        """Resize the value embeddings too: they are looked up by the same ids."""
        embedding = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for value_embedding in self.base_model.value_embeddings.values():  # resized in place
            self._get_resized_embeddings(value_embedding, embedding.num_embeddings, mean_resizing=mean_resizing)
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as nanochat does: outputs of attention and MLP at zero, so that each layer starts as the identity."""
        if self.config.residual_scaling:
            self._init_weights_2026(module)
        else:
            self._init_weights_2025(module)

    def _init_weights_2025(self, module: nn.Module) -> None:
        """Normal with std = min(1, sqrt(rows / columns)) / sqrt(columns) (arXiv 2310.17813); embedding std 1; head zero."""
        if isinstance(module, nn.Linear):
            rows, columns = module.out_features, module.in_features  # under ZeRO-3 a weight lies in pieces
            init.normal_(module.weight, std=columns**-0.5 * min(1.0, (rows / columns) ** 0.5))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, GPTDecoderLayer):
            init.zeros_(module.self_attn.o_proj.weight)
            init.zeros_(module.mlp.down_proj.weight)
        elif isinstance(module, GPTForCausalLM):
            init.zeros_(module.lm_head.weight)

    def _init_weights_2026(self, module: nn.Module) -> None:
        """Uniform matrices of std 1 / sqrt(width), gates in [0, 0.02], lambdas falling linearly over the layers."""
        bound = 3**0.5 * self.config.hidden_size**-0.5
        if isinstance(module, GPTDecoderLayer):
            attention = module.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                init.uniform_(projection.weight, -bound, bound)
            init.uniform_(module.mlp.up_proj.weight, -0.4 * bound, 0.4 * bound)
            init.zeros_(attention.o_proj.weight)
            init.zeros_(module.mlp.down_proj.weight)
            if attention.layer_idx in (self.config.value_embedding_layers or []):
                init.uniform_(attention.value_gate.weight, 0.0, 0.02)
        elif isinstance(module, GPTModel):
            self._init_trunk_2026(module, bound)
        elif isinstance(module, GPTForCausalLM):
            init.normal_(module.lm_head.weight, std=0.001)

    def _init_trunk_2026(self, trunk: "GPTModel", bound: float) -> None:
        init.normal_(trunk.embed_tokens.weight, std=0.8)
        for embedding in trunk.value_embeddings.values():
            init.uniform_(embedding.weight, -bound, bound)
        depth = torch.linspace(0, 1, self.config.num_hidden_layers)
        init.copy_(trunk.resid_lambdas, 1.15 - 0.10 * depth)
        init.copy_(trunk.x0_lambdas, 0.20 - 0.15 * depth)
        if self.config.smear:
            init.uniform_(trunk.smear_gate.weight, 0.0, 0.02)
            init.zeros_(trunk.smear_lambda)
        if self.config.backout:
            init.constant_(trunk.backout_lambda, 0.2)


class GPTModel(GPTPreTrainedModel):
    """The trunk: token ids to normed hidden states."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        if config._attn_implementation in ENGINES:
            check_engine(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_norm = GPTNorm()
        self.norm = GPTNorm()
        self.layers = nn.ModuleList(GPTDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        key_value_size = config.num_key_value_heads * config.head_dim
        self.value_embeddings = nn.ModuleDict(
            {str(i): nn.Embedding(config.vocab_size, key_value_size) for i in config.value_embedding_layers or []}
        )
        if config.residual_scaling:
            self.resid_lambdas = nn.Parameter(torch.ones(config.num_hidden_layers))
            self.x0_lambdas = nn.Parameter(torch.zeros(config.num_hidden_layers))
        if config.smear:
            self.smear_gate = nn.Linear(config.smear_gate_size, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self.gradient_checkpointing = False
        self.memory_budget: float | None = None  # set where the stack of layers is compiled
        self.post_init()

    def compile_layers(self, together: bool = False, activation_memory_budget: float = 1.0) -> None:
        """Compile the layers for training, where batches have one constant shape; evaluation and generation stay as they are.

        Args:
            together: compile the stack of layers as one. Each by itself, equal layers share what is compiled, so that takes as long for
                twelve as for one; the stack takes longer to compile, and less work of the host in each step.
            activation_memory_budget: share of the activations that is kept for the backward pass where keeping is fastest; the rest is
                computed again, the cheapest first (torch._functorch.config). 1 keeps what is fastest.
        """
        for module in [self] if together else self.layers:
            module.memory_budget = activation_memory_budget

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the trunk.

        Args:
            input_ids: (batch, length). A model with smear or value embeddings needs them beside inputs_embeds too.
            attention_mask: (batch, cached + length), 1 = real token; or already built 4D masks, one or a dictionary by window.
            position_ids: (batch, length). A position 0 begins a conversation: packed conversations restart there. Where they are
                left out, they are counted from the mask, the cache or cu_seq_lens_q.
            past_key_values: any transformers cache. For smear it also carries the token ids, as one layer more.
            inputs_embeds: (batch, length, width), in place of the lookup of input_ids.
            kwargs: for the attention backend, as cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k.

        Raises:
            ValueError: on missing ids, and where a mask or a cache would let packed conversations see each other.
        """
        self._check_inputs(input_ids, inputs_embeds)
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden_states = self.embed_norm(hidden_states.to(_compute_dtype(hidden_states)))
        packed = not runs_in_engine(self.config, kwargs) and ("cu_seq_lens_q" in kwargs or restarts(position_ids, attention_mask))
        if packed and (attention_mask is not None or past_key_values is not None or use_cache):
            raise ValueError(
                "Packed conversations (positions that restart, or cu_seq_lens) came with an attention_mask or a cache, which would let "
                "them see each other. Pass input_ids and position_ids alone, with use_cache=False."
            )
        use_cache = use_cache if use_cache is not None else self.config.use_cache and not self.training and not packed
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = count_positions(hidden_states, attention_mask, past_key_values, kwargs.get("cu_seq_lens_q"))
        if self.config.smear:
            hidden_states = self.smear(hidden_states, input_ids, position_ids, attention_mask, past_key_values)
        if "cu_seq_lens_q" in kwargs and self.config._attn_implementation in VARLEN:
            masks = dict.fromkeys(self.config.layer_windows or [None])
        else:
            masks = window_masks(self.config, hidden_states, attention_mask, past_key_values, position_ids)
        position_embeddings = rotary_embeddings(position_ids, self.config)
        compiles = self.training and self.memory_budget is not None
        run_layers = _compiled(GPTModel._run_layers, self.memory_budget) if compiles else GPTModel._run_layers
        hidden_states = run_layers(
            self, hidden_states, input_ids, masks, position_embeddings=position_embeddings, past_key_values=past_key_values, **kwargs
        )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _run_layers(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None, masks: dict[int | None, torch.Tensor | None], **kwargs
    ) -> torch.Tensor:
        initial, middle = hidden_states, None
        windows = self.config.layer_windows or [None] * len(self.layers)
        for i, layer in enumerate(self.layers):
            if self.config.residual_scaling:
                kwargs |= {"initial": initial, "scales": (self.resid_lambdas[i], self.x0_lambdas[i])}
            value_embedding = None
            if str(i) in self.value_embeddings:
                value_embedding = self.value_embeddings[str(i)](input_ids).to(hidden_states.dtype)
            hidden_states = layer(hidden_states, attention_mask=masks[windows[i]], value_embedding=value_embedding, **kwargs)
            if self.config.backout and i == self.config.num_hidden_layers // 2:
                middle = hidden_states
        if middle is not None:
            hidden_states = hidden_states - self.backout_lambda.to(hidden_states.dtype) * middle
        return hidden_states

    def _check_inputs(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> None:
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Neither input_ids nor inputs_embeds was given. Pass one of them.")
        if input_ids is None and self.config.needs_input_ids:
            raise ValueError(
                "inputs_embeds came without input_ids, but this model's smear and value embeddings look tokens up by id. "
                "Pass input_ids beside inputs_embeds."
            )

    def smear(self, hidden_states, input_ids, position_ids, attention_mask, past_key_values) -> torch.Tensor:
        """Add the gated embedding of the previous token; the first token of a conversation (position 0) has none."""
        first = torch.zeros_like(hidden_states[:, :1])
        if past_key_values is not None:
            last_ids = exchange_last_ids(past_key_values, input_ids, attention_mask, self.config.num_hidden_layers)
            if last_ids is not None:
                first = norm(self.embed_tokens(last_ids).to(hidden_states.dtype))
        previous = torch.cat([first, hidden_states[:, :-1]], dim=1)
        gate = self.smear_lambda.to(hidden_states.dtype) * torch.sigmoid(self.smear_gate(hidden_states[..., : self.config.smear_gate_size]))
        return hidden_states + gate * previous * (position_ids > 0)[..., None]


class GPTForCausalLM(GPTPreTrainedModel, GenerationMixin):
    """The trunk and its head."""

    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    trunk_class = GPTModel
    auto_map = {"AutoModel": "modeling_gpt.GPTModel"}  # noqa: RUF012

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        if config.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is set, but nanochat's head has weights of its own. Leave it out.")
        self.model = self.trunk_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = GPTHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def _get_resized_lm_head(self, *args, **kwargs) -> GPTHead:
        """Keep a head that computes the loss: transformers builds a plain linear layer."""
        head = super()._get_resized_lm_head(*args, **kwargs)
        return head if isinstance(head, GPTHead) else GPTHead.of(head)

    create_masks_for_generate = staticmethod(window_masks)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save the model with its code, and name the trunk in auto_map too: engines build it alone."""
        self.config.auto_map = dict(self.auto_map)
        super().save_pretrained(save_directory, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = False,
        supervised_positions: torch.LongTensor | None = None,
        reduce_loss: bool = True,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Predict the next token.

        Args:
            labels: (batch, length) ids aligned with input_ids, -100 = ignored; shifted by one inside.
            shift_labels: (batch, length) ids already aligned with the logits; takes precedence over labels. Not in the signature, where
                Trainer would take it for a second column of labels.
            logits_to_keep: how many of the last positions get logits (0 = all), or the positions themselves.
            num_items_in_batch: divisor of the summed loss; the number of labels that are not ignored when None.
            skip_logits: return the loss alone, computed on the supervised positions in chunks; it is 0, not NaN, where there are none.
            supervised_positions: for skip_logits, where the labels are, padded with -1.
            reduce_loss: for skip_logits, False returns the loss of each supervised position instead, (positions,), without gradients.

        Returns:
            loss (float32), logits (batch, kept positions, vocab_size) in float32 with the cap applied, past_key_values.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        if labels is not None and shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=-100)[..., 1:]
        hidden_states, logits, loss = outputs.last_hidden_state, None, None
        if skip_logits:
            loss = self._loss_alone(hidden_states, shift_labels, supervised_positions, num_items_in_batch, reduce_loss)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
            logits = self._logits(hidden_states if isinstance(kept, int) else hidden_states[:, kept])
            if shift_labels is not None:
                loss = self.loss_function(
                    logits, None, self.vocab_size, num_items_in_batch=num_items_in_batch, shift_labels=shift_labels.contiguous()
                )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_alone(self, hidden_states, shift_labels, supervised_positions, num_items_in_batch, reduce_loss) -> torch.Tensor:
        if shift_labels is None:
            raise ValueError("skip_logits returns the loss alone, which needs labels. Pass labels or shift_labels.")
        softcap = self.config.final_logit_softcapping
        loss = self.lm_head(hidden_states, shift_labels, softcap, supervised_positions, reduce_loss)
        if not reduce_loss:
            return loss
        return loss / ((shift_labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits, cap = self.lm_head(hidden_states).float(), self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """Return what the residual stream is held in: the autocast dtype where autocast is on, else the weights' own."""
    device = hidden_states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype


def _window_bites(window: int | None, hidden_states: torch.Tensor, past_key_values: Cache | None) -> bool:
    """Tell whether some query may have more keys before it than the window lets it see."""
    if window is None:
        return False
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    return isinstance(seen, torch.Tensor) or seen + hidden_states.shape[1] > window


@cache
def _compiled(function: Callable, memory_budget: float) -> Callable:
    """Compile once for all models: a model that held the compiled function could not be saved by torch, and its copies would run it."""

    def inductor(graph, inputs):
        from torch._inductor.compile_fx import compile_fx  # takes most of a second to import, and few programs compile

        with functorch_config.patch(activation_memory_budget=memory_budget):
            return compile_fx(graph, inputs)

    return torch.compile(function, dynamic=False, backend=inductor)


__all__ = ["GPTForCausalLM", "GPTModel", "GPTPreTrainedModel", "varlen_attention_forward"]
