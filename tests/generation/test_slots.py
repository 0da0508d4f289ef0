"""What a step does to a row: one token on, a plan that is followed, a halt that changes nothing."""

import torch

from chatsft.generation.slots import HALTED, LENGTH, PREVIOUS, STEPS, TOKEN, Slots

STOP = 9


def make_slots() -> Slots:
    slots = Slots(num_slots=2, capacity=8, vocab_size=10, device=torch.device("cpu"))
    slots.clear({STOP})
    return slots


def step(slots: Slots, *chosen: int) -> list[int]:
    """Make a step; return the line of the trace that it wrote."""
    line = int(slots.fields[STEPS, 0])
    slots.advance(torch.tensor(chosen))
    return slots.trace[line].tolist()


def test_a_row_moves_by_one_token_a_step():
    slots = make_slots()
    slots.start([1], [[4, 5, 6]], [8])
    assert step(slots, 0, 7) == [-1, 7]
    assert step(slots, 0, 8) == [-1, 8]
    assert slots.fields[[TOKEN, PREVIOUS, LENGTH, HALTED], 1].tolist() == [8, 7, 4, 0]


def test_a_row_halts_after_a_stop_token_and_stays_as_it_is():
    slots = make_slots()
    slots.start([0], [[4]], [8])
    assert step(slots, STOP, 0) == [STOP, -1]
    before = slots.fields[:STEPS].clone()
    assert step(slots, 3, 3) == [-1, -1]
    assert torch.equal(slots.fields[:STEPS], before)


def test_a_row_halts_at_its_end():
    slots = make_slots()
    slots.start([0], [[4, 5]], [4])
    assert [step(slots, token, 0)[0] for token in (1, 2, 3)] == [1, 2, -1]


def test_a_resumed_row_follows_its_plan_and_then_the_model():
    slots = make_slots()
    slots.start([0, 1], [[4], [5, 5]], [8, 8])
    step(slots, STOP, 1)
    slots.resume({0: (2, [6, 7])})
    assert [step(slots, 3, 3) for _ in range(3)] == [[6, 3], [7, 3], [3, 3]]


def test_a_plan_longer_than_the_row_is_followed_to_its_end():
    slots = make_slots()
    slots.start([0], [[4]], [8])
    step(slots, STOP, 0)
    slots.resume({0: (2, [1] * 20)})
    assert [step(slots, 3, 3)[0] for _ in range(7)] == [1] * 6 + [-1]


def test_a_new_row_does_not_follow_the_plan_of_the_one_before():
    slots = make_slots()
    slots.start([0], [[4]], [8])
    slots.resume({0: (1, [6, 6])})
    slots.start([0], [[5]], [8])
    assert step(slots, 2, 0) == [2, -1]


def test_the_trace_goes_round():
    slots = make_slots()
    slots.start([0], [[4]], [8])
    for _ in range(64):
        slots.advance(torch.tensor([3, 3]))
    assert slots.trace[:8, 0].tolist() == [3] * 7 + [-1]
    slots.start([0], [[4]], [8])
    slots.advance(torch.tensor([5, 5]))
    assert slots.trace[0, 0] == 5
