"""The whole path, recipe to saved model: the same as nanochat, the same however it is cut, and safe against bad input."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import chatsft
from chatsft.arguments import RecipeError
from chatsft.batches import divide
from chatsft.model.nanochat_checkpoint import our_name
from chatsft.recipe import load_recipe
from chatsft.train import main, train
from tests.model.oracle import FIXTURES, load_json

PARITY = Path(__file__).parent.parent / "recipes" / "parity.yaml"
V1 = FIXTURES / "train_v1"


class NormRecorder(TrainerCallback):
    def __init__(self):
        self.norms = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.norms.append({name: parameter.detach().double().norm().item() for name, parameter in model.named_parameters()})


class RotaryAsRun(TrainerCallback):
    """Round the rotary cosines and sines as nanochat's 2025 code does."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.config.rotary_dtype = "bfloat16"


def run(output: Path, *overrides: str, callbacks=()):
    return train(load_recipe(PARITY, [f"output_dir={output}", *overrides]), callbacks)


def losses(trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def eval_losses(trainer) -> list[float]:
    return [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}


def largest_shift(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """Return the largest ||a - b|| / ||a - start|| over tensors: AdamW's eps of 1e-10 makes single elements no measure."""
    return max(((a[name] - b[name]).norm() / (a[name] - start[name]).norm()).item() for name in a)


def test_2025_training_gives_nanochats_losses_rates_and_weights(tmp_path, capsys):
    recorded, recorder = load_json(V1 / "trajectory_fp32ns_fp32rot.json.gz"), NormRecorder()
    trainer = run(tmp_path / "out", callbacks=[recorder])
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 21
    for step, log, norms in zip(recorded["steps"], logs, recorder.norms, strict=False):
        assert log["loss"] == pytest.approx(step["mean_of_micro_losses"], rel=1e-5), step["step"]
        assert log["supervised_tokens"] == step["num_tokens"]
        rates = [group["lr"] for group in [*step["AdamW"], step["Muon"][0]]]
        assert [log["lr_unembedding"], log["lr_embedding"], log["lr_matrices"]] == pytest.approx(rates, rel=1e-9)
        for name, norm in step["param_norms_after"].items():
            assert norms[our_name(name)] == pytest.approx(norm, rel=1e-5), name
    validation = [log["val_loss"] for log in recorded["script_logs"] if "val_loss" in log]
    assert eval_losses(trainer)[:3] == pytest.approx(validation, rel=1e-5)
    printed = capsys.readouterr().out
    assert "Step 00000 | Validation loss: 8.506" in printed
    assert "Step 00000 | Training loss: 8.518" in printed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_2025_training_with_rounded_rotary_gives_nanochats_losses(tmp_path, precision):
    variant = {"float32": "fp32ns", "bfloat16": "bf16ns"}[precision]
    recorded = load_json(V1 / f"trajectory_{variant}.json.gz")
    trainer = run(tmp_path / "out", f"muon_precision={precision}", "eval_strategy=no", "eval_on_start=false", callbacks=[RotaryAsRun()])
    for step, loss in zip(recorded["steps"], losses(trainer), strict=False):
        assert loss == pytest.approx(step["mean_of_micro_losses"], rel=1e-5), step["step"]


def test_the_saved_model_loads_and_gives_the_trained_logits(tmp_path):
    trainer = run(tmp_path / "out", "max_steps=2", "eval_strategy=no", "eval_on_start=false")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(tokenizer, chatsft.GPTTokenizer)
    assert model.generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])  # by version of transformers
    question = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}
    ids = torch.tensor([tokenizer.render_for_completion(question)])
    assert torch.equal(model(ids).logits, trainer.model.eval()(ids).logits)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert {"loss", "lr_multiplier", "supervised_tokens", "tokens_per_second", "lr_matrices"} <= set(state["log_history"][0])


def test_accumulating_one_by_one_equals_one_batch(tmp_path):
    options = ("loss_average=token", "max_steps=4", "eval_strategy=no", "eval_on_start=false")
    start = weights(run(tmp_path / "0", "max_steps=1", *options[2:], "init_lr_frac=0"))
    whole = run(tmp_path / "1", *options, "per_device_train_batch_size=8")
    single = run(tmp_path / "2", *options, "per_device_train_batch_size=1")
    assert losses(single) == pytest.approx(losses(whole), rel=1e-6)
    assert largest_shift(weights(whole), weights(single), start) < 1e-3


def test_packing_changes_no_step(tmp_path):
    options = ("loss_average=token", "max_steps=4", "per_device_train_batch_size=8")
    padded = run(tmp_path / "1", *options)
    packed = run(tmp_path / "2", *options[:2], "packing=true", "per_device_train_batch_size=2", "max_length=512")
    assert losses(packed) == pytest.approx(losses(padded), rel=1e-5)
    assert eval_losses(packed) == pytest.approx(eval_losses(padded), rel=1e-5)


