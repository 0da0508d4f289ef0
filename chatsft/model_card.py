"""The model card: what a model was made from and how, how far it came, and how to use it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from chatsft import __version__
from chatsft.curves import draw_curves
from chatsft.recipe import Recipe
from chatsft.task_metrics import metric_name

RECIPE_FILE, CURVES_FILE, CARD_FILE = "recipe.yaml", "curves.svg", "README.md"

SECRETS = ("hub_token",)
DATASETS = {  # source in the mixture: its place on the Hub, and the licence that stands there
    "ARC-Easy": ("allenai/ai2_arc", "CC BY-SA 4.0"),
    "ARC-Challenge": ("allenai/ai2_arc", "CC BY-SA 4.0"),
    "MMLU": ("cais/mmlu", "MIT"),
    "GSM8K": ("openai/gsm8k", "MIT"),
    "HumanEval": ("openai/openai_humaneval", "MIT"),
    "SmolTalk": ("HuggingFaceTB/smol-smoltalk", "Apache 2.0"),
    "SimpleSpelling": (None, "words: Unlicense (dwyl/english-words)"),
    "SpellingBee": (None, "words: Unlicense (dwyl/english-words)"),
    "Arithmetic": (None, "made by chatsft (MIT)"),
}
UNKNOWN_LICENCE = "see the source"
NOT_LISTED = ("train_mixture", "eval_mixture", "output_dir", "data_root")  # recipe.yaml has them
NOT_RESULTS = ("runtime", "samples_per_second", "steps_per_second")
CURVES = {"training loss": "loss", "validation loss": "eval_loss"}
RESULTS_HEADING, USE_HEADING = "## Results", "## Use"


class Use(NamedTuple):
    """How transformers is asked: its name for the task, and a message as code."""

    task: str
    argument: str
    content: str


TEXT_USE = Use("text-generation", "messages", "'Hello! Who are you?'")
IMAGE_USE = Use("image-text-to-text", "text=messages", "[{'type': 'image', 'url': 'photo.jpg'}, {'type': 'text', 'text': 'What is this?'}]")


def save_model_card(
    folder: str | Path,
    recipe: Recipe,
    row_counts: Mapping[str, int],
    log_history: Sequence[dict],
    name: str,
    ships_code: bool = True,
    curves: Mapping[str, str] = CURVES,
    use: Use = TEXT_USE,
    is_adapter: bool = False,
) -> None:
    """Write README.md, recipe.yaml (overrides applied) and curves.svg into the folder of a trained model.

    Args:
        row_counts: training conversations by source, repeats counted.
        log_history: of the trainer.
        name: what from_pretrained takes: the Hub id, or the folder.
        ships_code: whether the code of the model is saved with it, as it is for models of this package.
        curves: what is drawn: label to key of the log.
        use: what the model takes.
        is_adapter: whether the folder holds an adapter of the recipe's model, not a model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(recipe_text(recipe), encoding="utf-8")
    points = {label: [(log["step"], log[key]) for log in log_history if key in log] for label, key in curves.items()}
    (folder / CURVES_FILE).write_text(draw_curves(points), encoding="utf-8")
    results, base = training_results(log_history), _hub_id(recipe.model.model_name_or_path)
    data = ModelCardData(
        model_name=_title(name),
        base_model=base,
        datasets=_datasets(row_counts),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=use.task,
        tags=["nanochat", "chatsft", "conversational", *(["lora"] if is_adapter else [])],
        eval_results=results or None,
    )
    usage = _adapter_usage(name, base, ships_code) if is_adapter else _usage(name, ships_code, use)
    body = _body(recipe, row_counts, results, _title(name), " and ".join(curves), usage)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(folder / CARD_FILE)


