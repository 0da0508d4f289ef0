"""Tool use against nanochat's engine: scripted cases, real generations, and what batching and sampling may not change."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, TextStreamer, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation import TemperatureLogitsWarper

from chatsft.generation.tool_state import ControlTokens, ToolCallState, sampled_mask
from chatsft.generation.tool_use import ToolUseProcessor, generate_completions, max_prompt_tokens
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from tests.generation.scripted_model import ScriptedModel

ENGINE = Path(__file__).parents[1] / "fixtures" / "engine"
SCRIPTED = [case for case in json.loads((ENGINE / "scripted.json").read_text()) if "sampled_script" in case]
BAD_PROMPTS = [case for case in json.loads((ENGINE / "scripted.json").read_text()) if case["name"] == "bad_prompt"]
GENERATIONS = json.loads((ENGINE / "generations.json").read_text())

# nanochat answers `...` with Ellipsis and `()` with (); for us they are no expressions, so the model's own tokens follow.
UNANSWERED_HERE = {
    "ellipsis_result": "<|python_start|>...<|python_end|>xxxxxxxx",
    "empty_tuple_result": "<|python_start|>()<|python_end|>xxxxxx",
}


@pytest.fixture(scope="module")
def model():
    return load_nanochat_model(ENGINE / "gen_model").eval()


def expected_tokens(case: dict, tokenizer) -> list[int]:
    """Return the recorded tokens of a row, its last one included, or ours where nanochat is wrong."""
    if case["name"] in UNANSWERED_HERE:
        return case["sampled_script"]
    return [column[0] for column in case["token_columns_2rows"]]


def without_terminal(ids: list[int], tokenizer) -> list[int]:
    return ids[:-1] if ids[-1] in ControlTokens.of(tokenizer).terminal else ids


def run_script(case: dict, tokenizer) -> tuple[list[int], list[int]]:
    """Drive one row's state as a generation loop does; return its tokens and 1 where the script, not the calculator, chose."""
    state, tokens, sampled = ToolCallState(tokenizer), [], []
    for token in case["sampled_script"][: case["max_tokens"]]:
        sampled.append(int(not state.forced))
        tokens.append(state.forced[0] if state.forced else token)
        state.observe(tokens[-1])
        if state.is_finished:
            break
    return tokens, sampled


