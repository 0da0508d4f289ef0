"""The render stage: same ids as the tokenizer, cached, and errors that name the row."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Json, Value, load_from_disk

from chatsft.data import rendering
from chatsft.data.rendering import render_dataset, supervision_statistics
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from chatsft.model.tokenization_gpt import ConversationError
from tests.other_models import build_tokenizer

TOKENIZERS = Path(__file__).parent.parent / "fixtures/tokenizer"
FEATURES = Features({"messages": Json(), "source": Value("string")})


def chat(text: str, answer: str | list[dict] = "yes") -> list[dict]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


ROWS = [
    {"messages": chat("one"), "source": "a.jsonl"},
    {"messages": chat("two", [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]), "source": "a.jsonl"},
    {"messages": chat("three " * 40), "source": "b.jsonl"},
]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    Dataset.from_list(ROWS, features=FEATURES).save_to_disk(tmp_path / "rows")
    return load_from_disk(tmp_path / "rows")


@pytest.fixture(scope="module")
def tokenizer():
    return load_nanochat_tokenizer(TOKENIZERS / "v1_512")


def test_rows_hold_what_the_tokenizer_renders(dataset, tokenizer):
    rendered = render_dataset(dataset, tokenizer, max_length=1000)
    assert rendered.column_names == ["source", "input_ids", "assistant_masks"]
    for row, source in zip(rendered, ROWS, strict=True):
        assert (row["input_ids"], row["assistant_masks"]) == tokenizer.render_conversation(source)
        assert row["source"] == source["source"]
    assert rendered.features["input_ids"].feature.dtype == "int32"
    assert rendered.features["assistant_masks"].feature.dtype == "int8"


def test_plain_columns_work_too(tokenizer):
    messages = [chat("one"), chat("two")]
    rendered = render_dataset(Dataset.from_dict({"messages": messages}), tokenizer, max_length=1000)
    assert rendered["input_ids"][:] == tokenizer.render_conversations([{"messages": m} for m in messages])["input_ids"]


def test_long_conversations_are_cut_and_counted(dataset, tokenizer, caplog):
    for _ in range(2):  # computed, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger=rendering.__name__):
            rendered = render_dataset(dataset, tokenizer, max_length=20)
        assert [record.message for record in caplog.records] == ["1 of 3 conversations were longer than max_length=20 and lost their end"]
    assert rendered[2]["input_ids"] == tokenizer.render_conversation(ROWS[2], 20)[0]


def test_nothing_is_said_when_everything_fits(dataset, tokenizer, caplog):
    render_dataset(dataset, tokenizer, max_length=1000)
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_change_nothing(dataset, tokenizer):
    one, two = (render_dataset(dataset, tokenizer, 50, num_proc=num_proc) for num_proc in (None, 2))
    assert one[:] == two[:]


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ({"messages": [chat("u"), chat("u")[1:]], "source": ["a", "b"]}, "b, row 1: message 0 has role 'assistant'"),
        ({"messages": [chat("u"), chat("u")[1:]], "origin": ["a:1", "a:2"]}, "a:2: message 0 has role 'assistant'"),
        ({"messages": [chat("u")[1:]]}, "row 0: message 0 has role 'assistant'"),
    ],
)
def test_errors_name_the_row(tokenizer, rows, place):
    with pytest.raises(ConversationError, match=f"^{place}"):
        render_dataset(Dataset.from_dict(rows), tokenizer, 100)


def test_the_cache_is_used_by_another_process(dataset, tokenizer, tmp_path):
    fingerprint = render_dataset(dataset, tokenizer, 100)._fingerprint
    files = sorted((tmp_path / "rows").iterdir())
    program = (
        "import sys; from datasets import load_from_disk; from chatsft.data.rendering import render_dataset;"
        "from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer as load;"
        f"print(render_dataset(load_from_disk({str(tmp_path / 'rows')!r}), load({str(TOKENIZERS / 'v1_512')!r}), 100)._fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(TOKENIZERS.parents[2])}
    output = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == fingerprint
    assert sorted((tmp_path / "rows").iterdir()) == files


def test_the_cache_follows_what_it_depends_on(dataset, tokenizer, monkeypatch):
    other_tokenizer = load_nanochat_tokenizer(TOKENIZERS / "v2_500")
    names = {render_dataset(dataset, tokenizer, 100)._fingerprint, render_dataset(dataset, tokenizer, 101)._fingerprint}
    names |= {
        render_dataset(dataset, other_tokenizer, 100)._fingerprint,
        render_dataset(dataset.select([1, 0, 2]), tokenizer, 100)._fingerprint,
    }
    monkeypatch.setattr(rendering, "__version__", "0.0.0")
    names.add(render_dataset(dataset, tokenizer, 100)._fingerprint)
    assert len(names) == 5


def test_statistics_count_supervised_tokens():
    masks = [np.ones(300, np.int8), [0, 0], np.zeros(98, np.int8)]
    assert supervision_statistics(masks) == {
        "conversations": 3,
        "tokens": 400,
        "supervised_tokens": 300,
        "supervised_share": 0.75,
        "unsupervised_conversations": 2,
    }
    assert supervision_statistics([])["supervised_share"] == 0.0


def test_raw_text_is_trained_from_its_first_token_to_its_last(tokenizer):
    rows = Dataset.from_list([{"messages": "Once <|bos|> upon", "source": "a.jsonl"}, ROWS[0]], features=FEATURES)
    rendered = render_dataset(rows, tokenizer, max_length=1000)
    ids, mask = rendered[0]["input_ids"], rendered[0]["assistant_masks"]
    assert ids == [tokenizer.bos_token_id, *tokenizer.encode_ordinary("Once <|bos|> upon")]
    assert mask == [0] + [1] * (len(ids) - 1)
    assert (rendered[1]["input_ids"], rendered[1]["assistant_masks"]) == tokenizer.render_conversation(ROWS[0])


def test_other_tokenizers_encode_raw_text_as_they_do_any(tmp_path):
    tokenizer = build_tokenizer()
    rendered = render_dataset(Dataset.from_list([{"messages": "It is five."}], features=Features({"messages": Json()})), tokenizer, 1000)
    ids = tokenizer("It is five.")["input_ids"]
    assert rendered[0] == {"input_ids": ids, "assistant_masks": [0] + [1] * (len(ids) - 1)}
