"""Janus and Janus-Pro against the authors' code and transformers' own, and what is trained, kept and refused."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.janus import BOI, BOS, PAD, Janus, JanusPro, JanusPro7B, tiny_tokenizer
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed

PROMPTS = ["a red cat", "", "  Two naïve birds\nabove a café \n", "a red dog"]
RECIPE = Sampling(guidance=5.0)
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
CASE = runpy.run_path(str(Path(__file__).with_name("janus_case.py")))
RECORDED = json.loads((Path(__file__).with_name("parity") / "janus.json").read_text())
NAMES = {
    r"^model\.language_model": "language_model.model",
    r"^model\.generation_embeddings": "gen_embed",
    r"^model\.generation_aligner\.fc1": "gen_aligner.layers.0",
    r"^model\.generation_aligner\.hidden_layers\.0": "gen_aligner.layers.2",
    r"^model\.generation_head\.proj_out": "gen_head.output_mlp_projector",
    r"^model\.generation_head": "gen_head",
    r"^model\.vqmodel": "gen_vision_model",
    r"(coder)\.(up|down)\.(\d+)\.block": r"\1.conv_blocks.\3.res",
    r"(coder)\.(up|down)": r"\1.conv_blocks",
    r"mid\.block_1": "mid.0",
    r"mid\.attn_1": "mid.1",
    r"mid\.block_2": "mid.2",
}
"""The authors' names of what transformers calls otherwise."""


def official(kind: type[JanusPro]) -> JanusPro:
    """The generator with the weights and the tokenizer that the authors' code was run with."""
    from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

    width, side = CASE["WIDTH"], CASE["SIDE"]
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": CASE["LAYERS"]}
    network = JanusForConditionalGeneration(
        JanusConfig(
            text_config={"num_attention_heads": CASE["HEADS"], "vocab_size": CASE["WORDS"], **shape},
            vision_config=JanusPro.tiny().network.config.vision_config.to_dict() | {"image_size": 2 * side},
            vq_config={
                **{"num_embeddings": CASE["CODES"], "latent_channels": CASE["LATENT"], "channel_multiplier": (1, 1)},
                **{"projection_dim": width, "image_token_embed_dim": width},
            },
        )
    )
    with torch.no_grad():
        for name, value in network.named_parameters():
            for pattern, other in NAMES.items():
                name = re.sub(pattern, other, name)
            value.copy_(torch.tensor(CASE["weight"](name, *value.shape)))
    return kind.of(network, PreTrainedTokenizerFast(tokenizer_object=CASE["tokenizer"](), bos_token=BOS))


@pytest.mark.parametrize("kind", [JanusPro, Janus])
def test_logprobs_are_those_of_the_authors_code(kind: type[JanusPro], record_property: Any) -> None:
    """Their chat templates, padding in place of the prompt, guidance and heads give the same log-probabilities."""
    generator, prompts = official(kind), list(CASE["PROMPTS"])
    name, tokens = kind.spec.name, torch.tensor(CASE["TOKENS"])
    told = [generator.tokenizer.decode(generator.prompt_ids(prompt)) for prompt in prompts]
    assert told == [BOS + text for text in RECORDED["texts"][name]]
    rollout = Rollout(prompts, torch.arange(len(prompts)), tokens, torch.zeros(tokens.shape), generator.spec.sampling)
    with torch.no_grad():
        found = generator.logprobs(rollout)
    AGREE(record_property, name, RECORDED, found, torch.tensor(RECORDED["logprobs"][name]), atol=1e-4)


def test_images_are_those_of_the_authors_code() -> None:
    """To the last of 255 levels but for rounding; even grey has the codes that their VQ gives it."""
    generator, tokens = official(JanusPro), torch.tensor(CASE["TOKENS"])
    shown = torch.stack([pil_to_tensor(image).permute(1, 2, 0).flatten() for image in generator.decode(tokens)]).int()
    off = (shown - torch.tensor(RECORDED["levels"])).abs()
    assert off.max() <= 1  # what lies on a level may be rounded to either side
    assert off.float().mean() < 0.01
    grey = torch.tensor([RECORDED["grey"]])
    assert generator.decode_partial(tokens[:1, :0])[0].tobytes() == generator.decode(grey)[0].tobytes()


def logits(generator: JanusPro, ids: list[int], tokens: Tensor) -> Tensor:
    """[L, K] of one row by transformers' modules alone: no cache, no padding, no mask."""
    network = generator.network
    codes = network.prepare_embeddings_for_image_generation(tokens[None, :-1])
    embeds = torch.cat([network.get_input_embeddings()(torch.tensor([ids])), codes], 1)
    hidden = network.model.language_model(inputs_embeds=embeds).last_hidden_state[:, len(ids) - 1 :]
    return network.model.generation_head(hidden)[0]  # type: ignore[no-any-return]


