"""The decode loop generates what transformers' own loop does, however late the host looks and however few slots there are."""

import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from transformers import GenerationConfig, TextStreamer
from transformers.generation.streamers import BaseStreamer

from chatsft.evaluation.model_copy import copy_for_evaluation
from chatsft.generation import decode_loop, decoder
from chatsft.generation.custom_generate import _is_shared, decode
from chatsft.generation.decode_loop import DecodeLoop, Row, decode_rows
from chatsft.generation.decoder import can_decode, has_plain_weights, release_workspaces
from chatsft.generation.sampling import Sampling
from chatsft.generation.slots import LENGTH, Slots
from chatsft.generation.tool_state import ControlTokens, ToolCallState
from chatsft.generation.tool_use import ToolUseProcessor
from chatsft.model.loading import load_chat_model
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from tests.generation.models import build_model, random_prompts
from tests.generation.test_tool_use import ENGINE, GENERATIONS, SCRIPTED, expected_tokens

LENGTHS = [7, 1, 20, 2, 13]
GREEDY = Sampling()


@pytest.fixture(scope="module", params=["2025", "2026"])
def model(request):
    return build_model(request.param)


@pytest.fixture(scope="module")
def tool_model():
    return load_nanochat_model(ENGINE / "gen_model").eval()


@pytest.fixture(params=[(0, 1, 1), (1, 16, 4), (1, 3, 1)], ids=["looks at once", "looks as on CUDA", "looks late"])
def late_host(request, monkeypatch):
    """Let the host read blocks of steps as late as it does on CUDA."""
    make = DecodeLoop.__init__

    def make_late(self, *args):
        make(self, *args)
        self.num_unread, self.steps_a_look, self.steps_a_launch = request.param

    monkeypatch.setattr(DecodeLoop, "__init__", make_late)


