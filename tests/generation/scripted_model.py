"""A model whose most likely next token follows a script, whatever it is given."""

import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class ScriptedConfig(PreTrainedConfig):
    model_type = "scripted"
    vocab_size: int = 4096
    max_position_embeddings: int = 256
    num_hidden_layers: int = 1


class ScriptedModel(PreTrainedModel, GenerationMixin):
    """Say `script[i]` at the i-th forward pass, in every row; the logits of everything else are lower by `margin`."""

    config_class = ScriptedConfig

    def __init__(self, script: list[int], margin: float = 1000.0):
        super().__init__(ScriptedConfig())
        self.script, self.margin, self.place = script, margin, 0
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # gives the model a device and a dtype

    def forward(self, input_ids, **kwargs):
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        logits[:, -1, self.script[min(self.place, len(self.script) - 1)]] = self.margin
        self.place += 1
        return CausalLMOutput(logits=logits)
