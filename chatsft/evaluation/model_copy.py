"""A copy of a model in training, to evaluate in its place."""

import copy

import torch
from accelerate.utils.modeling import is_peft_model
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


@torch.no_grad()
def copy_for_evaluation(model: nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    """Copy a model that is being trained, in the precision it is evaluated in, as it would be loaded from its checkpoint.

    Whatever evaluation does (caches, captured graphs, another attention) stays out of training then; autocast, under which every
    decoded token would round all weights anew, is not needed; and ranks that share the weights (FSDP) can each go their own way. All
    ranks call this together.

    Args:
        model: the model or, with its adapter, a PeftModel, whose copy has the adapter merged in.
        dtype: of the copy's weights.
    """
    if is_peft_model(model):
        return _rounded_copy(model, dtype).merge_and_unload().eval()
    with torch.device("meta"):
        copied = type(model)(copy.deepcopy(model.config))
    weights = {name: _whole(tensor).to(dtype, copy=True) for name, tensor in model.state_dict().items()}
    copied.load_state_dict(weights, assign=True)
    for module, source in zip(copied.modules(), model.modules(), strict=True):
        for name in module._non_persistent_buffers_set:  # not in the state dict: rotary frequencies, in other models than ours
            setattr(module, name, getattr(source, name).clone())
    return copied.eval()


@torch.no_grad()
def refresh_copy(copied: PreTrainedModel, model: PreTrainedModel) -> None:
    """Bring a copy up to date in place, so that what was captured or cached for it goes on serving. All ranks call this together."""
    weights = model.state_dict()
    for name, tensor in copied.state_dict().items():
        tensor.copy_(_whole(weights[name]))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is split over ranks in full."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _rounded_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a model without copying its weights in their own precision first."""
    known = {id(weight): nn.Parameter(weight.detach().to(dtype, copy=True), weight.requires_grad) for weight in model.parameters()}
    return copy.deepcopy(model, known)
