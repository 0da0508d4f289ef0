"""On a GPU: the captured kernels generate what transformers' loop and the model's own forward pass do."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import TextStreamer

from chatsft.generation import kernel_step
from chatsft.generation.custom_generate import decode
from chatsft.generation.decode_loop import decode_rows
from chatsft.generation.decoder import Decoder, ModelStep, Workspace, can_decode, release_workspaces
from chatsft.generation.kernel_step import STEPS_A_GRAPH
from chatsft.generation.sampling import Sampling
from chatsft.generation.tool_state import ControlTokens
from chatsft.generation.tool_use import ToolUseProcessor, generate_completions
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from tests.generation.models import build_model, random_prompts
from tests.generation.test_decode_loop import LENGTHS, both
from tests.generation.test_decode_loop import generate as generate_rows
from tests.generation.test_tool_use import CALLING, ENGINE, GENERATIONS, generate_with_tools

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
WIDE = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": None, "max_position_embeddings": 512}
YEARS = ["2025", "2026"]
TRANSFORMERS = Version(transformers.__version__)


@pytest.fixture(autouse=True)
def _forget_workspaces():
    release_workspaces()


@pytest.fixture(params=[False, True], ids=["launched in turn", "launched early"])
def launch(request, monkeypatch):
    if request.param and not kernel_step.can_launch_early(torch.device("cuda")):
        pytest.skip("kernels are launched early from Hopper on")
    monkeypatch.setattr(kernel_step, "can_launch_early", lambda device: request.param)


@pytest.fixture(scope="module")
def tokenizer():
    return load_nanochat_tokenizer(ENGINE / "tokenizer")


def without_padding(generated: torch.Tensor, prompts: list[list[int]]) -> list[list[int]]:
    """Return the new tokens of each row."""
    return generated[:, max(map(len, prompts)) :].tolist()


@torch.no_grad()
def assert_same_but_for_ties(model, prompts: list[list[int]], rows: list[list[int]], others: list[list[int]]) -> None:
    """Compare rows up to where they first differ, which they may only between tokens of almost the same logit, and hardly ever."""
    num_ties = 0
    for prompt, row, other in zip(prompts, rows, others, strict=True):
        place = next((place for place, pair in enumerate(zip(row, other, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            assert row == other
            continue
        logits = model(torch.tensor([prompt + row[:place]], device="cuda")).logits[0, -1]
        assert abs(logits[row[place]] - logits[other[place]]) < 1e-3
        num_ties += 1
    assert num_ties <= len(rows) / 10


def test_scores_without_a_bound_are_left_to_transformers():
    assert can_decode(build_model("2025", query_key_scale=4.0).cuda())
    assert not can_decode(build_model("2025", query_key_scale=5.0).cuda())


@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("fields", [{}, WIDE], ids=["heads of 12", "heads of 128"])
@pytest.mark.parametrize("num_prompts", [1, 5, 40])
def test_greedy_tokens_are_those_of_transformers(year, fields, num_prompts):
    model = build_model(year, **fields).cuda()
    assert can_decode(model)
    prompts = random_prompts((LENGTHS * 8)[:num_prompts])
    stock, ours = both(model, prompts, max_new_tokens=70)
    assert_same_but_for_ties(model, prompts, without_padding(stock, prompts), without_padding(ours, prompts))


@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("num_rows", [1, 4, 64])
def test_captured_kernels_give_the_models_logits(year, dtype, tolerance, num_rows):
    model = build_model(year, dtype, **WIDE).cuda()
    prompts = random_prompts([300 + 3 * row for row in range(num_rows)])
    logits = []
    with torch.no_grad():
        for by_kernels in (False, True):
            workspace = Workspace(model, num_rows, 512)
            workspace.slots.clear(set())
            Decoder(model, workspace).start(list(range(num_rows)), prompts, [500] * num_rows)
            for slot, prompt in enumerate(prompts):  # the same tokens on both ways, whatever is likeliest
                workspace.slots.planned[slot, len(prompt) : len(prompt) + 8] = torch.arange(8, dtype=torch.int32, device="cuda")
            if by_kernels:
                workspace.kernels(Sampling(), 2 * STEPS_A_GRAPH)
                logits.append(workspace.kernels.chain.scores.clone())
            else:
                seen = []
                hook = model.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.logits[:, -1]))
                ModelStep(model, workspace.cache)(Sampling(), 2 * STEPS_A_GRAPH)
                hook.remove()
                logits.append(seen[-1])
    assert (logits[0] - logits[1]).abs().max() <= tolerance * logits[0].abs().max()


@pytest.mark.usefixtures("launch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_rows", [None, 4, 1])
def test_tools_are_called_as_by_nanochat(dtype, max_rows, tokenizer):
    model = load_nanochat_model(ENGINE / "gen_model").to("cuda", dtype).eval()
    rows = [row for row in GENERATIONS if dtype == torch.float32 or row["min_top1_top2_logit_gap_over_sampled_positions"] > 0.5]
    ending = set(ControlTokens.of(tokenizer).terminal)
    generated = generate_rows(model, [row["prompt_ids"] for row in rows], 200, ending=ending, tokenizer=tokenizer, max_rows=max_rows)
    assert rows
    assert generated == [row["generated_ids"] for row in rows]


# Before 5.20 transformers' prefetch overtakes the step that still writes.
CACHES = ["static"] if Version("5.20") > TRANSFORMERS else ["static", "offloaded", "offloaded_static"]


@pytest.mark.parametrize("cache", CACHES)
def test_transformers_loop_calls_tools_with_caches_that_need_a_gpu(cache, tokenizer):
    model = load_nanochat_model(ENGINE / "gen_model").to("cuda").eval()
    assert generate_with_tools(model, tokenizer, CALLING, cache_implementation=cache) == CALLING["generated_ids"]


@pytest.mark.parametrize("year", YEARS)
def test_waiting_rows_take_the_slots_of_those_that_ended(year):
    model = build_model(year).cuda()
    prompts = random_prompts(LENGTHS * 6)
    ending = {generate_rows(model, prompts[:1], 40)[0][9]}
    alone = [generate_rows(model, [prompt], 40, ending=ending)[0] for prompt in prompts]
    assert_same_but_for_ties(model, prompts, alone, generate_rows(model, prompts, 40, ending=ending, max_rows=8))


def test_samples_repeat_with_a_seed_from_the_first_call_on(tokenizer):
    model = load_nanochat_model(ENGINE / "gen_model").to("cuda", torch.bfloat16).eval()
    assert can_decode(model)
    options = {"max_new_tokens": 40, "temperature": 2.0, "top_k": 50, "num_samples": 8}
    prompts = [row["prompt_ids"] for row in GENERATIONS[:3]]
    before = torch.cuda.get_rng_state()
    first, again, other = (generate_completions(model, tokenizer, prompts, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert first == again != other
    assert len({tuple(sample) for sample in first[0]}) > 1


def test_samples_are_drawn_by_their_probability():
    model = build_model("2025", vocab_size=16).cuda()
    prompt = random_prompts([6], vocab_size=16)[0]
    with torch.no_grad():
        expected = (model(torch.tensor([prompt], device="cuda")).logits[0, -1] / 0.7).softmax(-1)
    torch.manual_seed(0)
    rows = decode_rows(model, [prompt] * 8192, max_new_tokens=1, ending=set(), sampling=Sampling(0.7, 0))
    frequencies = torch.tensor(rows, device="cuda").flatten().bincount(minlength=16) / len(rows)
    assert torch.allclose(frequencies, expected, atol=0.02)


def test_weights_updated_in_place_are_seen_by_captured_graphs():
    model = build_model("2026").cuda()
    prompts = random_prompts(LENGTHS)
    before = generate_rows(model, prompts, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    stock, ours = both(model, prompts, max_new_tokens=20)
    assert_same_but_for_ties(model, prompts, without_padding(stock, prompts), without_padding(ours, prompts))
    assert generate_rows(model, prompts, 20) != before


@pytest.mark.parametrize("year", YEARS)
def test_float32_weights_under_autocast_are_read_as_bfloat16(year):
    model = build_model(year, **WIDE).cuda()
    prompts = random_prompts(LENGTHS)
    rounded = build_model(year, torch.bfloat16, **WIDE).cuda()
    expected = generate_rows(rounded, prompts, 1)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = generate_rows(model, prompts, 1)
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(prompts) - 1


def test_steps_wait_for_nothing():
    model = build_model("2026").cuda()
    workspace = Workspace(model, 4, 256)
    with torch.no_grad():
        workspace.slots.clear({3})
        Decoder(model, workspace).start([0, 1], random_prompts([5, 6]), [200, 200])
        workspace.kernels(Sampling(1.0, 5), STEPS_A_GRAPH)
        try:
            torch.cuda.set_sync_debug_mode("error")
            workspace.kernels(Sampling(1.0, 5), 4 * STEPS_A_GRAPH)
            workspace.slots.resume({1: (30, [7, 8]), 0: (40, [])})
            workspace.slots.start([2], random_prompts([5]), [200])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert workspace.slots.planned[1, 30:32].tolist() == [7, 8]


def test_two_models_begin_to_answer_at_once():
    models, prompts = [build_model(year).cuda() for year in YEARS], random_prompts(LENGTHS)
    expected = [generate_rows(model, prompts, 40) for model in models]
    release_workspaces()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda model: generate_rows(model, prompts, 40), models)) == expected
        release_workspaces()
        drawn = pool.map(lambda model: decode_rows(model, prompts, max_new_tokens=9, ending=set(), sampling=Sampling(1.0, 5)), models)
        assert [len(row) for rows in drawn for row in rows] == [9] * 2 * len(prompts)


def test_a_default_device_changes_nothing():
    model, prompts = build_model("2026").cuda(), random_prompts(LENGTHS)
    expected = generate_rows(model, prompts, 20)
    release_workspaces()
    with torch.device("cuda"):
        assert generate_rows(model, prompts, 20) == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_model_on_another_gpu_is_captured_there():
    prompts = random_prompts(LENGTHS)
    expected = generate_rows(build_model("2026").cuda(), prompts, 20)
    assert generate_rows(build_model("2026").to("cuda:1"), prompts, 20) == expected


def test_a_text_streamer_prints_a_single_completion(tokenizer, capsys):
    model = load_nanochat_model(ENGINE / "gen_model").to("cuda").eval()
    row = next(row for row in GENERATIONS if len(row["generated_ids"]) < 30)
    model.generate(
        torch.tensor([row["prompt_ids"]], device="cuda"),
        custom_generate=partial(decode, streamer=TextStreamer(tokenizer, skip_prompt=True)),
        logits_processor=[ToolUseProcessor(tokenizer)],
        max_new_tokens=30,
        eos_token_id=list(ControlTokens.of(tokenizer).terminal),
        pad_token_id=0,
    )
    assert capsys.readouterr().out == row["text"] + "\n"
