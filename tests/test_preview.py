"""The preview shows the tokens, masks and counts that training would use."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatsft.model.loading import load_tokenizer
from chatsft.preview import main
from tests.model.oracle import FIXTURES

TOKENIZER = FIXTURES / "tokenizer" / "v1"
PARITY = Path(__file__).parents[1] / "recipes" / "parity.yaml"
GREEN, RED = "\033[92m", "\033[91m"
LONG = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, thank you very much for asking me that."}]
SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe over two files, beside a folder that holds a nanochat checkpoint without any weights to speak of."""
    (tmp_path / "long.jsonl").write_text(json.dumps(LONG) + "\n" + json.dumps(LONG + LONG) + "\n")
    (tmp_path / "short.jsonl").write_text(json.dumps(SHORT) + "\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_000000.pt").write_bytes(b"")
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{model_name_or_path: base, tokenizer_path: tokenizer, output_dir: out, target_examples_per_step: 1, bf16: true, "
        "mixture_order: sequence, train_mixture: [{path: long.jsonl}, {path: short.jsonl, repeat: 2}]}"
    )
    return path


def colored(messages: list[dict], max_length: int) -> str:
    tokenizer = load_tokenizer(str(TOKENIZER))
    return tokenizer.visualize_tokenization(*tokenizer.render_conversation({"messages": messages}, max_length))


