"""SimpleAR and Cosmos' decoder: what the authors' code says and shows, published layouts, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwk.adapters.cosmos import ORIGIN, Cosmos, CosmosConfig
from rwk.adapters.simplear import BOI, TASK, SimpleArRl, SimpleArSft
from rwk.adapters.torchscript import read_torchscript
from rwk.adapters.transformers_generator import byte_tokenizer
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sizing_known import KNOWN
from rwk.policy_opt.sizing_shape import shape_of
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("simplear_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "simplear.json").read_text())
NAME, PROMPTS, TOKENS = "simplear.rl_0_5b", list(CASE["PROMPTS"]), torch.tensor(CASE["TOKENS"])
SIZES = CosmosConfig((4, 4, 2), 4, 8)


class Part(nn.Module):
    """A module of a program, which holds tensors under names."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def program(tensors: dict[str, Tensor], path: Path) -> None:
    """A TorchScript file that holds these tensors, and buffers as the published one has."""
    root = Part()
    for key, value in tensors.items():
        part, (*names, leaf) = root, key.split(".")
        for name in names:
            if not hasattr(part, name):
                part.add_module(name, Part())
            part = getattr(part, name)
        part.register_parameter(leaf, nn.Parameter(value))
    root.decoder.add_module("unpatcher3d", Part())
    root.decoder.unpatcher3d.register_buffer("_arange", torch.arange(2), persistent=False)
    with pytest.MonkeyPatch.context() as patch:  # it is what NVIDIA made theirs with
        patch.setattr("warnings.warn", lambda *_, **__: None)
        torch.jit.save(torch.jit.trace(root, torch.zeros(1), check_trace=False), path)


