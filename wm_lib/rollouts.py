"""Data from the real environment: collected in shards that survive a kill, read through memory maps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Executor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from wm_lib import checkpoints, cluster
from wm_lib.errors import StageError, UsageError
from wm_lib.events import Progress
from wm_lib.seeding import derive_seed
from wm_lib.tasks import FRAME_SIZE, Task

Policy = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(obs uint8 (N, 64, 64, 3), first bool (N,)) -> action int64 (N,); `first`: an episode's first frame."""

SHARDS_AT_ONCE = 8  # on an executor: 252 MB each at the laptop's 32 x 640 decisions, mostly frames

_PATTERN = "shard-[0-9][0-9][0-9][0-9].safetensors"


class StickyRandom:
    """Random play that holds its course: the last action again with probability `repeat`, else a new one.

    The new action is uniform over all, so two actions k decisions apart in an episode correlate as repeat**k.
    Independent random actions tremble on the spot and see little of the world.

    Args:
        num_actions: Number of actions.
        num_envs: Environments it plays at once.
        seed: Seed of its generator.
        repeat: In [0, 1).
    """

    def __init__(self, num_actions: int, num_envs: int, seed: int, repeat: float = 0.9) -> None:
        self.num_actions, self.repeat = num_actions, repeat
        self._rng = np.random.default_rng(seed)
        self._last = np.zeros(num_envs, np.int64)

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Choose actions, int64 (N,); an episode's first is always new."""
        new = self._rng.integers(self.num_actions, size=self._last.shape)
        change = first | (self._rng.random(self._last.shape) >= self.repeat)
        self._last = np.where(change, new, self._last)
        return self._last


