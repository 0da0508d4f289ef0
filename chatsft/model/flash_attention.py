"""The kernels of variable-length attention on a GPU: PyTorch's own, and FlashAttention 4 where it is installed.

Both take query, key and value of shape (tokens, heads, head_dim) in half precision and the bounds of the segments; `window` is how
many keys before its own position a query sees, -1 for all of them.
"""

import importlib
import importlib.util

import torch
from torch.nn.attention.varlen import varlen_attn

# The functions behind FlashAttention 4's autograd function, which torch.compile cannot look into; PyTorch's registry calls them too.
INTERFACE = "flash_attn.cute.interface"


def torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float, window: int
) -> torch.Tensor:
    """Attend within segments with the kernel that comes with PyTorch."""
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(window, 0))


def flash_4_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float, window: int
) -> torch.Tensor:
    """Attend within segments with FlashAttention 4 (package flash-attn-4), made for the Hopper and Blackwell generations."""
    return _forward(query, key, value, bounds, longest, scale, window)[0]


def has_flash_4() -> bool:
    """Tell whether FlashAttention 4 is installed, works with this PyTorch, and has a GPU it was made for."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in (9, 10):
        return False
    try:
        return importlib.util.find_spec(INTERFACE) is not None and importlib.import_module(INTERFACE) is not None
    except (ImportError, AttributeError, RuntimeError, OSError):  # no package, or one that does not fit what else is installed
        return False


def _window_arguments(window: int) -> dict:
    return {"causal": True} if window < 0 else {"causal": False, "window_size_left": window, "window_size_right": 0}


@torch.library.custom_op("chatsft::flash_4_forward", mutates_args=())
def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    kernels = importlib.import_module(INTERFACE)
    ranges = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": longest, "max_seqlen_k": longest}
    output, logsumexp = kernels._flash_attn_fwd(
        query, key, value, softmax_scale=scale, return_lse=True, **ranges, **_window_arguments(window)
    )[:2]
    return output, logsumexp


@_forward.register_fake
def _(query, key, value, bounds, longest, scale, window):
    return torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


@torch.library.custom_op("chatsft::flash_4_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kernels = importlib.import_module(INTERFACE)
    ranges = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": longest, "max_seqlen_k": longest}
    grads = kernels._flash_attn_bwd(
        query,
        key,
        value,
        output,
        grad,
        logsumexp,
        softmax_scale=scale,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **ranges,
        **_window_arguments(window),
    )
    return grads[0], grads[1], grads[2]


@_backward.register_fake
def _(grad, query, key, value, output, logsumexp, bounds, longest, scale, window):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx, inputs, output):
    query, key, value, bounds, ctx.longest, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output, bounds)


def _differentiate(ctx, grad, grad_logsumexp):
    grads = _backward(grad.contiguous(), *ctx.saved_tensors, ctx.longest, ctx.scale, ctx.window)
    return *grads, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)

__all__ = ["flash_4_varlen", "has_flash_4", "torch_varlen"]