def cosmos() -> dict[str, Tensor]:
    """The tensors of decoder.jit, of a small decoder."""
    shapes = {key: tuple(shape) for key, shape in RECORDED["shapes"].items()}
    return {key: torch.from_numpy(value) for key, value in CASE["WEIGHTS"](shapes, "cosmos").items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder as NVIDIA publishes it."""
    path = tmp_path_factory.mktemp("cosmos") / "decoder.jit"
    program(cosmos(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the transformer as published, the decoder beside it."""
    from transformers import Qwen2Config

    for kind in (SimpleArSft, SimpleArRl):
        monkeypatch.setattr(kind, "spec", replace(kind.spec, image_size=16 * CASE["SIDE"]))
    monkeypatch.setattr(SimpleArSft, "cosmos", SIZES)
    config = Qwen2Config(vocab_size=CASE["WORDS"] + CASE["CODES"], tie_word_embeddings=True, **CASE["QWEN"])
    config.architectures = ["SimpARForCausalLM"]
    config.save_pretrained(tmp_path)
    state = {key: torch.from_numpy(value) for key, value in CASE["qwen"]().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer(*CASE["CONTROL"]).save_pretrained(tmp_path)
    shutil.copy(exported, tmp_path)
    return tmp_path


def test_logprobs_are_those_of_the_authors_code(folder: Path, record_property: Any) -> None:
    """Their template, their words of faults and their guidance give the same log-probabilities."""
    generator = GENERATORS.load(f"{NAME}@{folder}", dtype="float32")
    assert isinstance(generator, SimpleArRl)
    assert (generator.spec.tokens, generator.spec.codes) == (CASE["SIDE"] ** 2, CASE["CODES"])
    assert generator.spec.sampling == Sampling(guidance=CASE["GUIDANCE"])
    assert [generator.prompt_ids(prompt) for prompt in PROMPTS] == [
        CASE["prefix"](CASE["LIKENESS"] + prompt) for prompt in PROMPTS
    ]
    recipe = generator.spec.sampling
    rollout = Rollout(PROMPTS, torch.arange(len(PROMPTS)), TOKENS, torch.zeros(TOKENS.shape), recipe)
    with torch.no_grad():
        found = generator.logprobs(rollout)
    AGREE(record_property, NAME, RECORDED, found, torch.tensor(RECORDED["logprobs"]), atol=1e-4)


def test_images_are_those_of_the_authors_code(folder: Path, record_property: Any) -> None:
    """A frame decoded alone has the pixels that it has as a video; a whole video is never made."""
    generator = SimpleArRl(weights=folder, dtype="float32")
    with torch.no_grad():
        pixels = generator.vq(TOKENS.unflatten(1, (CASE["SIDE"],) * 2)).flatten(1)[:, ::5]
    official = (torch.tensor(RECORDED["pixels"]).clamp(-1, 1) + 1) / 2
    assert (official.diff() != 0).float().mean() > 0.5  # not all at the ends
    AGREE(record_property, NAME, RECORDED, pixels, official, atol=1e-4)
    levels = torch.stack([torch.tensor(list(image.tobytes())) for image in generator.decode(TOKENS)])
    levels = levels.view(len(TOKENS), -1, 3).mT.flatten(1)[:, ::5]  # colour by colour, as pixels are
    sure = (255 * official % 1 - 0.5).abs() > 0.01  # of how it is rounded
    assert torch.equal(levels[sure], (255 * official).round().long()[sure])


def test_published_layout() -> None:
    """At full size the decoder has the keys and shapes of the authors', and in bfloat16 the size of the file."""
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in Cosmos(CosmosConfig()).state_dict().items()}
    theirs = {}
    for key, shape in RECORDED["layout"].items():
        plain = re.sub(r"\.(conv3d|norm)(?=\.(weight|bias)$)", "", key)
        theirs[plain] = shape[:2] + shape[3:] if len(shape) == 5 else shape
    assert ours == theirs
    numbers = sum(torch.Size(shape).numel() for shape in RECORDED["layout"].values())
    assert ORIGIN.megabytes == round(2 * numbers / 1e6)
    assert CosmosConfig().codes == SimpleArSft.spec.codes
    assert SimpleArSft.spec.tokens == (SimpleArSft.spec.image_size // CosmosConfig().patch) ** 2


@pytest.mark.parametrize("fault", ["missing", "not wanted", "of another shape"])
def test_other_decoders_are_refused(folder: Path, fault: str) -> None:
    """A decoder that lacks a key, has one more, or one of another shape is refused by name."""
    state, key = cosmos(), "decoder.norm_out.norm.weight"
    value = state.pop(key)
    if fault != "missing":
        state |= {"decoder.odd.weight": value, key: value} if fault == "not wanted" else {key: value[:-1]}
    torch.save(state, folder / "decoder.pt")
    with pytest.raises(ValueError, match=f"{NAME} cannot take this checkpoint: of its keys, 1 {fault}"):
        SimpleArRl(weights=folder)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_other_transformers_are_refused(folder: Path, fault: str) -> None:
    """A key too few, too many, or of another shape is named."""
    path, key = folder / "model.safetensors", "model.norm.weight"
    state = load_file(path)
    value = state.pop(key)
    if fault != "missing":
        state |= {"model.odd": value.clone(), key: value} if fault == "unexpected" else {key: value[:-1].clone()}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got 1 keys that are .*\(model\.(odd|norm)"):
        SimpleArRl(weights=folder)


def test_a_network_without_room_for_the_codes_is_refused(folder: Path) -> None:
    """A tokenizer of more ids than the published one would shift every code."""
    byte_tokenizer(*CASE["CONTROL"], "<|more|>").save_pretrained(folder)
    with pytest.raises(ValueError, match="needs 32 codes behind the 265 ids of its tokenizer, got a network of 296"):
        SimpleArRl(weights=folder)


def test_tensors_of_the_decoder_may_lie_in_a_file_of_their_own(folder: Path) -> None:
    """Converted by hand, as decoder.pt, they are taken in place of the program."""
    expected = SimpleArRl(weights=folder).decode(TOKENS)[0].tobytes()
    (folder / "decoder.jit").unlink()
    torch.save(cosmos(), folder / "decoder.pt")
    assert SimpleArRl(weights=folder).decode(TOKENS)[0].tobytes() == expected


def test_weights_that_are_not_here_are_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is asked for first, as the transformer takes its time."""
    (folder / "decoder.jit").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    with pytest.raises(
        RunFailed, match=r"decoder.jit of nvidia/Cosmos-1.0-Tokenizer-DV8x16x16 \(about 132 MB\).*beside"
    ):
        SimpleArRl(weights=folder)


class Strange:
    """What opens a shell when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("opened",)


def test_no_program_is_run_when_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every format of numbers is read as it was; a file that names a function, or is damaged, is refused unrun."""
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    tensors = {f"decoder.{i}.weight": torch.randn(2, 3, 4).to(kind).mT for i, kind in enumerate(kinds)}
    tensors["empty"] = torch.empty(0, 2)
    program(tensors, tmp_path / "a.jit")
    read = read_torchscript(tmp_path / "a.jit")
    assert torch.equal(read.pop("decoder.unpatcher3d._arange"), torch.arange(2))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())
    with zipfile.ZipFile(tmp_path / "b.jit", "w") as archive:
        archive.writestr("b/data.pkl", pickle.dumps(Strange(), protocol=2))
    with pytest.raises(ValueError, match=r"b.jit is not a whole TorchScript file .*it names __?builtin"):
        read_torchscript(tmp_path / "b.jit")
    assert "opened" not in capsys.readouterr().out
    (tmp_path / "c.jit").write_bytes((tmp_path / "a.jit").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"c.jit is not a whole TorchScript file"):
        read_torchscript(tmp_path / "c.jit")


def test_greedy_tokens_are_those_of_generate() -> None:
    """Token for token under guidance 6 and the authors' words of faults, where codes alone are allowed."""
    generator = SimpleArSft.tiny()
    drawn = generator.sample(PROMPTS, seed=0, sampling=Sampling(guidance=6.0, top_k=1)).tokens
    assert len({tuple(row) for row in drawn.tolist()}) > 1
    codes = list(range(generator.first_code, generator.first_code + generator.spec.codes))
    for row, prompt in zip(drawn, PROMPTS, strict=True):
        ids, null = (torch.tensor([ids(prompt)]) for ids in (generator.prompt_ids, generator.null_ids))
        generated = generator.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            negative_prompt_ids=null,
            guidance_scale=6.0,
            prefix_allowed_tokens_fn=lambda row, ids: codes,
            do_sample=False,
            max_new_tokens=len(row),
        )
        assert (generated[0, ids.shape[1] :] - generator.first_code).tolist() == row.tolist()


def test_prompts_stand_in_the_template_of_the_authors() -> None:
    """Task, likeness, prompt, begin of an image; words of faults without a prompt."""
    generator = SimpleArSft.tiny()
    told = [generator.tokenizer.decode(ids) for ids in (generator.prompt_ids("a cat"), generator.null_ids("a cat"))]
    assert told == [f"{TASK}{CASE['LIKENESS']}a cat{BOI}", f"{TASK}{CASE['FAULTS']}{BOI}"]
    with pytest.raises(ValueError, match=r"got its control token '<\|soi\|>' in 'A highly realistic image of a<\|soi"):
        generator.prompt_ids(f"a{BOI}cat")


def test_what_is_not_drawn_is_grey() -> None:
    """A picture of some codes is of full size, grey from the first code on that lacks."""
    generator = SimpleArSft.tiny()
    tokens = generator.sample(PROMPTS[:1], seed=0).tokens
    none, some, whole = (generator.decode_partial(tokens[:, :count])[0] for count in (0, 4, 9))
    assert set(none.get_flattened_data()) == {(128, 128, 128)}
    assert whole.tobytes() == generator.decode(tokens)[0].tobytes()
    assert set(some.crop((8, 8, 24, 16)).get_flattened_data()) == {(128, 128, 128)}
    assert (128, 128, 128) not in set(some.crop((0, 0, 24, 8)).get_flattened_data())


def test_what_writes_is_trained_and_the_decoder_is_frozen() -> None:
    """Every parameter of the transformer gets a gradient; LoRA leaves the table alone that is in and out."""
    generator = SimpleArSft.tiny()
    rollout = generator.sample(PROMPTS, seed=0)
    generator.logprobs(rollout).sum().backward()
    assert all(value.grad is not None for value in generator.module.parameters())
    assert not any(value.requires_grad for value in generator.vq.parameters())
    generator.module.zero_grad()
    with trainable(generator, Grpo(lora_rank=2), keep=False):
        learns = [name for name, value in generator.module.named_parameters() if value.requires_grad]
        assert any("q_proj" in name for name in learns)
        assert not any("lm_head" in name for name in learns)


@pytest.mark.parametrize(("size", "heads"), [("0_5b", (14, 2)), ("1_5b", (12, 2))])
def test_sizes_are_known_without_weights(size: str, heads: tuple[int, int]) -> None:
    """Within a thousandth of what is built at full size, and the size of the files is told by them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = KNOWN[f"simplear.rl_{size}"]
    config = Qwen2Config(
        vocab_size=215_672,
        hidden_size=shape.hidden,
        intermediate_size={"0_5b": 4864, "1_5b": 8960}[size],
        num_hidden_layers=shape.layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        counted = sum(value.numel() for value in Qwen2ForCausalLM(config).parameters())
        decoder = sum(value.numel() for value in Cosmos(CosmosConfig()).parameters())
    assert [shape.parameters, shape.decoder] == pytest.approx([counted, decoder], rel=1e-3)
    assert shape.keys == shape.hidden // heads[0] * heads[1]
    kind = GENERATORS.target(f"simplear.sft_{size}")
    assert kind.origins()[0].megabytes == pytest.approx(2e-6 * counted, rel=1e-3)  # type: ignore[attr-defined]
    assert shape_of(SimpleArSft.tiny()).keys == 16
