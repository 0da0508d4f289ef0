"""A nanochat GPT that reads images: a vision encoder, a projector, and the GPT as it is.

What the encoder makes of an image takes the place of the embeddings of its placeholder tokens. The tokens keep their ids, so value
embeddings look them up like any other, and without images the model is the GPT.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from .configuration_gpt_vision import GPTVisionConfig
from .modeling_gpt import GPTForCausalLM, GPTModel, norm


def blank_shape(config: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Return the shape of one image as an encoder takes it."""
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    return 1, config.num_channels, height, width


class GPTProjector(nn.Module):
    """Two linear layers from the encoder's width to the trunk's, as in LLaVA 1.5 (arXiv 2310.03744), on normed vectors."""

    def __init__(self, config: GPTVisionConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.hidden_size, bias=False)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(norm(features))))


class GPTVisionModel(GPTModel):
    """The trunk with an encoder in front of it."""

    config_class = GPTVisionConfig

    def __init__(self, config: GPTVisionConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.projector = GPTProjector(config)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turn (images, channels, height, width) into (images, tokens of an image, width of the trunk)."""
        pixel_values = pixel_values.to(self.vision_tower.dtype)
        return self.projector(self.vision_tower(pixel_values=pixel_values).last_hidden_state)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the trunk.

        Args:
            pixel_values: (images, channels, height, width), the images of all rows in the order of their placeholders.
            kwargs: what GPTModel takes.

        Raises:
            ValueError: where there are more placeholders than the images fill, or fewer.
        """
        if input_ids is not None and inputs_embeds is None and (input_ids.shape[1] > 1 or pixel_values is not None):
            inputs_embeds = self._embed(input_ids, pixel_values)
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

    def _embed(self, input_ids: torch.LongTensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Embed tokens and images.

        In training, and among several processes, the encoder runs even where there is no image: those that share weights or gradients
        have to take the same way.
        """
        embeddings, is_image = self.embed_tokens(input_ids), input_ids == self.config.image_token_id
        features = embeddings[:0, :0]
        if pixel_values is not None:
            features = self.get_image_features(pixel_values)
        elif self.training or torch.distributed.is_initialized():
            features = self.get_image_features(self._blank_image())[:0]
        num_vectors = features.shape[0] * features.shape[1]
        if not torch.compiler.is_compiling() and (num_placeholders := int(is_image.sum())) != num_vectors:
            raise ValueError(
                f"input_ids hold {num_placeholders} image placeholders, but the images give {num_vectors} vectors. "
                "Pass input_ids and pixel_values as GPTProcessor returns them, nothing cut off."
            )
        return embeddings.masked_scatter(is_image[..., None], features.to(embeddings.dtype))

    def _blank_image(self) -> torch.Tensor:
        return torch.zeros(blank_shape(self.config.vision_config), device=self.device)


class GPTForConditionalGeneration(GPTForCausalLM):
    """GPTForCausalLM that takes `pixel_values` beside input_ids, also in `generate()`."""

    config_class = GPTVisionConfig
    trunk_class = GPTVisionModel
    auto_map = {  # noqa: RUF012
        "AutoModel": "modeling_gpt_vision.GPTVisionModel",
        "AutoModelForImageTextToText": "modeling_gpt_vision.GPTForConditionalGeneration",
    }

    def __init__(self, config: GPTVisionConfig):
        super().__init__(config)
        kinds = {type(module).__name__ for module in self.modules()}  # encoders name layers that only some of them have
        self._no_split_modules = [name for name in self._no_split_modules if name in kinds]

    def prepare_inputs_for_generation(self, input_ids, pixel_values=None, is_first_iteration=False, **kwargs) -> dict:
        """Hand images to the pass that reads the prompt, and to every pass where there is no cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if pixel_values is not None and (is_first_iteration or not kwargs.get("use_cache", True)):
            inputs["pixel_values"] = pixel_values
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, pixel_values=None, **kwargs):
        """Repeat the images of each row with the row: transformers would repeat each image, which mixes rows with several."""
        if pixel_values is not None and expand_size > 1:
            per_row = (input_ids == self.config.image_token_id).sum(1)
            per_row = per_row * len(pixel_values) // per_row.sum()
            pixel_values = torch.cat([images for images in pixel_values.split(per_row.tolist()) for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs if pixel_values is None else kwargs | {"pixel_values": pixel_values}


__all__ = ["GPTForConditionalGeneration", "GPTVisionConfig", "GPTVisionModel", "blank_shape"]
