"""Multiple choice questions as text."""


def render_mc(question: str, letters: list[str], choices: list[str]) -> str:
    """Write a question with its choices.

    The letter follows the choice without a space: "=A" holds the very token "A" that is the answer (" A" is another one), and small models
    bind a letter better to what stands before it.

    >>> print(render_mc("2 + 2?", ["A", "B"], ["3", "4"]))
    Multiple Choice question: 2 + 2?
    - 3=A
    - 4=B
    <BLANKLINE>
    Respond only with the letter of the correct answer.
    """
    lines = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=False))
    return f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the correct answer."


def make_choice_conversation(question: str, letters: list[str], choices: list[str], answer: str) -> dict:
    """Make the conversation of one question; `letters` stays beside it because evaluation compares only these tokens."""
    messages = [
        {"role": "user", "content": render_mc(question, letters, choices)},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "letters": list(letters)}


def is_right_letter(conversation: dict, letter: str) -> bool:
    """Compare a letter with the conversation's answer; anything else than one of its letters is a caller's mistake."""
    if letter not in conversation["letters"]:
        raise ValueError(f"answer {letter!r} is none of this question's letters {conversation['letters']}")
    return letter == conversation["messages"][-1]["content"]
