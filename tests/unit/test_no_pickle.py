"""Nothing that is read can run anything: the code itself is searched, its imports are looked at."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEARCHED = ("dbserve", "workers", "deploy", "examples", "benchmarks", "dashboards", "tests")
SOURCES = [path for name in SEARCHED for path in sorted((ROOT / name).rglob("*.py"))]
ALLOWED = {  # of tests alone
    "tests/unit/test_no_pickle.py": ", perhaps to be imported",  # what is searched for
    "tests/unit/test_webhooks.py": "exec()",  # the example on our own page
    "tests/acceptance/test_doors.py": "importlib.import_module",  # Ray's own, by the names that Ray lists
    "tests/kubernetes/chart.py": "yaml.load_all",  # by CSafeLoader, as in the next two
    "tests/kubernetes/crds.py": "yaml.load",
    "tests/kubernetes/test_docs.py": "yaml.load",
}

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "shelve",
    "marshal",
    "joblib",
    "jsonpickle",
    "copyreg",
}
MODULES |= {"imp", "code", "codeop", "pty", "commands", "ray.cloudpickle", "torch.jit", "torch.hub", "torch.package"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("np.load", "numpy.load", "np.save", "np.fromregex", "pandas.read_pickle", "yaml.load", "yaml.full_load"),
    *("yaml.unsafe_load", "yaml.load_all", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader"),
    *("os.system", "os.popen", "importlib.import_module", "runpy.run_path", "ctypes.CDLL.eval"),
    *("dist.broadcast_object_list", "dist.all_gather_object", "dist.gather_object", "dist.scatter_object_list"),
    *(
        "distributed.broadcast_object_list",
        "distributed.all_gather_object",
        "dist.send_object_list",
        "dist.recv_object_list",
    ),
    *("multiprocessing.connection.Client", "multiprocessing.connection.Listener", "pyarrow.deserialize"),
}
ARGUMENTS = {"allow_pickle": True, "weights_only": False, "trust_remote_code": True, "shell": True}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a file could run what it reads."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import(names=names):
                yield from (f"{line}: import {name.name}" for name in names if _root(name.name) in MODULES)
                yield from (f"{line}: import {name.name}" for name in names if name.name in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                whole = {module, _root(module), *(f"{module}.{name.name}" for name in names)}
                yield from (f"{line}: from {name}" for name in whole & (MODULES | METHODS))
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield f"{line}: {name}()"
            case ast.Attribute() if (dotted := _dotted(node)) in METHODS or dotted in MODULES:
                yield f"{line}: {dotted}"
            case ast.Constant(value=str(text)) if text in MODULES - {"code", "commands", "imp"}:
                yield f"{line}: {text!r}, perhaps to be imported"
            case ast.keyword(arg=str(name), value=ast.Constant(value=value)) if name in ARGUMENTS:
                if value == ARGUMENTS[name]:
                    yield f"{line}: {name}={value}"
            case _:
                continue


def _root(module: str) -> str:
    return module.partition(".")[0]


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Attribute(value=value, attr=attr):
            return f"{_dotted(value)}.{attr}"
        case ast.Name(id=name):
            return name
        case _:
            return ""


def test_no_line_of_ours_could_run_what_it_reads() -> None:
    assert len(SOURCES) > 450
    found: list[str] = []
    needless = set(ALLOWED)
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for danger in dangers(ast.parse(path.read_text())):
            if name in ALLOWED and danger.endswith(ALLOWED[name]):
                needless.discard(name)
            else:
                found.append(f"{name}:{danger}")
    assert (found, needless) == ([], set())


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from pickle import loads",
            "import ray.cloudpickle as c",
            "from ray import cloudpickle",
            "import joblib",
        ),
        *("torch.load(path)", "np.load(path, allow_pickle=True)", "f(allow_pickle=True)", "load(weights_only=False)"),
        *("yaml.load(text, yaml.Loader)", "eval(text)", "exec(text)", "compile(text, '', 'exec')", "__import__(name)"),
        *(
            "importlib.import_module('pickle')",
            "f('pickle')",
            "dist.broadcast_object_list([x])",
            "from torch import load",
        ),
        *("os.system('x')", "run('x', shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    ],
)
def test_a_line_that_could_is_found(line: str) -> None:
    assert list(dangers(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["layer.compile()", "re.compile(x)", "network.eval()", "pipe.eval(script)", "json.load(f)"]
)
def test_a_line_that_could_not_is_left_alone(line: str) -> None:
    assert list(dangers(ast.parse(line))) == []


def test_tensors_are_read_with_every_unpickler_taken_away(tmp_path: Path) -> None:
    """torch imports pickle for itself; nothing of ours calls it."""
    program = """
import pickle, sys
def refused(*_, **__): raise AssertionError("something was unpickled")
import torch, numpy
for module in (pickle, torch, numpy):
    module.load = refused
pickle.loads = refused
pickle.Unpickler = refused
from pathlib import Path
from workers.storage import read_metadata, read_tensors, write_tensors
path = Path(sys.argv[1])
write_tensors(path, {"a": torch.ones(2)}, {"run": "r"})
assert read_tensors(path)["a"].sum() == 2 and read_metadata(path)["run"] == "r"
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.safetensors")], check=True, cwd=ROOT, timeout=120)
