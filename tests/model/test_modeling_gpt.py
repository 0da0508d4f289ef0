"""The model gives nanochat's logits, losses and gradients, and its own ways of computing agree with each other."""

import contextlib
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import StaticCache
from transformers.cache_utils import DynamicCache, DynamicLayer

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.head_loss import supervised_loss
from chatsft.model.modeling_gpt import GPTForCausalLM, _compiled
from chatsft.model.nanochat_checkpoint import layer_windows, load_nanochat_model, our_name
from tests.model.oracle import FIXTURES, assert_close, assert_same_logits, load_json, shift_labels

V1, V2 = FIXTURES / "model_v1", FIXTURES / "model_v2"
V2_INFO = load_json(V2 / "info.json.gz")
VARIANTS = list(V2_INFO["variants"])


def model_v1(size: str, rotary_dtype: str = "float32") -> GPTForCausalLM:
    model = load_nanochat_model(V1 / size)
    model.config.rotary_dtype = rotary_dtype
    return model


def model_v2(variant: str = "SSSL_256") -> GPTForCausalLM:
    model = load_nanochat_model(V2)
    fields = V2_INFO["variants"][variant]["config"]
    windows = layer_windows(fields["window_pattern"], fields["n_layer"], fields["sequence_len"])
    model.config.layer_windows = windows
    for layer, window in zip(model.model.layers, windows, strict=True):
        layer.self_attn.sliding_window = window
    return model


def assert_same_gradients(model: GPTForCausalLM, grads: dict) -> None:
    # The lambdas' gradients are long sums that cancel: the recorded values lie up to 5.4e-5 off the same sums in float64.
    parameters, rows = dict(model.named_parameters()), model.config.vocab_size
    for name, recorded in grads.items():
        tolerance = 1e-4 if "lambda" in name else 1e-5
        grad = parameters[our_name(name)].grad
        norm = grad.double().norm().item()
        assert norm == pytest.approx(recorded["norm"], rel=tolerance), name
        width = grad[0].numel() if grad.ndim else 1
        pairs = zip(recorded["sample_flat_idx"], recorded["sample"], strict=True)
        for index, value in pairs:
            if index < rows * width or grad.shape[0] != rows:
                assert grad.flatten()[index].item() == pytest.approx(value, abs=tolerance * grad.abs().max().item()), name