def pad_left(prompts: list[list[int]], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def both(model, prompts: list[list[int]], **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what transformers' loop and ours generate."""
    options = {"pad_token_id": 0, "do_sample": False} | options
    inputs = pad_left(prompts, model.device)
    return model.generate(**inputs, **options), model.generate(**inputs, custom_generate=decode, **options)


def generate(model, prompts: list[list[int]], num_tokens: int, **options) -> list[list[int]]:
    return decode_rows(model, prompts, max_new_tokens=num_tokens, ending=options.pop("ending", set()), sampling=GREEDY, **options)


@pytest.mark.usefixtures("late_host")
def test_a_padded_batch_is_continued_as_by_transformers(model):
    stock, ours = both(model, random_prompts(LENGTHS), max_new_tokens=30)
    assert torch.equal(stock, ours)
    assert len({tuple(row[-30:].tolist()) for row in ours}) == len(LENGTHS)


@pytest.mark.usefixtures("late_host")
def test_rows_end_at_end_tokens_and_are_padded(model):
    prompts = random_prompts(LENGTHS)
    free = generate(model, prompts, 30)
    ending = [free[0][4], free[3][9]]
    stock, ours = both(model, prompts, max_new_tokens=30, eos_token_id=ending)
    assert torch.equal(stock, ours)
    assert (ours[0, -20:] == 0).all()


@pytest.mark.parametrize("num_tokens", [1, 2, 17])
def test_a_single_row_gets_as_many_tokens_as_asked_for(model, num_tokens):
    stock, ours = both(model, random_prompts([9]), max_new_tokens=num_tokens)
    assert torch.equal(stock, ours)
    assert ours.shape == (1, 9 + num_tokens)


def test_rows_go_on_beyond_the_context_as_in_transformers(model):
    stock, ours = both(model, random_prompts([50, 60]), max_new_tokens=30)
    assert torch.equal(stock, ours)
    assert ours.shape[1] > model.config.max_position_embeddings


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_every_attention_that_is_served_gives_the_same(attention):
    model = build_model("2026")
    expected = generate(model, random_prompts(LENGTHS), 12)
    model.set_attn_implementation(attention)
    assert generate(model, random_prompts(LENGTHS), 12) == expected


@pytest.mark.usefixtures("late_host")
@pytest.mark.parametrize("max_rows", [1, 2, 3])
def test_waiting_rows_take_the_slots_of_those_that_ended(model, max_rows):
    prompts = random_prompts([*LENGTHS, 4, 11])
    ending = {generate(model, prompts[:1], 30)[0][5]}
    expected = [generate(model, [prompt], 20, ending=ending)[0] for prompt in prompts]
    assert generate(model, prompts, 20, ending=ending, max_rows=max_rows) == expected
    assert {len(row) for row in expected} != {20}


@pytest.mark.usefixtures("late_host")
@pytest.mark.parametrize("max_rows", [None, 8])
def test_tools_are_called_as_by_nanochat(tool_model, tokenizer, max_rows):
    ending = set(ControlTokens.of(tokenizer).terminal)
    prompts = [row["prompt_ids"] for row in GENERATIONS]
    generated = generate(tool_model, prompts, 200, ending=ending, tokenizer=tokenizer, max_rows=max_rows)
    assert generated == [row["generated_ids"] for row in GENERATIONS]


class ScriptedDecoder:
    """Slots whose model says `script[i]` as the i-th token of every row."""

    def __init__(self, script: list[int], prompt: list[int]):
        self.script, self.prompt = script, prompt
        self.slots = Slots(2, 256, 4096, torch.device("cpu"))

    def start(self, *rows) -> None:
        self.slots.start(*rows)

    def step(self, sampling: Sampling, num_steps: int) -> None:
        for _ in range(num_steps):
            places = (self.slots.fields[LENGTH] + 1 - len(self.prompt)).clamp(0, len(self.script) - 1)
            self.slots.advance(torch.tensor(self.script)[places.long()])


@pytest.mark.usefixtures("late_host")
@pytest.mark.parametrize("case", SCRIPTED, ids=lambda case: case["name"])
def test_scripted_rows_are_nanochats(case, tokenizer):
    rows = [Row(case["prompt"], case["max_tokens"], ToolCallState(tokenizer)) for _ in range(3)]
    scripted = ScriptedDecoder(case["sampled_script"], case["prompt"])
    DecodeLoop(scripted, rows, GREEDY, set(ControlTokens.of(tokenizer).terminal)).run(lambda: None)
    assert [row.tokens for row in rows] == [expected_tokens(case, tokenizer)] * 3


class ManyScripts(ScriptedDecoder):
    """Slots whose model says for each row what its first token stands for."""

    def __init__(self, scripts: list[list[int]], num_slots: int):
        self.scripts, self.rows = scripts, {}
        self.slots = Slots(num_slots, 256, 4096, torch.device("cpu"))

    def start(self, slots: list[int], prompts: list[list[int]], ends: list[int]) -> None:
        self.rows |= dict(zip(slots, prompts, strict=True))
        self.slots.start(slots, prompts, ends)

    def step(self, sampling: Sampling, num_steps: int) -> None:
        assert num_steps > 0
        for _ in range(num_steps):
            said = torch.zeros(self.slots.num_slots, dtype=torch.long)
            for slot, prompt in self.rows.items():
                script = self.scripts[prompt[0]]
                said[slot] = script[min(int(self.slots.fields[LENGTH, slot]) + 1 - len(prompt), len(script) - 1)]
            self.slots.advance(said)


def random_script(draw: random.Random, control: ControlTokens, tokenizer) -> list[int]:
    """Write text, calls of the calculator that may be cut off, and the end of the answer or none."""
    script = []
    for _ in range(draw.randrange(1, 4)):
        script += [draw.randrange(200, 300) for _ in range(draw.randrange(1, 30))]
        if draw.random() < 0.7:
            script += [control.python_start, *tokenizer.encode_ordinary(f"{draw.randrange(99)}+{draw.randrange(99)}"), control.python_end]
    return [*script, control.assistant_end] if draw.random() < 0.7 else script


@pytest.mark.usefixtures("late_host")
@pytest.mark.parametrize("some", range(60))
def test_rows_of_any_length_with_calls_get_the_same_tokens_together_and_alone(tokenizer, some):
    draw, control = random.Random(some), ControlTokens.of(tokenizer)
    scripts = [random_script(draw, control, tokenizer) for _ in range(draw.randrange(2, 9))]
    limits = [draw.randrange(1, 70) for _ in scripts]

    def complete(places: range, num_slots: int) -> list[list[int]]:
        rows = [Row([place, 7], limits[place], ToolCallState(tokenizer)) for place in places]
        DecodeLoop(ManyScripts(scripts, num_slots), rows, GREEDY, set(control.terminal)).run(lambda: None)
        return [row.tokens for row in rows]

    alone = [complete(range(place, place + 1), 1)[0] for place in range(len(scripts))]
    assert complete(range(len(scripts)), draw.choice([1, 2, 4, 8])) == alone


def test_generate_calls_tools_through_the_loop(tool_model, tokenizer):
    output_end = ControlTokens.of(tokenizer).output_end
    prompts = [row["prompt_ids"] for row in GENERATIONS if output_end in row["generated_ids"][:60]][:3]
    options = {"max_new_tokens": 60, "eos_token_id": list(ControlTokens.of(tokenizer).terminal)}
    stock, ours = (
        tool_model.generate(
            **pad_left(prompts), custom_generate=mode, logits_processor=[ToolUseProcessor(tokenizer)], pad_token_id=0, **options
        )
        for mode in (None, decode)
    )
    assert torch.equal(stock, ours)
    assert output_end in ours[0]


class Recorder(BaseStreamer):
    def __init__(self):
        self.columns = []

    def put(self, value):
        self.columns.append(value.tolist())

    def end(self):
        self.columns.append("end")


@pytest.mark.usefixtures("late_host")
def test_a_streamer_is_shown_the_prompt_and_every_column(model):
    prompts = random_prompts(LENGTHS)
    options = {"max_new_tokens": 20, "eos_token_id": [generate(model, prompts, 20)[2][6]], "pad_token_id": 0}
    stock, ours = Recorder(), Recorder()
    model.generate(**pad_left(prompts), streamer=stock, **options)
    model.generate(**pad_left(prompts), custom_generate=partial(decode, streamer=ours), **options)
    assert ours.columns == stock.columns
    assert len(ours.columns) == 22


def test_a_text_streamer_prints_through_custom_generate(tool_model, tokenizer, capsys):
    row = next(row for row in GENERATIONS if len(row["generated_ids"]) < 30)
    tool_model.generate(
        **pad_left([row["prompt_ids"]]),
        custom_generate=partial(decode, streamer=TextStreamer(tokenizer, skip_prompt=True)),
        logits_processor=[ToolUseProcessor(tokenizer)],
        max_new_tokens=30,
        eos_token_id=list(ControlTokens.of(tokenizer).terminal),
        pad_token_id=0,
    )
    assert capsys.readouterr().out == row["text"] + "\n"


def test_sampling_repeats_with_a_seed_and_keeps_to_the_likeliest(model):
    prompts = pad_left(random_prompts([5] * 8))
    options = {"custom_generate": decode, "do_sample": True, "max_new_tokens": 10, "pad_token_id": 0, "num_return_sequences": 2}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**prompts, temperature=1.5, top_k=20, **options))
    assert drawn[0].shape == (16, 15)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    greedy = model.generate(**prompts, top_k=1, **options)
    assert torch.equal(greedy[::2], model.generate(**prompts, do_sample=False, max_new_tokens=10, pad_token_id=0))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"min_new_tokens": 3, "eos_token_id": 5},
        {"max_time": 1e9},
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_loop_does_not_do_is_left_to_transformers(model, options, monkeypatch):
    monkeypatch.setattr(decode_loop, "borrow_decoder", None)
    stock, ours = both(model, random_prompts([4, 9]), max_new_tokens=8, **options)
    if not isinstance(stock, torch.Tensor):
        assert torch.equal(torch.stack(stock.scores), torch.stack(ours.scores))
        stock, ours = stock.sequences, ours.sequences
    assert torch.equal(stock, ours)


