"""Time and peak memory of one GRPO step on a random Janus, against a step as T2I-R1's trainer takes it.

    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py
    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py --tokens 64 --layers 4 --rounds 1     # about a minute
    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py --lora-rank 0                         # all weights are trained
    OMP_NUM_THREADS=2 python benchmarks/grpo_step.py --mode matched_detach_uncond --micro-batch 8
    python benchmarks/grpo_step.py --way rwk --model janus_pro_7b --device cuda --dtype bfloat16 --torch-compile

A step draws a group for one prompt, takes the log-probabilities of policy and reference, and updates the weights by
AdamW. Rewards are random numbers, as their models would cost both the same. T2I-R1 draws by the loop of Janus' authors
(a prompt read for every row, a cache that grows), asks the model for the logits of its words at every place and for the
states of all layers, of which the last are read, trains all weights under the conditional distribution alone, computes
the layers again in the backward pass, and keeps a whole second model as reference. rwk reads the prompt once for its
group, in learning too, and keeps what the layers computed. It trains under the guided distribution, from which the
tokens were drawn, so both branches go through the model, by `--mode` with a gradient or not; and where T2I-R1 has to
take a group whole, its advantages being made in its loss, rwk takes it `--micro-batch` rows at a time. By default it
trains LoRA adapters, without which the model is its own reference.

Every step runs in processes of its own, in turns: one for its time and one for its memory, which is the peak above what
the libraries take. In the latter the C library gives back at once what is freed, so that it is what is held, not holes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import runpy
import statistics as stats
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from rwk.adapters.janus import JanusPro, random_network, tiny_tokenizer
from rwk.policy_opt.compiled import compile_draws
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.sampling import GuidanceMode

_SMALL = {
    "layers": 8,
    "width": 512,
    "inner": 0,
    "codes": 16384,
    "tokens": 576,
    "words": 102400,
    "group": 8,
    "prompt": 256,
}
SIZES = {
    "janus": _SMALL,
    "janus_pro_1b": _SMALL | {"layers": 24, "width": 2048, "inner": 5632},
    "janus_pro_7b": _SMALL | {"layers": 30, "width": 4096, "inner": 11008},
}
"""As `benchmarks/rollout.py` has them, with as many words as Janus knows; `prompt` counts its tokens."""
BETA = 0.01
FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""With which glibc keeps no freed block above 64 KiB."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def built(options: argparse.Namespace) -> JanusPro:
    """A random Janus."""
    side = math.isqrt(options.tokens)
    sizes = {name: getattr(options, name) for name in ("layers", "width", "inner", "codes", "words")}
    network = random_network(**sizes, side=side).to(getattr(torch, options.dtype))
    return JanusPro.of(network, tiny_tokenizer(), device=options.device)


def now(options: argparse.Namespace) -> float:
    """Seconds by the clock, when the device has done what it was given."""
    if options.device != "cpu":
        torch.accelerator.synchronize()
    return CLOCKS[options.clock]()


def advantages(options: argparse.Namespace) -> Tensor:
    """[B, 1] of random rewards."""
    rewards = torch.randn(options.group, generator=torch.Generator().manual_seed(0)).to(options.device)
    return ((rewards - rewards.mean()) / (rewards.std() + 1e-4))[:, None]


def loss_of(logprobs: Tensor, reference: Tensor, advantage: Tensor) -> Tensor:
    """GRPO's loss, under the policy that drew, of log-probabilities [B, L], with the k3 estimate of the distance."""
    ahead = reference - logprobs
    return (BETA * (ahead.exp() - ahead - 1) - (logprobs - logprobs.detach()).exp() * advantage).mean()


def updated(parameters: Iterable[Tensor]) -> None:
    """Takes one step of AdamW with those that can be trained."""
    torch.optim.AdamW([value for value in parameters if value.requires_grad], lr=1e-6).step()


