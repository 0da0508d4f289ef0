"""Chat fine-tuning for nanochat models inside the Hugging Face ecosystem."""

__version__ = "0.1.0"
