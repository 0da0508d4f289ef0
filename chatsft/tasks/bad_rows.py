"""Rows that cannot be trained on: all of them in one error, or left out."""

import logging
import re
from collections import Counter
from collections.abc import Sequence

from chatsft.model.conversation import ConversationError

logger = logging.getLogger(__name__)

SHOWN = 20


def handle_bad_rows(source: str, problems: Sequence[str], num_rows: int, on_bad_row: str | None = None) -> None:
    """Raise an error that lists the problems, each "place: what, why, what to do", or log that these rows are left out.

    Args:
        on_bad_row: "skip" leaves them out; "error" tells of that way out too, None knows of none.
    """
    if not problems:
        return
    listed = "\n".join(list_problems(problems))
    count = f"{len(problems)} of {num_rows} rows of {source}"
    if on_bad_row == "skip":
        logger.warning("%s are left out:\n%s", count, listed)
    elif len(problems) == 1:
        raise ConversationError(listed)
    else:
        way_out = ", or set on_bad_row: skip to leave them out" if on_bad_row == "error" else ""
        raise ConversationError(f"{listed}\n{count} cannot be used. Correct them{way_out}.")


def list_problems(problems: Sequence[str]) -> list[str]:
    """List the first problems, and count those that are left by their kind.

    >>> list_problems([f"a.jsonl:{line}: message {line} is empty" for line in range(1, 24)])[-2:]
    ['... and 3 more:', '3 x message N is empty']
    """
    shown, rest = list(problems[:SHOWN]), problems[SHOWN:]
    kinds = Counter(re.sub(r"\d+", "N", problem.partition(": ")[2]) for problem in rest)
    if rest:
        shown.append(f"... and {len(rest)} more:")
    return shown + [f"{count} x {kind}" for kind, count in kinds.most_common(SHOWN)]
