"""Answers drawn by settings, and streamed from another thread."""

import threading

import pytest
import torch

from chatsft.dialogue.speaker import AnswerSettings, stream_tokens
from tests.dialogue.models import QUESTION

GREEDY = AnswerSettings(temperature=0.0, max_new_tokens=60)


def put_all(*tokens):
    def generate(streamer):
        streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
        for token in tokens:
            streamer.put(torch.tensor([token]))
        streamer.end()

    return generate


def test_tokens_come_without_the_prompt():
    assert list(stream_tokens(put_all(7, 8))) == [7, 8]


def test_the_stream_of_an_answer_is_the_answer_and_its_end(speaker):
    conversation = speaker.start(GREEDY)
    streamed = list(stream_tokens(lambda streamer: speaker.answer(conversation, QUESTION, GREEDY, streamer)))
    answer = speaker.answer(conversation, QUESTION, GREEDY, None)
    assert streamed == [*answer, speaker.tokenizer.convert_tokens_to_ids("<|assistant_end|>")]
    assert conversation.turns == []


def test_an_error_while_generating_is_raised_where_the_tokens_are_read():
    def generate(streamer):
        put_all(7)(streamer)
        raise RuntimeError("out of memory")

    tokens = stream_tokens(generate)
    assert next(tokens) == 7
    with pytest.raises(RuntimeError, match="out of memory"):
        next(tokens)


def test_closing_the_stream_ends_the_generation_before_it_returns():
    ended = threading.Event()

    def generate(streamer):
        try:
            while True:
                streamer.put(torch.tensor([7]))
        finally:
            ended.set()

    tokens = stream_tokens(generate)
    assert next(tokens) == 7
    tokens.close()
    assert ended.is_set()


def test_a_seed_gives_each_turn_an_answer_of_its_own_that_repeats(speaker):
    settings = AnswerSettings(temperature=2.0, max_new_tokens=8, seed=1)
    first = speaker.start(settings)
    again, later = speaker.start(settings), speaker.start(settings, turns=[("", [])])
    later.prompt = first.prompt
    answers = [speaker.answer(conversation, "hello", settings, None) for conversation in (first, again, later)]
    assert answers[0] == answers[1] != answers[2]
