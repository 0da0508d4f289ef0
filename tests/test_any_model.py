"""Any causal language model with a chat template trains: packed as unpacked, resumed as straight through, and saved as it was."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from chatsft import chat, eval, preview
from chatsft.arguments import ChatArguments
from chatsft.data.collator import PaddingCollator
from chatsft.model.packed_attention import IsolationError, keeps_packed_apart, prepare_attention
from chatsft.recipe import load_recipe
from chatsft.train import main, train
from chatsft.trainer import ChatTrainer
from tests.other_models import CONVERSATIONS, FAMILIES, MARKED, build_tokenizer, save_model, save_recipe

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def run(recipe: Path, output: Path, *overrides: str) -> ChatTrainer:
    return train(load_recipe(recipe, [f"output_dir={output}", *overrides]))


@dataclass
class Case:
    """A family, its recipe, and a packed run of it that saved checkpoint-2 and checkpoint-3."""

    folder: Path
    recipe: Path
    packed: ChatTrainer


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    recipe = save_recipe(folder, save_model(request.param, folder / "base"), save_strategy="steps", save_steps=2)
    return Case(folder, recipe, run(recipe, folder / "packed"))


def losses(trainer: ChatTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def weights(trainer: ChatTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}


def test_packing_changes_no_loss_and_training_lowers_it(case, tmp_path):
    padded = run(case.recipe, tmp_path, "packing=false", "per_device_train_batch_size=2", "save_strategy=no")
    assert case.packed.model.config._attn_implementation == "varlen"
    assert losses(case.packed) == pytest.approx(losses(padded), rel=1e-5)
    assert losses(case.packed)[-1] < losses(case.packed)[0]
    counts = [trainer.state.log_history[0]["supervised_tokens"] for trainer in (case.packed, padded)]
    assert counts[0] == counts[1] > 0


def test_sdpa_packs_as_varlen_does(case, tmp_path):
    masked = run(case.recipe, tmp_path, "attn_implementation=sdpa", "save_strategy=no")
    assert masked.model.config._attn_implementation == "sdpa"
    assert losses(masked) == pytest.approx(losses(case.packed), rel=1e-5)


def test_every_parameter_is_in_one_group_and_moves(case):
    trainer = case.packed
    grouped = [id(param) for group in trainer.optimizer.param_groups for param in group["params"]]
    assert sorted(grouped) == sorted(id(param) for param in trainer.model.parameters())
    base = dict(AutoModelForCausalLM.from_pretrained(case.folder / "base").named_parameters())
    assert [name for name, tensor in weights(trainer).items() if torch.equal(tensor, base[name])] == []


def test_resuming_gives_the_weights_of_a_run_straight_through(case, tmp_path):
    resumed = run(case.recipe, tmp_path, f"resume_from_checkpoint={case.folder}/packed/checkpoint-2", "save_strategy=no")
    assert losses(resumed) == losses(case.packed)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(case.packed).items())


def test_the_saved_model_gives_the_trained_logits(case):
    folder, trained = case.folder / "packed", case.packed.model.eval()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model) is type(trained)
    ids = torch.tensor([tokenizer("What is two and three?").input_ids])
    assert torch.allclose(model(ids).logits, trained(ids).logits, atol=1e-5)


def test_the_validation_loss_is_finite_where_a_batch_trains_nothing(tmp_path):
    recipe = save_recipe(tmp_path, save_model("llama", tmp_path / "base", MARKED))
    (tmp_path / "cut.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]}\n' % ("a b" * 99)
        + '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    options = [f"eval_mixture=[{{path: {tmp_path}/cut.jsonl}}]", "eval_strategy=steps", "eval_steps=3", "per_device_eval_batch_size=1"]
    trainer = run(recipe, tmp_path / "out", *options)
    assert [0 < log["eval_token_loss"] < 20 for log in trainer.state.log_history if "eval_loss" in log] == [True]


@pytest.mark.parametrize("implementation", ["varlen", "sdpa", "eager"])
def test_a_conversation_never_sees_the_one_before_it(implementation):
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert keeps_packed_apart(model, implementation)
    assert model.config._attn_implementation == implementation


def test_a_model_that_drops_attention_out_does_not_get_varlen():
    model = LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.1))
    prepare_attention(model, None, packing=True)
    assert model.config._attn_implementation == "sdpa"


def test_a_recurrent_model_is_refused_packed_and_taken_unpacked():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))
    prepare_attention(model, None, packing=False)
    with pytest.raises(IsolationError, match=r"MambaForCausalLM .* Set packing: false"):
        prepare_attention(model, None, packing=True)


def test_packing_under_autocast_takes_the_values_dtype(tmp_path):
    recipe = save_recipe(tmp_path, save_model("llama", tmp_path / "base"))
    plain, half = run(recipe, tmp_path / "plain"), run(recipe, tmp_path / "half", "bf16=true")
    assert losses(half) == pytest.approx(losses(plain), rel=0.02)


def test_preview_shows_what_is_trained(tmp_path, capsys):
    recipe = save_recipe(tmp_path, save_model("llama", tmp_path / "base"))
    assert preview.main([str(recipe), "--num", "1", "--stats"]) == 0
    shown = capsys.readouterr().out
    assert "\033[92m<|im_end|>" in shown
    assert "\033[91m<|im_start|>" in shown
    assert "chat.jsonl" in shown


def test_preview_leaves_out_what_training_leaves_out(tmp_path, capsys):
    refusing = "{% if messages[0]['content'] == 'What is 3 and 2?' %}{{ raise_exception('no twos') }}{% endif %}" + MARKED
    recipe = save_recipe(tmp_path, save_model("llama", tmp_path / "base", refusing))
    assert preview.main([str(recipe), "--num", "0", "--stats", "on_bad_row=skip"]) == 0
    assert re.search(rf"^chat.jsonl +{len(CONVERSATIONS) - 1} ", capsys.readouterr().out, re.MULTILINE)
    assert preview.main([str(recipe), "--num", "0", "--stats"]) == 2
    assert "no twos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "overrides", "message"),
    [
        (None, [], "without a chat template"),
        (MARKED.replace("{{ message['content'] + '<|im_end|>' }}{% endgen", "{% endgen"), [], "trains on no token"),
        ("{{ raise_exception('no') }}", [], "cannot be trained with: the chat template refuses it: no"),
        (MARKED, ["max_length=512"], "max_length is 512, but"),
        (MARKED, ["attn_implementation=none_such"], "none_such"),
    ],
    ids=["no template", "no token", "refuses", "too long", "attention"],
)
def test_bad_input_ends_before_training_with_one_message(tmp_path, capsys, template, overrides, message):
    recipe = save_recipe(tmp_path, save_model("llama", tmp_path / "base", template))
    assert build_tokenizer(template).pad_token_id is None
    assert main([str(recipe), *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_tasks_are_scored_during_training_and_after_it_alike(case, tmp_path, capsys):
    options = ["save_strategy=no", "eval_tasks=[Arithmetic]", "eval_metrics_every=2", "eval_max_problems=3"]
    trainer = run(case.recipe, tmp_path, *options)
    assert losses(trainer) == losses(case.packed)
    assert [log["step"] for log in trainer.state.log_history if "arithmetic_acc" in log] == [0, 2, 3]
    capsys.readouterr()
    assert eval.main([str(tmp_path), "--tasks", "Arithmetic", "--max_problems", "3", "--max_new_tokens", "8"]) == 0
    assert re.search(r"^Arithmetic +0\.0000 ", capsys.readouterr().out, re.MULTILINE)


def test_what_needs_nanochats_tokenizer_says_so(tmp_path, capsys):
    save_model("llama", tmp_path)
    for program, options in ((chat.main, []), (eval.main, ["--conversations", "chat.jsonl"])):
        assert program([str(tmp_path), *options]) == 2
        assert "does not know nanochat's chat format" in capsys.readouterr().err


def test_eval_refuses_a_model_that_nothing_can_be_asked_of(tmp_path, capsys):
    save_model("llama", tmp_path, None)
    assert eval.main([str(tmp_path), "--tasks", "Arithmetic"]) == 2
    assert "without a chat template, so nothing can be asked with it" in capsys.readouterr().err


def test_the_best_weights_of_a_model_that_renames_them_on_saving_come_back(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=2, vocab_size=64))
    trainer = ChatTrainer(model=model, args=ChatArguments(output_dir=tmp_path, use_cpu=True), data_collator=PaddingCollator(0))
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.save_model(tmp_path / "checkpoint-1")
    for parameter in model.parameters():
        parameter.data.zero_()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