@pytest.mark.parametrize("case", SCRIPTED, ids=lambda case: case["name"])
def test_the_state_machine_follows_nanochat(case, tokenizer):
    tokens, sampled = run_script(case, tokenizer)
    assert tokens == expected_tokens(case, tokenizer)
    if case["name"] in UNANSWERED_HERE:
        assert tokenizer.decode(tokens) == UNANSWERED_HERE[case["name"]] + "<|assistant_end|>"
        assert all(sampled)
    else:
        assert sampled == [column[0] for column in case["mask_columns_2rows"]]
        assert sampled_mask(tokens, tokenizer) == sampled
        assert tokenizer.decode(tokens) == case["text_row0"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("case", SCRIPTED, ids=lambda case: case["name"])
def test_generate_follows_nanochat_in_a_left_padded_batch(case, temperature, tokenizer):
    prompts = [case["prompt"], case["prompt"][:1]]
    model = ScriptedModel(case["sampled_script"])
    completions = generate_completions(model, tokenizer, prompts, max_new_tokens=case["max_tokens"], temperature=temperature, seed=1)
    expected = without_terminal(expected_tokens(case, tokenizer), tokenizer)
    assert completions == [[expected], [expected]]
    if case["name"] not in UNANSWERED_HERE:
        assert case["generate_batch"]["results"] == [case["prompt"] + expected]


@pytest.mark.parametrize("digits", [4300, 4000])
def test_a_result_too_large_to_print_is_left_to_the_model(digits, tokenizer):
    """nanochat stops with a ValueError here."""
    ids = ControlTokens.of(tokenizer)
    factor = "9" * digits
    state = ToolCallState(tokenizer)
    for token in [ids.python_start, *tokenizer.encode_ordinary("*".join([factor] * 3)), ids.python_end]:
        state.observe(token)
    assert not state.forced and not state.is_finished


def test_the_mask_of_real_generations_is_nanochats(tokenizer):
    masks = [sampled_mask(case["generated_ids"], tokenizer) for case in GENERATIONS]
    assert masks == [case["mask_1sampled_0forced"] for case in GENERATIONS]
    assert any(0 in mask for mask in masks)


def test_the_end_of_an_answer_is_kept_if_asked(tokenizer):
    ids = ControlTokens.of(tokenizer)
    for end in ids.terminal:
        script = [7, 8, end]
        for keep_end, expected in ((False, [7, 8]), (True, script)):
            assert generate_completions(ScriptedModel(script), tokenizer, [[ids.bos]], keep_end=keep_end) == [[expected]]
    assert generate_completions(ScriptedModel([7]), tokenizer, [[ids.bos]], max_new_tokens=2, keep_end=True) == [[[7, 7]]]


def test_a_block_opened_in_the_prompt_calls_nothing(tokenizer):
    ids = ControlTokens.of(tokenizer)
    prompt = [ids.bos, ids.python_start, *tokenizer.encode_ordinary("1+1")]
    model = ScriptedModel([ids.python_end, ids.assistant_end])
    assert generate_completions(model, tokenizer, [prompt]) == [[[ids.python_end]]]


def test_rows_of_one_batch_call_the_calculator_each_at_its_own_time(tokenizer):
    """Three rows with different blocks, driven through the processor alone."""
    ids = ControlTokens.of(tokenizer)
    blocks = [[ids.python_start, *tokenizer.encode_ordinary(text), ids.python_end] for text in ("12*3", "7", "1/0")]
    processor = ToolUseProcessor(tokenizer)
    rows = torch.full((3, 2), ids.bos)
    forced = [[], [], []]
    for step in range(10):
        scores = processor(rows, torch.zeros(3, 4096))
        for row, possible in enumerate(scores.isfinite()):
            forced[row] += possible.nonzero().flatten().tolist() if possible.sum() == 1 else []
        wanted = [block[step] if step < len(block) else 7 for block in blocks]
        only = [row.isfinite().nonzero().flatten().tolist() for row in scores]
        column = [tokens[0] if len(tokens) == 1 else token for tokens, token in zip(only, wanted, strict=True)]
        rows = torch.cat([rows, torch.tensor(column)[:, None]], dim=1)
    outputs = [[ids.output_start, *tokenizer.encode_ordinary(text), ids.output_end] for text in ("36", "7")]
    assert forced == [*outputs, []]


def test_a_forced_token_survives_every_sampling_filter(tokenizer):
    ids = ControlTokens.of(tokenizer)
    processor = ToolUseProcessor(tokenizer)
    rows = torch.tensor([[ids.bos, ids.python_start, *tokenizer.encode_ordinary("1+1"), ids.python_end]])
    for width in range(1, rows.shape[1] + 1):
        scores = processor(rows[:, :width], torch.randn(1, 4096))
    filters = LogitsProcessorList([TemperatureLogitsWarper(0.3), TopKLogitsWarper(50), TopPLogitsWarper(0.9)])
    probabilities = filters(rows, scores).softmax(-1)
    assert probabilities[0, ids.output_start] == 1.0


def test_a_processor_serves_one_call_of_generate(tokenizer):
    processor = ToolUseProcessor(tokenizer)
    processor(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 4096))
    with pytest.raises(ValueError, match=r"2 rows up to token 5 and now sees 2 rows of 5 tokens. Make a new ToolUseProcessor"):
        processor(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 4096))


def test_beam_search_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="num_beams=1"):
        model.generate(
            torch.tensor([GENERATIONS[0]["prompt_ids"]]),
            attention_mask=torch.ones(1, len(GENERATIONS[0]["prompt_ids"])),
            logits_processor=LogitsProcessorList([ToolUseProcessor(tokenizer)]),
            num_beams=4,
            max_new_tokens=40,
            do_sample=True,
            temperature=3.0,
        )