def rwk_step(generator: JanusPro, prompt: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of drawing and of learning, by rwk's own sampler, statistics and reference."""
    with trainable(generator, Grpo(lora_rank=options.lora_rank), keep=True) as reference:
        assert reference is not None
        if options.torch_compile:
            compile_draws(generator)
            generator.sample([prompt], per_prompt=options.group, seed=1)  # which compiles
        start = now(options)
        recipe = replace(generator.spec.sampling, mode=options.mode)
        rollout = generator.sample([prompt], per_prompt=options.group, seed=0, sampling=recipe)
        drawn = now(options)
        with torch.no_grad():
            fixed = reference(rollout).logprobs
        for start_row in range(0, options.group, options.micro_batch):
            rows = slice(start_row, start_row + options.micro_batch)
            loss = loss_of(generator.logprobs(rollout[rows]), fixed[rows], advantages(options)[rows])
            (loss * options.micro_batch / options.group).backward()  # type: ignore[no-untyped-call]
        updated(generator.module.parameters())
        return drawn - start, now(options) - drawn


def t2i_r1_logprobs(network: Any, ids: Tensor, codes: Tensor) -> Tensor:
    """[B, L] conditional log-probabilities as its trainer computes them."""
    embeds = network.get_input_embeddings()(ids)
    embeds = torch.cat([embeds, network.prepare_embeddings_for_image_generation(codes)], 1)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    decoder = network.model.language_model
    found = decoder(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True, use_cache=False)
    network.lm_head(found.last_hidden_state)  # the logits of words, which nobody reads
    logits = network.model.generation_head(found.hidden_states[-1][:, -codes.shape[1] - 1 :])[:, :-1]
    rows = [row.log_softmax(1).gather(1, code[:, None])[:, 0] for row, code in zip(logits, codes, strict=True)]
    return torch.stack(rows)


def t2i_r1_step(generator: JanusPro, prompt: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of drawing and of learning, as T2I-R1's trainer does it."""
    janus_loop = runpy.run_path(str(Path(__file__).with_name("rollout.py")))["janus_loop"]
    network, reference = generator.network, built(options).network
    network.model.language_model.activation_checkpointing_enable()
    ids = torch.tensor([generator.prompt_ids(prompt)] * options.group, device=generator.device)
    start = now(options)
    network.eval()
    codes = janus_loop(generator, [prompt] * options.group, generator.spec.sampling.guidance)
    drawn = now(options)
    network.train()
    logprobs = t2i_r1_logprobs(network, ids, codes)
    with torch.no_grad():
        fixed = t2i_r1_logprobs(reference, ids, codes)
    loss_of(logprobs, fixed, advantages(options)).backward()  # type: ignore[no-untyped-call]
    updated(network.parameters())
    return drawn - start, now(options) - drawn


def measured(way: str, options: argparse.Namespace) -> None:
    """Prints one step's seconds and peak MiB as JSON."""
    libraries = resident()
    generator = built(options)
    prompt = "a" * (options.prompt - len(generator.prompt_ids("x")) + 1)
    drawing, learning = {"rwk": rwk_step, "t2i_r1": t2i_r1_step}[way](generator, prompt, options)
    if options.device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - libraries
    else:
        peak = torch.accelerator.max_memory_allocated() / 2**20
    whole = drawing + learning
    found = {"drawing": drawing, "learning": learning, "seconds": whole, "an image": whole / options.group, "MiB": peak}
    print(json.dumps(found))


def said(command: list[str], **environment: str) -> dict[str, float]:
    """What `measured` prints in a process of its own."""
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    numbers: dict[str, float] = json.loads(found.stdout)
    return numbers


def resident() -> float:
    """MiB that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Measures the steps in turns and prints medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SIZES], default="janus")
    for option, default in _SMALL.items():
        parser.add_argument(f"--{option}", type=int, help=f"{default}, if --model does not say otherwise")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--mode", choices=get_args(GuidanceMode), default="matched", help="of what rwk learns")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows that rwk learns at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--torch-compile", action="store_true", help="rwk draws by compiled steps, as suits a GPU")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="cpu counts processor time, with one thread")
    parser.add_argument("--way", choices=["rwk", "t2i_r1"], help="one step of this alone, in this process")
    options = parser.parse_args()
    vars(options).update({name: size for name, size in SIZES[options.model].items() if getattr(options, name) is None})
    if options.way:
        measured(options.way, options)
        return
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {vars(options)}")
    found: dict[str, list[dict[str, float]]] = {"t2i_r1": [], "rwk": []}
    for _ in range(options.rounds):
        for way, rows in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            rows.append(said(command) | {"MiB": said(command, **FREED)["MiB"]})
    print(f"{'median':10} {'T2I-R1':>10} {'rwk':>10} {'rwk / T2I-R1':>14}")
    for key in found["rwk"][0]:
        theirs, ours = (stats.median(row[key] for row in rows) for rows in found.values())
        ratio = stats.median(b[key] / a[key] for a, b in zip(*found.values(), strict=True))
        print(f"{key:10} {theirs:10.2f} {ours:10.2f} {ratio:14.2f}")


if __name__ == "__main__":
    main()