@pytest.mark.parametrize("mask", [[[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 0, 1, 1], [1, 1, 1, 1]]], ids=["right padding", "a hole"])
def test_other_padding_than_on_the_left_is_left_to_transformers(mask, monkeypatch):
    monkeypatch.setattr(decode_loop, "borrow_decoder", None)
    model, ids = build_model("2025"), torch.tensor(random_prompts([4, 4]))
    options = {"attention_mask": torch.tensor(mask), "max_new_tokens": 4}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, custom_generate=decode, **options))


def test_a_conversation_that_goes_on_from_a_cache_is_left_to_transformers(model):
    ids = torch.tensor(random_prompts([12]))
    first = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True, do_sample=False)
    options = {"max_new_tokens": 4, "do_sample": False}
    again = model.generate(first.sequences, past_key_values=first.past_key_values, custom_generate=decode, **options)
    assert torch.equal(again, model.generate(first.sequences, **options))


def test_beams_are_refused(model):
    with pytest.raises(ValueError, match="num_beams is 2; decode searches no beams"):
        model.generate(torch.tensor([[1, 2]]), custom_generate=decode, num_beams=2, max_new_tokens=2)


@pytest.mark.parametrize("attention", ["flex_attention", "paged|sdpa"])
def test_an_attention_without_added_masks_is_not_served(attention):
    model = build_model("2025")
    assert can_decode(model)
    model.config._attn_implementation_internal = attention
    assert not can_decode(model)


