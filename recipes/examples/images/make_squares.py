"""Draw squares of four colours, write conversations about them, and save a small vision encoder with random weights."""

import json
import random

import torch
from PIL import Image, ImageDraw
from transformers import SiglipVisionConfig, SiglipVisionModel

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220), "yellow": (230, 210, 40)}


def draw_square(colour: str, draw: random.Random) -> Image.Image:
    """Draw a square of any size, anywhere, on white or grey."""
    image = Image.new("RGB", (32, 32), draw.choice(["white", "lightgrey", "grey"]))
    left, top, size = draw.randrange(16), draw.randrange(16), draw.randrange(8, 16)
    ImageDraw.Draw(image).rectangle([left, top, left + size, top + size], fill=COLOURS[colour])
    return image


def save_conversations(split: str, num: int, draw: random.Random) -> None:
    """Write split.jsonl and the pictures it names."""
    with open(f"{split}.jsonl", "w") as file:
        for index in range(num):
            colour, name = draw.choice(list(COLOURS)), f"{split}_{index}.png"
            draw_square(colour, draw).save(name)
            question = [{"type": "image", "url": name}, {"type": "text", "text": "What colour is the square?"}]
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {colour}."}]
            file.write(json.dumps({"messages": messages}) + "\n")


def save_encoder(folder: str) -> None:
    """Save an encoder of one layer, in the form of SigLIP's."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, vision_use_head=False, **sizes)).save_pretrained(folder)
    with open(f"{folder}/preprocessor_config.json", "w") as file:
        json.dump({"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}, file)


if __name__ == "__main__":
    draw = random.Random(0)
    save_conversations("train", 320, draw)
    save_conversations("test", 100, draw)
    save_encoder("encoder")
    print("Wrote train.jsonl, test.jsonl, their pictures and the encoder")
