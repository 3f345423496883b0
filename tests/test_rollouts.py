import sys
from types import ModuleType

import numpy as np
import pytest

from wm_lib import checkpoints
from wm_lib.errors import StageError, UsageError
from wm_lib.events import read_scalars
from wm_lib.rollouts import Rollouts, StickyRandom, collect, split_sequences
from wm_lib.tasks import TASKS

PONG = TASKS["pong"]
NUM_ENVS, LENGTH, SHARDS = 3, 12, 4
SIZE = {"num_steps": NUM_ENVS * LENGTH * SHARDS, "num_envs": NUM_ENVS, "shard_length": LENGTH, "seed": 7}


def story(seed, slot, number):
    """Everything about episode `number` of one slot: frames, rewards and whether it ends by termination."""
    rng = np.random.default_rng([seed, slot, number])
    length = int(rng.integers(1, 8))
    frames = rng.integers(256, size=(length + 1, 64, 64, 3), dtype=np.uint8)
    return frames, rng.integers(-5, 6, size=length).astype(float), bool(rng.integers(2))


def lives(seed, slot, number, t):
    """Lives left after t decisions of an episode: three at first, fewer now and then."""
    lost = np.random.default_rng([seed, slot, number, 1]).random(8) < 0.4
    return max(0, 3 - int(lost[:t].sum()))


class StoryEnv:
    """Plays out `story` and insists on the explicit resets of `make_env`."""

    def __init__(self, num_envs, seed, backend):
        self.num_envs, self.seed, self.backend = num_envs, seed, backend
        self.number, self.t = np.full(num_envs, -1), np.zeros(num_envs, int)
        self.done = np.ones(num_envs, bool)
        self.open = True

    def reset(self, *, options=None):
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        assert mask.tolist() == self.done.tolist()
        self.number += mask
        self.t[mask], self.done[:] = 0, False
        return self._obs(), {"lives": np.full(self.num_envs, 3) * mask}  # 0 elsewhere, as Gymnasium's workers say

    def step(self, action):
        assert action.shape == (self.num_envs,) and not self.done.any()
        stories = [story(self.seed, i, n) for i, n in enumerate(self.number)]
        reward = np.array([rewards[t] for (_, rewards, _), t in zip(stories, self.t, strict=True)]) + action
        self.t += 1
        over = np.array([self.t[i] == len(stories[i][1]) for i in range(self.num_envs)])
        terminated = over & [s[2] for s in stories]
        self.done = over
        left = np.array([lives(self.seed, i, n, t) for i, (n, t) in enumerate(zip(self.number, self.t, strict=True))])
        return self._obs(), reward, terminated, over & ~terminated, {"lives": left}

    def _obs(self):
        # One buffer for ever: whoever keeps a frame has to copy it.
        if not hasattr(self, "buffer"):
            self.buffer = np.empty((self.num_envs, 64, 64, 3), np.uint8)
        for i in range(self.num_envs):
            self.buffer[i] = story(self.seed, i, self.number[i])[0][self.t[i]]
        return self.buffer

    def close(self):
        self.open = False


@pytest.fixture
def made(monkeypatch):
    """Environments made by `collect`, in order."""
    envs = []

    def make_env(task, num_envs, seed, backend="auto", sticky=0.0):
        envs.append(StoryEnv(num_envs, seed, backend))
        return envs[-1]

    module = ModuleType("wm_lib.worlds.envs")
    module.make_env = make_env
    monkeypatch.setitem(sys.modules, "wm_lib.worlds.envs", module)
    return envs


def sticky(seed):
    return StickyRandom(PONG.num_actions, NUM_ENVS, seed)


def run(directory, **changes):
    options = {"make_policy": sticky, "log_dir": directory, **SIZE, **changes}
    return collect(PONG, directory, **options)


def contents(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if "tfevents" not in p.name}


class Killed(BaseException):
    pass