def test_a_model_whose_forward_was_replaced_is_not_served():
    model = build_model("2025")
    assert not can_decode(Accelerator(cpu=True, mixed_precision="bf16").prepare(model))


def test_processes_wait_for_each_other_where_they_share_weights_alone(monkeypatch):
    model = build_model("2025")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model.model.layers[0].register_forward_hook(lambda *call: None)
    assert not _is_shared(model)


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_the_kernels_serve_plain_weights_alone(generation):
    model = build_model(generation)
    assert has_plain_weights(model)
    hook = model.model.layers[0].register_forward_hook(lambda *call: None)
    assert not has_plain_weights(model)
    hook.remove()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)  # transformers leaves hooks behind
    assert model.model.layers[0]._forward_hooks
    assert has_plain_weights(model)
    wrapped = [(model.model.layers[1].mlp, "up_proj"), (model.model, "embed_tokens"), (model, "lm_head")]
    wrapped += [(model.model, "smear_gate"), (model.model.value_embeddings, "2")] if generation == "2026" else []
    for parent, name in wrapped:  # as adapters do
        module = parent.get_submodule(name)
        parent.register_module(name, torch.nn.Sequential(module))
        assert not has_plain_weights(model)
        parent.register_module(name, module)
    assert has_plain_weights(model)


def test_the_kernels_serve_the_models_that_are_loaded_and_evaluated(tmp_path, tokenizer):
    trained = build_model("2026", vocab_size=4096).train()
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(trained)
    loaded, _ = load_chat_model(tmp_path, device=torch.device("cpu"), dtype=torch.bfloat16)
    for model in (loaded, copy_for_evaluation(prepared, torch.bfloat16)):
        assert can_decode(model) and has_plain_weights(model)


def test_a_call_uses_the_workspace_of_the_one_before_until_it_is_too_small():
    model = build_model("2025")

    def workspace(lengths: list[int], num_tokens: int = 4):
        generate(model, random_prompts(lengths), num_tokens)
        return decoder._workspaces[model]

    first = workspace([3, 4, 5])
    assert workspace([9, 9, 9, 9]) is first
    assert workspace([9] * 5) is not first
    large = workspace([9, 9], num_tokens=300)
    assert large.slots.capacity == 512
    assert workspace([3, 3]) is large
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    assert workspace([3, 3]) is not large
    release_workspaces()
    assert model not in decoder._workspaces


def test_a_freed_model_takes_its_workspace_along():
    model = build_model("2026")
    generate(model, random_prompts([3]), 2)
    freed = weakref.ref(model)
    del model
    gc.collect()
    assert freed() is None


def test_a_call_that_failed_leaves_nothing_to_the_next(monkeypatch):
    model = build_model("2025")
    prompts = random_prompts([5, 6])
    expected = generate(model, prompts, 6)

    class Breaking(BaseStreamer):
        def put(self, value):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts, 6, streamer=Breaking())
    assert generate(model, prompts, 6) == expected


def test_a_workspace_made_in_inference_mode_serves_outside_of_it():
    model, prompts = build_model("2026"), random_prompts([5, 6])
    with torch.inference_mode():
        expected = generate(model, prompts, 6)
    assert generate(model, prompts, 6) == expected


def test_an_end_token_that_the_model_has_not_ends_nothing(model):
    stock, ours = both(model, random_prompts([5]), max_new_tokens=4, eos_token_id=5000)
    assert torch.equal(stock, ours)


def test_threads_generate_beside_each_other(model):
    prompts = random_prompts([5, 6, 7, 8])
    expected = generate(model, prompts, 12)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: generate(model, [prompt], 12)[0], prompts)) == expected


def test_under_autocast_the_cache_is_held_in_its_dtype():
    model = build_model("2026")
    prompts = random_prompts([8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock, ours = both(model, prompts, max_new_tokens=3)
        assert decoder._workspaces[model].cache.keys[0].dtype == torch.bfloat16
    assert torch.equal(stock, ours)


def test_a_default_device_changes_nothing(model):
    prompts = random_prompts(LENGTHS)
    expected = generate(model, prompts, 12)
    release_workspaces()
    with torch.device("meta"):  # where nothing could be read back
        assert generate(model, prompts, 12) == expected


def test_no_prompts_and_no_tokens_give_nothing(model):
    assert generate(model, [], 5) == []
    assert generate(model, [[1]], 0) == [[]]


def test_the_options_of_a_saved_generation_config_are_followed(model):
    config = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
    ids = torch.tensor(random_prompts([6]))
    assert torch.equal(model.generate(ids, generation_config=config), model.generate(ids, generation_config=config, custom_generate=decode))