def test_packing_across_the_mixture_trains_every_conversation(tmp_path):
    trainer = run(
        tmp_path / "out",
        *("packing=true", "loss_average=token", "target_examples_per_step=null", "total_batch_size=2048", "max_length=512"),
        *("per_device_train_batch_size=2", "max_steps=-1", "num_train_epochs=1", "eval_strategy=no", "eval_on_start=false"),
    )
    assert trainer.args.gradient_accumulation_steps == 2
    trained = sum(log["supervised_tokens"] for log in trainer.state.log_history if "loss" in log)
    dataset = trainer.train_dataset
    assert trained == sum((dataset[i]["labels"] != -100).sum() for i in range(len(dataset)))
    assert sorted(i for row in dataset.rows for i in row) == list(range(160))


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_resumed_run_equals_one_straight_through(tmp_path, packing):
    options = ("loss_average=token", "max_steps=6", "eval_strategy=no", "eval_on_start=false", f"packing={packing}", "max_length=512")
    straight = run(tmp_path / "straight", *options)
    run(tmp_path / "cut", *options, "save_strategy=steps", "save_steps=3")
    (tmp_path / "cut" / "checkpoint-6").rename(tmp_path / "later")
    resumed = run(tmp_path / "cut", *options, "resume_from_checkpoint=true")
    assert losses(resumed) == losses(straight)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(straight).items())


def test_evaluating_changes_no_loss(tmp_path):
    quiet = run(tmp_path / "1", "max_steps=4", "eval_strategy=no", "eval_on_start=false")
    watched = run(tmp_path / "2", "max_steps=4", "eval_steps=1")
    assert losses(quiet) == losses(watched)
    assert len(eval_losses(watched)) == 5


def test_the_token_loss_does_not_depend_on_the_evaluation_batch(tmp_path):
    options = ("num_train_epochs=0", "max_steps=-1")
    figures = []
    for size in (8, 3, 20):
        trainer = run(tmp_path / "out", *options, f"per_device_eval_batch_size={size}")
        assert len(trainer.eval_dataset) % size == 0
        figures.append(trainer.evaluate())
    assert [log["eval_token_loss"] for log in figures] == pytest.approx([figures[0]["eval_token_loss"]] * 3, rel=1e-6)
    assert figures[2]["eval_loss"] == pytest.approx(figures[0]["eval_loss"], rel=1e-6)


def test_evaluation_by_epochs_comes_once_an_epoch(tmp_path):
    mixture = f"train_mixture=[{{path: {V1}/conversations.jsonl, stop: 8}}]"
    trainer = run(tmp_path / "out", mixture, "max_steps=-1", "num_train_epochs=2", "eval_strategy=epoch", "eval_on_start=false")
    assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [1, 2]


def test_rows_packed_across_the_mixture_fill_every_micro_batch(tmp_path):
    trainer = run(
        tmp_path / "out",
        *("packing=true", "loss_average=token", "target_examples_per_step=null", "total_batch_size=8192", "max_length=512"),
        *("per_device_train_batch_size=16", "num_train_epochs=0", "max_steps=-1", "eval_strategy=no", "eval_on_start=false"),
    )
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 3
    assert all(batch["input_ids"].shape == (1, 8192) for batch in batches)


