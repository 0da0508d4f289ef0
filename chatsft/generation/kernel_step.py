"""One decoding step of a nanochat GPT as a chain of kernels over fixed buffers, captured in CUDA graphs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from chatsft.generation.sampling import Sampling
from chatsft.generation.slots import HALTED, SlotCache
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.rotary import rotary_embeddings

try:
    import triton

    from chatsft.generation import attention_kernel, kernels
except ImportError:  # comes with torch for CUDA; elsewhere the model's own forward pass serves
    triton = None

STEPS_A_GRAPH = 4
MAX_GRAPHS = 8
"""Ways to sample that graphs are kept for, each with memory of its own."""
MULTIPROCESSORS = 132
"""Of an H100 or H200: few rows are multiplied by that many programs with many registers, or twice as many with half of them."""
PROGRAMS = 512
"""Attention splits the cached keys until it has about so many programs."""
MAX_SPLITS = 16
KEY_BYTES = 8192
"""What one program of attention takes of the keys at a time."""
MIN_STAGES = 3
FEW_ROWS, MANY_OUTPUTS = 32, 16384
"""Up to so many rows, products but for those with so many outputs are limited by how soon they begin to load."""
NOTHING_AFTER = dict.fromkeys(("NORM", "SQUARED_RELU", "RESIDUAL", "SAVE_MIDDLE", "BACKOUT", "RESCALE", "LOGITS"), False) | {"SOFTCAP": 0.0}
SHARED_BYTES = 96 * 1024
"""What the loads under way of one program may take of a multiprocessor's shared memory, 100 KiB on the smallest cards."""


@dataclass(frozen=True)
class Tile:
    """What one program of a matrix product works on at a time, with how many warps, and how many loads are on their way."""

    num_outputs: int
    num_inputs: int
    num_warps: int = 4
    num_stages: int = 3
    preload: int = 0
    """Blocks of weights loaded before the kernel before has ended; with any, weights and inputs go straight into registers."""
    ahead: int = 0
    """Blocks of inputs loaded ahead into registers."""
    splits: int = 1
    """Programs that share a tile's inputs."""
    max_registers: int | None = None


# By number of outputs, up to: few outputs need narrow tiles, so that all multiprocessors read at once.
TILES = {2560: Tile(16, 256, num_stages=4), 4096: Tile(32, 128), 2**31: Tile(64, 128)}
# One row is multiplied without matrix units.
ROW_TILES = {4096: Tile(4, 1024), 2**31: Tile(2, 512, num_warps=2)}
LONG_ROW_TILE = Tile(4, 2048, num_warps=8)


