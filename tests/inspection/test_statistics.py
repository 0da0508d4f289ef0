"""Counts by source, each with data that has it."""

import datasets
import pytest

from chatsft.data.mixture import FEATURES
from chatsft.data.rendering import render_dataset
from chatsft.inspection.advice import advise
from chatsft.inspection.statistics import Counts, count_by_source, count_shared
from chatsft.model.loading import load_tokenizer
from tests.model.oracle import FIXTURES


def chat(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


TWO = chat("How are you?", "Well.", "And the dog?", "Well too.")
SILENT = chat("Hi", " ")
LONG_QUESTION = chat("word " * 40, "yes")
TOOL = [
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "It is"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "."}],
    },
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(FIXTURES / "tokenizer" / "v1"))


def make_mixture(*rows: tuple[str, str, list | str]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"source": source, "origin": origin, "messages": messages} for source, origin, messages in rows], features=FEATURES
    )


def count(mixture: datasets.Dataset, tokenizer, max_length: int = 1000) -> dict[str, Counts]:
    return count_by_source(mixture, render_dataset(mixture, tokenizer, 10**6), tokenizer, max_length)


def test_sources_are_counted_apart_and_the_largest_comes_first(tokenizer):
    counts = count(make_mixture(("a", "a:1", SILENT), ("b", "b:1", TWO), ("b", "b:2", LONG_QUESTION)), tokenizer)
    ids, mask = tokenizer.render_conversation({"messages": TWO})
    question, answer = tokenizer.render_conversation({"messages": LONG_QUESTION})
    assert list(counts) == ["b", "a"]
    assert counts["b"] == Counts(
        conversations=2, turns=3, tokens=len(ids + question), trained=sum(mask + answer), answers=3, multi_turn=1, longest=len(question)
    )
    assert counts["a"].empty == 1


def test_what_is_cut_off_is_not_counted_and_named(tokenizer):
    ids, mask = tokenizer.render_conversation({"messages": TWO})
    mixture = make_mixture(("a", "a:1", TWO), ("a", "a:2", LONG_QUESTION))
    cut = count(mixture, tokenizer, len(ids) - 1)["a"]
    assert (cut.tokens, cut.trained) == (2 * (len(ids) - 1), sum(mask) - 1)
    assert (cut.truncated, cut.unreached) == (2, 1)
    assert cut.longest == len(tokenizer.render_conversation({"messages": LONG_QUESTION})[0])
    assert count(mixture, tokenizer, cut.longest)["a"].truncated == 0


def test_a_conversation_that_comes_twice_is_a_duplicate_and_a_repeat_of_the_recipe_is_none(tokenizer):
    rows = [("a", "a:1", TWO), ("a", "a:1", TWO), ("a", "a:2", TWO), ("a", "a:2", TWO), ("b", "b:1", TWO), ("b", "b:2", SILENT)]
    counts = count(make_mixture(*rows), tokenizer)
    assert {source: count.duplicate for source, count in counts.items()} == {"a": 1, "b": 1}


def test_an_answer_ends_with_a_special_token_and_tool_output_in_it_does_not_end_it(tokenizer):
    counts = count(make_mixture(("a", "a:1", TWO), ("tool", "tool:1", TOOL)), tokenizer)
    assert [(counts[source].answers, counts[source].open_answers) for source in ("a", "tool")] == [(2, 0), (1, 0)]
    mixture = make_mixture(("a", "a:1", TWO))
    rendered = render_dataset(mixture, tokenizer, 10**6)
    end = tokenizer.convert_tokens_to_ids("<|assistant_end|>")

    def untrain_ends(row: dict) -> dict:
        pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
        return {"assistant_masks": [trained * (token != end) for token, trained in pairs]}

    untrained = count_by_source(mixture, rendered.map(untrain_ends), tokenizer, 1000)
    assert (untrained["a"].answers, untrained["a"].open_answers) == (2, 2)


def test_raw_text_has_no_turns_and_no_end_to_learn(tokenizer):
    counts = count(make_mixture(("text", "text:1", "Once upon a time there was a token.")), tokenizer)["text"]
    assert (counts.conversations, counts.turns, counts.open_answers, counts.empty) == (1, 0, 0, 0)
    assert counts.trained == counts.tokens - 1


def test_validation_conversations_that_are_trained_on_are_counted():
    train = make_mixture(("a", "a:1", TWO), ("a", "a:2", SILENT))
    assert count_shared(train, make_mixture(("v", "v:1", TWO), ("v", "v:2", LONG_QUESTION), ("v", "v:3", TWO))) == 2


GOOD = {"conversations": 100, "turns": 300, "multi_turn": 90, "tokens": 1000, "trained": 600, "answers": 300}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"trained": 100, "answers": 5}, "s: only 10.0% is trained (15% or more is usual)."),
        ({"trained": 100, "answers": 5}, "only 10.0% of all tokens are trained"),
        ({"trained": 950}, "s: 95.0% is trained (at most 90% is usual)."),
        ({"open_answers": 1}, "s: no trained token ends 1 of 300 answers"),
        ({"truncated": 2}, "s: 2 conversations are cut off at the end."),
        ({"unreached": 1, "truncated": 1}, "s: 1 conversation is so long that max_length cuts off everything trained."),
        ({"empty": 3}, "s: 3 conversations are silent in an assistant message"),
        ({"duplicate": 6}, "s: 6 conversations are word for word like an earlier one."),
        ({"multi_turn": 0}, "no source has a conversation with more than one question"),
    ],
)
def test_what_is_off_is_warned_of_and_nothing_else(changes, warning):
    assert advise({"s": Counts(**GOOD)}) == []
    assert sum(text.startswith(warning) for text in advise({"s": Counts(**GOOD | changes)})) == 1


def test_short_answers_to_choices_are_as_they_should_be():
    choices = Counts(**GOOD | {"trained": 30, "answers": 15})
    assert not any(warning.startswith("s: only") for warning in advise({"s": choices, "t": Counts(**GOOD)}))


def test_shared_validation_conversations_are_warned_of():
    assert advise({"s": Counts(**GOOD)}, shared=1)[0].startswith("1 validation conversation is trained on too")
