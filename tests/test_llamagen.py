"""LlamaGen: what its own code draws, says of tokens, and shows; its published layout, its prompts, and training."""

from __future__ import annotations

import argparse
import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.adapters.clean_caption import clean_caption
from rwk.adapters.llamagen import LlamaGen, published
from rwk.adapters.llamagen_c2i import Base256, class_of
from rwk.adapters.llamagen_gpt import Gpt, GptConfig
from rwk.adapters.llamagen_t2i import Xl256
from rwk.adapters.llamagen_vq import Vq, VqConfig
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load as load_reward

CASE = runpy.run_path(str(Path(__file__).with_name("llamagen_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "llamagen.json").read_text())
CLASS, TEXT = "llamagen.c2i_b_256", "llamagen.t2i_xl_256"
PROMPTS = {CLASS: [str(label) for label in CASE["LABELS"]], TEXT: list(CASE["PROMPTS"])}
PUBLISHED = {
    "GPT-B": "llamagen.c2i_b_256",
    "GPT-L": "llamagen.c2i_l_384",
    "GPT-XL": "llamagen.c2i_xl_384",
    "GPT-XXL": "llamagen.c2i_xxl_384",
    "GPT-3B": "llamagen.c2i_3b_384",
    "GPT-XL t2i": "llamagen.t2i_xl_512",
}
TOLERANCE = 1e-4
"""Of logits that lie some 10 apart, and of log-probabilities."""


def kind_of(name: str) -> type[LlamaGen]:
    return GENERATORS.target(name)  # type: ignore[return-value]


def tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def write_text_encoder(folder: Path) -> None:
    """T5 with its decoder, as transformers keeps it."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    tokenizer, config = T5Tokenizer(vocab=CASE["pieces"](), extra_ids=0), T5Config
    with torch.random.fork_rng():
        whole = T5ForConditionalGeneration(
            config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **CASE["T5"])
        )
    for key, value in whole.state_dict().items():
        if key.startswith(("shared", "encoder")):
            name = "shared.weight" if "embed_tokens" in key else key
            drawn = tensors(CASE["weights"]({name: tuple(value.shape)}, "t5"))[name]
            value.copy_(drawn.bfloat16())
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_published(kind: type[LlamaGen], folder: Path) -> None:
    """The published files of a small network, as the authors' trainer writes them: options, state and counts too."""
    vq = Vq(VqConfig(**CASE["VQ"])).state_dict()
    vq = tensors(CASE["weights"]({key: tuple(value.shape) for key, value in vq.items()}, "vq"))
    whole = {
        kind.origin.file: tensors(CASE["gpt"]("t2i" if kind is Xl256 else "c2i")),
        kind.vq_origin.file: vq | {"quantize.codebook_used": torch.zeros(65536)},
    }
    for file, state in whole.items():
        options = {"optimizer": {"state": {}, "param_groups": []}, "steps": 1, "args": argparse.Namespace(lr=1e-4)}
        torch.save({"model": state, **options}, folder / file)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LlamaGen]:
    """One generator of each kind, of folders like those published, in which all networks are small."""
    made: dict[str, LlamaGen] = {}
    for name in (CLASS, TEXT):
        kind, folder = kind_of(name), tmp_path_factory.mktemp("llamagen")
        write_published(kind, folder)
        if name == TEXT:
            write_text_encoder(folder)
        with pytest.MonkeyPatch.context() as patch:
            width = CASE["CAPTION_WIDTH"] if name == TEXT else 0
            patch.setattr(kind, "sizes", GptConfig(**CASE["GPT"], caption_width=width))
            patch.setattr(kind, "vq_sizes", VqConfig(**CASE["VQ"]))
            made[name] = GENERATORS.load(f"{name}@{folder}")  # type: ignore[assignment]
        if name == TEXT:
            assert made[name].text.encoder.dtype == torch.bfloat16  # type: ignore[attr-defined]
            made[name].text.encoder.float()  # type: ignore[attr-defined]  # of the same weights, which are exact in both
    return made


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = RECORDED["c2i" if name == CLASS else "t2i"]
    return found


def rollout_of(name: str, draws: dict[str, Any], recipe: dict[str, Any]) -> Rollout:
    tokens, logprobs = torch.tensor(draws["tokens"]), torch.tensor(draws["logprobs"])
    return Rollout(PROMPTS[name], torch.arange(len(tokens)), tokens, logprobs, Sampling(**recipe))


@pytest.mark.parametrize("name", [CLASS, TEXT])
def test_logits_are_those_of_the_authors_code(loaded: dict[str, LlamaGen], name: str, record_property: Any) -> None:
    """Teacher-forced, with and without the prompt, one prompt at a time and so without padding, as theirs has it."""
    generator, tokens = loaded[name], torch.tensor(recorded(name)["draws"][0]["tokens"])
    for branch, ids_of in (("cond", generator.prompt_ids), ("uncond", generator.null_ids)):
        rows = []
        for prompt, row in zip(PROMPTS[name], tokens, strict=True):
            ids = torch.tensor([ids_of(prompt)])
            embeds = torch.cat([generator.embed_ids(ids), generator.embed_codes(row[None, :-1])], 1)
            positions = torch.arange(embeds.shape[1])[None] - ids.shape[1]
            with torch.no_grad():
                states = generator.backbone(embeds, positions=positions)[:, ids.shape[1] - 1 :]
                rows.append(generator.image_logits(states)[..., ::12])
        AGREE(record_property, name, RECORDED, torch.cat(rows), torch.tensor(recorded(name)[branch]), atol=TOLERANCE)


@pytest.mark.parametrize("name", [CLASS, TEXT])
@pytest.mark.parametrize("number", range(3))
def test_probabilities_are_those_of_the_authors_sampler(
    loaded: dict[str, LlamaGen], name: str, number: int, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Tokens that their cached sampler drew, guided and truncated, have its probabilities, cached here and not."""
    generator, recipe = loaded[name], CASE["RECIPES"][number]
    theirs = rollout_of(name, recorded(name)["draws"][number], recipe)
    with torch.no_grad():
        AGREE(record_property, name, RECORDED, generator.logprobs(theirs), theirs.logprobs, atol=TOLERANCE)
    columns = iter(theirs.tokens.T)
    monkeypatch.setattr("rwk.policy_opt.rollout.draw", lambda logp, uniform: next(columns))
    ours = generator.sample(PROMPTS[name], seed=0, sampling=theirs.sampling)
    assert torch.equal(ours.tokens, theirs.tokens)
    AGREE(record_property, name, RECORDED, ours.logprobs, theirs.logprobs, atol=TOLERANCE)


def test_pictures_are_those_of_the_authors_tokenizer(loaded: dict[str, LlamaGen], record_property: Any) -> None:
    """Codes have their pixels, to the rounded level, and pixels their codes."""
    generator, told = loaded[CLASS], RECORDED["vq"]
    tokens = torch.tensor(RECORDED["c2i"]["draws"][0]["tokens"])
    with torch.no_grad():
        pixels = generator.vq.decode(tokens).flatten(1)[:, ::5]
    official = (torch.tensor(told["pixels"]).clamp(-1, 1) + 1) / 2
    assert (official.diff() != 0).float().mean() > 0.7  # not all at the ends
    AGREE(record_property, CLASS, RECORDED, pixels, official, atol=TOLERANCE)
    levels = torch.stack([torch.tensor(list(image.tobytes())) for image in generator.decode(tokens)])
    levels = levels.view(len(tokens), -1, 3).mT.flatten(1)[:, ::5]  # colour by colour, as pixels are
    sure = (255 * official % 1 - 0.5).abs() > 0.01  # of how it is rounded
    assert torch.equal(levels[sure], (255 * official).round().long()[sure])
    codes = generator.vq.encode((torch.from_numpy(CASE["pixels"]()) + 1) / 2)
    assert codes.tolist() == told["codes"]
    assert len(codes.unique()) > 3


def digest(network: nn.Module) -> str:
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_published_layouts() -> None:
    """At full size every network has the keys and shapes of the authors', and weighs what is told."""
    with torch.device("meta"):
        found: dict[str, nn.Module] = {key: Gpt(kind_of(name).sizes) for key, name in PUBLISHED.items()}
        found["VQ-16"] = Vq(VqConfig())
        found["VQ-16"].quantize.register_buffer("codebook_used", torch.empty(65536))
    assert {key: digest(network) for key, network in found.items()} == RECORDED["layouts"]
    for key, network in found.items():
        origin = kind_of(PUBLISHED[key]).origin if key in PUBLISHED else Base256.vq_origin
        numbers = sum(value.numel() for value in network.state_dict().values())
        assert origin.megabytes == round(4 * numbers / 1e6)


def test_every_name_is_one_of_the_layouts() -> None:
    """Names of one size differ in the grid alone, which has no weights; each states its pixels and its own file."""
    names = [name for name in GENERATORS.names() if name.startswith("llamagen.")]
    assert len(names) == 9
    assert len({kind_of(name).origin.file for name in names}) == 9
    checked = {(sizes.layers, sizes.width) for sizes in (kind_of(name).sizes for name in PUBLISHED.values())}
    for name in names:
        kind = kind_of(name)
        assert (kind.sizes.layers, kind.sizes.width) in checked
        assert name.endswith(f"_{kind.spec.image_size}")
        assert (kind.spec.tokens, kind.spec.image_size) == (kind.sizes.grid**2, 16 * kind.sizes.grid)
        assert name.rpartition("_")[2] in kind.origin.file


@pytest.mark.parametrize("fault", ["missing", "not wanted", "of another shape"])
def test_other_checkpoints_are_refused(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that lacks a key, has one more, or one of another shape is refused by name."""
    monkeypatch.setattr(Base256, "sizes", GptConfig(**CASE["GPT"]))
    monkeypatch.setattr(Base256, "vq_sizes", VqConfig(**CASE["VQ"]))
    write_published(Base256, tmp_path)
    state = published(tmp_path / Base256.origin.file)
    if fault == "not wanted":
        state["extra.weight"] = torch.zeros(1)
    elif fault == "missing":
        del state["norm.weight"]
    else:
        state["norm.weight"] = torch.ones(33)
    torch.save({"module": state}, tmp_path / Base256.origin.file)
    with pytest.raises(ValueError, match=f"{CLASS} cannot take this checkpoint: of its keys, 1 {fault}"):
        GENERATORS.load(f"{CLASS}@{tmp_path}")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """Without a network the file that lacks is named: the transformer, or else the tokenizer beside it."""
    with pytest.raises(RunFailed, match=r"needs c2i_B_256.pt of FoundationVision/LlamaGen \(about 444 MB\)"):
        Base256()
    (tmp_path / "c2i_B_256.pt").touch()
    with pytest.raises(RunFailed, match=r"vq_ds16_c2i.pt .* copy c2i_B_256.pt and vq_ds16_c2i.pt into one folder"):
        GENERATORS.load(f"{CLASS}@{tmp_path}")


def test_a_missing_text_encoder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 is looked for beside the other files."""
    monkeypatch.setattr(Xl256, "sizes", GptConfig(**CASE["GPT"], caption_width=CASE["CAPTION_WIDTH"]))
    monkeypatch.setattr(Xl256, "vq_sizes", VqConfig(**CASE["VQ"]))
    write_published(Xl256, tmp_path)
    with pytest.raises(RunFailed, match=f"{TEXT} needs the tokenizer of google/flan-t5-xl"):
        GENERATORS.load(f"{TEXT}@{tmp_path}")


def test_texts_are_cleaned_as_by_the_authors() -> None:
    """Addresses, markup, entities, file names, dashes, codes and broken letters among them."""
    assert [clean_caption(text) for text in CASE["TEXTS"]] == RECORDED["cleaned"]


def test_classes_by_number_and_name() -> None:
    """A class is named by number or by any of its names; what is none, or two, is refused."""
    asked = ["207", "class 207", " Class  207 ", "golden retriever", "a photo of a Golden  Retriever", "Tinca tinca"]
    assert [class_of("me", prompt) for prompt in asked] == [207] * 5 + [0]
    with pytest.raises(ValueError, match="me draws a class of ImageNet, got 'crane', which is classes 134 and 517"):
        class_of("me", "a crane".removeprefix("a "))
    for prompt in ("1000", "class", "", "a photo of a unicorn", "\u0662"):
        with pytest.raises(ValueError, match="give its number, 0 to 999, or one of its names"):
            class_of("me", prompt)


def test_a_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 runs once for a prompt, however many pictures it has and however often they are looked at."""
    generator = Xl256.tiny()
    intact, read = generator.text.encoder.forward, []

    def recording(**options: Any) -> Any:
        read.append(options["input_ids"].shape)
        return intact(**options)

    monkeypatch.setattr(generator.text.encoder, "forward", recording)
    rollout = generator.sample(["a dog", "the cat sat"], per_prompt=3, seed=0, sampling=Sampling(guidance=3.0))
    generator.statistics(rollout)
    assert len(read) == 2
    assert all(shape[0] == 1 for shape in read)


def test_what_is_not_drawn_is_grey() -> None:
    """A picture of some codes is of full size, and of none it is that of a grey one."""
    generator = Base256.tiny()
    tokens = generator.sample(["1", "2"], seed=0).tokens
    none, some, whole = (generator.decode_partial(tokens[:, :count]) for count in (0, 4, 9))
    assert none[0].tobytes() == none[1].tobytes()
    assert [image.tobytes() for image in whole] == [image.tobytes() for image in generator.decode(tokens)]
    assert len({none[0].tobytes(), some[0].tobytes(), whole[0].tobytes()}) == 3


def test_recomputing_layers_changes_no_gradient() -> None:
    """With gradient checkpointing values and gradients are the same."""
    generator = Xl256.tiny()
    rollout = generator.sample(["a dog", "the cat sat"], seed=0, sampling=Sampling(guidance=3.0))
    found = []
    for again in (False, True):
        generator.module.gradient_checkpointing = again  # type: ignore[assignment]
        generator.module.train().zero_grad()
        generator.logprobs(rollout).sum().backward()
        found.append([value.grad for value in generator.module.parameters() if value.grad is not None])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", [Base256, Xl256])
def test_a_reward_moves_it(kind: type[LlamaGen], rank: int, tmp_path: Path) -> None:
    """Three steps of GRPO with a reward of pixels change the policy, all of it or through LoRA, and what is saved."""
    generator = kind.tiny()
    before = generator.sample(generator.example_prompts, seed=1)
    settings: dict[str, Any] = {"steps": 3, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-2}
    reward = Weighted("contrast", load_reward("contrast"))
    config = Grpo(**settings, lora_rank=rank, seed=3)
    grpo(config, generator, [reward], list(generator.example_prompts), out=tmp_path / "run")
    after = generator.logprobs(before).detach()
    assert after.isfinite().all()
    assert (after - before.logprobs).abs().max() > 1e-3
    saved = kind.from_folder(tmp_path / "run" / "generator").logprobs(before).detach()
    torch.testing.assert_close(saved, after, rtol=0, atol=1e-5)
