"""Final answers: the number after `#### `, as GSM8K writes it."""

import re

ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def extract_answer(text: str) -> str | None:
    """Return the first number after `#### `, commas removed, or None. A trailing full stop stays, as in nanochat ("3." is not "3").

    >>> extract_answer("6 x 200 = 1200 \\n#### 1,200")
    '1200'
    """
    match = ANSWER.search(text)
    return match[1].replace(",", "") if match else None


def is_right_answer(conversation: dict, completion: str) -> int:
    """Compare the completion's final answer with that of the conversation's last part: 1 if the same text, else 0.

    Two missing answers count as the same (nanochat's rule; no row of the real data sets lacks one).
    """
    expected = extract_answer(conversation["messages"][-1]["content"][-1]["text"])
    return int(extract_answer(completion) == expected)
