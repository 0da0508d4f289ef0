"""The nanochat GPT for transformers: configuration, model, tokenizer, checkpoints."""
