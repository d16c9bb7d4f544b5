"""Emu3-Gen against the authors' code and transformers' own, its published layout, and what is trained and refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.emu3 import BOI, BOS, EOL, IMAGE, Emu3Gen, tiny_tokenizer
from rwk.adapters.transformers_generator import byte_tokenizer
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sizing_known import KNOWN
from rwk.policy_opt.sizing_shape import shape_of
from rwk.rewards.errors import RunFailed

PROMPTS = ["a red cat", "", "two naïve birds above a café", "a red dog"]
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
CASE = runpy.run_path(str(Path(__file__).with_name("emu3_case.py")))
RECORDED = json.loads((Path(__file__).with_name("parity") / "emu3.json").read_text())
SIDE = 3
NAMES = {
    "model.text_model.": "model.",
    "model.vqmodel.": "",
    "middle_block.attn_norm.": "mid.attn_1.norm.",
    "middle_block.": "mid.",
    "up_block.up.": "up.",
    "down_block.down.": "down.",
    "attn_1.out_proj.": "attn_1.proj_out.",
    **{f"attn_1.{part}_proj.": f"attn_1.{part}." for part in "qkv"},
}
"""The authors' names of what transformers calls otherwise."""


def official() -> Emu3Gen:
    """The generator with the weights and ids that the authors' code was run with."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    tokenizer = byte_tokenizer(*CASE["VOCABULARY"])
    vq = {"base_channels": CASE["CHANNELS"], "channel_multiplier": CASE["MULTIPLES"], "hidden_size": 64, **CASE["VQ"]}
    special = {"bos_token_id": 256, "eos_token_id": None, "pad_token_id": 257}
    text = {"vocab_size": CASE["WORDS"], **special, **CASE["TEXT"]}
    config = Emu3Config(text_config=text, vq_config=vq, vocabulary_map=tokenizer.get_vocab())
    network = Emu3ForConditionalGeneration(config)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            for name, other in NAMES.items():
                key = key.replace(name, other)
            shape = value.shape if key.startswith(("model.", "lm_head.")) else tuple(RECORDED["keys"][key])
            drawn = torch.from_numpy(CASE["WEIGHTS"]({key: shape}, "emu3")[key]).view(value.shape)
            value.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    return Emu3Gen.of(network, tokenizer, image_size=2 * SIDE)


def test_logprobs_are_those_of_the_authors_code(record_property: Any) -> None:
    """Their prompts, their guidance and their constraint give the same log-probabilities; ends of lines are certain."""
    generator, prompts, tokens = official(), list(CASE["PROMPTS"]), torch.tensor(CASE["TOKENS"])
    assert [generator.prompt_ids(prompt) for prompt in prompts] == RECORDED["ids"]
    lines = torch.tensor(RECORDED["logprobs"]).unflatten(1, (SIDE, SIDE + 1))
    assert lines[..., -1].count_nonzero() == 0
    recipe = Sampling(guidance=CASE["GUIDANCE"])
    rollout = Rollout(prompts, torch.arange(len(prompts)), tokens, torch.zeros(tokens.shape), recipe)
    with torch.no_grad():
        found = generator.logprobs(rollout)
    AGREE(record_property, "emu3.gen", RECORDED, found, lines[..., :-1].flatten(1), atol=1e-4)


def test_images_are_those_of_the_authors_code(record_property: Any) -> None:
    """Codes have their pixels, cut off to levels; even grey has the codes that their VQ gives it."""
    generator, tokens = official(), torch.tensor(CASE["TOKENS"])
    with torch.no_grad():
        pixels = generator.vq.decode(tokens.unflatten(1, (SIDE, SIDE))).flatten(1)
    AGREE(record_property, "emu3.gen", RECORDED, pixels, torch.tensor(RECORDED["pixels"]), atol=1e-4)
    levels = ((torch.tensor(RECORDED["pixels"]) + 1) / 2 * 255).clamp(0, 255)
    shown = torch.stack([pil_to_tensor(image).flatten() for image in generator.decode(tokens)])
    sure = (levels % 1 - 0.5).abs() < 0.49  # of how it is cut off
    assert torch.equal(shown[sure], levels.byte()[sure])
    grey = torch.tensor([RECORDED["grey"]])
    assert generator.decode_partial(tokens[:1, :0])[0].tobytes() == generator.decode(grey)[0].tobytes()


def written(generator: Emu3Gen, codes: Tensor) -> Tensor:
    """[L + side] ids of an image, an end behind each line of codes [L]."""
    lines = torch.nn.functional.pad(codes.unflatten(0, (SIDE, SIDE)) + generator.first_code, (0, 1), value=-1)
    return lines.flatten().where(lines.flatten() >= 0, generator.line_end)


def logits(generator: Emu3Gen, ids: list[int], codes: Tensor) -> Tensor:
    """[L, K] of one row by transformers' own forward alone: no cache, no padding, no mask, the whole vocabulary."""
    whole = torch.tensor([*ids, *written(generator, codes).tolist()])
    found = generator.network(whole[None]).logits[0, len(ids) - 1 : -1]
    places = [place + place // SIDE for place in range(SIDE**2)]
    return found[places, generator.first_code : generator.first_code + generator.spec.codes]  # type: ignore[no-any-return]


def test_logprobs_are_those_of_transformers() -> None:
    """Under guidance, an end of line read behind every line; sampler and statistics agree with it within 1e-5."""
    generator = Emu3Gen.tiny()
    rollout = generator.sample(PROMPTS, per_prompt=2, seed=0, sampling=Sampling(guidance=3.0))
    expected = []
    with torch.no_grad():
        for prompt, codes in zip(rollout.prompts, rollout.tokens, strict=True):
            cond, uncond = (logits(generator, ids(prompt), codes) for ids in (generator.prompt_ids, generator.null_ids))
            guided = (uncond + 3 * (cond - uncond)).log_softmax(1)
            expected.append(guided.gather(1, codes[:, None])[:, 0])
        found = generator.logprobs(rollout)
    for values in (rollout.logprobs, found):
        torch.testing.assert_close(values, torch.stack(expected), rtol=0, atol=1e-5)


def test_greedy_tokens_are_those_of_generate() -> None:
    """Token for token, with the authors' constraint on what may come where, guidance 3 and their negative prompt."""
    generator = Emu3Gen.tiny()
    drawn = generator.sample(PROMPTS, seed=0, sampling=Sampling(guidance=3.0, top_k=1)).tokens
    assert len({tuple(row) for row in drawn.tolist()}) == len(PROMPTS)
    codes = list(range(generator.first_code, generator.first_code + generator.spec.codes))

    def allowed(row: int, ids: Tensor) -> list[int]:
        offset = len(ids) - ids.tolist().index(generator.image)
        return [generator.line_end] if offset % (SIDE + 1) == 0 else codes

    for row, prompt in zip(drawn, PROMPTS, strict=True):
        ids, null = (torch.tensor([ids(prompt)]) for ids in (generator.prompt_ids, generator.null_ids))
        generated = generator.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            negative_prompt_ids=null,
            guidance_scale=3.0,
            prefix_allowed_tokens_fn=allowed,
            do_sample=False,
            max_new_tokens=SIDE * (SIDE + 1),
        )
        assert generated[0, ids.shape[1] :].tolist() == written(generator, row).tolist()