def table(output: str) -> dict[str, list[str]]:
    rows = [line.split() for line in output[output.index("source ") :].splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_the_first_conversations_are_shown_in_training_order_without_weights(recipe, capsys):
    assert main([str(recipe), "--num", "2"]) == 0
    first, second, rest = capsys.readouterr().out.split("\n\n")
    for number, shown, messages in ((1, first, LONG), (2, second, LONG + LONG)):
        head, text = shown.split("\n", 1)
        assert text == colored(messages, 2048)
        assert re.fullmatch(rf"{number} of 4: .*long\.jsonl:{number}, \d+ tokens, \d+ trained", head)
    assert rest == ""
    assert not (recipe.parent / "out").exists()


def test_the_answer_is_green_and_the_question_red(recipe, capsys):
    assert main([str(recipe), "train_mixture=[{path: short.jsonl}]"]) == 0
    head, text = capsys.readouterr().out.rstrip("\n").split("\n")
    tokens = ["<|bos|>", "<|user_start|>", "H", "i", "<|user_end|>", "<|assistant_start|>", "Y", "es", "<|assistant_end|>"]
    assert text == "|".join(f"{GREEN if index > 5 else RED}{token}\033[0m" for index, token in enumerate(tokens))
    assert head.endswith("short.jsonl:1, 9 tokens, 3 trained")


def test_stats_count_by_source_what_is_left_after_the_cut(recipe, capsys):
    tokenizer = load_tokenizer(str(TOKENIZER))
    ids, mask = tokenizer.render_conversation({"messages": LONG})
    assert main([str(recipe), "--num", "0", "--stats", f"max_length={len(ids)}"]) == 0
    output = capsys.readouterr().out
    assert GREEN not in output
    rows = table(output)
    share = f"{(2 * sum(mask) + 6) / (2 * len(ids) + 18):.1%}".removesuffix("%")
    assert rows["source"][:4] == ["conversations", "turns", "tokens", "supervised"]
    longest = str(len(tokenizer.render_conversation({"messages": LONG + LONG})[0]))
    long_share = f"{sum(mask) / len(ids):.1%}".removesuffix("%")
    assert rows["long.jsonl"] == ["2", "3", str(2 * len(ids)), long_share, "%", "conversational", "1", "0", "0", "0", longest]
    assert rows["short.jsonl"] == ["2", "2", "18", "33.3", "%", "long", "questions", "0", "0", "0", "0", "9"]
    assert rows["total"] == ["4", "5", str(2 * len(ids) + 18), share, "%", "conversational", "1", "0", "0", "0", longest]
    assert "warning: long.jsonl: 1 conversation is cut off at the end." in output


def test_stats_of_the_recorded_run_are_nanochats(capsys):
    assert main([str(PARITY), "--num", "1", "--stats", "max_length=2048"]) == 0
    output = capsys.readouterr().out
    conversations = [json.loads(line)["messages"] for line in (FIXTURES / "train_v1" / "conversations.jsonl").read_text().splitlines()]
    tokens = sum(len(load_tokenizer(str(TOKENIZER)).render_conversation({"messages": messages})[0]) for messages in conversations)
    assert output.startswith("1 of 160: ")
    assert table(output)["conversations.jsonl"][0] == "160"
    assert table(output)["total"][2] == f"{tokens:,}"


class Page(HTMLParser):
    """The cards of a page: source, tokens as (text, classes, title), and parts; and every address the page would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.cards, self.addresses, self.parts, self.is_token = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href", "action")]
        if tag == "article":
            self.cards.append((attributes["data-source"], []))
        elif tag == "i" and "title" in attributes:
            self.is_token = True
            self.cards[-1][1].append([attributes.get("class", ""), attributes["title"], ""])
        elif tag == "span" and attributes.get("class", "").startswith("part ") and self.cards:
            self.parts.append(attributes["title"])

    def handle_data(self, data):
        if self.is_token:
            self.cards[-1][1][-1][2] += data

    def handle_endtag(self, tag):
        self.is_token = False


def test_the_page_has_the_tokens_with_their_ids_and_masks_and_fetches_nothing(recipe, capsys):
    tool = [{"role": "user", "content": "<b>1+1"}, {"role": "assistant", "content": [{"type": "python", "text": "1+1"}]}]
    (recipe.parent / "tool.jsonl").write_text(json.dumps(tool) + "\n")
    path = recipe.parent / "pages" / "preview.html"
    mixture = "train_mixture=[{path: long.jsonl}, {path: short.jsonl, repeat: 2}, {path: tool.jsonl}]"
    assert main([str(recipe), mixture, "--html", str(path), "--num", "4"]) == 0
    assert capsys.readouterr().out == f"Wrote {path}\n"
    text = path.read_text()
    page = Page(text)
    assert page.addresses == ["data:,"]
    assert "@import" not in text and "url(" not in text
    assert [source for source, _ in page.cards] == ["long.jsonl", "long.jsonl", "short.jsonl", "tool.jsonl"]
    tokenizer = load_tokenizer(str(TOKENIZER))
    ids, mask = tokenizer.render_conversation({"messages": SHORT})
    tokens = page.cards[2][1]
    assert [title for _, title, _ in tokens] == [f"id {token}, token {place}" for place, token in enumerate(ids)]
    assert ["y" in classes.split() for classes, _, _ in tokens] == [bool(trained) for trained in mask]
    assert tokens[0][2] == "<|bos|>"
    assert "".join(text for _, _, text in page.cards[3][1]).startswith("<|bos|><|user_start|><b>1+1<|user_end|>")
    assert page.parts == ["python"]
    assert not list(path.parent.glob(".*"))


def test_a_page_can_have_the_table_in_the_terminal_too(recipe, capsys, tmp_path):
    assert main([str(recipe), "--stats", "--html", str(tmp_path / "page.html")]) == 0
    assert table(capsys.readouterr().out)["total"][0] == "4"


def test_a_terminal_shows_conversations_in_frames(recipe, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([str(recipe), "--num", "1"]) == 0
    output = capsys.readouterr().out
    assert "1 of 4: " in output and "╭" in output
    assert re.search("\x1b\\[92m.*assistant_end", output)


def test_validation_conversations_that_are_trained_on_are_warned_of(recipe, capsys):
    assert main([str(recipe), "--num", "0", "--stats", "eval_mixture=[{path: short.jsonl}]"]) == 0
    assert "warning: 1 validation conversation is trained on too" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer_path=null", "holds no tokenizer. Set tokenizer_path"),
        ("tokenizer_path=./gone", "./gone is not a folder"),
        ("train_mixture=[{path: gone.jsonl}]", "gone.jsonl is not there"),
        ("train_mixtur=[]", "Did you mean 'train_mixture'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(recipe, override, message, capsys):
    assert main([str(recipe), override]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_negative_number_ends_with_the_usage(recipe, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(recipe), "--num", "-1"])
    assert "--num may be 0 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(recipe), "--num", "0"])
    assert "--num 0 shows nothing; add --stats or --html" in capsys.readouterr().err
