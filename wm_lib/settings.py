"""What can be set, and to what: every section of the configuration, its keys, their meaning and their ranges.

The values are in `wm_lib/presets/laptop.yaml`; `wm_lib.config` reads them.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wm_lib.tasks import TASKS, get_task


class Section(BaseModel):
    """Frozen settings; a key or a value that does not belong is refused."""

    # Strict: a quoted "32" or a yes where a number belongs is a slip in the file, not a value.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The values as plain dicts, lists, numbers and strings."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The values as canonical JSON, for hashing: equal text, equal configuration."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


class CollectConfig(Section):
    """Playing the real environment for data.

    Attributes:
        num_steps: Decisions in all; rounded up to whole shards of num_envs * shard_length.
        num_envs: Environments played side by side.
        shard_length: Decisions of each environment in one shard, the unit of resuming.
        gymnasium_fraction: Share of the shards played on the Gymnasium path instead of EnvPool, in [0, 1].
            Box2D looks different there, and that is where scores are measured. At 1 PPO plays there as well.
        repeat: Probability, at most 0.999, that random play holds its last action, see `StickyRandom`.
    """

    num_steps: int = Field(40_960, ge=1, le=10**9)
    num_envs: int = Field(32, ge=1, le=4096)
    shard_length: int = Field(640, ge=2, le=100_000)
    gymnasium_fraction: float = Field(0.0, ge=0, le=1)
    repeat: float = Field(0.9, ge=0, le=0.999)


class VAEConfig(Section):
    """V: the variational auto-encoder from a frame to z.

    Attributes:
        z_dim: Length of z.
        learning_rate: Peak learning rate.
        beta: Weight of the KL term.
        batch_size: Frames in one update.
        num_updates: Updates in all.
        centred: Whether the background is taken away before encoding.
        foreground_weight: Weight in the loss of pixels that differ from the background; 1 = like all others.
        slowness: Weight in the loss of how far z moves from a frame to the next.
        fovea: Weight in the loss of the window around the foreground, drawn once more; 0: V has no fovea.
        num_places: How many moving things have their places as the first numbers of z; at most half of z is given away.
    """

    z_dim: int = Field(32, ge=1, le=1024)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    beta: float = Field(0.01, ge=0, le=1000)
    batch_size: int = Field(128, ge=1, le=65_536)
    num_updates: int = Field(2000, ge=1, le=10**8)
    centred: bool = True
    foreground_weight: float = Field(30.0, ge=1, le=10_000)
    slowness: float = Field(0.1, ge=0, le=1000)
    fovea: float = Field(0.0, ge=0, le=10_000)
    num_places: int = Field(0, ge=0, le=512)


class MDNRNNConfig(Section):
    """M: the recurrent network with a mixture density output.

    Attributes:
        rnn_size: Width of the LSTM.
        num_mixtures: Gaussians for each component of z.
        sequence_length: Steps of one training sequence, at most collect.shard_length.
        batch_size: Sequences in one update.
        num_updates: Updates in all.
        learning_rate: Peak learning rate.
    """

    rnn_size: int = Field(256, ge=1, le=8192)
    num_mixtures: int = Field(5, ge=1, le=100)
    sequence_length: int = Field(64, ge=2, le=100_000)
    batch_size: int = Field(32, ge=1, le=65_536)
    num_updates: int = Field(1500, ge=1, le=10**8)
    learning_rate: float = Field(1e-3, gt=0, le=1)


class ReservoirConfig(Section):
    """V and M where torch is absent: principal components and a random recurrent network with linear heads.

    Attributes:
        z_dim: Length of z.
        size: Units of the reservoir.
        spectral_radius: Of its weights; below 1 the memory fades.
        leak: Share of the memory renewed at each decision; small = long memory.
        ridge: Strength of the penalty on the heads' weights.
        foresight: Decisions ahead for which C is told what to expect.
    """

    z_dim: int = Field(32, ge=1, le=256)
    size: int = Field(256, ge=1, le=4096)
    spectral_radius: float = Field(0.9, gt=0, le=2)
    leak: float = Field(0.5, gt=0, le=1)
    ridge: float = Field(1e-3, ge=0, le=10**6)
    foresight: int = Field(4, ge=1, le=1000)


class ControllerConfig(Section):
    """C: what it sees and how it learns.

    Attributes:
        type: "ppo", or by evolution "original" (CMA-ES, the paper's) or "cpu" (a simple evolution strategy).
        recent_z: How many of the latest z it sees, the current one included.
        where: PPO: whether it learns in the "real" environment, in the "dream" of M, or "dream_then_real".
        dream_steps: PPO: dreamt decisions in every round; they cost no real ones.
        dream_temperature: Uncertainty of the dream, see `wm_lib.worlds.dream`.
        population_size: Evolution: candidates in a generation.
        rollouts_per_candidate: Evolution: episodes of a candidate, on average; promising ones play more.
        num_generations: Evolution: generations in all.
        sigma: Evolution: initial standard deviation of the weights.
        max_decisions: Evolution: decisions after which a training episode is cut off; 0 = the task's limit.
        decision_budget: Evolution: once it has made so many decisions no generation begins; 0 = only num_generations
            counts.
        num_steps: PPO: decisions in all.
        num_envs: PPO: environments side by side.
        rollout_length: PPO: decisions of each environment between two updates.
        num_epochs: PPO: passes over each rollout.
        batch_size: PPO: decisions in one gradient step.
        learning_rate: PPO: initial learning rate.
        gamma: PPO: discount of later rewards, in [0, 1].
        gae_lambda: PPO: decay of the advantage estimate, in [0, 1].
        entropy: PPO: weight of the entropy bonus.
        hidden: PPO: widths of the hidden layers; an empty list makes C linear.
        reward_scale: PPO: factor on the reward while training; scores are never scaled.
        clip_reward: PPO: whether the scaled training reward is clipped to [-1, 1].
        end_at_lost_life: PPO: whether a lost life ends an episode while training in the real environment (Atari).
        tile_price: PPO: taken from the training reward for each tile of CarRacing's road that was driven past; scores
            are not changed. Only Gymnasium's own environment tells. Missing one costs more than its own reward, since
            the race then goes on to its time limit, too late for PPO to see why.
        block_steps: PPO: decisions between two checkpoints.
    """

    type: Literal["ppo", "original", "cpu"] = "ppo"
    recent_z: int = Field(4, ge=1, le=64)
    where: Literal["real", "dream", "dream_then_real"] = "real"
    dream_steps: int = Field(500_000, ge=1, le=10**10)
    dream_temperature: float = Field(1.0, ge=0, le=10)
    population_size: int = Field(32, ge=2, le=4096)
    rollouts_per_candidate: int = Field(2, ge=1, le=1000)
    num_generations: int = Field(20, ge=1, le=100_000)
    sigma: float = Field(0.1, gt=0, le=100)
    max_decisions: int = Field(0, ge=0, le=10**6)
    decision_budget: int = Field(0, ge=0, le=10**10)
    num_steps: int = Field(1_000_000, ge=1, le=10**10)
    num_envs: int = Field(64, ge=1, le=4096)
    rollout_length: int = Field(128, ge=1, le=100_000)
    num_epochs: int = Field(4, ge=1, le=100)
    batch_size: int = Field(2048, ge=2, le=10**7)
    learning_rate: float = Field(5e-4, gt=0, le=1)
    gamma: float = Field(0.99, ge=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    entropy: float = Field(0.01, ge=0, le=10)
    hidden: list[int] = [256, 256]
    reward_scale: float = Field(1.0, gt=0, le=10**6)
    clip_reward: bool = False
    end_at_lost_life: bool = False
    tile_price: float = Field(0.0, ge=0, le=1000)
    block_steps: int = Field(204_800, ge=1, le=10**10)

    @field_validator("hidden")
    @classmethod
    def _widths(cls, widths: list[int]) -> list[int]:
        if any(not 1 <= width <= 8192 for width in widths):
            raise ValueError("needs widths from 1 to 8192")
        return widths


class EvaluationConfig(Section):
    """Measuring a score.

    Attributes:
        episodes: Episodes of the score.
        random_episodes: Episodes of random play, for comparison.
        sticky_episodes: Atari: episodes of the agent's score with sticky actions; 0 = it is not measured.
        seed: Seed of the first episode; the others follow it.
    """

    episodes: int = Field(30, ge=1, le=100_000)
    random_episodes: int = Field(30, ge=1, le=100_000)
    sticky_episodes: int = Field(10, ge=0, le=100_000)
    seed: int = Field(10_000, ge=0, le=2**31 - 1)


class RoundsConfig(Section):
    """The paper's iteration (section 5): collect with C, add to the data, continue V, M and C.

    Attributes:
        num_rounds: Rounds in all; the first one collects with random play.
        vae_updates: Updates of V in later rounds; 0 = V stays as it is, and so do the latents of old data.
        mdnrnn_updates: Updates of M in later rounds, which find another V and longer games; null = as in the first.
        controller_steps: PPO's decisions in each later round.
        gymnasium_fraction, entropy, tile_price: `collect.gymnasium_fraction`, `controller.entropy` and
            `controller.tile_price` of later rounds; null = as in the first.
    """

    num_rounds: int = Field(1, ge=1, le=100)
    vae_updates: int = Field(1500, ge=0, le=10**8)
    mdnrnn_updates: int | None = Field(None, ge=1, le=10**8)
    controller_steps: int = Field(500_000, ge=1, le=10**10)
    gymnasium_fraction: float | None = Field(None, ge=0, le=1)
    entropy: float | None = Field(None, ge=0, le=1)
    tile_price: float | None = Field(None, ge=0, le=1000)


class GatesConfig(Section):
    """What a stage must be good for before the next one builds on it; the other thresholds are `wm_lib.gates`' own.

    Attributes:
        stop: Whether a failed gate stops the training; otherwise it is only written down.
        min_active_share: Smallest share of V's latent units that must be active.
        probe_decisions: Decisions of each of eight environments on which V is probed; 0 = it is not.
        max_pixels: Largest median error of the position of ball or ship read from z, in pixels of the frame; 0 = half
            of that of answering the mean.
    """

    stop: bool = True
    min_active_share: float = Field(0.25, ge=0, le=1)
    probe_decisions: int = Field(400, ge=0, le=10**6)
    max_pixels: float = Field(0.0, ge=0, le=64)


class CompareConfig(Section):
    """`wm compare`: our agent and PPO from pixels, measured while they learn.

    Attributes:
        every: Real decisions between two measurements.
        episodes: Episodes of each; the last one takes `evaluation.episodes`.
        max_factor: PPO is stopped at so many times the decisions that our agent made.
    """

    every: int = Field(50_000, ge=1, le=10**10)
    episodes: int = Field(20, ge=2, le=100_000)
    max_factor: float = Field(3.0, gt=0, le=1000)


class CurriculumConfig(Section):
    """The tasks one after another.

    Attributes:
        mode: What to run with, see `wm doctor`; "auto" = what the machine has.
        timeout_seconds: Time for one try at a task; pauses do not count.
        silence_seconds: Time without a new line in its logs after which a try counts as hung.
        max_retries: Further rounds in mode full where the target is missed: more data from the agent, more training.
        stages: Task names in order.
        targets: Task name -> another mean return that counts as reached there than the task's own.
    """

    mode: Literal["auto", "full", "gym_only", "simulation"] = "auto"
    timeout_seconds: float = Field(7200.0, gt=0, le=10**7)
    silence_seconds: float = Field(1800.0, gt=0, le=10**7)
    max_retries: int = Field(1, ge=0, le=99)
    stages: list[str] = list(TASKS)
    targets: dict[str, float] = {}

    @field_validator("stages")
    @classmethod
    def _tasks(cls, stages: list[str]) -> list[str]:
        if not stages:
            raise ValueError("needs at least one task")
        stages = [get_task(name).name for name in stages]
        if len(set(stages)) < len(stages):
            raise ValueError("needs every task at most once")
        return stages

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: dict[str, float]) -> dict[str, float]:
        return {get_task(name).name: target for name, target in targets.items()}


class ClusterConfig(Section):
    """Who collects, evolves and evaluates. It decides no number, so nothing is made again when it changes.

    Attributes:
        address: "" = this process; "local:N" = N processes of this machine; "tcp://host:port" = a Dask scheduler.
    """

    address: str = ""


class DoctorConfig(Section):
    """Probing what is installed.

    Attributes:
        timeout_seconds: Time for each component to be imported and used once.
    """

    timeout_seconds: float = Field(15.0, gt=0, le=600)


class Config(Section):
    """All sections. Made by `load_config`; the fields' own defaults serve code that builds one by hand."""

    collect: CollectConfig = CollectConfig()
    vae: VAEConfig = VAEConfig()
    mdnrnn: MDNRNNConfig = MDNRNNConfig()
    reservoir: ReservoirConfig = ReservoirConfig()
    controller: ControllerConfig = ControllerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gates: GatesConfig = GatesConfig()
    rounds: RoundsConfig = RoundsConfig()
    compare: CompareConfig = CompareConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    doctor: DoctorConfig = DoctorConfig()
    cluster: ClusterConfig = ClusterConfig()

    def for_round(self, number: int) -> Self:
        """The same with what later rounds do instead in its place."""
        if number == 1:
            return self
        rounds = self.rounds
        changes: dict[str, dict[str, Any]] = {
            "collect": {"gymnasium_fraction": rounds.gymnasium_fraction},
            "vae": {"num_updates": rounds.vae_updates},
            "mdnrnn": {"num_updates": rounds.mdnrnn_updates},
            "controller": {
                "num_steps": rounds.controller_steps,
                "entropy": rounds.entropy,
                "tile_price": rounds.tile_price,
            },
        }
        return self.model_copy(
            update={
                name: getattr(self, name).model_copy(update={k: v for k, v in values.items() if v is not None})
                for name, values in changes.items()
            }
        )

    @model_validator(mode="after")
    def _only_ppo_dreams(self) -> Self:
        if self.controller.where != "real" and self.controller.type != "ppo":
            raise ValueError(
                f"controller.where: {self.controller.where} needs controller.type ppo, found {self.controller.type}"
            )
        return self

    @model_validator(mode="after")
    def _sequences_fit(self) -> Self:
        if self.mdnrnn.sequence_length > self.collect.shard_length:
            raise ValueError(
                f"mdnrnn.sequence_length: {self.mdnrnn.sequence_length} is longer than a shard of the data; "
                f"needs at most collect.shard_length, {self.collect.shard_length}"
            )
        return self
