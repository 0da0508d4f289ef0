import pytest
import torch

from chatsft.evaluation import EvaluationOptions, evaluate_task
from chatsft.evaluation.categorical import choose_letters
from chatsft.evaluation.problems import render_problems
from chatsft.evaluation.token_losses import last_token_logits
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from tests.evaluation.recorded_model import RECORDED, ListTask, load_model, load_tokenizer, recorded_task


@pytest.mark.parametrize("name", ["arc", "mmlu"])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_choices_and_accuracy_equal_nanochat_at_any_batch_size(name, batch_size):
    report = evaluate_task(name, recorded_task(name), load_model(), load_tokenizer(), EvaluationOptions(batch_size=batch_size))
    assert [problem.completions for problem in report.problems] == [[letter] for letter in RECORDED[name]["predicted"]]
    assert report.accuracy == RECORDED[name]["accuracy"]


def model_2026() -> GPTForCausalLM:
    torch.manual_seed(0)
    features = {"value_embedding_layers": [1], "residual_scaling": True, "smear": True, "backout": True, "layer_windows": [9, 33]}
    config = GPTConfig(vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32, **features)
    model = GPTForCausalLM(config).eval()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return model


@pytest.mark.parametrize("model", [load_model, model_2026])
def test_padding_does_not_change_the_logits(model):
    model = model()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(64, (length,), generator=generator).tolist() for length in (7, 20, 3, 20, 12)]
    together = last_token_logits(model, prompts)
    with torch.no_grad():
        alone = torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_choice_is_the_likeliest_of_the_letters_in_the_order_given():
    model, tokenizer = load_model(), load_tokenizer()
    conversation = recorded_task("arc")[5]
    [problem] = render_problems(ListTask([conversation], "categorical"), tokenizer, 256)
    [logits] = last_token_logits(model, [problem.prompt_ids])
    letters = sorted(conversation["letters"], key=lambda letter: -logits[tokenizer.encode_ordinary(letter)[0]].item())
    for valid in (letters[1:], letters[:0:-1]):
        task = ListTask([conversation | {"letters": valid, "messages": conversation["messages"]}], "categorical")
        [result] = choose_letters(model, tokenizer, task, [render_problems(task, tokenizer, 256)])
        assert result.completions == [letters[1]]


def test_a_result_can_be_read():
    report = evaluate_task("arc", recorded_task("arc"), load_model(), load_tokenizer())
    result = report.problems[0]
    assert result.prompt.startswith("<|bos|><|user_start|>Multiple Choice question: source $VIMRUNTIME/defaults.vim")
    assert (result.completions, result.correct, result.truncated) == (["1"], [False], False)


def test_a_letter_of_several_tokens_is_an_error():
    conversation = recorded_task("arc")[0] | {"letters": ["A", "first choice"]}
    task = ListTask([conversation], "categorical")
    with pytest.raises(
        ValueError, match=r"^odd: problem 0: the answer letter 'first choice' is 4 tokens of this tokenizer, expected one\. Name"
    ):
        evaluate_task("odd", task, load_model(), load_tokenizer())


def test_a_prompt_beyond_the_context_is_cut_and_counted():
    conversation = recorded_task("arc")[0]
    question, answer = conversation["messages"]
    long = conversation | {"messages": [question | {"content": "word " * 400 + question["content"]}, answer]}
    report = evaluate_task("long", ListTask([conversation, long], "categorical"), load_model(), load_tokenizer())
    assert (report.num_truncated, [problem.truncated for problem in report.problems]) == (1, [False, True])
    assert report.problems[1].prompt.endswith(report.problems[0].prompt[-200:])
