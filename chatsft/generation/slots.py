"""The places that rows are generated in: what the device keeps of each row, so that many steps run without asking the host."""

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

TOKEN, PREVIOUS, LENGTH, END, HALTED, STEPS = FIELDS = range(6)
TRACE_STEPS = 64
"""Steps whose tokens the device keeps until the host has read them."""


class Slots:
    """The state of every row on the device, moved by one step at a time.

    A row halts by itself at a stop token and at its end, and stays exactly as it is until the host, which may look as late as it
    likes, gives the slot to another row or lets the row go on. So nothing is ever taken back.

    Attributes:
        fields: (6, slots) int32: the token to be fed next and the one fed before it; the number of cached tokens, which is the position
            of the token to be fed; the position at which the row must end; whether it has halted; steps made, halted ones too.
        planned: (slots, capacity) int32, by position: the id that must come there, -1 where the model chooses.
        stops: (vocabulary) bool: the tokens that halt a row.
        trace: (64, slots) int32: the tokens of the last steps, -1 where a row had halted.
    """

    def __init__(self, num_slots: int, capacity: int, vocab_size: int, device: torch.device):
        self.num_slots, self.capacity = num_slots, capacity
        self.fields = torch.zeros(len(FIELDS), num_slots, dtype=torch.int32, device=device)
        self.planned = torch.full((num_slots, capacity), -1, dtype=torch.int32, device=device)
        self.stops = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.trace = torch.full((TRACE_STEPS, num_slots), -1, dtype=torch.int32, device=device)
        self.rows = torch.arange(num_slots, device=device)
        self.fields[HALTED] = 1

    def clear(self, stops: set[int]) -> None:
        """Halt every slot, forget its row, and set the stop tokens."""
        self.fields[TOKEN : END + 1] = 0
        self.fields[HALTED] = 1
        self.fields[STEPS] = 0
        self.stops.zero_()
        self.stops.index_fill_(0, self.upload([token for token in stops if 0 <= token < len(self.stops)]), True)

    def start(self, slots: list[int], prompts: list[list[int]], ends: list[int]) -> None:
        """Put rows whose prompts are cached, all but the last token, into slots and let them run."""
        columns = [
            [prompt[-1], prompt[-2] if len(prompt) > 1 else 0, len(prompt) - 1, end, 0] for prompt, end in zip(prompts, ends, strict=True)
        ]
        places = self.upload(slots)
        self.fields[:STEPS, places] = self.upload(columns).T.to(torch.int32)
        self.planned.index_fill_(0, places, -1)  # a number assigned by an index would be copied to the device, and waited for

    def resume(self, plans: dict[int, tuple[int, list[int]]]) -> None:
        """Let halted rows go on, each with the ids that are planned for it from a position on."""
        for slot, (position, ids) in plans.items():
            ids = ids[: self.capacity - position]
            self.planned[slot, position : position + len(ids)] = self.upload(ids).to(torch.int32)
        self.fields[HALTED].index_fill_(0, self.upload(list(plans)), 0)

    def advance(self, chosen: torch.Tensor) -> None:
        """Take in the tokens that the model chose: the one statement of what a step does to a row."""
        token, previous, length, end, halted, steps = self.fields
        position = length + 1
        planned = self.planned.gather(1, position.clamp(max=self.capacity - 1)[:, None].long())[:, 0]
        following = torch.where(planned >= 0, planned, chosen.to(torch.int32))
        runs = halted == 0
        self.trace[steps % TRACE_STEPS, self.rows] = torch.where(runs, following, -1)
        halts = self.stops[following.long()] | (position + 1 >= end)
        previous.copy_(torch.where(runs, token, previous))
        token.copy_(torch.where(runs, following, token))
        length.add_(runs)
        halted.copy_(~runs | halts)
        steps.add_(1)

    def upload(self, values: list) -> torch.Tensor:
        """Copy numbers to the device behind the steps that are under way, without waiting for those."""
        device = self.fields.device
        numbers = torch.from_numpy(np.array(values, dtype=np.int64))  # NumPy reads long lists several times as fast as torch
        return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


class SlotCache(Cache):
    """Keys and values of all slots, (slots, heads, capacity, head_dim) in each layer, every row at its own length.

    `filling` says which slots a forward pass over prompts fills from position 0 on; without it a pass is one step of all slots.
    """

    def __init__(self, config: PreTrainedConfig, slots: Slots, dtype: torch.dtype):
        self.slots = slots
        shape = (slots.num_slots, config.num_key_value_heads, slots.capacity, config.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=slots.fields.device) for _ in range(config.num_hidden_layers)] for _ in range(2)
        )
        self.layers = [None] * (config.num_hidden_layers + 1)  # the last stands for the previous ids, see model.positions
        self.filling: torch.Tensor | None = None
        self.bound = slots.capacity

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 1 where there is a previous id to smear with; the real lengths are the slots'."""
        return 0 if self.filling is not None else 1

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what a pass computed and return what it attends to; the layer after the last one hands out the previous ids."""
        if layer_idx == len(self.keys):
            return (key, value) if self.filling is not None else (self._previous_ids(), self._previous_ids())
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.filling is not None:
            keys[self.filling, :, : key.shape[2]] = key.to(keys.dtype)
            values[self.filling, :, : value.shape[2]] = value.to(values.dtype)
            return key, value
        length = self.slots.fields[LENGTH].long()
        keys[self.slots.rows, :, length] = key[:, :, 0].to(keys.dtype)
        values[self.slots.rows, :, length] = value[:, :, 0].to(values.dtype)
        return keys[:, :, : self.bound].to(key.dtype), values[:, :, : self.bound].to(value.dtype)

    def masks(self, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, torch.Tensor]:
        """Return for each window what a step of each slot may not see, as numbers to add to the scores, (slots, 1, 1, bound)."""
        age = self.slots.fields[LENGTH][:, None] - torch.arange(self.bound, device=self.slots.fields.device)
        hidden = {window: (age < 0) | (age >= (window or self.slots.capacity)) for window in windows}
        return {
            window: torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, torch.finfo(dtype).min)[:, None, None]
            for window, mask in hidden.items()
        }

    def _previous_ids(self) -> torch.Tensor:
        return self.slots.fields[PREVIOUS].long()[:, None, None, None]