def has_kernels(device: torch.device) -> bool:
    """Say whether the kernels run on a device: an NVIDIA GPU with bfloat16 matrix units, and Triton installed."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return is_nvidia and triton is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_tile(num_rows: int, num_outputs: int, num_inputs: int, itemsize: int) -> Tile:
    """Return the tile for a product, narrowed along the inputs and with fewer loads under way until it fits into shared memory.

    >>> choose_tile(1, 3840, 1280, 2)
    Tile(num_outputs=4, num_inputs=1024, num_warps=4, num_stages=3, preload=0, ahead=0, splits=1, max_registers=None)
    >>> choose_tile(128, 1280, 5120, 2)
    Tile(num_outputs=16, num_inputs=64, num_warps=4, num_stages=4, preload=0, ahead=0, splits=1, max_registers=None)
    """
    if 1 < num_rows <= FEW_ROWS and itemsize == 2 and num_outputs <= MANY_OUTPUTS:
        return _tile_for_few_rows(num_outputs, num_inputs)
    if num_rows == 1:
        tile = LONG_ROW_TILE if num_inputs > 2048 else _by_outputs(ROW_TILES, num_outputs)
        return replace(tile, num_inputs=min(tile.num_inputs, _power(num_inputs)))
    tile = _by_outputs(TILES, num_outputs)
    width = min(tile.num_inputs, max(16, _power(num_inputs)))
    line = (_row_block(num_rows) + tile.num_outputs) * itemsize
    while line * width * MIN_STAGES > SHARED_BYTES:
        width //= 2
    return replace(tile, num_inputs=width, num_stages=min(tile.num_stages, SHARED_BYTES // (line * width)))


def _tile_for_few_rows(num_outputs: int, num_inputs: int) -> Tile:
    """Return a tile that leaves enough registers for all programs to be there at once, and to load their weights before they may begin.

    >>> _tile_for_few_rows(1280, 1280)
    Tile(num_outputs=32, num_inputs=256, num_warps=8, num_stages=1, preload=5, ahead=2, splits=1, max_registers=168)
    >>> _tile_for_few_rows(1280, 5120)
    Tile(num_outputs=32, num_inputs=256, num_warps=8, num_stages=1, preload=4, ahead=0, splits=5, max_registers=128)
    """
    width, block = 32, 256
    tiles = -(-num_outputs // width)
    most = max(1, min(num_inputs // 1024, 2 * MULTIPROCESSORS // tiles))
    splits = next((count for count in range(most, 1, -1) if num_inputs % (32 * count) == 0), 1)
    is_alone = tiles * splits <= MULTIPROCESSORS
    blocks = -(-num_inputs // splits // block)
    return Tile(width, block, 8, 1, min(5, blocks), min(2, blocks) if is_alone else 0, splits, 168 if is_alone else 128)


def _by_outputs(tiles: dict[int, Tile], num_outputs: int) -> Tile:
    return next(tile for most, tile in tiles.items() if num_outputs <= most)


def choose_splits(num_pairs: int) -> int:
    """Return among how many programs the cached keys of a row and head are divided.

    >>> choose_splits(10), choose_splits(80), choose_splits(320)
    (16, 4, 1)
    """
    return max(1, min(MAX_SPLITS, _power(PROGRAMS // num_pairs + 1) // 2))


def choose_keys(head_dim: int, itemsize: int) -> int:
    """Return how many keys a program of attention takes at a time.

    >>> choose_keys(128, 2), choose_keys(128, 4), choose_keys(64, 2)
    (32, 16, 32)
    """
    return max(8, min(32, KEY_BYTES // (_power(head_dim) * itemsize)))


def has_bounded_scores(config: GPTConfig) -> bool:
    """Say whether exponentials of attention's scores can be summed as they are.

    Queries and keys are normed, so a score is at most query_key_scale**2 * sqrt(head_dim); up to 64, sums stay within float32.

    >>> has_bounded_scores(GPTConfig(query_key_scale=1.2)), has_bounded_scores(GPTConfig(query_key_scale=12.0))
    (True, False)
    """
    return config.query_key_scale**2 * config.head_dim**0.5 <= 64


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is called with."""

    kernel: Callable
    grid: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]
    constants: dict[str, bool | float]

    def __call__(self) -> object:
        """Launch it; return what Triton compiled."""
        return self.kernel[self.grid](*self.tensors, **self.constants, launch_pdl=self.constants["EARLY"])


_capturing = threading.Lock()
"""Two captures at once would share a random generator, which takes part in one at a time."""