def test_prompts_stand_in_the_template_of_the_authors() -> None:
    """The prompt, words of quality, the size in codes; words of faults without a prompt."""
    generator = Emu3Gen.tiny()
    told = [generator.tokenizer.decode(ids) for ids in (generator.prompt_ids("a cat."), generator.null_ids("a cat."))]
    assert told[0] == f"{BOS}a cat. masterpiece, film grained, best quality.{BOI}3*3{IMAGE}"
    assert told[1].startswith(f"{BOS}lowres, bad anatomy, bad hands, text, error, ")
    assert told[1].endswith(f", username, blurry.{BOI}3*3{IMAGE}")
    for control in (EOL, "<|visual token 000007|>"):
        with pytest.raises(ValueError, match=r"reads prompts in words, got its control token '<\|.*take it out"):
            generator.prompt_ids(f"a{control}cat")


def test_ends_of_lines_are_read_but_not_drawn() -> None:
    """They move what comes behind them alone; no score that the head gives them is asked for or learns."""
    generator = Emu3Gen.tiny()
    rollout = generator.sample(PROMPTS, seed=0)
    before = generator.logprobs(rollout)
    assert before.shape == (len(PROMPTS), SIDE**2)
    before.sum().backward()
    head, words = generator.module.lm_head.weight, generator.module.get_input_embeddings().weight
    assert head.grad[generator.line_end].abs().max() == 0
    assert words.grad[generator.line_end].abs().max() > 0
    with torch.no_grad():
        head[generator.line_end] += 100
        torch.testing.assert_close(generator.logprobs(rollout), before, rtol=0, atol=0)
        words[generator.line_end] += 1
        moved = (generator.logprobs(rollout) - before).abs().amax(0)
    assert moved[:SIDE].max() == 0
    assert moved[SIDE:].min() > 1e-4


