"""The tokenizer and the image processor of a model that reads images, as transformers' AutoProcessor gives them."""

from transformers import BatchEncoding, BatchFeature
from transformers.processing_utils import ProcessorMixin

from .conversation import image_urls, join_text_parts
from .images import read_image


class GPTProcessor(ProcessorMixin):
    """Turn conversations with images into input_ids and pixel_values."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def apply_chat_template(self, conversation: list, chat_template: str | None = None, tokenize: bool = False, **kwargs):
        """Do what GPTTokenizer.apply_chat_template does, with the pixel_values of the images where ids are asked for.

        Text never turns into special tokens, unlike in transformers' own way through the text of a template.
        """
        encoding = self.tokenizer.apply_chat_template(conversation, chat_template=chat_template, tokenize=tokenize, **kwargs)
        if not isinstance(encoding, BatchEncoding):
            return encoding
        is_batch = bool(conversation) and not isinstance(conversation[0], dict)
        urls = [url for chat in (conversation if is_batch else [conversation]) for url in image_urls(list(map(join_text_parts, chat)))]
        images = {"pixel_values": read_pixels(urls, self.image_processor)} if urls else {}
        return BatchFeature({**encoding, **images})


def read_pixels(urls: list[str], image_processor):
    """Read images and bring them to the encoder's size and scale: (images, channels, height, width)."""
    return image_processor([read_image(url) for url in urls], return_tensors="pt")["pixel_values"]


__all__ = ["GPTProcessor", "read_pixels"]
