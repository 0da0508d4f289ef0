"""Rollouts are written with the tool in the loop, and what the tool said is marked as not the model's own."""

import copy
from types import SimpleNamespace

import torch
from accelerate import Accelerator

from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.preference.rollout import render_prompts, rollout
from tests.evaluation.recorded_model import RECORDED, load_model, load_tokenizer

PROMPTS = [conversation["messages"][:-1] for conversation in RECORDED["spellingbee"]["conversations"]]


def trainer(model: GPTForCausalLM, limit: int) -> SimpleNamespace:
    """Return what a rollout looks at of TRL's trainer."""
    settings = {"max_completion_length": limit, "temperature": 0.0, "top_k": 0, "repetition_penalty": 1.0}
    args = SimpleNamespace(bf16=False)
    return SimpleNamespace(
        processing_class=load_tokenizer(), model=model, model_wrapped=model, accelerator=Accelerator(cpu=True), args=args, **settings
    )


def test_a_rollout_is_the_recorded_generation_with_its_end_and_a_mask_over_tool_output():
    model, tokenizer = load_model().train(), load_tokenizer()
    result = rollout(PROMPTS[:4], trainer(model, 512))
    assert model.training
    model.eval()
    end, output_start = (tokenizer.encode_special(f"<|{name}|>") for name in ("assistant_end", "output_start"))
    assert result["logprobs"] is None
    for prompt, ids, mask, text in zip(
        result["prompt_ids"], result["completion_ids"], result["env_mask"], RECORDED["spellingbee"]["completions"], strict=False
    ):
        assert tokenizer.decode(prompt).endswith("<|user_end|><|assistant_start|>")
        assert tokenizer.decode(ids[:-1]) == text
        assert ids[-1] == end
        assert len(mask) == len(ids)
        forced = [token for token, own in zip(ids, mask, strict=True) if not own]
        assert forced[:1] == [output_start] * (output_start in ids)
    assert any(0 in mask for mask in result["env_mask"])


def test_a_rollout_cut_short_has_no_end():
    model = load_model().eval()
    result = rollout(PROMPTS[:1], trainer(model, 5))
    assert [len(ids) for ids in result["completion_ids"]] == [5]
    assert not model.training


def test_prompts_are_those_of_the_evaluation_and_lose_their_beginning_where_too_long():
    tokenizer = load_tokenizer()
    [prompt] = render_prompts(PROMPTS[:1], tokenizer, 1000)
    assert prompt == tokenizer.render_for_completion({"messages": [*PROMPTS[0], {"role": "assistant", "content": ""}]})
    assert render_prompts(PROMPTS[:1], tokenizer, 4) == [prompt[-4:]]
    assert all(isinstance(token, int) for token in prompt)


def test_in_bfloat16_a_copy_answers_that_follows_the_model():
    model = copy.deepcopy(load_model())
    lender = trainer(model, 4)
    lender.args.bf16, lender.writer = True, None
    rollout(PROMPTS[:1], lender)
    first = lender.writer
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        model.lm_head.weight.neg_()
    rollout(PROMPTS[:1], lender)
    assert lender.writer is first
    assert torch.equal(first.lm_head.weight, model.lm_head.weight.bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_rollout_needs_no_gradient():
    result = rollout(PROMPTS[:1], trainer(load_model(), 3))
    assert torch.is_grad_enabled()
    assert result["completion_ids"]
