"""Emu3-Gen against transformers' own `generate` and modules, its published layout, and what is trained and refused."""

from __future__ import annotations

import json
import runpy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.emu3 import BOI, BOS, EOL, IMAGE, Emu3Gen, tiny_tokenizer
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Sampling
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sizing import KNOWN, shape_of
from rwk.rewards.errors import RunFailed

PROMPTS = ["a red cat", "", "two naïve birds above a café", "a red dog"]
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = {"package": "transformers", "versions": {"transformers": version("transformers")}}
SIDE = 3


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


def test_logprobs_are_those_of_transformers(record_property: Any) -> None:
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
    AGREE(record_property, "emu3.gen", RECORDED, rollout.logprobs, torch.stack(expected), atol=1e-5)
    AGREE(record_property, "emu3.gen", RECORDED, found, torch.stack(expected), atol=1e-5)


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


def test_images_are_those_of_transformers() -> None:
    """Pixels of Emu3's VQ, cut off to 8 bits, whatever the number of rows; codes to come are those of even grey."""
    from transformers import Emu3ImageProcessor

    generator = Emu3Gen.tiny()
    tokens = generator.sample(PROMPTS[:1], per_prompt=9, seed=0).tokens
    whole = torch.stack([torch.cat([written(generator, row), torch.zeros(3, dtype=torch.long)]) for row in tokens])
    pixels = generator.network.model.decode_image_tokens(whole, height=SIDE, width=SIDE)
    processor = Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)  # as the published ones are set
    official = processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")["pixel_values"]
    made = (generator.decode(tokens), official)
    ours, theirs = (torch.stack([pil_to_tensor(image).int() for image in images]) for images in made)
    assert (ours - theirs).abs().max() <= 1  # what lies on a level may be rounded to either side
    assert (ours - theirs).abs().float().mean() < 0.01
    grey = generator.decode_partial(tokens[:1, :0])[0]
    partial = {image.tobytes() for image in generator.decode_partial(tokens[:, :5])}
    assert len(partial) == len({tuple(row[:5]) for row in tokens.tolist()}) > 5
    assert grey.tobytes() not in partial
    size = generator.spec.image_size
    (codes,) = generator.network.model.vqmodel.encode(torch.zeros(1, 3, size, size), [(size, size)]).image_tokens
    assert grey.tobytes() == generator.decode(codes.flatten()[None])[0].tobytes()


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