def test_greedy_generations_of_a_batch_are_nanochats(model, tokenizer):
    completions = generate_completions(model, tokenizer, [row["prompt_ids"] for row in GENERATIONS], max_new_tokens=200)
    assert completions == [[without_terminal(row["generated_ids"], tokenizer)] for row in GENERATIONS]
    assert tokenizer.decode(completions[0][0]) + "<|assistant_end|>" == GENERATIONS[0]["text"]


SHORT = [row for row in GENERATIONS if len(row["generated_ids"]) < 30]


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_the_batch_size_changes_nothing(batch_size, model, tokenizer):
    prompts = [row["prompt_ids"] for row in SHORT]
    completions = generate_completions(model, tokenizer, prompts, max_new_tokens=30, batch_size=batch_size)
    assert completions == [[without_terminal(row["generated_ids"], tokenizer)] for row in SHORT]


def generate_with_tools(model, tokenizer, row: dict, **options) -> list[int]:
    """Return what transformers' own loop generates for a recorded prompt."""
    ids = torch.tensor([row["prompt_ids"]], device=model.device)
    config = GenerationConfig(
        max_new_tokens=200, eos_token_id=list(ControlTokens.of(tokenizer).terminal), pad_token_id=0, disable_compile=True, **options
    )
    processors = LogitsProcessorList([ToolUseProcessor(tokenizer)])
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=processors, generation_config=config)
    return generated[0, ids.shape[1] :].tolist()


CALLING = min((row for row in GENERATIONS if 0 in row["mask_1sampled_0forced"]), key=lambda row: len(row["generated_ids"]))


@pytest.mark.parametrize("row", [SHORT[0], CALLING], ids=["no call", "a call"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "sliding_window", "hybrid", None])
def test_stock_generate_calls_tools_with_every_cache(cache, row, model, tokenizer):
    options = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert generate_with_tools(model, tokenizer, row, **options) == row["generated_ids"]


def test_stock_generate_calls_tools_with_a_cache_that_rounds(model, tokenizer):
    """The fp8 cache needs no other package; its keys are too coarse for the recorded tokens, so that only the forced ones are certain."""
    try:
        generated = generate_with_tools(model, tokenizer, CALLING, cache_implementation="quantized", cache_config={"backend": "fp8"})
    except ValueError as error:
        pytest.skip(f"this version of transformers has no fp8 cache: {error}")
    state = ToolCallState(tokenizer)
    for token in generated:
        assert token == (state.forced[0] if state.forced else token)
        state.observe(token)
    assert ControlTokens.of(tokenizer).output_end in generated


def test_samples_repeat_with_a_seed_and_leave_the_random_state_alone(model, tokenizer):
    prompts = [row["prompt_ids"] for row in SHORT[:2]]
    before = torch.get_rng_state()
    options = {"max_new_tokens": 12, "temperature": 2.0, "num_samples": 3}
    first, again = (generate_completions(model, tokenizer, prompts, seed=5, **options) for _ in range(2))
    other = generate_completions(model, tokenizer, prompts, seed=6, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert first == again != other
    assert [len(samples) for samples in first] == [3, 3]
    assert len({tuple(sample) for sample in first[0]}) > 1


def test_without_a_seed_samples_come_from_the_callers_random_state(model, tokenizer):
    torch.manual_seed(5)
    drawn = generate_completions(model, tokenizer, [SHORT[0]["prompt_ids"]], max_new_tokens=8, temperature=2.0)
    assert drawn == generate_completions(model, tokenizer, [SHORT[0]["prompt_ids"]], max_new_tokens=8, temperature=2.0, seed=5)


def test_sampling_among_the_most_likely_token_is_greedy(model, tokenizer):
    row = SHORT[0]
    [samples] = generate_completions(model, tokenizer, [row["prompt_ids"]], max_new_tokens=30, temperature=1.0, top_k=1, num_samples=2)
    assert samples == [without_terminal(row["generated_ids"], tokenizer)] * 2
    assert generate_completions(model, tokenizer, [row["prompt_ids"]], max_new_tokens=30, num_samples=2) == [samples]


@pytest.mark.parametrize(("top_k", "is_limited"), [(50, True), (0, False), (None, False)])
def test_top_k_limits_the_tokens_and_none_does_not(top_k, is_limited, model, tokenizer):
    options = {"max_new_tokens": 1, "temperature": 100.0, "num_samples": 200, "seed": 1}
    [samples] = generate_completions(model, tokenizer, [SHORT[0]["prompt_ids"]], top_k=top_k, **options)
    assert (len({tuple(sample) for sample in samples}) <= 50) == is_limited


def test_a_prompt_beyond_the_context_loses_its_beginning_and_is_counted(tokenizer, caplog):
    ids = ControlTokens.of(tokenizer)
    seen = []
    model = ScriptedModel([ids.assistant_end])
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True)
    assert max_prompt_tokens(model.config, 40) == 216
    with caplog.at_level(logging.WARNING, logger="chatsft"):
        generate_completions(model, tokenizer, [list(range(300)), [5]], max_new_tokens=40)
    assert seen[0][0] == list(range(84, 300))
    assert "1 of 2 prompts lost their beginning: only the last 216 tokens fit" in caplog.text