def add_results(folder: str | Path, accuracies: Mapping[str, float]) -> None:
    """Put accuracies by task into the card of a saved model, in place of older ones.

    Raises:
        ValueError: where the folder holds no card.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no model card ({CARD_FILE}). Name a folder that chatsft.train wrote.")
    card = ModelCard.load(path)
    new = [_result(task, "accuracy", value) for task, value in accuracies.items()]
    replaced = {(result.dataset_name, result.metric_type) for result in new}
    old = [result for result in card.data.eval_results or [] if (result.dataset_name, result.metric_type) not in replaced]
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.data.eval_results = [*old, *new]
    before, _, rest = card.text.partition(RESULTS_HEADING)
    after = rest[rest.index(USE_HEADING) :] if USE_HEADING in rest else ""
    card.text = "\n".join([before + RESULTS_HEADING, "", *_results_table(card.data.eval_results), "", after])
    ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text}").save(path)


def recipe_text(recipe: Recipe) -> str:
    """Write the settings of a run as a recipe, without its secrets."""
    settings = {name: value for name, value in recipe.settings.items() if name not in SECRETS}
    return f"# chatsft {__version__}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}"


def training_results(log_history: Sequence[dict]) -> list[EvalResult]:
    """Collect the last value of everything that was evaluated during training.

    >>> training_results([{"eval_loss": 2.0, "step": 0}, {"eval_loss": 1.5, "step": 9}])[0].metric_value
    1.5
    """
    figures = {key.removeprefix("eval_"): value for log in log_history for key, value in log.items() if key.startswith("eval_")}
    tasks = {metric_name(task): task for task in DATASETS}
    scores = {key: value for log in log_history for key, value in log.items() if key in tasks}
    results = [_result(tasks[key], "accuracy_during_training", value) for key, value in scores.items()]
    for figure, value in figures.items():
        task = next((task for task in DATASETS if figure.startswith(task)), None)
        if figure not in NOT_RESULTS:
            results.append(_result(task or "validation mixture", figure.removeprefix(task or "").strip("_/ ") or "accuracy", value))
    return results


def _result(dataset: str, metric: str, value: float) -> EvalResult:
    hub_id = DATASETS.get(dataset, (None,))[0]
    return EvalResult(
        task_type="text-generation",
        dataset_type=hub_id or dataset.lower().replace(" ", "-"),
        dataset_name=dataset,
        metric_type=metric,
        metric_name=metric.replace("_", " "),
        metric_value=round(float(value), 6),
    )


def _title(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _hub_id(name: str) -> str | None:
    """Return the name if it can only be a Hub id: metadata that names a local folder would point nowhere."""
    return name if not Path(name).exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


def _datasets(row_counts: Mapping[str, int]) -> list[str] | None:
    known = [DATASETS[source][0] if source in DATASETS else _hub_id(source) for source in row_counts]
    return sorted({hub_id for hub_id in known if hub_id}) or None


def _body(recipe: Recipe, row_counts: Mapping[str, int], results: list[EvalResult], title: str, caption: str, usage: list[str]) -> str:
    settings = {key: value for key, value in recipe.settings.items() if key not in (*SECRETS, *NOT_LISTED)}
    base = settings["model_name_or_path"]
    lines = [
        f"# {title}",
        "",
        f"A chat model made from {base} with chatsft {__version__}. `{RECIPE_FILE}` is the recipe of the run.",
        "",
        "## Data",
        "",
        *_table(("source", "conversations", "licence"), [(source, f"{rows:,}", _licence(source)) for source, rows in row_counts.items()]),
        "",
        "## Training",
        "",
        f"![{caption}]({CURVES_FILE})",
        "",
        *_table(("setting", "value"), [(f"`{key}`", f"`{value}`") for key, value in settings.items()]),
        "",
        RESULTS_HEADING,
        "",
        *_results_table(results),
        "",
        *usage,
    ]
    return "\n".join(lines) + "\n"


def _licence(source: str) -> str:
    return DATASETS[source][1] if source in DATASETS else UNKNOWN_LICENCE


def _results_table(results: Sequence[EvalResult]) -> list[str]:
    if not results:
        return ["Nothing was evaluated."]
    return _table(("on", "metric", "value"), [(r.dataset_name, r.metric_name or r.metric_type, f"{r.metric_value:.4f}") for r in results])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _usage(name: str, ships_code: bool, use: Use) -> list[str]:
    load = ["from transformers import pipeline", "", f"chat = pipeline({use.task!r}, model={name!r}{_trust(ships_code)})"]
    explanation = [
        "The code of the model is in this repository, which is what `trust_remote_code=True` agrees to run.",
        "With chatsft installed and imported it is not needed.",
    ]
    return [*_example(load, use), *(["", *explanation] if ships_code else [])]


def _adapter_usage(name: str, base: str | None, ships_code: bool) -> list[str]:
    """Put the adapter on its base by peft where the base is on the Hub, else by chatsft, which finds it where training did."""
    trust = _trust(ships_code)
    load = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base!r}{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}{trust})",
        f"chat = pipeline('text-generation', model=PeftModel.from_pretrained(base, {name!r}), tokenizer=tokenizer)",
    ]
    if base is None:
        load = [
            "from chatsft.model.loading import load_model_and_tokenizer",
            "from transformers import pipeline",
            "",
            f"model, tokenizer = load_model_and_tokenizer({name!r})",
            "chat = pipeline('text-generation', model=model, tokenizer=tokenizer)",
        ]
    return _example(load, TEXT_USE)


def _trust(ships_code: bool) -> str:
    return ", trust_remote_code=True" if ships_code else ""


def _example(load: list[str], use: Use) -> list[str]:
    return [
        USE_HEADING,
        "",
        "```python",
        *load,
        f"messages = [{{'role': 'user', 'content': {use.content}}}]",
        f"print(chat({use.argument}, max_new_tokens=64)[0]['generated_text'][-1]['content'])",
        "```",
    ]