class KernelStep:
    """The step over one cache.

    It reads the model's weights where they are, so it sees what an optimizer changes in place. It does not hold the model itself.
    """

    def __init__(self, model: GPTForCausalLM, cache: SlotCache, dtype: torch.dtype):
        self.slots = cache.slots
        self.device = self.slots.fields.device
        self.chain = KernelChain(model, cache, dtype)
        self.graphs: dict[Sampling, torch.cuda.CUDAGraph] = {}

    def __call__(self, sampling: Sampling, num_steps: int) -> None:
        """Launch `num_steps` steps, a multiple of those in a graph."""
        if sampling not in self.graphs:
            if len(self.graphs) == MAX_GRAPHS:
                self.graphs.clear()
            with _capturing:
                self.graphs[sampling] = self._capture(sampling)
        for _ in range(num_steps // STEPS_A_GRAPH):
            self.graphs[sampling].replay()

    def once(self, sampling: Sampling) -> None:
        """Launch one step, kernel by kernel."""
        scores = self.chain.logits()
        self.chain.advance(sampling.choose(scores) if sampling.temperature else None)()

    def _capture(self, sampling: Sampling) -> torch.cuda.CUDAGraph:
        """Compile by a run in which every row is halted, which moves nothing, then record; fields and random state stay as they were."""
        fields, random_state = self.slots.fields.clone(), torch.cuda.get_rng_state(self.device)
        self.slots.fields[HALTED] = 1
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.once(sampling)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # other threads may work meanwhile
            for _ in range(STEPS_A_GRAPH):
                self.once(sampling)
        self.slots.fields.copy_(fields)
        torch.cuda.set_rng_state(random_state, self.device)
        return graph


class KernelChain:
    """The kernels of a step in their order, bound to weights and buffers."""

    def __init__(self, model: GPTForCausalLM, cache: SlotCache, dtype: torch.dtype):
        self.config, self.cache, self.dtype = model.config, cache, dtype
        self.num_rows, self.device = cache.slots.num_slots, cache.slots.fields.device
        self.hidden, self.initial, self.middle, self.attended = (self._buffer(self.config.hidden_size) for _ in range(4))
        self.inner = self._buffer(self.config.intermediate_size)
        self.qkv = self._buffer((self.config.num_attention_heads + 2 * self.config.num_key_value_heads) * self.config.head_dim)
        self.scores = self._buffer(self.config.vocab_size, torch.float32)
        self.tiles = self._tiles_of(self.config.hidden_size, model.model.layers[0].self_attn.o_proj)
        self.squares = torch.empty(self.tiles["TILES"], self.num_rows, dtype=torch.float32, device=self.device)
        self.choice = self._tiles_of(self.config.vocab_size, model.lm_head)
        self.maxima = self._buffer(self.choice["TILES"], torch.float32)
        self.early = {"EARLY": can_launch_early(self.device)}
        self.splits = choose_splits(self.num_rows * self.config.num_attention_heads)
        self.shared: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        with torch.no_grad():
            angles = rotary_embeddings(torch.arange(cache.slots.capacity, device=self.device), self.config)
        self.cosines, self.sines = (table.float().flatten(1).contiguous() for table in angles)
        self.launches = [self._embed(model), *self._layers(model), self._head(model)]

    def logits(self) -> torch.Tensor:
        """Feed every row's token; return the float32 logits, (slots, vocabulary), valid until the next step."""
        for launch in self.launches:
            launch()
        return self.scores

    def advance(self, chosen: torch.Tensor | None) -> Launch:
        """Return what moves every row by the token chosen for it, without one by the likeliest."""
        slots = self.cache.slots
        tensors = (
            slots.fields,
            slots.planned,
            slots.stops,
            slots.trace,
            slots.trace if chosen is None else chosen,
            self.scores,
            self.maxima,
        )
        constants = {
            "M": self.num_rows,
            "CAPACITY": slots.capacity,
            "GREEDY": chosen is None,
            "VOCABULARY": self.config.vocab_size,
            "BLOCK_N": self.launches[-1].constants["BLOCK_N"],
            "num_warps": max(4, min(16, _power(self.choice["TILES"]) // 512)),
        }
        return Launch(kernels.advance, (self.num_rows,), tensors, constants | self.choice | self.early)

    def _embed(self, model: GPTForCausalLM) -> Launch:
        trunk, config = model.model, self.config
        tensors = (
            self.cache.slots.fields,
            trunk.embed_tokens.weight,
            trunk.smear_gate.weight if config.smear else self.hidden,
            trunk.smear_lambda if config.smear else self.hidden,
            *self._lambdas(model, 0),
            self.initial,
            self.hidden,
            self.squares,
        )
        constants = {
            "M": self.num_rows,
            "WIDTH": config.hidden_size,
            "BLOCK": _power(config.hidden_size),
            "SMEAR": config.smear,
            "SMEAR_SIZE": config.smear_gate_size,
            "RESCALE": config.residual_scaling,
        }
        return Launch(kernels.embed, (self.num_rows,), tensors, constants | self.tiles | self.early)

    def _layers(self, model: GPTForCausalLM) -> list[Launch]:
        config, launches = self.config, []
        for index, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            is_last = index == config.num_hidden_layers - 1
            launches += [
                self._project(self.hidden, [attention.q_proj, attention.k_proj, attention.v_proj], self.qkv, NORM=True),
                self._attend(model, index),
                self._project(self.attended, [attention.o_proj], self.hidden, RESIDUAL=True),
                self._project(self.hidden, [mlp.up_proj], self.inner, NORM=True, SQUARED_RELU=True),
                self._project(
                    self.inner,
                    [mlp.down_proj],
                    self.hidden,
                    self._lambdas(model, index + 1),
                    model.model.backout_lambda if config.backout else None,
                    RESIDUAL=True,
                    SAVE_MIDDLE=config.backout and index == config.num_hidden_layers // 2,
                    BACKOUT=config.backout and is_last,
                    RESCALE=config.residual_scaling and not is_last,
                ),
            ]
        return launches

    def _head(self, model: GPTForCausalLM) -> Launch:
        return self._project(
            self.hidden, [model.lm_head], self.scores, NORM=True, LOGITS=True, SOFTCAP=self.config.final_logit_softcapping or 0.0
        )

    def _project(
        self,
        x: torch.Tensor,
        matrices: list[nn.Linear],
        out: torch.Tensor,
        lambdas: tuple[torch.Tensor, torch.Tensor] | None = None,
        backout_lambda: torch.Tensor | None = None,
        **after: bool | float,
    ) -> Launch:
        """Bind a product with one matrix, or with three of which the last two have one size."""
        weights = [matrix.weight for matrix in matrices]
        num_outputs, num_inputs = out.shape[1], x.shape[1]
        tile = choose_tile(self.num_rows, num_outputs, num_inputs, weights[0].element_size())
        num_tiles = -(-max(len(weight) for weight in weights) // tile.num_outputs)
        tensors = (
            x,
            weights[0],
            weights[-2] if len(weights) > 1 else weights[0],
            weights[-1],
            out,
            *(lambdas or (x, x)),
            self.initial,
            x if backout_lambda is None else backout_lambda,
            self.middle,
            self.squares,
            self.maxima,
            *self._shared(len(weights) * num_tiles, tile.splits * _row_block(self.num_rows) * tile.num_outputs, tile.splits),
        )
        constants = {
            "M": self.num_rows,
            "N_0": len(weights[0]),
            "N_REST": len(weights[-1]) if len(weights) > 1 else 0,
            "K": num_inputs,
            "BLOCK_M": _row_block(self.num_rows),
            "BLOCK_N": tile.num_outputs,
            "BLOCK_K": tile.num_inputs,
            "PRELOAD": tile.preload,
            "AHEAD": tile.ahead,
            "SPLITS": tile.splits,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            "maxnreg": tile.max_registers,
        }
        constants |= NOTHING_AFTER | after | self.tiles | self.early
        return Launch(kernels.project, (num_tiles, len(weights), tile.splits), tensors, constants)

    def _attend(self, model: GPTForCausalLM, index: int) -> Launch:
        config, attention, slots = self.config, model.model.layers[index].self_attn, self.cache.slots
        has_embedding, block_half = index in (config.value_embedding_layers or []), _power(config.head_dim // 2)
        tensors = (
            slots.fields,
            self.qkv,
            self.hidden,
            attention.value_gate.weight if has_embedding else self.hidden,
            model.model.value_embeddings[str(index)].weight if has_embedding else self.hidden,
            self.cosines,
            self.sines,
            self.cache.keys[index],
            self.cache.values[index],
            self.attended,
            *self._shared(self.num_rows * config.num_attention_heads, self.splits * (2 * block_half + 1), self.splits),
            self.squares,
        )
        constants = {
            "M": self.num_rows,
            "CAPACITY": slots.capacity,
            "HEADS": config.num_attention_heads,
            "KV_HEADS": config.num_key_value_heads,
            "D": config.head_dim,
            "WINDOW": attention.sliding_window or 2**30,
            "QK_SCALE": config.query_key_scale,
            "SCALE": attention.scaling,
            "VALUE_EMBEDDING": has_embedding,
            "GATE_SIZE": config.value_embedding_gate_size,
            "GATE_RANGE": config.value_embedding_gate_range,
            "WIDTH": config.hidden_size,
            "BLOCK_H": block_half,
            "BLOCK_T": choose_keys(config.head_dim, self.dtype.itemsize),
            "SPLITS": self.splits,
        }
        return Launch(
            attention_kernel.attend, (self.num_rows, config.num_attention_heads, self.splits), tensors, constants | self.tiles | self.early
        )

    def _lambdas(self, model: GPTForCausalLM, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual factors of a layer, each a view of one number; placeholders where there are none."""
        if not self.config.residual_scaling or index == self.config.num_hidden_layers:
            return self.hidden, self.hidden
        return model.model.resid_lambdas[index:], model.model.x0_lambdas[index:]

    def _tiles_of(self, num_outputs: int, matrix: nn.Linear) -> dict[str, int]:
        """Return into how many tiles a product's outputs are divided."""
        tile = choose_tile(self.num_rows, num_outputs, matrix.in_features, matrix.weight.element_size())
        return {"TILES": -(-num_outputs // tile.num_outputs)}

    def _shared(self, count: int, size: int, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where programs leave their shares of `count` results, and count themselves in; all launches of a size use the same."""
        key = (count, size) if splits > 1 else (1, 1)  # not used then
        if key not in self.shared:
            shares = torch.empty(count * size, dtype=torch.float32, device=self.device)
            self.shared[key] = shares, torch.zeros(count, dtype=torch.int32, device=self.device)
        return self.shared[key]

    def _buffer(self, width: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(self.num_rows, width, dtype=dtype or self.dtype, device=self.device)


def can_launch_early(device: torch.device) -> bool:
    """Say whether every kernel may start while the one before still runs, load its weights, and wait there (Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _power(size: int) -> int:
    """Return the next power of two.

    >>> _power(48), _power(64)
    (64, 64)
    """
    return 1 << (size - 1).bit_length()


def _row_block(num_rows: int) -> int:
    return 1 if num_rows == 1 else max(16, _power(num_rows))