def test_a_completion_longer_than_the_context_leaves_half_of_it_to_the_prompt(model):
    assert max_prompt_tokens(model.config, 10_000) == 128


@pytest.mark.parametrize("case", BAD_PROMPTS, ids=lambda case: case["prompt"])
def test_a_prompt_that_is_no_list_of_ids_is_refused(case, model, tokenizer):
    prompt = eval(case["prompt"], {"tensor": torch.tensor})
    with pytest.raises(ValueError, match=r"Prompt 1 is .*a prompt is a list of at least one token id"):
        generate_completions(model, tokenizer, [[1], prompt])


@pytest.mark.parametrize(
    ("name", "number", "lowest"),
    [
        ("temperature", -1, 0),
        ("temperature", float("nan"), 0),
        ("top_k", -1, 0),
        ("max_new_tokens", -1, 0),
        ("num_samples", 0, 1),
        ("batch_size", 0, 1),
    ],
)
def test_a_number_that_is_too_small_is_refused(name, number, lowest, model, tokenizer):
    with pytest.raises(ValueError, match=f"{name} is {number}; it may be {lowest} or more"):
        generate_completions(model, tokenizer, [[1]], **{name: number})


@pytest.mark.parametrize("token", [-1, 4096])
def test_an_id_that_the_model_does_not_know_is_refused(token, model, tokenizer):
    with pytest.raises(ValueError, match=rf"Prompt 1 has the id {token}, and the model knows 0 to 4095. Use the model's own tokenizer."):
        generate_completions(model, tokenizer, [[1], [2, token]])


def test_no_new_tokens_give_empty_completions_of_any_model(model, tokenizer):
    for any_model in (model, ScriptedModel([7])):
        assert generate_completions(any_model, tokenizer, [[1], [2]], max_new_tokens=0, temperature=1, num_samples=2) == [[[], []]] * 2


def test_no_prompts_give_no_completions(model, tokenizer):
    assert generate_completions(model, tokenizer, []) == []


def test_a_tokenizer_without_control_tokens_is_refused(tokenizer):
    class Bare:
        def convert_tokens_to_ids(self, token: str) -> int | None:
            return 1 if token == "<|bos|>" else None

    with pytest.raises(ValueError, match=r"no <\|assistant_end\|>, <\|python_start\|>, .*chatsft.convert"):
        ControlTokens.of(Bare())


def test_a_text_streamer_prints_a_single_completion(model, tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    row = SHORT[0]
    [[completion]] = generate_completions(model, tokenizer, [row["prompt_ids"]], max_new_tokens=30, streamer=streamer)
    assert capsys.readouterr().out == row["text"] + "\n"
    assert completion == without_terminal(row["generated_ids"], tokenizer)
