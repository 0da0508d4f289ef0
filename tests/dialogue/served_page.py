"""Serve a page whose model takes its time: python -m tests.dialogue.served_page SECONDS_PER_TOKEN"""

import argparse
import sys
import time

import torch
from transformers.generation.streamers import BaseStreamer

from chatsft.chat import serve_page
from chatsft.dialogue.speaker import AnswerSettings, Speaker
from tests.dialogue.models import load_speaker

SETTINGS = AnswerSettings(temperature=0.0, max_new_tokens=60)


class SlowStreamer(BaseStreamer):
    def __init__(self, streamer: BaseStreamer, seconds: float):
        self.streamer, self.seconds = streamer, seconds

    def put(self, value: torch.Tensor) -> None:
        time.sleep(self.seconds)
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()


class SlowSpeaker(Speaker):
    def answer(self, conversation, message, settings, streamer):
        return super().answer(conversation, message, settings, SlowStreamer(streamer, float(sys.argv[1])))


if __name__ == "__main__":
    speaker = load_speaker()
    slow = SlowSpeaker(speaker.name, speaker.model, speaker.tokenizer)
    serve_page([slow], SETTINGS, argparse.Namespace(host="127.0.0.1", port=None, system=""))
