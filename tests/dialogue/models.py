"""A small model that learned to call the calculator, and a question it answers with it."""

import json
from pathlib import Path

from chatsft.dialogue.speaker import Speaker
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "engine"
GEN_MODEL = FIXTURES / "gen_model"
TOKENIZER = FIXTURES / "tokenizer"
SHORT = [row for row in json.loads((FIXTURES / "generations.json").read_text()) if len(row["generated_ids"]) < 30]
QUESTION = next(row["question"] for row in SHORT if "temperature is 9 " in row["question"])
ANSWER = "9-13 = [calculator: 9-13][result: -4]-4\n#### -4\n"


def load_speaker(name: str = "small model") -> Speaker:
    return Speaker(name, load_nanochat_model(GEN_MODEL).eval(), load_nanochat_tokenizer(TOKENIZER))