@pytest.mark.parametrize("begun", range(SIDE**2))
def test_a_row_goes_on_from_any_place(begun: int) -> None:
    """In a line, at its end, and behind it: what is continued ends as what is drawn at once."""
    generator = Emu3Gen.tiny()
    drawn = generator.sample(PROMPTS, per_prompt=2, seed=5).tokens
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    places = [0, 1] * len(PROMPTS)
    ended = generator.continue_from(prompts, drawn[:, :begun], places=places, seed=5)
    assert torch.equal(ended, drawn)


def test_images_do_not_depend_on_how_many_there_are() -> None:
    """Nine are decoded as each alone; what is drawn of a picture shows."""
    generator = Emu3Gen.tiny()
    tokens = generator.sample(PROMPTS[:1], per_prompt=9, seed=0).tokens
    alone = [generator.decode(row[None])[0] for row in tokens]
    for one, other in zip(generator.decode(tokens), alone, strict=True):
        assert (pil_to_tensor(one).int() - pil_to_tensor(other).int()).abs().max() <= 1
    partial = {image.tobytes() for image in generator.decode_partial(tokens[:, :5])}
    assert len(partial) == len({tuple(row[:5]) for row in tokens.tolist()}) > 5


def published(folder: Path) -> Path:
    """A folder as it is published, with none of rwk's marks: transformers writes the keys of its first version."""
    generator = Emu3Gen.tiny()
    generator.network.save_pretrained(folder)
    generator.tokenizer.save_pretrained(folder)
    parts = {key.split(".")[0] for key in load_file(folder / "model.safetensors")}
    assert parts == {"text_model", "vqmodel"}
    return folder


