"""Janus that writes before it draws: both probabilities against transformers' modules, ends of texts, and learning."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters.janus import BOI, BOS, JanusPro
from rwk.adapters.janus_plan import END, SHUT, SYSTEM, JanusPlan, JanusPlan7B
from rwk.adapters.pixels import Colorfulness
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.modalities import modality_weights
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sampling import Sampling

PROMPTS = ["a red cat", "", "  Two naïve birds\nabove a café \n"]
RECORDED = ["1839a46b78c2c39d", "447ae9f8dc3f56f9", "8b90779b09010730"]
"""First 16 digits of the SHA-256 of what the authors' code asks for a text with, for three prompts."""


def drawn(per_prompt: int = 6) -> tuple[JanusPlan, Rollout]:
    generator = JanusPlan.tiny()
    return generator, generator.sample(PROMPTS, per_prompt=per_prompt, seed=0)


def question(generator: JanusPlan, prompt: str) -> list[int]:
    return generator._writer().prompt_ids(prompt)


def test_prompts_are_those_of_the_authors_code() -> None:
    """Their `conversation.py` and `reasoning_prompt.txt` gave the same texts, told here by their SHA-256."""
    generator = JanusPlan.tiny()
    asked = [
        generator.tokenizer.decode(question(generator, prompt)) for prompt in ("a photo of a red cat", *PROMPTS[1:])
    ]
    assert all(text.startswith(f"{BOS}{SYSTEM}\n\nUser: You are asked") for text in asked)
    assert all(text.endswith("without explanation:\n\nAssistant:") for text in asked)
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in asked] == RECORDED
    words = torch.tensor([[*generator.words("Cats"), generator.end, generator.pad]])
    told = generator.tokenizer.decode(generator._painter().prompt_ids(generator._asked(["a red cat"], words)[0]))
    assert told == f"{BOS}User: a red cat. Cats\n\nAssistant:{BOI}"
    with pytest.raises(ValueError, match=f"control token '{BOI}'"):
        generator.sample([f"a{BOI}cat"], seed=0)


def expected(generator: JanusPlan, prompt: str, tokens: Tensor, guidance: float) -> Tensor:
    """[L] log-probabilities of a row by transformers' modules alone: no cache, no padding, no mask."""
    network, text = generator.network, generator.spec.text
    words, codes = tokens[:text].tolist(), tokens[text:]
    said = words[: words.index(generator.end) + 1] if generator.end in words else words
    ids = question(generator, prompt)
    logits = network.lm_head(network.model.language_model(torch.tensor([ids + said[:-1]])).last_hidden_state)
    logp = logits[0, len(ids) - 1 :].log_softmax(1).gather(1, torch.tensor(said)[:, None])[:, 0]
    answer = generator.tokenizer.decode(said, skip_special_tokens=True)
    asked = [
        *generator.tokenizer.encode(f"User: {f'{prompt}. {answer}'.strip()}\n\nAssistant:", add_special_tokens=False)
    ]
    branches = []
    for between in (asked, [generator.pad] * len(asked)):
        begin = network.get_input_embeddings()(torch.tensor([[generator.bos, *between, generator.boi]]))
        embeds = torch.cat([begin, network.prepare_embeddings_for_image_generation(codes[None, :-1])], 1)
        hidden = network.model.language_model(inputs_embeds=embeds).last_hidden_state[0, begin.shape[1] - 1 :]
        branches.append(network.model.generation_head(hidden))
    cond, uncond = branches
    image = (uncond + guidance * (cond - uncond)).log_softmax(1).gather(1, codes[:, None])[:, 0]
    return torch.cat([logp, torch.zeros(text - len(said)), image])


def test_logprobs_are_those_of_transformers() -> None:
    """Words without guidance, codes with it after "PROMPT. WORDS"; sampler and statistics agree with it within 1e-5."""
    generator, rollout = drawn(2)
    logprobs = generator.logprobs(rollout)
    for row, prompt in enumerate(rollout.prompts):
        found = expected(generator, prompt, rollout.tokens[row], 5.0)
        torch.testing.assert_close(rollout.logprobs[row], found, rtol=0, atol=1e-5, check_stride=False)
        torch.testing.assert_close(logprobs[row], found, rtol=0, atol=1e-5)


def test_greedy_text_is_that_of_generate() -> None:
    """Token for token, up to the end that stops transformers' own loop."""
    generator = JanusPlan.tiny()
    tokens = generator.sample(PROMPTS, seed=0, sampling=Sampling(guidance=5.0, top_k=1)).tokens[
        :, : generator.spec.text
    ]
    for row, prompt in zip(tokens.tolist(), PROMPTS, strict=True):
        ids = torch.tensor([question(generator, prompt)])
        options: dict[str, Any] = {"generation_mode": "text", "do_sample": False, "eos_token_id": generator.end}
        made = generator.network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(row), **options)
        said = made[0, ids.shape[1] :].tolist()
        assert row == said + [generator.pad] * (len(row) - len(said))


