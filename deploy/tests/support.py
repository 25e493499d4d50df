"""What the tests of deploy/ share: where things are, how YAML is read, how long is waited."""
import os
import pathlib
import shutil
import socket
import subprocess
import time
import unittest
import urllib.request

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
ROOT = DEPLOY.parent
CHART = DEPLOY / "charts/alluxio"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml*"))
SAMPLES = sorted((DEPLOY / "samples").glob("*.yaml"))
# Generous: the machine is shared and slow at times.
PATIENCE = 60


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"{name} is given twice, at {key.start_mark}")
            seen.add(name)
        return super().construct_mapping(node, deep)


def documents(path):
    """The documents of a YAML file that are not empty."""
    return [doc for doc in yaml.load_all(path.read_text(), UniqueKeys) if doc is not None]


def named(doc):
    return f"{doc['kind']} {doc['metadata']['name']}"


def pod_of(doc):
    """The pod template (metadata and spec) that an object makes or is, or None."""
    kind = doc["kind"]
    if kind == "Pod":
        return doc
    if kind in ("Deployment", "DaemonSet", "StatefulSet", "Job"):
        return doc["spec"]["template"]
    return None


def binaries():
    """The directory with the programs that tests/run built."""
    given = os.environ.get("ALLUXIO_BINARIES")
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return pathlib.Path(given) if given else pathlib.Path(target) / "debug"


def program(name):
    """The path of a program of ours; the test is skipped, aloud, without it."""
    path = binaries() / name
    if not path.exists():
        raise unittest.SkipTest(f"{path} is not built (cargo build --bins, or set ALLUXIO_BINARIES)")
    return path


def tool(name, how):
    """The path of a program of others; the test is skipped, aloud, without it."""
    path = shutil.which(name)
    if path is None:
        raise unittest.SkipTest(f"{name} is not installed ({how})")
    return path


def free_ports(count):
    """Ports that nobody has now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(what, condition, alive=None):
    """Waits for a condition that is true; fails when `alive`, a process, ends before."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if alive is not None and alive.poll() is not None:
            raise AssertionError(f"{what}: the process ended with {alive.returncode}")
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.05)


def http(url):
    """The body of a page, or None."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def run(*command, env=None, code=0):
    """The output of a command, which must end with the given code."""
    done = subprocess.run(
        [str(word) for word in command], env=env, text=True, capture_output=True, timeout=PATIENCE * 2, check=False
    )
    if done.returncode != code:
        raise AssertionError(f"{command} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
