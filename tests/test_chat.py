"""The terminal chat program, answering with a small model that learned to call the calculator."""

import io
import socket
import sys

import pytest
import torch

import chatsft.chat
import chatsft.dialogue.speaker
from chatsft.chat import main
from chatsft.model.loading import load_chat_model
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from chatsft.model.tokenization_gpt import GPTTokenizer
from tests.dialogue.models import ANSWER, GEN_MODEL, QUESTION, SHORT, TOKENIZER


@pytest.fixture(scope="module")
def tokenizer() -> GPTTokenizer:
    return load_nanochat_tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    load_nanochat_model(GEN_MODEL).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def type_lines(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def without_prompts(text: str) -> str:
    return text.split("(Ctrl-D does too)\n")[1].replace("> ", "")


def test_a_prompt_is_answered_once_with_its_tool_calls_shown(checkpoint, capsys):
    assert main([checkpoint, "--prompt", QUESTION, "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ANSWER
    assert captured.err == ""


@pytest.mark.parametrize("option", [("--port", "TAKEN"), ("--host", "no.such.host.invalid")])
def test_an_address_that_cannot_be_served_is_an_error_before_the_model_loads(monkeypatch, capsys, option):
    monkeypatch.setattr(chatsft.chat, "load_speaker", lambda *parts: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        name, value = option
        value = value.replace("TAKEN", str(taken.getsockname()[1]))
        assert main(["model", "--web", name, value]) == 2
    error = capsys.readouterr().err
    assert f"{name} {value}: cannot serve there (" in error
    assert error.endswith("). Name another, or leave them out.\n")


def test_typed_lines_are_answered_until_quit(checkpoint, monkeypatch, capsys):
    type_lines(monkeypatch, QUESTION, "", "/reset", QUESTION, "/nonsense", "/quit", QUESTION)
    assert main([checkpoint, "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert without_prompts(captured.out) == ANSWER + ANSWER
    assert captured.err.startswith("The conversation is forgotten.\nThere is no command /nonsense.\n")


def test_the_end_of_the_input_leaves(checkpoint, monkeypatch, capsys):
    type_lines(monkeypatch, QUESTION)
    assert main([checkpoint, "--temperature", "0"]) == 0
    assert without_prompts(capsys.readouterr().out) == ANSWER + "\n"


def test_samples_repeat_with_a_seed(checkpoint, capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        assert main([checkpoint, "--prompt", "hello", "--temperature", "2", "--max_new_tokens", "12", "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_an_answer_that_hits_the_limit_says_so(checkpoint, capsys):
    assert main([checkpoint, "--prompt", QUESTION, "--temperature", "0", "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().err == "The answer stopped at --max_new_tokens 2.\n"


def test_the_turns_of_a_chat_are_the_context_of_the_next(checkpoint, monkeypatch, capsys):
    prompts = []
    generate = chatsft.dialogue.speaker.generate_completions
    monkeypatch.setattr(
        "chatsft.dialogue.speaker.generate_completions", lambda *args, **options: prompts.append(args[2][0]) or generate(*args, **options)
    )
    type_lines(monkeypatch, "/system Be brief.", QUESTION, "and now?")
    assert main([checkpoint, "--temperature", "0", "--max_new_tokens", "40"]) == 0
    tokenizer = load_chat_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)[1]
    row = next(row for row in SHORT if row["question"] == QUESTION)
    first = tokenizer.render_for_completion(
        {"messages": [{"role": "user", "content": f"Be brief.\n\n{QUESTION}"}, {"role": "assistant", "content": ""}]}
    )
    assert prompts[0] == first
    assert prompts[1][: len(first)] == first
    assert tokenizer.decode(prompts[1]).endswith("<|assistant_end|><|user_start|>and now?<|user_end|><|assistant_start|>")
    assert "The system text is set." in capsys.readouterr().err
    assert row["completed"]


def test_a_message_beyond_the_context_is_refused_and_the_chat_goes_on(checkpoint, monkeypatch, capsys):
    long = "word " * 300
    assert main([checkpoint, "--prompt", long]) == 2
    assert "error: The message takes" in capsys.readouterr().err
    type_lines(monkeypatch, long, QUESTION)
    assert main([checkpoint, "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert without_prompts(captured.out) == ANSWER + "\n"
    assert "the context has room for 128. Shorten it." in captured.err


def test_an_interrupted_answer_leaves_the_chat_running(checkpoint, monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("chatsft.dialogue.speaker.generate_completions", interrupt)
    type_lines(monkeypatch, QUESTION, "/quit")
    assert main([checkpoint]) == 0
    assert capsys.readouterr().err == "Interrupted; the turn is forgotten.\n"


def test_a_nanochat_checkpoint_answers_with_a_tokenizer_path(capsys):
    arguments = [str(GEN_MODEL), "--tokenizer_path", str(TOKENIZER), "--prompt", QUESTION, "--temperature", "0"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ANSWER


def test_what_does_not_load_is_one_line_and_exit_code_2(tmp_path, capsys):
    for name, problem in ((str(GEN_MODEL), "holds no tokenizer. Set tokenizer_path"), (str(tmp_path), "holds neither config.json")):
        assert main([name]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {name} ")
        assert problem in line


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "-1"],
        ["--top_k", "-1"],
        ["--max_new_tokens", "0"],
        ["--device", "abacus"],
        ["--repetition_penalty", "0"],
        ["--port", "99999"],
    ],
)
def test_impossible_options_are_refused(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["anywhere", *options])
    assert "chatsft chat: error: " in capsys.readouterr().err


def test_a_system_text_is_in_the_prompt_as_training_renders_it(checkpoint, tokenizer, monkeypatch):
    prompts = []
    monkeypatch.setattr("chatsft.dialogue.speaker.generate_completions", lambda *args, **options: prompts.append(args[2][0]) or [[[0]]])
    assert main([checkpoint, "--prompt", "Hi", "--system", "Be brief."]) == 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    assert prompts == [tokenizer.render_for_completion({"messages": messages})]


def test_penalties_and_the_longest_answer_reach_generation(checkpoint, monkeypatch):
    seen = {}
    monkeypatch.setattr("chatsft.dialogue.speaker.generate_completions", lambda *args, **options: seen.update(options) or [[[0]]])
    flags = ["--repetition_penalty", "1.3", "--exponential_decay_length_penalty", "16", "1.05", "--max_new_tokens", "7"]
    assert main([checkpoint, "--prompt", "Hi", *flags]) == 0
    assert (seen["repetition_penalty"], seen["exponential_decay_length_penalty"], seen["max_new_tokens"]) == (1.3, [16.0, 1.05], 7)


def test_the_temperature_is_shown_and_changed_while_chatting(checkpoint, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        "chatsft.dialogue.speaker.generate_completions", lambda *args, **options: seen.append(options["temperature"]) or [[[0]]]
    )
    type_lines(monkeypatch, "/temperature", "a", "/temperature 0", "b", "/temperature hot", "/temperature -1", "/temperature nan", "c")
    assert main([checkpoint]) == 0
    assert seen == [0.6, 0.0, 0.0]
    refused = "The temperature cannot be {}; write 0 (greedy) or a number above, as /temperature 0.7."
    told = ["The temperature is 0.6.", "The temperature is 0.", *[refused.format(value) for value in ("hot", "-1", "nan")]]
    assert capsys.readouterr().err.splitlines() == told


@pytest.mark.parametrize(
    ("options", "problem"),
    [(["--web", "--prompt", "Hi"], "leave out one of --web and --prompt"), (["--compare", "b"], "add --web")],
)
def test_options_that_exclude_each_other_are_refused(options, problem, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["anywhere", *options])
    assert problem in capsys.readouterr().err


def test_without_gradio_web_says_how_to_install_it(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "chatsft.dialogue.web", None)
    assert main([checkpoint, "--web"]) == 2
    assert "Install it with: pip install 'chatsft[ui]'" in capsys.readouterr().err
