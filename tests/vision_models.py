"""A small model that reads images, and pictures for it."""

import base64
import io
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.loading import load_tokenizer
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.modeling_gpt_vision import GPTForConditionalGeneration
from chatsft.model.processing_gpt import GPTProcessor
from chatsft.model.vision import add_encoder, add_image_tokens, load_processor

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"
NUM_IMAGE_TOKENS = 4
LATER = {
    "rope_theta": 100000.0,
    "query_key_scale": 1.2,
    "layer_windows": [24, 49],
    "value_embedding_layers": [1],
    "residual_scaling": True,
    "smear": True,
    "backout": True,
}
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220), "yellow": (230, 210, 40)}


def save_encoder(folder: Path) -> str:
    """Save an encoder that makes 2 x 2 vectors of an image, as SigLIP would."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, vision_use_head=False, **sizes)).save_pretrained(folder)
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def build_text_model(generation: int = 2025, hidden_size: int = 32, std: float = 0.2) -> GPTForCausalLM:
    """Build a model with no weight at zero."""
    sizes = {"vocab_size": 4096, "hidden_size": hidden_size, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(2)
    model = GPTForCausalLM(GPTConfig(**sizes, max_position_embeddings=128, **(LATER if generation == 2026 else {}))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def save_text_model(folder: Path, generation: int = 2025, **options) -> str:
    build_text_model(generation, **options).save_pretrained(folder)
    load_tokenizer(str(QUICKSTART)).save_pretrained(folder)
    return str(folder)


def build_vision_model(encoder: str, generation: int = 2025) -> tuple[GPTForConditionalGeneration, GPTProcessor]:
    tokenizer = load_tokenizer(str(QUICKSTART))
    add_image_tokens(tokenizer, encoder)
    torch.manual_seed(3)
    model = add_encoder(build_text_model(generation), tokenizer, encoder)
    return model, load_processor(tokenizer, encoder)


def save_square(path: Path, colour: str, left: int = 4, size: int = 8) -> str:
    image = Image.new("RGB", (16, 16), "white")
    image.paste(COLOURS[colour], (left, 2, left + size, 2 + size))
    image.save(path)
    return str(path)


def data_url(path: str) -> str:
    content = io.BytesIO(Path(path).read_bytes()).getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def ask(*urls: str, text: str = "What colour is it?") -> dict:
    """Make a user message that shows images."""
    return {"role": "user", "content": [*({"type": "image", "url": url} for url in urls), {"type": "text", "text": text}]}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}