def test_padding_is_no_choice() -> None:
    """Texts have many lengths; behind their end nothing is likely but padding, nothing has entropy, nothing is read."""
    generator, rollout = drawn(40)
    text = generator.spec.text
    chosen = generator.chosen(rollout.tokens)
    assert len(set(chosen[:, :text].sum(1).tolist())) >= 4
    assert chosen[:, text:].all()
    assert chosen[:, 0].all()
    assert (rollout.tokens[~chosen] == generator.pad).all()
    assert (rollout.logprobs[~chosen] == 0).all()
    with torch.no_grad():
        found = generator.statistics(rollout)
        other = replace(rollout, tokens=rollout.tokens.masked_fill(~chosen, 7))
        moved = generator.statistics(other)
    assert (found.entropy[~chosen] == 0).all()
    assert (found.entropy[chosen] > 0).all()
    assert (moved.logprobs[~chosen] == SHUT).all()
    assert torch.equal(moved.logprobs[chosen], found.logprobs[chosen])
    assert generator.texts(other.tokens) == generator.texts(rollout.tokens)
    weights = modality_weights(generator.spec, 0.5, chosen)
    assert torch.allclose(weights.mean(1), torch.ones(len(chosen)))
    assert torch.allclose(weights[:, :text].sum(1), weights[:, text:].sum(1))
    assert (weights[~chosen] == 0).all()


def test_a_text_cannot_spell_a_control_token() -> None:
    """Not even where leaving one out makes another."""
    generator = JanusPlan.tiny()
    parts = (BOI[:5], END[:4], END[4:], BOI[5:])
    ids = [number for part in parts for number in generator.tokenizer.encode(part, add_special_tokens=False)]
    generator.spec = replace(generator.spec, text=len(ids) + 5)
    row = torch.tensor([ids + [65, generator.end] + [generator.pad] * 3])
    assert generator.texts(row) == [generator.tokenizer.decode([65])]


def test_it_learns_text_and_image(tmp_path: Path) -> None:
    """By GRPO, as it drew them; heads of words and of codes move, and the manifest of a run tells what was written."""
    generator = JanusPlan.tiny()
    before = {name: value.clone() for name, value in generator.module.state_dict().items()}
    shape: dict[str, Any] = {"text_weight": 0.5, "entropy_targets": (2.0, 3.0), "learning_rate": 1e-3}
    config = Grpo(steps=2, prompts_per_step=2, group_size=4, kl_every=1, save_every=0, **shape)
    grpo(config, generator, [Weighted("colour", Colorfulness())], ["a cat", "two birds", "a dog"], out=tmp_path)
    assert max(row["drift"] for row in read(tmp_path / "metrics.jsonl")) < 1e-5
    moved = {name for name, value in generator.module.state_dict().items() if not torch.equal(value, before[name])}
    assert "lm_head.weight" in moved
    assert any("generation_head" in name for name in moved)


def test_adapters_learn_both() -> None:
    """With LoRA, on the head of words too, words and codes move, and the reference does not."""
    generator, rollout = drawn(1)
    with trainable(generator, Grpo(lora_rank=2), keep=True) as reference:
        assert any("lm_head" in name for name, value in generator.module.named_parameters() if value.requires_grad)
        torch.testing.assert_close(generator.logprobs(rollout), rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)
        with torch.no_grad():
            for name, value in generator.module.named_parameters():
                if "lora_B" in name:
                    value.add_(0.1)
        off = (generator.logprobs(rollout) - rollout.logprobs).abs()
        assert off[:, : generator.spec.text].max() > 0.01
        assert off[:, generator.spec.text :].max() > 0.01
        assert reference is not None
        torch.testing.assert_close(reference(rollout).logprobs, rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)


def test_published_folders_load_as_they_are(tmp_path: Path) -> None:
    """A folder without rwk's marks writes texts of the full length; one that was saved keeps its own.

    Where config.json does not say whether the head of words has the weights of their embedding, it keeps its own.
    """
    generator = JanusPlan.tiny()
    generator.save(tmp_path)
    again = GENERATORS.load(str(tmp_path))
    assert type(again) is JanusPlan
    assert again.spec == generator.spec
    path = tmp_path / "config.json"
    config = {
        name: value for name, value in json.loads(path.read_text()).items() if not name.startswith(("rwk_", "tie_"))
    }
    path.write_text(json.dumps(config))
    fresh = GENERATORS.load(f"janus.pro_7b_plan@{tmp_path}", dtype="float32")
    assert type(fresh) is JanusPlan7B
    assert fresh.spec.text == 128
    assert fresh.spec.tokens == 128 + 16
    assert torch.equal(fresh.module.lm_head.weight, generator.module.lm_head.weight)
    assert not torch.equal(fresh.module.lm_head.weight, fresh.embed_ids(torch.arange(len(fresh.tokenizer))))
    with pytest.raises(ValueError, match=r"janus\.pro_7b_plan draws whole images only"):
        fresh.continue_from(["a cat"], torch.zeros(1, 3, dtype=torch.long), places=[0], seed=0)
    for call in (fresh.code_embeddings, lambda: fresh.decode_partial(torch.zeros(1, 5, dtype=torch.long))):
        with pytest.raises(ValueError, match=r"janus\.pro_7b_plan"):
            call()


def test_fewer_rows_at_once_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory held of a draw's text or image is where its next draw, and its statistics, begin."""
    generator, sizes, intact = JanusPlan.tiny(), [], JanusPro.backbone

    def crowded(self: Any, embeds: Tensor, **more: Any) -> Tensor:
        sizes.append(len(embeds))
        if len(embeds) > 5:
            raise torch.OutOfMemoryError(f"{len(embeds)} sequences")
        return intact(self, embeds, **more)

    expected = generator.sample(PROMPTS, per_prompt=2, seed=0)
    monkeypatch.setattr(JanusPro, "backbone", crowded)
    assert torch.equal(generator.sample(PROMPTS, per_prompt=2, seed=0).tokens, expected.tokens)
    assert max(sizes) > 5 >= generator.max_rows
    sizes.clear()
    generator.statistics(generator.sample(PROMPTS, per_prompt=2, seed=0))
    assert max(sizes) <= 5