def dies_in_shard(number, at=LENGTH // 2):
    """A `sticky` that dies in the middle of the shard that is the `number`-th to be made."""
    policies = []

    def make_policy(seed):
        policy, calls = sticky(seed), []
        policies.append(policy)
        mine = len(policies)

        def act(obs, first):
            calls.append(0)
            if mine == number and len(calls) == at:
                raise Killed
            return policy(obs, first)

        return act

    return make_policy


def test_rows_are_what_the_environments_played(tmp_path, made):
    result = run(tmp_path)
    rollouts = Rollouts(tmp_path)
    assert (rollouts.num_sequences, rollouts.length) == (NUM_ENVS * SHARDS, LENGTH)
    assert rollouts.num_frames == SIZE["num_steps"] == result["real_steps"]
    assert len(made) == SHARDS and len({env.seed for env in made}) == SHARDS and not any(e.open for e in made)
    returns, episodes = [], []
    for s in range(rollouts.num_sequences):
        shard, slot = divmod(s, NUM_ENVS)
        number, step, total = 0, 0, 0.0
        for t in range(LENGTH):
            frames, rewards, terminates = story(made[shard].seed, slot, number)
            over = step + 1 == len(rewards)
            assert np.array_equal(rollouts.frames[shard][slot, t], frames[step])
            assert rollouts.first[s, t] == (step == 0)
            assert rollouts.reward[s, t] == rewards[step] + rollouts.action[s, t]
            assert rollouts.terminated[s, t] == (over and terminates)
            assert rollouts.truncated[s, t] == (over and not terminates)
            left, after = (lives(made[shard].seed, slot, number, at) for at in (step, step + 1))
            assert rollouts.lost[s, t] == (after < left)
            episodes.append((s, number))
            total += float(rollouts.reward[s, t])
            step += 1
            if over:
                returns.append(total)
                number, step, total = number + 1, 0, 0.0
    assert result["num_episodes"] == len(returns)
    assert result["mean_return"] == pytest.approx(np.mean(returns))
    # Two frames have the same episode number exactly when they are of the same episode.
    pairs = set(zip(episodes, rollouts.episode.ravel().tolist(), strict=True))
    assert len(pairs) == len(set(episodes)) == len({number for _, number in pairs})
    assert rollouts.episode.min() == 0 and rollouts.episode.max() == len(pairs) - 1


def test_types_in_memory_and_on_disk(tmp_path, made):
    run(tmp_path)
    rollouts, shard = Rollouts(tmp_path), checkpoints.open_mmap(tmp_path / "shard-0000.safetensors")
    types = {name: array.dtype.name for name, array in shard.items()}
    assert types == {
        "frames": "uint8", "action": "uint8", "reward": "float32",
        "terminated": "bool", "truncated": "bool", "lost": "bool", "first": "bool",
    }  # fmt: skip
    assert rollouts.action.dtype == np.int64 and rollouts.episode.dtype == np.int64
    assert isinstance(rollouts.frames[0], np.memmap)


def test_a_lost_life_is_an_end_to_memory(tmp_path, made):
    run(tmp_path)
    rollouts = Rollouts(tmp_path)
    steps = rollouts.steps()
    assert (rollouts.lost & ~rollouts.terminated).any()
    for row in zip(steps["terminated"].ravel(), rollouts.terminated.ravel(), rollouts.lost.ravel(), strict=True):
        assert row[0] == (row[1] or row[2])
    for name in ("action", "reward", "truncated", "first"):
        assert steps[name] is getattr(rollouts, name)


def test_older_data_without_lost_lives_is_refused(tmp_path, made):
    run(tmp_path)
    path = tmp_path / "shard-0001.safetensors"
    arrays, meta = checkpoints.load(path)
    checkpoints.save(path, {name: array for name, array in arrays.items() if name != "lost"}, meta)
    with pytest.raises(StageError, match=r"shard-0001.*lives were lost.*collect it again"):
        Rollouts(tmp_path)


def test_policy_is_told_where_episodes_begin(tmp_path, made):
    seen = []

    def make_policy(seed):
        return lambda obs, first: seen.append(first.copy()) or np.zeros(NUM_ENVS, np.int64)

    run(tmp_path, make_policy=make_policy)
    expected = Rollouts(tmp_path).first.reshape(SHARDS, NUM_ENVS, LENGTH).swapaxes(1, 2).reshape(-1, NUM_ENVS)
    np.testing.assert_array_equal(seen, expected)


def test_num_steps_is_rounded_up_to_whole_shards(tmp_path, made):
    assert run(tmp_path, num_steps=NUM_ENVS * LENGTH + 1)["real_steps"] == 2 * NUM_ENVS * LENGTH
    assert Rollouts(tmp_path).num_sequences == 2 * NUM_ENVS


def test_killed_and_resumed_is_bit_equal(tmp_path, made):
    expected = run(tmp_path / "whole")
    del made[:]
    with pytest.raises(Killed):
        run(tmp_path / "killed", make_policy=dies_in_shard(2))
    assert not any(env.open for env in made)
    first = (tmp_path / "killed" / "shard-0000.safetensors").stat().st_mtime_ns
    assert run(tmp_path / "killed") == expected
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (tmp_path / "killed" / "shard-0000.safetensors").stat().st_mtime_ns == first
    assert len(made) == 2 + (SHARDS - 1)


def test_whole_collection_is_not_made_again(tmp_path, made):
    expected = run(tmp_path)
    before = contents(tmp_path)
    del made[:]
    assert run(tmp_path) == expected
    assert made == [] and contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no sidecar", "no shard", "empty"])
def test_damaged_shard_alone_is_made_again(tmp_path, made, damage):
    expected = run(tmp_path)
    before = contents(tmp_path)
    path = tmp_path / "shard-0002.safetensors"
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    elif damage == "no sidecar":
        path.with_suffix(".json").unlink()
    elif damage == "no shard":
        path.unlink()
    else:
        path.write_bytes(b"")
    del made[:]
    assert run(tmp_path) == expected
    assert len(made) == 1 and contents(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 8}, {"shard_length": LENGTH - 1}, {"num_envs": NUM_ENVS - 1}])