def test_published_folders_load_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME@PATH gives the weights of the checkpoint and the ids of its tokenizer."""
    monkeypatch.setattr(Emu3Gen, "spec", Emu3Gen.tiny().spec)
    generator = GENERATORS.load(f"emu3.gen@{published(tmp_path)}", dtype="float32")
    tiny = Emu3Gen.tiny()
    assert (type(generator), generator.spec) == (Emu3Gen, tiny.spec)
    rollout = tiny.sample(PROMPTS, seed=0)
    torch.testing.assert_close(generator.logprobs(rollout), rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)
    assert generator.decode(rollout.tokens)[0].tobytes() == tiny.decode(rollout.tokens)[0].tobytes()


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_a_checkpoint_that_does_not_fill_the_network_is_refused(tmp_path: Path, fault: str) -> None:
    """A key too few, too many, or of another shape is named."""
    path, key = published(tmp_path) / "model.safetensors", "text_model.model.norm.weight"
    state = load_file(path)
    value = state.pop(key)
    if fault != "missing":
        state |= {"text_model.odd": value.clone(), key: value} if fault == "unexpected" else {key: value[:-1].clone()}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got 1 keys that are .*\((model\.)?text_model\.(model\.)?(odd|norm)"):
        Emu3Gen(weights=tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "transformers' own layout, such as BAAI/Emu3-Gen-hf, got no config.json in"),
        ('{"hidden_size": 3}', "got a config.json that names no model_type in"),
        ("[", "got one that cannot be read, "),
    ],
)
def test_a_folder_without_a_kind_is_refused(tmp_path: Path, text: str | None, told: str) -> None:
    """What the folder lacks is said, and neither that it is of type None nor that it is no folder."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=told) as refused:
        Emu3Gen(weights=tmp_path)
    assert "None" not in str(refused.value)


def test_other_layouts_and_tokenizers_are_refused(tmp_path: Path) -> None:
    """The authors' own layout is told from transformers'; codes that are not one row of ids could not be drawn from."""
    path = published(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "Emu3"}))
    with pytest.raises(ValueError, match="transformers' own layout, such as BAAI/Emu3-Gen-hf, got one of type 'Emu3'"):
        Emu3Gen(weights=tmp_path)
    tokenizer = tiny_tokenizer()
    known = tokenizer.get_vocab() | {"<|visual token 000031|>": 5}
    tokenizer.get_vocab = lambda: known
    with pytest.raises(ValueError, match="ids of its 32 codes in one row, got 262 for the first and 5 for the last"):
        Emu3Gen.of(Emu3Gen.tiny().network, tokenizer)
    del known[BOI]
    with pytest.raises(ValueError, match="a tokenizer that knows <.image start.>"):
        Emu3Gen.of(Emu3Gen.tiny().network, tokenizer)


def test_weights_that_are_not_here_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the repository and what to do with and without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match=r"BAAI/Emu3-Gen-hf.*name it as emu3\.gen@PATH\.$"):
        Emu3Gen()


def test_what_writes_is_trained_and_the_vq_is_frozen() -> None:
    """Every trained parameter gets a gradient, its published dropout is off where layers are computed again, and LoRA
    leaves the VQ alone."""
    generator = Emu3Gen.tiny()
    assert not any(value.requires_grad for value in generator.network.model.vqmodel.parameters())
    rollout = generator.sample(PROMPTS, seed=0)
    generator.module.train()
    generator.network.model.text_model.activation_checkpointing_enable()
    generator.logprobs(rollout).sum().backward()
    assert all(value.grad is not None for value in generator.module.parameters())
    generator.module.zero_grad()
    with trainable(generator, Grpo(lora_rank=2), keep=False):
        learns = [name for name, value in generator.network.named_parameters() if value.requires_grad]
        assert learns
        assert not any("vqmodel" in name for name in learns)


def test_its_size_is_known_without_weights() -> None:
    """Within a thousandth of what transformers builds at full size; a loaded one tells its cache."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    with torch.device("meta"):
        network = Emu3ForConditionalGeneration(Emu3Config(vocabulary_map={}))
    shape, vq = KNOWN["emu3.gen"], network.model.vqmodel
    counted = sum(value.numel() for value in network.parameters()) - sum(value.numel() for value in vq.parameters())
    assert shape.parameters == pytest.approx(counted, rel=1e-3)
    assert shape.decoder == pytest.approx(sum(value.numel() for value in vq.parameters()), rel=1e-3)
    assert shape.keys == 8 * 4096 // 32
    tiny = shape_of(Emu3Gen.tiny())
    assert (tiny.layers, tiny.hidden, tiny.keys) == (2, 32, 16)
    assert tiny.decoder > 0