def collect(
    task: Task,
    directory: Path,
    *,
    num_steps: int,
    num_envs: int,
    shard_length: int,
    seed: int,
    make_policy: Callable[[int], Policy],
    gymnasium_fraction: float = 0.0,
    backend: str = "auto",
    log_dir: Path | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Play `num_steps` decisions and write them as shards of num_envs x shard_length decisions each.

    num_steps is rounded up to whole shards. Shard k is directory/shard-000k.safetensors: frames uint8
    (num_envs, T, 64, 64, 3); action uint8, reward float32, terminated, truncated, lost, first bool (num_envs, T).
    Row t holds frame t, the action chosen at it, and the reward and flags that followed; lost: the agent had a life
    less then. Where row t is terminated or truncated, frame t+1 belongs to the next episode; an episode's final frame
    is not stored.

    Environments and policy are made anew for every shard from the seed and the shard's number, so that a
    killed run, started again, ends bit-equal to an undisturbed one. Whole shards of this collection are kept,
    damaged or foreign ones are made again, and shards beyond the last one are deleted.

    Args:
        task: What to play.
        directory: Where the shards go.
        num_steps: Decisions in all, at least.
        num_envs: Environments side by side.
        shard_length: Decisions T of each environment in a shard.
        seed: Seed of the run.
        make_policy: Makes a policy from a seed. It is not recorded: another policy needs another directory.
        gymnasium_fraction: The last ceil(fraction * shards) shards are played on the Gymnasium path.
        backend: Backend of the other shards, see `make_env`.
        log_dir: Where mean_return and num_episodes of each shard are logged.
        executor: Who plays, a shard a task, see `wm_lib.cluster.spread`; None is this process. Frames are what is
            wanted here, so they do come back: 12,297 bytes a decision. They are written in this process.

    Returns:
        real_steps (int), num_episodes (int, finished ones) and mean_return (float over finished episodes,
        None without any). Shards cut episodes off, so long ones are missing from the mean: not a score.

    Raises:
        UsageError: It would be more than 9999 shards.
    """
    directory = Path(directory)
    steps = num_envs * shard_length
    num_shards = math.ceil(num_steps / steps)
    num_gymnasium = math.ceil(gymnasium_fraction * num_shards)
    if num_shards > 9999:
        raise UsageError(f"{num_shards} shards are too many; raise collect.shard_length, now {shard_length}")
    for path in directory.glob(_PATTERN):
        if _number(path) not in range(num_shards):
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
    returns: list[np.ndarray] = []
    bar = Progress(f"collect {task.name}", num_shards * steps, "decision", log_dir)
    play = partial(_play, task, make_policy, None if executor is not None else bar.update)
    with bar as progress, cluster.spread(executor, play, SHARDS_AT_ONCE) as run:
        shards = []
        for k in range(num_shards):
            path = directory / f"shard-{k:04d}.safetensors"
            meta = {
                "task": task.name,
                "seed": seed,
                "shard": k,
                "num_envs": num_envs,
                "shard_length": shard_length,
                "backend": "gymnasium" if k >= num_shards - num_gymnasium else backend,
            }
            shards.append((path, meta, _is_whole(path, meta)))
        made = run((meta,) for _, meta, whole in shards if not whole)
        for path, meta, whole in shards:
            if not whole:
                checkpoints.save(path, next(made), meta)
            if whole or executor is not None:
                progress.update(steps)
            arrays = checkpoints.open_mmap(path)
            returns.append(_episode_returns(arrays["reward"], arrays["terminated"] | arrays["truncated"]))
            mean = {"mean_return": returns[-1].mean()} if len(returns[-1]) else {}
            progress.update(0, num_episodes=len(returns[-1]), **mean)
    all_returns = np.concatenate(returns)
    return {
        "real_steps": num_shards * steps,
        "num_episodes": len(all_returns),
        "mean_return": float(all_returns.mean()) if len(all_returns) else None,
    }


class Rollouts:
    """The collected data: frames stay on disk, everything else is in memory.

    A sequence is what one environment did in one shard, T = `length` rows: shards * num_envs sequences.

    Attributes:
        frames: One uint8 memory map (num_envs, T, 64, 64, 3) for each shard.
        action: int64 (num_sequences, T).
        reward: float32 (num_sequences, T).
        terminated: bool (num_sequences, T).
        truncated: bool (num_sequences, T).
        lost: bool (num_sequences, T), true where a life was lost.
        first: bool (num_sequences, T), true at an episode's first frame.

    Args:
        directories: One collection, or several of the same shape, the oldest first.

    Raises:
        StageError: There are no shards, one is missing or damaged, or they do not fit together.
    """

    def __init__(self, *directories: Path) -> None:
        paths = [path for directory in directories for path in _shards(Path(directory))]
        self._hashes = [str(checkpoints.read_meta(path)["sha256"]) for path in paths]
        shards = [checkpoints.open_mmap(path) for path in paths]
        shape = shards[0]["frames"].shape
        for path, shard in zip(paths, shards, strict=True):
            if shard["frames"].shape != shape:
                raise StageError(f"{path} is of another shape than {paths[0]}; collect the data again")
            if "lost" not in shard:
                raise StageError(f"{path} does not say where lives were lost, as older data; collect it again")
        self.frames = [shard["frames"] for shard in shards]
        self._flat = [np.asarray(frames).reshape(-1, *shape[2:]) for frames in self.frames]
        self.action = np.concatenate([shard["action"] for shard in shards]).astype(np.int64)
        self.reward = np.concatenate([shard["reward"] for shard in shards])
        self.terminated = np.concatenate([shard["terminated"] for shard in shards])
        self.truncated = np.concatenate([shard["truncated"] for shard in shards])
        self.lost = np.concatenate([shard["lost"] for shard in shards])
        self.first = np.concatenate([shard["first"] for shard in shards])

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return len(self.action)

    @property
    def length(self) -> int:
        """Decisions T in a sequence."""
        return self.action.shape[1]

    @property
    def num_frames(self) -> int:
        """Number of frames: num_sequences * length."""
        return self.action.size

    @cached_property
    def episode(self) -> np.ndarray:
        """The episode each frame is of, int64 (num_sequences, T), counted from 0 over all shards."""
        return self.first.ravel().cumsum().reshape(self.first.shape) - 1

    @property
    def has_next(self) -> np.ndarray:
        """Whether the frame after it is of the same episode, bool (num_sequences, T)."""
        follows = np.zeros_like(self.first)
        follows[:, :-1] = ~self.first[:, 1:]
        return follows

    def steps(self) -> dict[str, np.ndarray]:
        """What M reads beside the latents: `action`, `reward`, `terminated`, `truncated` and `first`, as above.

        But a lost life counts as `terminated`: then comes a new serve, of which nothing before tells, and in a dream
        that went on C would learn that a missed ball hardly matters.
        """
        steps = {name: getattr(self, name) for name in ("action", "reward", "truncated", "first")}
        return steps | {"terminated": self.terminated | self.lost}

    @property
    def sha256(self) -> str:
        """One hash over all shards."""
        return hashlib.sha256("\n".join(self._hashes).encode()).hexdigest()

    def gather(self, index: np.ndarray) -> np.ndarray:
        """Frames by flat index s * T + t of sequence s and time t.

        Args:
            index: Integers (B,) in [0, num_frames), in any order, repeats allowed.

        Returns:
            uint8 (B, 64, 64, 3).

        Raises:
            IndexError: An index is out of range.
        """
        index = np.asarray(index)
        if index.size and not 0 <= index.min() <= index.max() < self.num_frames:
            raise IndexError(f"frame indices go from 0 to {self.num_frames - 1}")
        per_shard = len(self._flat[0])
        order = np.argsort(index, kind="stable")  # the disk is read front to back
        ordered = index[order]
        bounds = np.searchsorted(ordered, per_shard * np.arange(len(self._flat) + 1))
        frames = np.empty((len(index), *self._flat[0].shape[1:]), np.uint8)
        for k, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if low < high:
                frames[order[low:high]] = self._flat[k][ordered[low:high] - k * per_shard]
        return frames

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of sequences (train, test), see `split_sequences`."""
        return split_sequences(self.num_sequences)


def split_sequences(num_sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Set every tenth sequence aside, the same for V and M: neighbouring frames are too alike to test with.

    Args:
        num_sequences: How many there are.

    Returns:
        Indices of sequences (train, test), sorted. From six on, a sequence stays on its side however many are added.

    Raises:
        StageError: There is one sequence only.
    """
    if num_sequences < 2:
        raise StageError("one sequence cannot be split; set collect.num_envs to 2 or more and collect again")
    is_test = np.arange(num_sequences) % 10 == min(5, num_sequences - 1)
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _play(
    task: Task, make_policy: Callable[[int], Policy], update: Callable[[int], None] | None, meta: dict[str, Any]
) -> dict[str, np.ndarray]:
    """One shard, as `collect` describes it."""
    from wm_lib.worlds import make_env

    num_envs, length = meta["num_envs"], meta["shard_length"]
    shard_seed = derive_seed(meta["seed"], "collect", meta["shard"])
    policy = make_policy(derive_seed(shard_seed, "policy"))
    rows = (num_envs, length)
    frames = np.empty((*rows, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    actions, rewards = np.empty(rows, np.uint8), np.empty(rows, np.float32)
    terminations, truncations, losses, firsts = (np.empty(rows, bool) for _ in range(4))
    env = make_env(task, num_envs, shard_seed, meta["backend"])
    try:
        obs, info = env.reset()
        first, lives = np.ones(num_envs, bool), info.get("lives", 0)
        for t in range(length):
            action = policy(obs, first)
            frames[:, t], actions[:, t], firsts[:, t] = obs, action, first
            obs, rewards[:, t], terminated, truncated, info = env.step(action)
            terminations[:, t], truncations[:, t] = terminated, truncated
            before, lives = lives, info.get("lives", 0)
            losses[:, t] = lives < before
            first = terminated | truncated
            if first.any():
                obs, info = env.reset(options={"reset_mask": first})
                lives = np.where(first, info.get("lives", 0), lives)
            if update is not None:
                update(num_envs)
    finally:
        env.close()
    return {
        "frames": frames,
        "action": actions,
        "reward": rewards,
        "terminated": terminations,
        "truncated": truncations,
        "lost": losses,
        "first": firsts,
    }


def _is_whole(path: Path, meta: dict[str, Any]) -> bool:
    """Whether the shard described by `meta` is there, undamaged."""
    try:
        found = checkpoints.verify(path)
    except StageError:
        return False
    return meta.items() <= found.items()


def _shards(directory: Path) -> list[Path]:
    """The shards of one collection in order."""
    paths = sorted(directory.glob(_PATTERN))
    if not paths:
        raise StageError(f"{directory} has no shards; collect the data first")
    if [_number(path) for path in paths] != list(range(len(paths))):
        raise StageError(f"{directory} lacks a shard before {paths[-1].name}; collect the data again")
    return paths


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))


def _episode_returns(reward: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Returns of the episodes that end in (N, T) rows, float64; every row begins with a new episode."""
    totals = [np.diff(np.cumsum(r, dtype=float)[d], prepend=0.0) for r, d in zip(reward, done, strict=True)]
    return np.concatenate(totals)
