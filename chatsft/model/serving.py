"""What an inference engine (vLLM, SGLang, continuous batching) can carry of a nanochat GPT: the architecture of October 2025."""

from transformers import PreTrainedConfig

ENGINES = ("vllm", "sglang")
"""Names of the attention under which engines build a model."""

OBSTACLES = {
    "smear": "smear needs the id of the previous token, which an engine that keeps only keys and values does not hand in",
    "value_embedding_layers": "value embeddings look every token up by id in many layers, and parts of a model see hidden states only",
    "layer_windows": "windows of single layers have no name that engines read, so each layer would see everything",
    "residual_scaling": "residual scaling adds the initial embedding in every layer, which is not passed on from one part to the next",
    "backout": "backout subtracts the output of the middle layer, which is not passed on from one part to the next",
    "vision_config": "images are put in place of the embeddings of their tokens, which engines do only for models that they know",
}
"""Fields of the configuration that are lost where an engine holds the keys or cuts the model into parts, and why."""


def engine_obstacles(config: PreTrainedConfig) -> dict[str, str]:
    """List the features of a model that no engine can carry, with the reasons; none for the architecture of October 2025."""
    return {feature: reason for feature, reason in OBSTACLES.items() if vars(config).get(feature)}


def check_engine(config: PreTrainedConfig) -> None:
    """Refuse a model that an engine would run without some of its features, and without a word."""
    obstacles = engine_obstacles(config)
    if obstacles:
        features, reasons = ", ".join(obstacles), "; ".join(obstacles.values())
        raise ValueError(
            f"This model has {features}, which vLLM, SGLang and continuous batching cannot carry: {reasons}. "
            "Use model.generate(), the text-generation pipeline or python -m chatsft.serve instead."
        )


def runs_in_engine(config: PreTrainedConfig, kwargs: dict) -> bool:
    """Tell from the arguments of a forward pass whether an engine runs the model, and refuse a model that it cannot carry.

    vLLM and SGLang hand in attention_instances, continuous batching its own cache. They tell flattened requests apart themselves.
    """
    is_engine = "attention_instances" in kwargs or kwargs.get("cache") is not None
    if is_engine:
        check_engine(config)
    return is_engine
