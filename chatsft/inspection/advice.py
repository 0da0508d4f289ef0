"""What looks wrong in the counts of a mixture, and what to do about it."""

from collections.abc import Mapping

from chatsft.inspection.statistics import BANDS, Counts

LOWEST, HIGHEST = BANDS["long questions"][0], BANDS["long answers"][1]
FEW_IN_ALL = 0.25
MANY_CUT, MANY_DUPLICATES = 0.01, 0.05


def advise(counts: Mapping[str, Counts], shared: int = 0) -> list[str]:
    """List the warnings, source by source and then for the whole mixture.

    Args:
        shared: validation conversations that are trained on too.

    >>> advise({"a.jsonl": Counts(conversations=4, turns=8, multi_turn=4, tokens=100, trained=60, answers=8)})
    []
    """
    warnings = [f"{source}: {warning}" for source, count in counts.items() for warning in advise_source(count)]
    total = sum(counts.values(), start=Counts())
    if total.share < FEW_IN_ALL:
        warnings.append(f"only {total.share:.1%} of all tokens are trained, so most of the computing goes into reading prompts.")
    if total.multi_turn == 0:
        warnings.append("no source has a conversation with more than one question: the model will not learn to keep to a conversation.")
    if shared:
        warnings.append(
            f"{number(shared, 'validation conversation')} trained on too, so the validation loss flatters. Take them out of one."
        )
    return warnings


def advise_source(count: Counts) -> list[str]:
    """List what stands out in one source."""
    warnings = []
    if count.share < LOWEST and not count.band:
        warnings.append(f"only {count.share:.1%} is trained ({LOWEST:.0%} or more is usual). Prompts may be too long, or answers cut off.")
    if count.share > HIGHEST:
        warnings.append(f"{count.share:.1%} is trained (at most {HIGHEST:.0%} is usual). Are the questions there?")
    if count.open_answers:
        warnings.append(f"no trained token ends {count.open_answers:,} of {count.answers:,} answers, so the model may not learn to stop.")
    if count.truncated > MANY_CUT * count.conversations:
        warnings.append(f"{number(count.truncated)} cut off at the end. A larger max_length would keep it.")
    if count.unreached:
        warnings.append(f"{number(count.unreached)} so long that max_length cuts off everything trained. Remove or shorten them.")
    if count.empty:
        warnings.append(f"{number(count.empty)} silent in an assistant message, which teaches the model to say nothing.")
    if count.duplicate > MANY_DUPLICATES * count.conversations:
        warnings.append(f"{number(count.duplicate)} word for word like an earlier one. Use repeat: in the recipe if that is meant.")
    return warnings


def number(count: int, of: str = "conversation") -> str:
    """Begin a sentence about so many.

    >>> number(1), number(1200, "answer")
    ('1 conversation is', '1,200 answers are')
    """
    return f"{count:,} {of} is" if count == 1 else f"{count:,} {of}s are"
