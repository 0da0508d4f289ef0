"""Configuration of a nanochat GPT that reads images."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from .configuration_gpt import GPTConfig


class GPTVisionConfig(GPTConfig):
    """Describe a nanochat GPT with a vision encoder in front of it: all fields of the GPT, and two more.

    Args:
        vision_config: the encoder, any vision model of transformers that gives one vector a patch.
        image_token_id: the token whose embeddings are replaced by what the encoder saw.
    """

    model_type = "nanochat_gpt_vision"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.vision_config, dict):
            self.vision_config = AutoConfig.for_model(**self.vision_config)
        super().__post_init__(**kwargs)


__all__ = ["GPTVisionConfig"]
