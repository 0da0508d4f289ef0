"""The doctor sees what is there, and says so when something is wrong."""

import re

import pytest
import torch
from packaging.requirements import Requirement
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from chatsft import doctor
from chatsft.doctor import FAULT, NOTE, OK, Finding, check_attention, check_disk, check_hardware, check_requirement, check_sandbox, main
from chatsft.execution.sandbox import Sandbox


def test_every_topic_is_looked_at_and_the_exit_code_tells_whether_there_is_a_fault(capsys):
    code = main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2] if line[0] != " "] == ["versions", "hardware", "attention", "sandbox", "disk"]
    faults = [line for line in lines[:-2] if line[12:].startswith("fault")]
    assert lines[-1].startswith(f"faults: {len(faults)}, notes: ")
    assert code == bool(faults)


def test_the_attention_chosen_for_packing_keeps_conversations_apart():
    findings = {finding.text.split(":")[0]: finding.state for finding in check_attention()}
    assert findings["varlen (chosen for packing)"] == OK or findings["varlen_fa4 (chosen for packing)"] == OK
    assert {OK} == set(findings.values())


def leaky_attention(module, query, key, value, attention_mask, cu_seq_lens_q=None, **kwargs):
    """Forget where one conversation ends and the next begins."""
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs)


def test_an_attention_that_lets_conversations_see_each_other_is_a_fault(monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "varlen", leaky_attention)
    [finding] = [finding for finding in check_attention() if finding.text.startswith("varlen (chosen")]
    assert finding.state == FAULT
    assert "packing: false" in finding.text


def test_a_package_that_is_too_old_is_a_fault_with_the_command_that_helps(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: "4.1")
    assert check_requirement(Requirement("transformers>=5.17,<6")) == Finding(
        "versions", FAULT, 'transformers 4.1, but <6,>=5.17 is needed: pip install "transformers<6,>=5.17"'
    )
    assert check_requirement(Requirement("transformers>=4")).state == OK


@pytest.mark.parametrize(("capability", "state"), [("9.0", OK), ("7.5", NOTE)])
def test_gpus_are_listed_and_those_without_bfloat16_noted(monkeypatch, capability, state):
    gpu = {"name": "Some GPU", "memory_gib": 15.0, "capability": capability}
    found = {"cpu_cores": 2, "memory_gib": 8.0, "system": "Linux x86_64", "cuda": "13.0", "gpus": [gpu]}
    monkeypatch.setattr(doctor, "describe_environment", lambda: found)
    _, finding = check_hardware()
    assert finding.state == state
    assert finding.text.startswith(f"GPU 0: Some GPU, 15.0 GiB, compute capability {capability}, CUDA 13.0")
    assert ("bf16: false" in finding.text) == (state == NOTE)


def test_no_gpu_is_a_note(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [finding.state for finding in check_hardware()] == [OK, NOTE]


def test_a_weak_sandbox_is_noted_and_a_stronger_one_is_not(monkeypatch):
    strong, weak = Sandbox("namespaces"), Sandbox("limits", landlock=False, seccomp=False)
    monkeypatch.setattr(doctor, "check_sandboxes", lambda: {strong: "no namespaces", weak: None})
    assert [finding.state for finding in check_sandbox()] == [NOTE, NOTE]
    monkeypatch.setattr(doctor, "check_sandboxes", lambda: {strong: None})
    assert list(check_sandbox()) == [Finding("sandbox", OK, "namespaces + Landlock + seccomp: holds")]


def test_little_disk_space_is_noted_also_for_folders_that_are_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3 * 2**30}))
    findings = list(check_disk())
    assert [finding.state for finding in findings] == [NOTE] * 4
    assert re.search(r"^3 GiB free for models from the Hub \(.*not.yet\): little for checkpoints$", findings[1].text)