def test_shards_of_another_collection_are_replaced(tmp_path, made, change):
    def make_policy(seed):
        return StickyRandom(PONG.num_actions, change.get("num_envs", NUM_ENVS), seed)

    run(tmp_path / "a")
    run(tmp_path / "a", make_policy=make_policy, **change)
    run(tmp_path / "b", make_policy=make_policy, **change)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_growing_keeps_and_shrinking_deletes(tmp_path, made):
    run(tmp_path / "a")
    run(tmp_path / "b", num_steps=SIZE["num_steps"] // 2)
    del made[:]
    run(tmp_path / "b")
    assert len(made) == SHARDS // 2 and contents(tmp_path / "a") == contents(tmp_path / "b")
    run(tmp_path / "b", num_steps=1)
    assert Rollouts(tmp_path / "b").num_sequences == NUM_ENVS
    assert sorted(contents(tmp_path / "b")) == ["scalars.jsonl", "shard-0000.json", "shard-0000.safetensors"]


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.25, 1), (0.3, 2), (1.0, 4)])
def test_last_shards_are_played_on_the_gymnasium_path(tmp_path, made, fraction, expected):
    run(tmp_path, gymnasium_fraction=fraction, backend="envpool")
    assert [env.backend for env in made] == ["envpool"] * (SHARDS - expected) + ["gymnasium"] * expected


def test_scalars_are_logged_for_each_shard(tmp_path, made):
    result = run(tmp_path)
    scalars = read_scalars(tmp_path)
    steps, episodes = scalars["num_episodes"]
    assert steps.tolist() == [NUM_ENVS * LENGTH * (k + 1) for k in range(SHARDS)]
    assert episodes.sum() == result["num_episodes"]
    weighted = np.average(scalars["mean_return"][1], weights=episodes)
    assert weighted == pytest.approx(result["mean_return"])


def test_no_finished_episode(tmp_path, monkeypatch, made):
    monkeypatch.setattr(StoryEnv, "reset", lambda self, options=None: (np.zeros((3, 64, 64, 3), np.uint8), {}))
    never = np.zeros(NUM_ENVS, bool)
    monkeypatch.setattr(
        StoryEnv, "step", lambda self, a: (np.ones((3, 64, 64, 3), np.uint8), a * 1.0, never, never, {})
    )
    assert run(tmp_path) == {"real_steps": SIZE["num_steps"], "num_episodes": 0, "mean_return": None}


def test_too_many_shards(tmp_path, made):
    with pytest.raises(UsageError, match="shard_length"):
        run(tmp_path, num_steps=10**6)


def test_gather_is_the_plain_lookup(tmp_path, made):
    run(tmp_path)
    rollouts = Rollouts(tmp_path)
    every = np.concatenate([np.asarray(frames).reshape(-1, 64, 64, 3) for frames in rollouts.frames])
    rng = np.random.default_rng(0)
    for index in (
        rng.integers(len(every), size=200),  # repeats, all shards, no order
        rng.permutation(len(every)),
        np.array([len(every) - 1, 0]),
        np.array([50]),
        np.zeros(0, int),
    ):
        np.testing.assert_array_equal(rollouts.gather(index), every[index])
    for index in ([-1], [0, len(every)]):
        with pytest.raises(IndexError, match=str(len(every) - 1)):
            rollouts.gather(np.array(index))


@pytest.mark.parametrize("num_sequences", [2, 3, 5, 6, 9, 10, 40, 1000])
def test_split_is_a_partition_of_sequences(num_sequences):
    train, test = split_sequences(num_sequences)
    assert sorted([*train, *test]) == list(range(num_sequences))
    assert len(train) >= 1 and len(test) >= 1
    assert abs(len(test) - num_sequences / 10) <= 1


