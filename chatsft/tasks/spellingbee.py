"""SpellingBee: count a letter in a word, by hand and then with Python."""

import random
import string
from functools import cached_property
from pathlib import Path

from chatsft.tasks.answers import is_right_answer
from chatsft.tasks.json_lines import file_fingerprint
from chatsft.tasks.table import check_choice
from chatsft.tasks.task import Task
from chatsft.tasks.words import TEST_SEED_OFFSET, draw_word, find_word_list, read_words, train_words

NUM_TRAIN = 80_000
QUOTES = ("", "'", '"')
# nanochat's questions (MIT); their order decides which one a seed draws
QUESTIONS = (
    "How many {letter} are in the word {word}",
    "How many {letter} are in {word}",
    "Count the number of {letter} in {word}",
    "How many times does {letter} appear in {word}",
    "What's the count of {letter} in {word}",
    "In the word {word}, how many {letter} are there",
    "How many letter {letter} are in the word {word}",
    "Count how many {letter} appear in {word}",
    "Tell me the number of {letter} in {word}",
    "How many occurrences of {letter} are in {word}",
    "Find the count of {letter} in {word}",
    "Can you count the {letter} letters in {word}",
    "What is the frequency of {letter} in {word}",
    "How many {letter}s are in {word}",
    "How many {letter}'s are in {word}",
    "Count all the {letter} in {word}",
    "How many times is {letter} in {word}",
    "Number of {letter} in {word}",
    "Total count of {letter} in {word}",
    "How many {letter} does {word} have",
    "How many {letter} does {word} contain",
    "What's the number of {letter} in {word}",
    "{word} has how many {letter}",
    "In {word}, count the {letter}",
    "How many {letter} appear in {word}",
    "Count the {letter} in {word}",
    "Give me the count of {letter} in {word}",
    "How many instances of {letter} in {word}",
    "Show me how many {letter} are in {word}",
    "Calculate the number of {letter} in {word}",
    "¿Cuántas {letter} hay en {word}?",
    "¿Cuántas veces aparece {letter} en {word}?",
    "Cuenta las {letter} en {word}",
    "¿Cuántas letras {letter} tiene {word}?",
    "{word}中有多少个{letter}",
    "{word}里有几个{letter}",
    "数一下{word}中的{letter}",
    "{word}这个词里有多少{letter}",
    "{word}에 {letter}가 몇 개 있나요",
    "{word}에서 {letter}의 개수는",
    "{word}에 {letter}가 몇 번 나오나요",
    "{word}라는 단어에 {letter}가 몇 개",
    "Combien de {letter} dans {word}",
    "Combien de fois {letter} apparaît dans {word}",
    "Compte les {letter} dans {word}",
    "Wie viele {letter} sind in {word}",
    "Wie oft kommt {letter} in {word} vor",
    "Zähle die {letter} in {word}",
    "{word}に{letter}は何個ありますか",
    "{word}の中に{letter}がいくつ",
    "{word}に{letter}が何回出てくる",
)


def ask_count(rng: random.Random, letter: str, word: str) -> str:
    """Write the question as people do: three in ten without capitals, half without a question mark, quoted or not."""
    question = rng.choice(QUESTIONS)
    if rng.random() < 0.3:
        question = question.lower()
    letter_quote, word_quote = rng.choice(QUOTES), rng.choice(QUOTES)
    question = question.format(letter=f"{letter_quote}{letter}{letter_quote}", word=f"{word_quote}{word}{word_quote}")
    return question + "?" if rng.random() < 0.5 else question


def count_by_hand(letter: str, word: str) -> str:
    """Write out the count, letter by letter.

    No space follows a colon: the letters must be the tokens that spelling uses, and " a" is another token than "a".
    """
    lines, count = [], 0
    for position, character in enumerate(word, 1):
        count += character == letter
        lines.append(f"{position}:{character} hit! count={count}" if character == letter else f"{position}:{character}")
    counted = "\n".join(lines)
    return (
        f"We are asked to find the number '{letter}' in the word '{word}'. Let me try a manual approach first.\n\n"
        f"First spell the word out:\n{word}:{','.join(word)}\n\n"
        f"Then count the occurrences of '{letter}':\n{counted}\n\n"
        f"This gives us {count}."
    )


def answer_count(letter: str, word: str) -> list[dict]:
    """Answer in parts: the count by hand, a check with Python, the final number."""
    count = word.count(letter)
    return [
        {"type": "text", "text": count_by_hand(letter, word)},
        {"type": "text", "text": "\n\nLet me double check this using Python:\n\n"},
        {"type": "python", "text": f"'{word}'.count('{letter}')"},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f"\n\nPython gives us {count}.\n\nMy final answer is:\n\n#### {count}"},
    ]


class SpellingBee(Task):
    """Words and letters drawn by seed; one letter in ten is any letter of the alphabet.

    Training rows are nanochat's. Its test row i was its training row i + 1 (random.Random ignores a seed's sign), so test rows here have
    seeds of their own and skip the words of the first 80,000 training rows as long as the list has others.
    """

    eval_type = "generative"

    def __init__(self, size: int = 1000, split: str = "train", data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        check_choice("SpellingBee split", split, ("train", "test"))
        self.size, self.split = size, split
        self.path = find_word_list(data_root)

    @cached_property
    def words(self) -> list[str]:
        return read_words(self.path)

    @cached_property
    def excluded(self) -> frozenset[str]:
        return train_words(self.words, NUM_TRAIN) if self.split == "test" else frozenset()

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> dict:
        rng = random.Random(index if self.split == "train" else TEST_SEED_OFFSET + index)
        word = draw_word(rng, self.words, self.excluded)
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(string.ascii_lowercase)
        messages = [
            {"role": "user", "content": ask_count(rng, letter, word)},
            {"role": "assistant", "content": answer_count(letter, word)},
        ]
        return {"messages": messages}

    def evaluate(self, conversation: dict, completion: str) -> int:
        return is_right_answer(conversation, completion)

    def fingerprint(self) -> str:
        return file_fingerprint(self.path)