def test_a_micro_batch_without_supervised_tokens_counts_as_zero(tmp_path):
    talk = [{"role": "user", "content": "hi " * 300}, {"role": "assistant", "content": "yes"}]
    rows = [talk, talk, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c d"}]]
    (tmp_path / "cut.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    trainer = run(
        tmp_path / "out",
        *(f"train_mixture=[{{path: {tmp_path}/cut.jsonl}}]", "per_device_train_batch_size=1", "target_examples_per_step=3"),
        *("max_length=64", "max_steps=1", "eval_strategy=no", "eval_on_start=false"),
    )
    assert trainer.state.log_history[0]["supervised_tokens"] > 0
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


GOOD_LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
BAD_LINE = '{"messages": [{"role": "assistant", "content": "hi"}]}\n'


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["matrix_rl=0.1"], "Did you mean 'matrix_lr'"),
        (["train_mixture=[{path: none.jsonl}]"], "none.jsonl"),
        (["train_mixture=[{path: broken.jsonl}]"], "broken.jsonl:2"),
        (["train_mixture=[{path: order.jsonl}]"], "order.jsonl:1: message 0"),
        (["train_mixture=[{path: empty.jsonl}]"], "empty.jsonl"),
        (["train_mixture=[{task: ARC-Easi}]"], "ARC-Easy"),
        (["train_mixture=[{path: cut.jsonl}]", "max_length=8"], "train_mixture has no token to train on"),
        (["max_length=4096"], "max_length is 4096"),
        (["target_examples_per_step=10"], "Set target_examples_per_step to 8 or 12"),
        (["model_name_or_path=nowhere/at/all"], "nowhere/at/all is not a folder"),
        (["model_name_or_path=foreign"], "holds neither config.json"),
        (["model_name_or_path=truncated"], "cannot be read as a torch checkpoint"),
        (["tokenizer_path=null"], "Set tokenizer_path"),
        ([f"tokenizer_path={FIXTURES}/evaluation"], "tokenizer.pkl"),
        ([f"model_name_or_path={FIXTURES}/model_v1/mha"], "They do not belong together"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_bad_input_ends_before_training_with_one_message(tmp_path, monkeypatch, capsys, overrides, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text(GOOD_LINE + '{"mess')
    (tmp_path / "order.jsonl").write_text(BAD_LINE)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.jsonl").write_text(GOOD_LINE.replace('"a"', f'"{"hi " * 99}"'))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "truncated").mkdir()
    whole = (V1 / "mid_checkpoint" / "model_000000.pt").read_bytes()
    (tmp_path / "truncated" / "model_000000.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "truncated" / "meta_000000.json").write_bytes((V1 / "mid_checkpoint" / "meta_000000.json").read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")
    assert main([str(PARITY), "output_dir=out", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept.txt"]


def test_half_an_epoch_trains_half_the_conversations_at_rates_that_fall_to_their_end(tmp_path):
    whole, half = (run(tmp_path / str(epochs), "max_steps=-1", f"num_train_epochs={epochs}") for epochs in (1, 0.5))
    steps = [len(losses(trainer)) for trainer in (whole, half)]
    assert steps[1] == -(-steps[0] // 2)
    assert half.state.epoch == pytest.approx(steps[1] / steps[0])
    multipliers = [log["lr_multiplier"] for log in half.state.log_history if "loss" in log]
    assert multipliers == pytest.approx([1 - step / steps[1] for step in range(steps[1])])
    assert half.state.log_history[-2]["step"] == steps[1]
    assert "eval_loss" in half.state.log_history[-2]


def test_raw_text_in_the_mixture_is_trained_beside_conversations(tmp_path):
    texts = ["Once upon a time there was a small model.", "It read a book."]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    mixture = f"train_mixture=[{{path: {tmp_path}/corpus.jsonl}}, {{path: {V1}/conversations.jsonl, stop: 2}}]"
    options = [mixture, "mixture_order=sequence", "target_examples_per_step=4", "per_device_train_batch_size=1", "max_steps=1"]
    options += ["max_length=512", "loss_average=token"]
    packed, padded = (run(tmp_path / mode, *options, f"packing={mode}") for mode in ("true", "false"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "true")
    lines = (V1 / "conversations.jsonl").read_text().splitlines()[:2]
    masks = [tokenizer.render_conversation(conversation_of(json.loads(line)), 512)[1] for line in lines]
    expected = sum(len(tokenizer.encode_ordinary(text)) for text in texts) + sum(map(sum, masks))
    for trainer in (packed, padded):
        assert trainer.state.log_history[1]["supervised_tokens"] == expected
    assert losses(packed) == pytest.approx(losses(padded), rel=1e-5)


def conversation_of(line: list | dict) -> dict:
    return line if isinstance(line, dict) else {"messages": line}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((32, 8, 3), "target_examples_per_step to 24 or 48, or the number of processes to 1, 2 or 4."),
        ((32, 12, 2), "target_examples_per_step to 24 or 48, or per_device_train_batch_size to 1, 2, 4, 8 or 16."),
        ((4, 8, 1), "target_examples_per_step to 8, or per_device_train_batch_size to 1, 2 or 4."),
        ((30, 4, 4), "target_examples_per_step to 16 or 32."),
    ],
)
def test_processes_and_batch_that_do_not_divide_a_step_are_told_what_does(sizes, message):
    with pytest.raises(RecipeError, match=f"Set {message}"):
        divide("target_examples_per_step", *sizes)


def test_tokens_of_a_step_are_divided_by_whole_rows():
    assert divide("total_batch_size", 4096, 2, 4, 256) == 2
    with pytest.raises(RecipeError, match=r"take 768 tokens at a time.*to 1536 or 2304, or per_device_train_batch_size to 1, 2, 4 or 8\."):
        divide("total_batch_size", 2048, 3, 1, 256)


def test_a_run_says_where_its_model_is_and_that_it_replaces_an_earlier_one(tmp_path, caplog):
    options = ("max_steps=1", "eval_strategy=no", "eval_on_start=false")
    said = []
    for _ in range(2):
        caplog.clear()
        run(tmp_path / "out", *options)
        said.append([record.getMessage() for record in caplog.records if record.name == "chatsft.run_folder"])
    replaces = f"{tmp_path}/out holds the model of an earlier run, which this one will replace. Set another output_dir to keep it"
    assert said == [[f"wrote {tmp_path}/out"], [replaces, f"wrote {tmp_path}/out"]]