@pytest.mark.parametrize("num_sequences", [6, 10, 64])
def test_a_sequence_stays_on_its_side_when_more_are_added(num_sequences):
    more = split_sequences(num_sequences + 37)
    for side, larger in zip(split_sequences(num_sequences), more, strict=True):
        assert side.tolist() == larger[larger < num_sequences].tolist()


def test_one_sequence_cannot_be_split(tmp_path, made):
    def make_policy(seed):
        return StickyRandom(PONG.num_actions, 1, seed)

    run(tmp_path, num_envs=1, num_steps=1, make_policy=make_policy)
    with pytest.raises(StageError, match="num_envs"):
        Rollouts(tmp_path).split()


def test_hash_knows_the_data(tmp_path, made):
    run(tmp_path / "a")
    run(tmp_path / "b")
    run(tmp_path / "c", seed=8)
    a, b, c = (Rollouts(tmp_path / name).sha256 for name in "abc")
    assert a == b != c and len(a) == 64


def test_bad_directories_are_refused(tmp_path, made):
    with pytest.raises(StageError, match="no shards"):
        Rollouts(tmp_path)
    run(tmp_path)
    path = tmp_path / "shard-0003.safetensors"
    tensors, meta = checkpoints.load(path)
    checkpoints.save(path, {name: array[:2] for name, array in tensors.items()}, meta)
    with pytest.raises(StageError, match="shard-0003"):
        Rollouts(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(StageError, match="shard-0003"):
        Rollouts(tmp_path)
    (tmp_path / "shard-0001.safetensors").unlink()
    with pytest.raises(StageError, match="lacks a shard"):
        Rollouts(tmp_path)


@pytest.mark.parametrize(("num_actions", "repeat"), [(3, 0.9), (7, 0.5), (2, 0.0)])
def test_sticky_random_correlates_as_a_markov_chain(num_actions, repeat):
    num_envs, steps = 200, 1000
    policy = StickyRandom(num_actions, num_envs, seed=1, repeat=repeat)
    first = np.ones(num_envs, bool)
    actions = np.empty((steps, num_envs), int)
    for t in range(steps):
        actions[t] = policy(None, first)
        first = np.zeros(num_envs, bool)
    # Stationary and uniform, and P(a[t+k] == a[t]) = 1/A + (1 - 1/A) repeat**k.
    spread = np.sqrt((1 + repeat) / (1 - repeat) / actions.size)  # standard error with correlated samples
    np.testing.assert_allclose(np.bincount(actions.ravel()) / actions.size, 1 / num_actions, atol=5 * spread)
    for k in (1, 2, 5, 20):
        same = (actions[k:] == actions[:-k]).mean()
        assert same == pytest.approx(1 / num_actions + (1 - 1 / num_actions) * repeat**k, abs=5 * spread)
        lagged = np.corrcoef(actions[k:].ravel(), actions[:-k].ravel())[0, 1]
        assert lagged == pytest.approx(repeat**k, abs=5 * spread)


def test_sticky_random_starts_each_episode_afresh():
    policy = StickyRandom(4, 20_000, seed=2, repeat=0.99)
    before = policy(None, np.ones(20_000, bool))
    first = np.arange(20_000) % 2 == 0
    after = policy(None, first)
    assert (after == before)[first].mean() == pytest.approx(1 / 4, abs=0.03)
    assert (after == before)[~first].mean() > 0.98


def test_real_pong(tmp_path):
    pytest.importorskip("envpool")
    options = {"num_steps": 128, "num_envs": 2, "shard_length": 32, "seed": 1, "backend": "envpool"}

    def make_policy(seed):
        return StickyRandom(PONG.num_actions, 2, seed)

    for name in "ab":
        result = collect(PONG, tmp_path / name, make_policy=make_policy, **options)
        assert result == {"real_steps": 128, "num_episodes": 0, "mean_return": None}
    assert contents(tmp_path / "a") == contents(tmp_path / "b")  # the emulator repeats itself
    rollouts = Rollouts(tmp_path / "a")
    frames = rollouts.gather(np.arange(rollouts.num_frames))
    assert frames.std(axis=(1, 2, 3)).min() > 1  # no blank picture
    changed = [(f[1:] != f[:-1]).any(axis=(1, 2, 3)).mean() for f in frames.reshape(4, 32, 64, 64, 3)]
    assert min(changed) > 0.5  # something moves
    assert rollouts.first.sum() == 4 and rollouts.first[:, 0].all()
    assert not np.array_equal(frames[:64], frames[64:])  # another shard, other no-ops and actions