@pytest.mark.parametrize("size", ["gqa", "mha"])
@pytest.mark.parametrize("rotary", ["fp32", "bf16"])
@pytest.mark.parametrize("length", ["short", "long"])
def test_2025_model_gives_nanochats_logits_loss_and_gradients(size, rotary, length):
    model = model_v1(size, {"fp32": "float32", "bf16": "bfloat16"}[rotary])
    inputs = load_file(V1 / size / "inputs.safetensors")
    outputs = load_file(V1 / size / f"outputs_rotary_{rotary}.safetensors")
    recorded = load_json(V1 / size / "info.json")[f"rotary_{rotary}"][length]
    labels = shift_labels(inputs[f"targets_{length}"])
    result = model(inputs[f"x_{length}"].long(), shift_labels=labels)
    assert result.logits.dtype == torch.float32
    assert_same_logits(result.logits, outputs, length)
    per_token = F.cross_entropy(result.logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert_close(per_token, outputs[f"loss_none_{length}"])
    assert result.loss.item() == pytest.approx(recorded["loss_mean"], rel=1e-5)
    result.loss.backward()
    assert_same_gradients(model, recorded["grads"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_2026_model_gives_nanochats_logits_loss_and_gradients(variant):
    inputs, outputs = load_file(V2 / "inputs.safetensors"), load_file(V2 / f"outputs_{variant}.safetensors")
    lengths = [key.removesuffix(".logsumexp") for key in outputs if key.endswith(".logsumexp")]
    assert lengths
    for length in lengths:
        model = model_v2(variant)
        labels = shift_labels(inputs[f"targets_{length}"])
        result = model(inputs[f"x_{length}"].long(), shift_labels=labels)
        assert_same_logits(result.logits, outputs, length)
        per_token = F.cross_entropy(result.logits.flatten(0, 1), labels.flatten(), reduction="none")
        assert_close(per_token, outputs[f"{length}.loss_none"])
        recorded = V2_INFO["variants"][variant][length]
        assert result.loss.item() == pytest.approx(recorded["loss_mean"], rel=1e-5)
        if "grads" in recorded:
            result.loss.backward()
            assert_same_gradients(model, recorded["grads"])


@pytest.mark.parametrize("variant", ["L_256", "SSSL_256", "SSSL_1024"])
def test_2026_decoding_token_by_token_gives_nanochats_logits(variant):
    model, recorded = model_v2(variant), load_file(V2 / f"kv_decode_{variant}.safetensors")
    ids = load_file(V2 / "inputs.safetensors")["x_640" if variant.endswith("1024") else "x_300"].long()
    length, prefill = len(recorded["decode_argmax"]), V2_INFO["variants"][variant]["kv"]["prefill"]
    logits = decode(model, ids[:1, :length], [prefill] + [1] * (length - prefill))
    assert_close(logits[0].logsumexp(-1), recorded["decode_logsumexp"])
    assert_close(logits[0, recorded["positions"]], recorded["decode_logits_at"])
    assert logits[0].argmax(-1).tolist() == recorded["decode_argmax"].tolist()


def test_2025_decoding_token_by_token_gives_nanochats_logits():
    model, recorded = model_v1("gqa", "bfloat16"), load_file(V1 / "gqa" / "kv_decode.safetensors")
    ids = load_file(V1 / "gqa" / "inputs.safetensors")["x_long"].long()[:1, :80]
    logits = decode(model, ids, [20] + [1] * 60)
    assert_close(logits[0].logsumexp(-1), recorded["decode_logsumexp"])
    assert_close(logits[0, recorded["positions"]], recorded["decode_full_logits_at"])


@torch.no_grad()
def decode(model: GPTForCausalLM, ids: torch.Tensor, chunks: list[int], cache=None) -> torch.Tensor:
    """Feed ids chunk by chunk through a cache, with nothing but the cache passed along, and return all logits."""
    cache, logits, start = cache or DynamicCache(), [], 0
    for size in chunks:
        logits.append(model(ids[:, start : start + size], past_key_values=cache, use_cache=True).logits)
        start += size
    return torch.cat(logits, dim=1)


def both_generations():
    return [pytest.param(lambda: model_v1("mha"), id="2025"), pytest.param(model_v2, id="2026")]


def random_ids(model: GPTForCausalLM, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("cache", ["bare", "configured", "static"])
def test_cached_chunks_equal_the_full_forward_past_the_window(build, cache):
    model = build()
    ids = random_ids(model, 2, 300)
    caches = {
        "bare": DynamicCache,
        "configured": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=320),
    }
    expected = model(ids).logits
    assert_close(decode(model, ids, [100, 9, 1, 1, 170, 19], caches[cache]()), expected)


@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("implementation", [None, "static"])
def test_generate_equals_greedy_decoding_without_a_cache(build, implementation):
    model = build()
    ids = random_ids(model, 2, 140)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
    generated = model.generate(ids, cache_implementation=implementation, **options)
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == expected.tolist()


def test_2026_generation_equals_nanochats_engine():
    for variant in ("SSSL_256", "L_256"):
        recorded = V2_INFO["variants"][variant]["generate"]
        prompt = torch.tensor([recorded["prompt"]])
        generated = model_v2(variant).generate(prompt, max_new_tokens=len(recorded["naive_greedy"]), do_sample=False, pad_token_id=0)
        assert generated[0, prompt.shape[1] :].tolist() == recorded["engine_greedy"]


@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_a_padded_batch_equals_its_rows(build, side, attention):
    model = build()
    model.set_attn_implementation(attention)
    lengths = [200, 37, 1]
    ids, mask = torch.zeros(3, 200, dtype=torch.long), torch.zeros(3, 200, dtype=torch.long)
    spans = [slice(200 - n, 200) if side == "left" else slice(0, n) for n in lengths]
    rows = [random_ids(model, 1, n, seed=n) for n in lengths]
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        ids[i, span], mask[i, span] = row[0], 1
    logits = model(ids, attention_mask=mask).logits
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        assert_close(logits[i, span], model(row).logits[0])


@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("implementation", [None, "static"])
def test_generating_from_a_left_padded_batch_equals_single_prompts(build, implementation):
    model = build()
    prompts = [random_ids(model, 1, n, seed=n) for n in (130, 1, 60)]
    ids = torch.cat([F.pad(p, (130 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([F.pad(torch.ones_like(p), (130 - p.shape[1], 0)) for p in prompts])
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
    together = model.generate(ids, attention_mask=mask, cache_implementation=implementation, **options)[:, 130:]
    for row, prompt in zip(together, prompts, strict=True):
        assert row.tolist() == model.generate(prompt, **options)[0, prompt.shape[1] :].tolist()


def test_a_right_padded_prompt_goes_on_from_its_last_real_token():
    model = model_v2()
    ids, mask = random_ids(model, 1, 20), torch.ones(1, 20, dtype=torch.long)
    padded, mask = F.pad(ids, (0, 5)), F.pad(mask, (0, 5))
    cache, new = DynamicCache(), random_ids(model, 1, 1, seed=9)
    with torch.no_grad():
        model(padded, attention_mask=mask, past_key_values=cache)
        logits = model(new, attention_mask=F.pad(mask, (0, 1), value=1), past_key_values=cache).logits
        assert_close(logits[:, -1], model(torch.cat([ids, new], 1)).logits[:, -1])


def test_the_cached_token_ids_follow_reorder_selection_crop_and_reset():
    model = model_v2()
    ids, step = random_ids(model, 3, 40), random_ids(model, 3, 1, seed=5)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.reorder_cache(order)
        assert_close(model(step, past_key_values=cache).logits[:, -1], model(torch.cat([ids[order], step], 1)).logits[:, -1])
        cache.crop(-11)
        cache.batch_select_indices(torch.tensor([1]))
        kept = torch.cat([ids[order[1:2], :30], step[:1]], 1)
        assert_close(model(step[:1], past_key_values=cache).logits[:, -1], model(kept).logits[:, -1])
        cache.reset()
        assert_close(model(ids, past_key_values=DynamicCache()).logits, model(ids).logits)
        if cache.get_seq_length() == 0:
            assert_close(model(ids[:1], past_key_values=cache).logits, model(ids[:1]).logits)


class NoStream(contextlib.nullcontext):
    def wait_stream(self, other) -> None: ...


def test_offloaded_keys_are_back_whenever_they_are_needed(monkeypatch):
    def offload(layer):
        layer.kept, layer.keys, layer.values = (layer.keys, layer.values), layer.keys.to("meta"), layer.values.to("meta")

    def prefetch(layer):
        if layer.is_initialized and layer.keys.is_meta:
            layer.keys, layer.values = layer.kept

    monkeypatch.setattr("torch.Stream", NoStream)
    monkeypatch.setattr("torch.cuda.default_stream", lambda device: NoStream())
    monkeypatch.setattr(DynamicLayer, "offload", offload)
    monkeypatch.setattr(DynamicLayer, "prefetch", prefetch)
    model = model_v2()
    ids = random_ids(model, 2, 140)
    assert_close(decode(model, ids, [100, 1, 1, 38], DynamicCache(config=model.config, offloading=True)), model(ids).logits)


def packed_batch(rows: list[torch.Tensor]) -> dict:
    bounds = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0)], dtype=torch.int32)
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 200,
        "max_length_k": 200,
    }


@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_packed_conversations_equal_single_rows_and_never_see_each_other(build, attention):
    model = build()
    model.set_attn_implementation(attention)
    rows = [random_ids(model, n, seed=n) for n in (5, 200, 1, 33)]
    packed = model(**packed_batch(rows), use_cache=False).logits[0].split([len(row) for row in rows])
    for row, logits in zip(rows, packed, strict=True):
        assert_close(logits, model(row[None]).logits[0])
    changed = [rows[0], random_ids(model, 200, seed=77), *rows[2:]]
    logits = model(**packed_batch(changed), use_cache=False).logits[0].split([len(row) for row in rows])
    for i in (0, 2, 3):
        assert torch.equal(logits[i], packed[i])
    assert not torch.equal(logits[1], packed[1])


@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_bounds_alone_keep_packed_conversations_apart(build, attention):
    model = build()
    model.set_attn_implementation(attention)
    batch = packed_batch([random_ids(model, n, seed=n) for n in (5, 200, 1, 33)])
    expected = model(**batch, use_cache=False).logits
    del batch["position_ids"]
    assert torch.equal(model(**batch, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    "extra", [{"attention_mask": torch.ones(1, 12, dtype=torch.long)}, {"past_key_values": DynamicCache()}, {"use_cache": True}]
)
def test_a_mask_or_cache_on_a_packed_batch_is_refused(extra):
    model = model_v2()
    batch = packed_batch([torch.arange(5), torch.arange(7)])
    with pytest.raises(ValueError, match="Packed conversations"):
        model(**batch, **extra)
    with pytest.raises(ValueError, match="Packed conversations"):
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], **extra)


@pytest.mark.parametrize("build", both_generations())
def test_loss_without_logits_equals_the_plain_loss_and_its_gradients(build, monkeypatch):
    monkeypatch.setattr("chatsft.model.head_loss.CHUNK", 7)
    ids = random_ids(build(), 2, 40)
    labels = ids.masked_fill(torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.5, -100)
    plain, chunked = build(), build()
    loss, other = plain(ids, labels=labels).loss, chunked(ids, labels=labels, skip_logits=True)
    assert other.logits is None
    assert other.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    other.loss.backward()
    for (name, a), b in zip(plain.named_parameters(), chunked.parameters(), strict=True):
        assert_close(b.grad, a.grad), name
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    positions = F.pad((shifted.flatten() != -100).nonzero().flatten(), (0, 9), value=-1)
    given = build()(ids, labels=labels, skip_logits=True, supervised_positions=positions).loss
    assert given.item() == pytest.approx(loss.item(), rel=1e-6)


def test_a_frozen_head_gets_no_gradient_and_passes_on_the_same(monkeypatch):
    monkeypatch.setattr("chatsft.model.head_loss.CHUNK", 7)
    trained, frozen = model_v2(), model_v2()
    frozen.lm_head.requires_grad_(False)
    ids = random_ids(trained, 2, 40)
    for model in (trained, frozen):
        model(ids, labels=ids, skip_logits=True).loss.backward()
    assert frozen.lm_head.weight.grad is None
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(trained.model.parameters(), frozen.model.parameters(), strict=True))


@pytest.mark.parametrize("build", both_generations())
def test_losses_of_single_tokens_add_up_to_the_loss(build):
    model, ids = build().eval(), random_ids(build(), 2, 40)
    options = {"labels": ids, "skip_logits": True, "use_cache": False}
    losses = model(ids, **options, reduce_loss=False).loss
    assert losses.shape == (2 * 39,)
    assert not losses.requires_grad
    assert_close(losses.mean(), model(ids, **options).loss.detach())


def test_loss_without_any_supervised_token_is_zero_and_has_zero_gradients():
    model = model_v2()
    loss = model(random_ids(model, 1, 9), labels=torch.full((1, 9), -100), skip_logits=True, num_items_in_batch=4).loss
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("build", both_generations())
def test_gradient_checkpointing_changes_no_gradient(build):
    plain, checkpointed = build().train(), build().train()
    checkpointed.gradient_checkpointing_enable()
    ids = random_ids(plain, 2, 30)
    for model in (plain, checkpointed):
        model(ids, labels=ids).loss.backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_the_gradient_of_a_bfloat16_loss_is_scaled_exactly():
    hidden, weight = torch.randn(2, 1, 9, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole, part = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    labels = torch.arange(9)[None]
    supervised_loss(whole, weight[0], labels, 15.0).backward()
    (supervised_loss(part, weight[0], labels, 15.0) / 3).backward()
    assert torch.equal(part.grad, (whole.grad.float() / 3).bfloat16())


def test_a_copy_of_a_compiled_model_runs_its_own_weights_and_torch_saves_it(monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    _compiled.cache_clear()
    model = model_v1("mha").train()
    model.model.compile_layers()
    ids, copied, file = random_ids(model, 1, 9), copy.deepcopy(model), io.BytesIO()
    torch.nn.init.zeros_(copied.model.layers[0].mlp.down_proj.weight)
    compiled = copied(ids).logits
    for layer in copied.model.layers:
        layer.memory_budget = None
    assert torch.equal(compiled, copied(ids).logits)
    assert not torch.equal(compiled, model(ids).logits)
    torch.save(model, file)
    _compiled.cache_clear()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("build", both_generations())
@pytest.mark.parametrize("extra", [10, -12])
def test_resizing_the_vocabulary_resizes_everything_looked_up_by_id(build, extra, tmp_path):
    model = build()
    size, ids = model.config.vocab_size + extra, random_ids(model, 1, 9).clamp(max=400)
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(size)
        assert torch.equal(model(ids).logits[..., : size - 12], before[..., : size - 12])
        ids[0, 3] = size - 1
        loss = model(ids, labels=ids, skip_logits=True).loss
        torch.testing.assert_close(loss, model(ids, labels=ids).loss)
        model.save_pretrained(tmp_path)
        assert torch.equal(GPTForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_what_the_model_cannot_do_is_refused():
    model = model_v1("mha")
    with pytest.raises(ValueError, match="needs labels"):
        model(random_ids(model, 1, 9), skip_logits=True)
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        GPTForCausalLM(GPTConfig(tie_word_embeddings=True))


def test_logits_to_keep_returns_the_last_positions():
    model = model_v1("mha")
    ids = random_ids(model, 1, 10)
    full = model(ids).logits
    assert_close(model(ids, logits_to_keep=2).logits, full[:, -2:])
    assert_close(model(ids, logits_to_keep=torch.tensor([3, 5])).logits, full[:, [3, 5]])


def test_inputs_embeds_alone_serve_2025_models_and_are_refused_by_2026_models():
    old, new = model_v1("mha"), model_v2()
    ids = random_ids(old, 1, 8)
    assert_close(old(inputs_embeds=old.model.embed_tokens(ids)).logits, old(ids).logits)
    with pytest.raises(ValueError, match="input_ids beside inputs_embeds"):
        new(inputs_embeds=new.model.embed_tokens(ids))
    assert_close(new(input_ids=ids, inputs_embeds=new.model.embed_tokens(ids)).logits, new(ids).logits)


def test_hidden_states_and_attention_weights_can_be_asked_for():
    model = model_v1("mha")
    model.set_attn_implementation("eager")
    result = model(random_ids(model, 1, 6), output_hidden_states=True, output_attentions=True)
    assert len(result.hidden_states) == model.config.num_hidden_layers + 1
    assert result.attentions[0].shape == (1, 4, 6, 6)


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_fresh_weights_are_drawn_as_nanochat_draws_them(generation):
    if generation == "2025":
        recorded = load_json(V1 / "init_weights_seed42.json")["norms"]
        config = GPTConfig(vocab_size=4096, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    else:
        recorded, config = V2_INFO["init_weights_seed42"]["norms"], load_nanochat_model(V2).config
        config.vocab_size = 4096
    torch.manual_seed(0)
    parameters = dict(GPTForCausalLM(config).named_parameters())
    assert {our_name(name) for name in recorded} == set(parameters)
    for name, norm in recorded.items():
        parameter = parameters[our_name(name)]
        assert parameter.double().norm().item() == pytest.approx(norm, rel=4 / parameter.numel() ** 0.5), name


@pytest.mark.parametrize("build", both_generations())
def test_a_saved_model_loads_through_auto_classes_with_the_same_logits(build, tmp_path):
    from transformers import AutoModelForCausalLM

    import chatsft  # noqa: F401

    model = build()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(model, 1, 20)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.to_diff_dict() == AutoModelForCausalLM.from_pretrained(tmp_path).config.to_diff_dict()
