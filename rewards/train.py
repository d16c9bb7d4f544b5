"""Fine-tuning of a reward on preferences: Bradley and Terry's likelihood, held-out stopping, exact resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwk.rewards import checkpoint, recipe
from rwk.rewards.bases import choose_parameters, load_base
from rwk.rewards.configs import RewardTraining
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.errors import RunFailed
from rwk.rewards.held_out import measure
from rwk.rewards.losses import bradley_terry_loss, fit_temperature
from rwk.rewards.margin import Margin
from rwk.rewards.picture_store import PictureStore
from rwk.rewards.saving import RewardReport, write_config, write_plot, write_reward

CHECKPOINT = "checkpoint.safetensors"
_STATE = ("step", "stale", "losses", "best_loss", "best_step")
Advance = Callable[[int], None]


def train_reward(
    config: RewardTraining,
    train: PreferenceDataset,
    valid: PreferenceDataset,
    *,
    out: Path,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    advance: Advance = lambda more: None,
) -> RewardReport:
    """Trains `config.base` on preferences and keeps the weights of least held-out loss.

    Args:
        config: the settings; `data`, `out` and `resume` are the command's and not looked at.
        train: preferences to learn from.
        valid: preferences that decide when to stop, which weights are kept, and the temperature.
        out: folder of the run, which all processes see: metrics.jsonl, the checkpoint, and the reward in `reward/`.
        resume: go on from the checkpoint in `out`, if there is one; the result is that of a run without a break.
        seed: of the order of the pairs and of what the base draws at random.
        device: where the network runs, in a run of one process; several take a GPU each, or "cpu".
        advance: is told how many more steps are done.

    Raises:
        ValueError: for preferences or settings that do not fit.
        RunFailed: when the loss is no longer finite.
    """
    run = _Run(config, train, valid, out=out, seed=seed, device=device)
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        run.restore() if resume else run.begin()
        advance(run.step)
        while run.step < run.steps and run.stale < config.patience:
            run.train_step()
            if run.step % run.eval_every == 0 or run.step == run.steps:
                run.evaluate()
            if run.step % config.checkpoint_every == 0:
                run.checkpoint()
            advance(1)
        run.checkpoint()
        return run.finish()


class _Run:
    """A training run between two steps."""

    def __init__(
        self,
        config: RewardTraining,
        train: PreferenceDataset,
        valid: PreferenceDataset,
        *,
        out: Path,
        seed: int,
        device: str,
    ) -> None:
        self.accelerator = recipe.accelerator(device)
        self.device = torch.device(device) if self.accelerator.num_processes == 1 else self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if config.batch_size < self.world:
            raise ValueError(f"--batch-size must give each process a pair, got {config.batch_size} for {self.world}.")
        self.config, self.seed, self.out = config, seed, out
        self.train, self.valid = train, valid
        cached = config.mode == "probe"
        self.reward = load_base(
            config.base,
            image_size=config.image_size,
            seed=seed,
            device=str(self.device),
            head=config.head,
            probe=cached,
        )
        self.reward.refuse(dict.fromkeys(row.prompt for data in (train, valid) for row in data))
        self.lora = choose_parameters(self.reward, config.mode, rank=config.lora_rank, seed=seed, freeze=config.freeze)
        self.margin = Margin(self.reward, cached=cached, autocast=config.precision == "bfloat16")
        out.mkdir(parents=True, exist_ok=True)
        self.store = PictureStore([train, valid], self.reward.prepare, out, key=f"{config.base} {config.image_size}")
        with self.accelerator.main_process_first():
            self.store.fill()
        self.features = {id(data): self._features(data) for data in (train, valid)} if cached else {}
        self.margin.freeze_idle(*self._inputs(self.train, [0]))
        self.trained = {name: p for name, p in self.reward.module.named_parameters() if p.requires_grad}
        self.optimizer = recipe.optimizer(list(self.trained.values()), config)
        self.wrapped: nn.Module = self.accelerator.prepare_model(self.margin, device_placement=False)
        self.steps = math.ceil(len(train) / config.batch_size) * config.epochs
        self.eval_every = config.eval_every or math.ceil(len(train) / config.batch_size)
        self.step, self.stale, self.best_loss, self.best_step = 0, 0, math.inf, 0
        self.losses: list[float] = []  # of the steps since the last evaluation
        self.fingerprint = recipe.fingerprint(config, train, valid, seed)

    # ------------------------------------------------------------------------------------------------------- one step

    def train_step(self) -> None:
        rows = recipe.rows(self.step, len(self.train), self.config.batch_size, self.seed)
        whole = sum(self.train[row].weight for row in rows)
        mine = rows[self.rank :: self.world]
        torch.manual_seed(self.seed + 1_000_003 * self.step + self.rank)  # of dropout, where a network has any
        self.reward.module.train(self.config.mode == "full")
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.config, self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(mine), self.config.micro_batch):
            part = mine[start : start + self.config.micro_batch]
            last = start + self.config.micro_batch >= len(mine)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                margin = self.wrapped(*self._inputs(self.train, part))
                pairs = [self.train[row] for row in part]
                p_first = torch.tensor([pair.p_first for pair in pairs], device=self.device)
                weight = torch.tensor([pair.weight for pair in pairs], device=self.device)
                loss = bradley_terry_loss(margin, p_first, weight).sum() / whole
                self.accelerator.backward(loss * self.world)  # gradients are averaged over processes
            total += loss.detach()
        if self.config.max_norm:
            nn.utils.clip_grad_norm_(self.trained.values(), self.config.max_norm)
        loss_value = self._summed(total).item()
        if not math.isfinite(loss_value):
            raise RunFailed(f"the loss of step {self.step + 1} is {loss_value}; lower --learning-rate.")
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss_value)

    def _inputs(self, data: PreferenceDataset, rows: Sequence[int]) -> tuple[Any, list[str]]:
        """What `Margin` takes for these rows."""
        prompts = [data[row].prompt for row in rows]
        if self.features:
            return self.features[id(data)][:, list(rows)].flatten(0, 1).to(self.device), prompts
        return self.reward.prepared(self.store.read(data, rows)), prompts

    # ------------------------------------------------------------------------------------------------- held-out pairs

    def evaluate(self) -> None:
        """Measures the held-out pairs, writes a line of metrics, and keeps the weights if they are the best so far."""
        found = measure(self._margins(self.valid), self.valid)
        if found.nll.mean < self.best_loss:
            self.best_loss, self.best_step, self.stale = found.nll.mean, self.step, 0
            self.best = {name: value.detach().clone() for name, value in self._moving().items()}
        else:
            self.stale += 1
        line = {
            "step": self.step,
            "epoch": self.step * self.config.batch_size / len(self.train),
            "train_loss": sum(self.losses) / len(self.losses) if self.losses else None,
            "nll": found.nll.mean,
            "nll_calibrated": found.nll_calibrated.mean,
            "accuracy": found.accuracy and found.accuracy.mean,
            "temperature": found.document()["temperature"]["value"],
        }
        self.losses = []
        if self.accelerator.is_main_process:
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    @torch.no_grad()
    def _margins(self, data: PreferenceDataset) -> Tensor:
        """[N] margins, each computed by one process."""
        self.reward.module.eval()
        margins = torch.zeros(len(data), device=self.device)
        for part in self._mine(data):
            margins[part] = self.margin(*self._inputs(data, part))
        return self._summed(margins).cpu()

    @torch.no_grad()
    def _features(self, data: PreferenceDataset) -> Tensor:
        """[2, N, D] features of the first and the second pictures."""
        self.reward.module.eval()
        found: Tensor | None = None
        for part in self._mine(data):
            prepared = self.reward.prepared(self.store.read(data, part))
            made = self.margin.features(prepared, [data[row].prompt for row in part])
            found = torch.zeros(2, len(data), made.shape[1], device=self.device) if found is None else found
            found[:, part] = made.view(2, len(part), -1)
        if found is None:
            raise ValueError(f"{data.name} must give each process a pair, got {len(data)} for {self.world}.")
        return self._summed(found)

    def _mine(self, data: PreferenceDataset) -> Iterator[list[int]]:
        rows = list(range(self.rank, len(data), self.world))
        for start in range(0, len(rows), self.config.micro_batch):
            yield rows[start : start + self.config.micro_batch]

    def _summed(self, value: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(value, "sum") if self.world > 1 else value
        return summed

    # ------------------------------------------------------------------------------------------- beginning and ending

    def begin(self) -> None:
        """Measures the base, and rescales its head until it is as sure as it is right on the training pairs."""
        if self.accelerator.is_main_process:
            (self.out / "metrics.jsonl").unlink(missing_ok=True)
            (self.out / CHECKPOINT).unlink(missing_ok=True)
            write_config(self.out, self.config, self.seed, self.world)
        self.base_margin = self._margins(self.valid)
        p_first = torch.tensor([row.p_first for row in self.train])
        temperature = fit_temperature(self._margins(self.train), p_first)
        if temperature.status == "fitted":  # else an overconfident base would learn from wrong labels above all
            head: Any = self.reward.module.get_submodule("head")
            head.rescale(1 / temperature.value)
        self.evaluate()

    def checkpoint(self) -> None:
        """Writes where the run stands, from the first process."""
        if self.accelerator.is_main_process:
            tensors = {f"now.{name}": value for name, value in self._moving().items()}
            tensors |= {f"best.{name}": value for name, value in self.best.items()}
            tensors |= checkpoint.optimizer_tensors(self.optimizer) | {"base_margin": self.base_margin}
            state = {name: getattr(self, name) for name in _STATE} | {"fingerprint": self.fingerprint}
            checkpoint.save(self.out / CHECKPOINT, tensors, state)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Goes back to the checkpoint, or to the beginning where there is none yet."""
        path = self.out / CHECKPOINT
        if not path.exists():
            self.begin()
            return
        tensors, state = checkpoint.load(path)
        different = [key for key, value in self.fingerprint.items() if state["fingerprint"].get(key) != value]
        if different:
            raise ValueError(
                f"--resume needs the settings and data of the run in {self.out}, got another {', '.join(different)}; "
                f"call it as before, or leave --resume out to start anew."
            )
        for name in _STATE:
            setattr(self, name, state[name])
        self.base_margin = tensors["base_margin"]
        self.best = {key[5:]: value for key, value in tensors.items() if key.startswith("best.")}
        self._take({key[4:]: value for key, value in tensors.items() if key.startswith("now.")})
        checkpoint.restore_optimizer(self.optimizer, tensors)
        if self.accelerator.is_main_process:
            lines = (self.out / "metrics.jsonl").read_text().splitlines()
            whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            (self.out / "metrics.jsonl").write_text("".join(line + "\n" for line in whole))
        self.accelerator.wait_for_everyone()

    def finish(self) -> RewardReport:
        """Saves the best weights, measured once more as they are saved."""
        self._take(self.best)
        if self.lora is not None and not self.reward.keeps_lora:
            self.lora.merge_and_unload()
        base, held_out = measure(self.base_margin, self.valid), measure(self._margins(self.valid), self.valid)
        report = RewardReport(self.out / "reward", base, held_out, self.best_step, self.step, self.world)
        if self.accelerator.is_main_process:
            self.reward.spec = dataclasses.replace(self.reward.spec, name=self.config.name)
            write_plot(self.out)
            write_reward(self.reward, report, self.config, self.seed, self.train, self.valid)
            self.store.remove()
        self.accelerator.wait_for_everyone()
        return report

    def _moving(self) -> dict[str, Tensor]:
        """What training changes: the trained parameters, and buffers such as running means."""
        module = self.reward.module
        buffers = {name for name, _ in module.named_buffers()}
        return {key: value for key, value in module.state_dict().items() if key in self.trained or key in buffers}

    def _take(self, state: Mapping[str, Tensor]) -> None:
        held = self.reward.module.state_dict()
        for name, value in state.items():
            held[name].copy_(value)