def test_logprobs_are_those_of_transformers() -> None:
    """With a prefix of padding as long as the prompt; sampler and statistics agree with it within 1e-5."""
    generator = JanusPro.tiny()
    rollout = generator.sample(PROMPTS, per_prompt=2, seed=0)
    assert rollout.sampling == RECIPE
    logprobs = generator.logprobs(rollout)
    for row, prompt in enumerate(rollout.prompts):
        ids = generator.prompt_ids(prompt)
        null = [ids[0], *[generator.pad] * len(ids[1:-1]), ids[-1]]
        cond, uncond = (logits(generator, prefix, rollout.tokens[row]) for prefix in (ids, null))
        expected = (uncond + 5 * (cond - uncond)).log_softmax(1).gather(1, rollout.tokens[row][:, None])[:, 0]
        torch.testing.assert_close(rollout.logprobs[row], expected, rtol=0, atol=1e-5, check_stride=False)
        torch.testing.assert_close(logprobs[row], expected, rtol=0, atol=1e-5)


def test_greedy_tokens_are_those_of_generate() -> None:
    """Token for token under guidance 5, with prompts of unequal length in one rollout."""
    generator = JanusPro.tiny()
    drawn = generator.sample(PROMPTS, seed=0, sampling=Sampling(guidance=5.0, top_k=1)).tokens
    assert len({tuple(row) for row in drawn.tolist()}) == len(PROMPTS)
    for row, prompt in zip(drawn, PROMPTS, strict=True):
        ids = torch.tensor([generator.prompt_ids(prompt)])
        options: dict[str, Any] = {"generation_mode": "image", "do_sample": False, "guidance_scale": 5}
        generated = generator.network.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert generated[0].tolist() == row.tolist()


@pytest.mark.parametrize("kind", [JanusPro, Janus])
def test_prompts_stand_in_the_chat_template_of_the_model_card(kind: type[JanusPro]) -> None:
    """Begin of text, the user's turn without space around it, the assistant's begin, begin of image."""
    generator = kind.tiny()
    user, assistant = {JanusPro: ("<|User|>", "<|Assistant|>"), Janus: ("User", "Assistant")}[kind]
    told = [generator.tokenizer.decode(generator.prompt_ids(prompt)) for prompt in PROMPTS[1:3]]
    assert told == [
        f"{BOS}{user}:{assistant}:{BOI}",
        f"{BOS}{user}: Two naïve birds\nabove a café\n\n{assistant}:{BOI}",
    ]
    ids = generator.tokenizer.convert_tokens_to_ids(list(generator.roles))
    assert all((number in generator.prompt_ids("a cat")) == (kind is JanusPro) for number in ids)  # roles of one token
    with pytest.raises(ValueError, match=rf"control token '{BOI}' in 'a{BOI}cat'; take it out"):
        generator.prompt_ids(f"a{BOI}cat")


def test_equal_lengths_share_what_is_read_without_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts of three lengths are read in seven rows."""
    generator, widths = JanusPro.tiny(), []
    intact = generator.backbone
    monkeypatch.setattr(generator, "backbone", lambda embeds, **k: widths.append(len(embeds)) or intact(embeds, **k))
    generator.sample(PROMPTS, per_prompt=3, seed=0)
    assert widths[0] == 7


def test_images_are_those_of_transformers() -> None:
    """Pixels of Janus' VQ, cut off to 8 bits, whatever the number of rows; codes to come are those of even grey."""
    from transformers import JanusImageProcessor

    generator = JanusPro.tiny()
    tokens = generator.sample(PROMPTS[:1], per_prompt=9, seed=0).tokens
    with torch.no_grad():
        pixels = generator.network.decode_image_tokens(tokens).permute(0, 3, 1, 2)
    processor = JanusImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)  # as the published ones are set
    shown = processor.postprocess(list(pixels), return_tensors="pt")["pixel_values"]
    off = (torch.stack([pil_to_tensor(image) for image in generator.decode(tokens)]).int() - shown.int()).abs()
    assert off.max() <= 1  # what lies on a level may be rounded to either side
    assert off.float().mean() < 0.01
    grey = generator.decode_partial(tokens[:1, :0])[0]
    partial = generator.decode_partial(tokens[:, :5])
    assert {image.tobytes() for image in generator.decode_partial(tokens[:, :0])} == {grey.tobytes()}
    assert len({image.tobytes() for image in [*partial, grey]}) == 10


