import numpy as np
import pytest

from wm_lib.errors import UsageError
from wm_lib.tasks import FRAME_SIZE, TASKS, get_task

ALL = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@ALL
def test_found_by_name_and_environment_id(task):
    assert get_task(task.name) is task
    assert get_task(task.env_id) is task


@pytest.mark.parametrize("old", ["LunarLander-v2", "CarRacing-v2"])
def test_old_ids_are_mapped_with_one_notice(old, capsys):
    assert get_task(old).env_id == old.replace("v2", "v3")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["Pong", "pong ", "", "PongNoFrameskip-v5", "CarRacing-v1"])
def test_anything_else_lists_the_four(name):
    with pytest.raises(UsageError, match="pong, lunar-lander, breakout, car-racing"):
        get_task(name)


@ALL
def test_native_actions_exist_in_the_real_environment(task):
    gymnasium = pytest.importorskip("gymnasium")
    if task.atari:
        gymnasium.register_envs(pytest.importorskip("ale_py"))
    else:
        pytest.importorskip("Box2D")
    env = gymnasium.make(task.env_id)
    space = env.action_space
    if task.atari:
        meanings = env.unwrapped.get_action_meanings()
        assert [meanings[action] for action in task.actions] == ["NOOP", "RIGHT", "LEFT"]
        assert meanings[1] == "FIRE"
    elif isinstance(space, gymnasium.spaces.Box):
        assert all(space.contains(np.array(action, space.dtype)) for action in task.actions)
    else:
        assert list(task.actions) == list(range(space.n))
    limit = env.spec.max_episode_steps
    env.close()
    if not task.atari:  # the environment's own time limit, in decisions
        assert task.max_decisions * task.action_repeat == limit
    assert len(set(task.actions)) == task.num_actions


@ALL
def test_fast_path_has_the_same_environment(task):
    envpool = pytest.importorskip("envpool")
    assert task.envpool_id in envpool.list_all_envs()
    assert task.envpool_id.split("-")[0] == task.env_id.split("NoFrameskip")[0].split("-")[0]


@ALL
def test_crop_lies_in_the_picture(task):
    assert (task.crop is None) == (task.name == "car-racing")
    if task.crop:
        top, bottom, left, right = task.crop
        rows, columns = (84, 64) if task.atari else (200, 300)
        assert 0 <= top < bottom <= rows and 0 <= left < right <= columns
        if task.atari:
            assert bottom - top == right - left == FRAME_SIZE
