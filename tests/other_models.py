"""Tiny random models of other families, with a tokenizer and a chat template, in a folder."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    NanoChatConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with markers; UNMARKED is the same without them."""

UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")

TEXTS = ("What is two and three? It is five.", "Name a colour of the sky. Blue, and grey when it rains.", "user assistant system")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "nanochat": NanoChatConfig(**SIZES, num_key_value_heads=2, final_logit_softcapping=15.0),
}

CONVERSATIONS = [
    [("user", f"What is {a} and {b}?"), ("assistant", f"It is {a + b}."), ("user", "Sure?"), ("assistant", "Yes, five by five.")]
    for a in range(2, 6)
    for b in (1, 2, 30)
]


def build_tokenizer(chat_template: str | None = UNMARKED) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[2])
    tokenizer.chat_template = chat_template
    return tokenizer


def save_model(family: str, folder: Path, chat_template: str | None = UNMARKED) -> Path:
    """Save a model of a family with its tokenizer; weights are larger than usual, so that logits differ clearly."""
    tokenizer = build_tokenizer(chat_template)
    tokenizer.save_pretrained(folder)
    config = type(FAMILIES[family])(
        **FAMILIES[family].to_dict() | {"vocab_size": len(tokenizer), "pad_token_id": None} | special_ids(tokenizer)
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model.save_pretrained(folder)
    return folder


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def save_conversations(path: Path) -> Path:
    rows = [[{"role": role, "content": text} for role, text in conversation] for conversation in CONVERSATIONS]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    return path


def save_recipe(folder: Path, model: Path, **settings) -> Path:
    """Write a recipe of three steps of four conversations."""
    recipe = {
        "model_name_or_path": str(model),
        "train_mixture": [{"path": str(save_conversations(folder / "chat.jsonl"))}],
        "max_length": 128,
        "packing": True,
        "target_examples_per_step": 4,
        "per_device_train_batch_size": 1,
        "matrix_lr": 0.01,
        "embedding_lr": 0.01,
        "unembedding_lr": 0.001,
        "max_steps": 3,
        "use_cpu": True,
        "output_dir": str(folder / "out"),
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe | settings))
    return path