def saved(folder: Path) -> Path:
    """A folder as it is published: transformers' own files and none of rwk's marks; a tokenizer of the wrong class."""
    generator = JanusPro.tiny()
    generator.network.save_pretrained(folder)
    generator.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    return folder


@pytest.mark.parametrize(("name", "kind"), [("janus.pro_1b", JanusPro), ("janus.v1_3b", Janus)])
def test_published_folders_load_as_they_are(tmp_path: Path, name: str, kind: type[JanusPro]) -> None:
    """NAME@PATH gives the sizes of the checkpoint, its weights, and the ids of its tokenizer.json."""
    generator = GENERATORS.load(f"{name}@{saved(tmp_path)}", dtype="float32")
    assert type(generator) is kind
    tiny = kind.tiny()
    assert generator.spec == tiny.spec
    assert [generator.prompt_ids(prompt) for prompt in PROMPTS] == [tiny.prompt_ids(prompt) for prompt in PROMPTS]
    rollout = tiny.sample(PROMPTS, seed=0)
    torch.testing.assert_close(generator.logprobs(rollout), rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_a_checkpoint_that_does_not_fill_the_network_is_refused(tmp_path: Path, fault: str) -> None:
    """A key too few, too many, or of another shape is named; transformers would fill it with random numbers."""
    path, key = saved(tmp_path) / "model.safetensors", "model.generation_head.vision_head.bias"
    state = load_file(path)
    value = state.pop(key)
    if fault != "missing":
        state |= {"model.strange": value.clone(), key: value} if fault == "unexpected" else {key: value[:-1].clone()}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got 1 keys that are .*\(model\.(strange|generation_head\.vision_head)"):
        JanusPro(weights=tmp_path)


def test_other_layouts_and_tokenizers_are_refused(tmp_path: Path) -> None:
    """The authors' own layout is told from transformers'; a tokenizer without padding would break the guidance."""
    path = saved(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "multi_modality"}))
    with pytest.raises(ValueError, match="transformers' own layout.*got one of type 'multi_modality'"):
        JanusPro(weights=tmp_path)
    tokenizer = tiny_tokenizer()
    known = {token: number for token, number in tokenizer.get_vocab().items() if token != PAD}
    tokenizer.get_vocab = lambda: known
    with pytest.raises(ValueError, match=f"a tokenizer that knows {PAD}"):
        JanusPro.of(JanusPro.tiny().network, tokenizer)


def test_weights_that_are_not_here_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the repository and what to do with and without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match=r"deepseek-community/Janus-Pro-7B.*name it as janus\.pro_7b@PATH\.$"):
        JanusPro7B()


def test_transformers_loads_what_was_saved(tmp_path: Path) -> None:
    """And the recipe and weights that were changed are kept."""
    from transformers import JanusForConditionalGeneration

    generator = JanusPro7B.tiny()
    with torch.no_grad():
        generator.module.generation_head.vision_head.bias += torch.arange(32)
    generator.save(tmp_path)
    again, network = GENERATORS.load(str(tmp_path)), JanusForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again) is JanusPro7B
    assert again.spec == generator.spec
    assert torch.equal(
        network.model.generation_head.vision_head.bias, generator.module.generation_head.vision_head.bias
    )


def test_what_draws_is_trained_and_the_rest_is_frozen() -> None:
    """Every trained parameter but the words that no prompt says gets a gradient; LoRA's are the only ones beside it."""
    generator = JanusPro.tiny()
    assert not any(value.requires_grad for value in generator.network.model.vqmodel.parameters())
    assert not any(value.requires_grad for value in generator.network.model.vision_model.parameters())
    rollout = generator.sample(PROMPTS, seed=0)
    generator.logprobs(rollout).sum().backward()
    assert all(value.grad is not None for value in generator.module.parameters())
    generator.module.zero_grad()
    before = {name: value.clone() for name, value in generator.network.state_dict().items()}
    with trainable(generator, Grpo(lora_rank=2), keep=True) as reference:
        learns = [name for name, value in generator.module.named_parameters() if value.requires_grad]
        assert all("lora_" in name for name in learns)
        for part in ("language_model", "generation_aligner", "generation_head"):
            assert any(part in name for name in learns)
        with torch.no_grad():
            for name, value in generator.module.named_parameters():
                if "lora_B" in name:
                    value.add_(0.1)
        assert (generator.logprobs(rollout) - rollout.logprobs).abs().max() > 0.01
        assert reference is not None
        torch.testing.assert_close(reference(rollout).logprobs, rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)
    changed = {name for name, value in generator.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".generation_" in name or ".language_model." in name for name in changed)
