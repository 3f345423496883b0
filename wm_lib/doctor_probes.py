"""What `wm doctor` does with one component, in a process of its own: import it, then put it to a small real use.

Run as `python doctor_probes.py NAME OPTIONS`. It may hang or die at any moment, so it says where it is as it goes, in
lines that begin with `MARK` and hold JSON; `wm_lib.doctor` reads them. Only the standard library is imported up here.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

MARK = "\x1e"
Found = tuple[str, str, str] | None  # what was found, its status, and what is wrong in words; None: all is well
GIGABYTE = 1e9
MIN_MEMORY = 4 * GIGABYTE


def _numpy(numpy: ModuleType, options: dict[str, Any]) -> Found:
    a = numpy.arange(6.0).reshape(2, 3)
    _expect((a @ a.T).tolist() == [[5.0, 14.0], [14.0, 50.0]], "a product of two matrices is wrong")


def _torch(torch: ModuleType, options: dict[str, Any]) -> Found:
    convolution = torch.nn.Conv2d(3, 4, 3, bias=False)
    convolution(torch.ones(2, 3, 8, 8)).sum().backward()
    # Each weight met every one of the 6 x 6 places of both pictures.
    _expect(bool((convolution.weight.grad == 72).all()), "the gradient of a convolution is wrong")


def _bf16(torch: ModuleType, options: dict[str, Any]) -> Found:
    _expect(torch.ones(8, 8, dtype=torch.bfloat16).matmul(torch.ones(8, 8, dtype=torch.bfloat16))[0, 0] == 8, "wrong")
    if torch.cpu._is_avx512_bf16_supported():
        return "yes", "ok", ""
    return "no", "slow", "is not what this processor is fast at, so training uses float32 and takes longer"


def _gymnasium(gymnasium: ModuleType, options: dict[str, Any]) -> Found:
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    obs, reward, *_ = env.step(1)
    _expect(obs.shape == (4,) and reward == 1, "a step of CartPole is wrong")


def _ale(ale_py: ModuleType, options: dict[str, Any]) -> Found:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale_py.ALEInterface()


def _roms(roms: ModuleType, options: dict[str, Any]) -> Found:
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    for game in ("pong", "breakout"):
        try:
            path = roms.get_rom_path(game)
        except (FileNotFoundError, NotADirectoryError):
            path = None
        if path is None:
            return "", "missing", f"are missing (no {game}.bin in {os.environ.get('ALE_ROMS_DIR') or 'ale-py'})"
        ale = ale_py.ALEInterface()
        ale.loadROM(path)
        ale.act(0)
        _expect(ale.getScreenRGB().shape == (210, 160, 3), f"a frame of {game} is wrong")


def _box2d(box2d: ModuleType, options: dict[str, Any]) -> Found:
    world = box2d.b2World(gravity=(0, -10))
    body = world.CreateDynamicBody(position=(0, 5))
    world.Step(0.1, 6, 2)
    _expect(body.position[1] < 5, "a body does not fall")


def _pygame(pygame: ModuleType, options: dict[str, Any]) -> Found:
    surface = pygame.Surface((8, 8))
    pygame.draw.rect(surface, (255, 0, 0), (0, 0, 4, 8))
    _expect(surface.get_at((1, 1))[:3] == (255, 0, 0) and surface.get_at((6, 1))[:3] == (0, 0, 0), "a picture is wrong")


def _renderer(gymnasium: ModuleType, options: dict[str, Any]) -> Found:
    env = gymnasium.make("LunarLander-v3", render_mode="rgb_array")
    env.reset(seed=0)
    env.step(0)
    _expect(int(env.render().max()) > 0, "the frame of LunarLander is black")


def _opencv(cv2: ModuleType, options: dict[str, Any]) -> Found:
    import numpy as np

    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:, 64:] = 200
    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    _expect(small.shape == (64, 64, 3) and small[0, 0, 0] == 0 and small[0, 63, 0] == 200, "a shrunk picture is wrong")


def _envpool(envpool: ModuleType, options: dict[str, Any]) -> Found:
    import numpy as np

    picture = {"render_mode": "rgb_array", "render_width": 64, "render_height": 64}
    pool = envpool.make_gymnasium("LunarLander-v3", num_envs=2, seed=0, **picture)
    pool.reset()
    obs, *_ = pool.step(np.zeros(2, np.int32), np.arange(2, dtype=np.int32))
    frames = np.asarray(pool.render(np.arange(2, dtype=np.int32)))
    _expect(len(obs) == 2 and frames.shape == (2, 64, 64, 3) and frames.max() > 0, "a frame of LunarLander is wrong")


def _cma(cma: ModuleType, options: dict[str, Any]) -> Found:
    search = cma.CMAEvolutionStrategy([1.0, 1.0], 0.5, {"verbose": -9, "seed": 1})
    candidates = search.ask()
    search.tell(candidates, [float(x @ x) for x in candidates])
    _expect(search.result.evaluations == len(candidates), "a generation is wrong")


def _matplotlib(matplotlib: ModuleType, options: dict[str, Any]) -> Found:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=20)
    figure.subplots().plot([0, 1])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    _expect(bytes(canvas.buffer_rgba())[:4] == b"\xff\xff\xff\xff", "a figure is wrong")


def _stable_baselines3(stable_baselines3: ModuleType, options: dict[str, Any]) -> Found:
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.learn(8)
    _expect(model.num_timesteps == 8, "PPO counts its steps wrongly")


def _tensorboard(tensorboard: ModuleType, options: dict[str, Any]) -> Found:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        writer.add_event(Event(step=1))
        writer.close()
        _expect(len(os.listdir(folder)) == 1, "no event file was written")


def _ipywidgets(ipywidgets: ModuleType, options: dict[str, Any]) -> Found:
    _expect(ipywidgets.IntSlider(value=3, max=7).value == 3, "a slider forgets its value")


def _notebook() -> Any:
    import nbformat

    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])


def _papermill(papermill: ModuleType, options: dict[str, Any]) -> Found:
    import nbformat

    notebook = _notebook()
    notebook.cells[0].update(source="seed: int = 0", metadata={"tags": ["parameters"]})
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "probe.ipynb")
        nbformat.write(notebook, path)
        _expect(list(papermill.inspect_notebook(path)) == ["seed"], "the parameters of a notebook are not found")


def _jupytext(jupytext: ModuleType, options: dict[str, Any]) -> Found:
    text = jupytext.writes(_notebook(), fmt="py:percent")
    _expect(jupytext.reads(text, fmt="py:percent").cells[0].source == "1 + 1", "a notebook changes on the way")


def _nbmake(nbmake: ModuleType, options: dict[str, Any]) -> Found:
    entries = [entry for entry in metadata.entry_points(group="pytest11") if entry.name == "nbmake"]
    _expect(bool(entries), "pytest does not know it")
    entries[0].load()


def _kernel(ipykernel: ModuleType, options: dict[str, Any]) -> Found:
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import start_new_kernel

    try:
        manager, client = start_new_kernel(kernel_name="python3")
    except NoSuchKernel:
        return "", "missing", "python3 is not registered with Jupyter"
    try:
        reply = client.execute("1 + 1", reply=True, timeout=60)
        _expect(reply["content"]["status"] == "ok", "a kernel cannot compute 1 + 1")
    finally:
        manager.shutdown_kernel(now=True)


def _disk(_: None, options: dict[str, Any]) -> Found:
    free, needed = shutil.disk_usage(_existing(options["run_dir"])).free, options["needed_bytes"]
    if free < needed:
        return _size(free), "missing", f"has {_size(free)} free, the data of a run take {_size(needed)}"
    return f"{_size(free)} free", "ok", ""


def _run_dir(_: None, options: dict[str, Any]) -> Found:
    folder = _existing(options["run_dir"])
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return "", "missing", f"cannot be written ({folder}: {error.strerror})"


def _cores(_: None, options: dict[str, Any]) -> Found:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(count), *(("ok", "") if count > 1 else ("slow", "is one, so training takes about twice as long"))


def _memory(_: None, options: dict[str, Any]) -> Found:
    size = _memory_bytes()
    if size < MIN_MEMORY:
        return _size(size), "slow", f"is {_size(size)}, and less than {_size(MIN_MEMORY)} may not do for a training"
    return _size(size), "ok", ""


def _memory_bytes() -> float:
    """Physical memory, or what the container may use of it."""
    if sys.platform == "win32":
        import ctypes

        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return 1024.0 * kilobytes.value
    size = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(size, float(text)) if text.isdigit() else size


def _existing(folder: str) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = Path(folder).absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIGABYTE:.1f} GB"


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(problem)


PROBES: dict[str, tuple[str, str, Callable[[Any, dict[str, Any]], Found]]] = {  # name: (module, distribution, use)
    "torch": ("torch", "torch", _torch),
    "envpool": ("envpool", "envpool", _envpool),
    "papermill": ("papermill", "papermill", _papermill),
    "gymnasium": ("gymnasium", "gymnasium", _gymnasium),
    "ale-py": ("ale_py", "ale-py", _ale),
    "roms": ("ale_py.roms", "ale-py", _roms),
    "box2d": ("Box2D", "box2d", _box2d),
    "pygame": ("pygame", "pygame", _pygame),
    "renderer": ("gymnasium", "", _renderer),
    "opencv-python": ("cv2", "opencv-python", _opencv),
    "stable-baselines3": ("stable_baselines3", "stable-baselines3", _stable_baselines3),
    "bf16": ("torch", "", _bf16),
    "numpy": ("numpy", "numpy", _numpy),
    "cma": ("cma", "cma", _cma),
    "matplotlib": ("matplotlib", "matplotlib", _matplotlib),
    "kernel": ("ipykernel", "ipykernel", _kernel),
    "jupytext": ("jupytext", "jupytext", _jupytext),
    "nbmake": ("nbmake", "nbmake", _nbmake),
    "ipywidgets": ("ipywidgets", "ipywidgets", _ipywidgets),
    "tensorboard": ("tensorboard", "tensorboard", _tensorboard),
    "disk": ("", "", _disk),
    "memory": ("", "", _memory),
    "cores": ("", "", _cores),
    "run_dir": ("", "", _run_dir),
}


def _version(module: ModuleType | None, distribution: str) -> str | None:
    """What the imported module says of itself, else what pip says of the distribution; None where it has no own."""
    if not distribution:
        return None
    said = getattr(module, "__version__", None)
    if isinstance(said, str) and re.match(r"\d+\.\d", said):
        return said
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _say(event: str, **what: Any) -> None:
    os.write(1, f"\n{MARK}{json.dumps({'event': event, **what})}\n".encode())  # past whatever the module did to print


def _failure(error: BaseException, phase: str) -> dict[str, Any]:
    text = " ".join(str(error).split())
    absent = None
    if isinstance(error, ModuleNotFoundError):
        named = re.search(r"No module named '([^']+)'", text)
        absent = error.name or (named[1] if named else "")
    return {"phase": phase, "error": type(error).__name__, "text": text[:160], "absent": absent}


def main(name: str, options: dict[str, Any]) -> None:
    """Probe one component; what happens is said on the standard output."""
    name_of_module, distribution, use = PROBES[name]
    _say("import", version=_version(None, distribution))
    start = time.perf_counter()
    try:
        module = importlib.import_module(name_of_module) if name_of_module else None
    except BaseException as error:  # whatever a broken installation throws, SystemExit too
        _say("failed", seconds=time.perf_counter() - start, **_failure(error, "import"))
        return
    _say("use", version=_version(module, distribution))
    try:
        found = use(module, options)
    except BaseException as error:
        _say("failed", seconds=time.perf_counter() - start, **_failure(error, "use"))
        return
    _say("done", seconds=time.perf_counter() - start, found=found)


if __name__ == "__main__":
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    main(sys.argv[1], json.loads(sys.argv[2]))
    os._exit(0)  # what was asked is answered; taking threads and emulators down is not part of it
