"""The entry point of the image, with the real programs: it serves mounts and workers, passes signals on, and refuses what
makes no sense. Every place is a temporary directory of the test; nothing of the machine is used but /dev/fuse."""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

from support import DEPLOY, binaries, free_ports, http, program, run, tool, until

ENTRYPOINT = DEPLOY / "image/entrypoint.sh"


def mounted(point):
    """Whether a FUSE file system of ours is at a directory, dead or alive."""
    # mountinfo writes blanks as \040; the directories of the tests have none.
    return any(line.split()[4] == str(point) for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())


class Place:
    """Directories of a test, processes that it started, and their end."""

    def __init__(self, test):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="alluxio-deploy-")).resolve()
        self.point = self.root / "mnt"
        self.processes = []
        test.addCleanup(self.clean)
        for name in ("source", "conf", "state", "cache", "pages", "domain"):
            (self.root / name).mkdir()
        (self.root / "source/file").write_text("hello\n")
        self.options = {
            "alluxio.fuse.web.port": 0,
            "alluxio.fuse.state.dir": self.root / "state",
            "alluxio.user.client.cache.dirs": self.root / "cache",
            "alluxio.user.client.cache.size": "16MiB",
            "alluxio.user.memory.limit": "64MiB",
        }

    def env(self, **more):
        path = f"{binaries()}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        properties = " ".join(f"-D{key}={value}" for key, value in self.options.items())
        return {"PATH": path, "HOME": str(self.root), "ALLUXIO_CONF_DIR": str(self.root / "conf"),
                "ALLUXIO_JAVA_OPTS": properties} | more

    def start(self, *arguments, **more):
        """The entry point in the background, as in a container below tini where that is installed."""
        log = open(self.root / f"log{len(self.processes)}", "w+", encoding="utf-8")
        tini = shutil.which("tini")
        before = [tini, "-s", "--"] if tini else []
        process = subprocess.Popen(
            [str(word) for word in [*before, ENTRYPOINT, *arguments]],
            env=self.env(**more), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )
        process.log = log
        self.processes.append(process)
        return process

    def said(self, process):
        process.log.flush()
        return pathlib.Path(process.log.name).read_text(encoding="utf-8")

    def daemon(self):
        """The number of the daemon at the mount point, from its record."""
        text = run(program("alluxio-fuse"), "status", "--format", "json", env=self.env())
        found = re.search(r'"pid":\s*(\d+)', text)
        return int(found[1]) if found else None

    def clean(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                # The group: tini, the entry point, and the program.
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(30)
            process.log.close()
        while mounted(self.point):
            subprocess.run(["umount", "-l", self.point], check=True)
        shutil.rmtree(self.root, ignore_errors=True)


class Usage(unittest.TestCase):
    def refused(self, *arguments):
        env = {"PATH": f"{binaries()}:/usr/bin:/bin"}
        text = run(ENTRYPOINT, *arguments, env=env, code=2)
        self.assertEqual(len(text.strip().splitlines()), 1, text)
        return text

    def test_help(self):
        self.assertIn("Usage:", run(ENTRYPOINT, "help", env={"PATH": "/usr/bin:/bin"}))
        self.assertIn("Usage:", run(ENTRYPOINT, env={"PATH": "/usr/bin:/bin"}, code=2))

    def test_what_makes_no_sense_is_refused_in_one_line(self):
        self.assertIn("unknown role wroker", self.refused("wroker"))
        for role in ("master", "job-worker", "proxy", "coordinator"):
            self.assertIn(f"there is no {role}", self.refused(role))
        self.assertIn("csi-node on each node", self.refused("csiserver", "--nodeid=n"))
        self.assertIn("unknown option --fuse-options", self.refused("fuse", "--fuse-options=ro", "/m"))
        self.assertIn("needs a value", self.refused("fuse", "-o"))
        self.assertIn("needs a value", self.refused("fuse", "--fuse-opts"))
        self.assertIn("two under storages", self.refused("fuse", "s3://a", "s3://b", "/m"))
        self.assertIn("one argument too many", self.refused("fuse", "/m", "/", "/x"))
        self.assertIn("one argument too many", self.refused("fuse", "s3://a", "/m", "/x"))
        self.assertIn("ensure-mount needs", self.refused("ensure-mount", "/data"))

    def test_a_program_that_is_missing_is_named(self):
        text = run(ENTRYPOINT, "csi-node", env={"PATH": "/usr/bin:/bin"}, code=2)
        self.assertIn("alluxio-csi is not in this image", text)

    def test_the_programs_themselves(self):
        program("alluxio")
        env = {"PATH": f"{binaries()}:/usr/bin:/bin"}
        for name in ("alluxio", "alluxio-fuse"):
            self.assertIn(name, run(ENTRYPOINT, name, "--version", env=env))

    def test_shellcheck(self):
        run(tool("shellcheck", "apt-get install shellcheck"), ENTRYPOINT, DEPLOY / "render")


@unittest.skipUnless(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "mounting needs root and /dev/fuse")
class Mounts(unittest.TestCase):
    def setUp(self):
        program("alluxio-fuse")
        self.place = Place(self)

    def wait(self, process):
        try:
            until("the mount", lambda: mounted(self.place.point) and (self.place.point / "file").exists(), process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.place.said(process)}") from error

    def test_a_mount_is_served_survives_a_kill_and_ends_with_the_container(self):
        place = self.place
        process = place.start("fuse", "-o ro", f"file://{place.root}/source", place.point)
        self.wait(process)
        self.assertEqual((place.point / "file").read_text(), "hello\n")
        first = place.daemon()
        os.kill(first, signal.SIGKILL)

        def again():
            try:
                return (place.point / "file").read_text() == "hello\n" and place.daemon() not in (None, first)
            # Neither the dead mount nor its record has an answer.
            except (OSError, AssertionError):
                return False

        until("the second mount", again, process)
        self.assertIn("was killed (signal 9)", place.said(process))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 0, place.said(process))
        self.assertFalse(mounted(place.point))

    def test_options_come_in_every_form(self):
        place = self.place
        for arguments in (
            ["--fuse-opts=ro,attr_timeout=1", f"file://{place.root}/source", place.point],
            [place.point, f"file://{place.root}/source", "-o", "ro", "-oattr_timeout=1"],
        ):
            process = place.start("fuse", *arguments)
            self.wait(process)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(60), 0, place.said(process))
            self.assertFalse(mounted(place.point))

    def test_a_mount_that_cannot_be_ends_the_container_with_the_reason(self):
        place = self.place
        process = place.start("fuse", f"file://{place.root}/missing", place.point)
        self.assertNotIn(process.wait(60), (0, None))
        self.assertIn("missing", place.said(process))
        self.assertFalse(mounted(place.point))


class Cluster(unittest.TestCase):
    def test_a_worker_its_mounts_and_a_mount_of_the_cluster(self):
        place = Place(self)
        program("alluxio")
        etcd = tool("etcd", "apt-get install etcd-server")
        client, peer = free_ports(2)
        endpoint = f"http://127.0.0.1:{client}"
        log = open(place.root / "etcd.log", "w", encoding="utf-8")
        server = subprocess.Popen(
            [etcd, "--data-dir", place.root / "etcd", "--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
             "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-cluster", f"default=http://127.0.0.1:{peer}", "--unsafe-no-fsync"],
            stdout=log, stderr=log, env={"PATH": "/usr/bin:/bin"}, start_new_session=True,
        )
        server.log = log
        place.processes.append(server)
        until("etcd", lambda: http(f"{endpoint}/health"), server)
        place.options |= {
            "alluxio.etcd.endpoints": endpoint,
            "alluxio.cluster.name": "deploy",
            "alluxio.worker.hostname": "127.0.0.1",
            "alluxio.worker.rpc.port": 0,
            "alluxio.worker.data.port": 0,
            "alluxio.worker.web.port": 0,
            "alluxio.worker.page.store.dirs": place.root / "pages",
            "alluxio.worker.page.store.sizes": "16MiB",
            "alluxio.worker.identity.uuid.file.path": place.root / "pages/identity/worker_identity",
            "alluxio.worker.data.server.domain.socket.address": place.root / "domain",
            "alluxio.worker.data.server.domain.socket.as.uuid": "true",
        }
        worker = place.start("worker", "--no-format")
        web = until("the worker", lambda: re.search(r"serves at .* web (\d+)", place.said(worker)), worker)[1]
        self.assertTrue(http(f"http://127.0.0.1:{web}/health").startswith("OK"))
        self.assertIn("alluxio_cached_capacity_bytes", http(f"http://127.0.0.1:{web}/metrics"))
        self.assertEqual(len(list((place.root / "domain").iterdir())), 1)

        def entry(*arguments, code=0):
            return run(ENTRYPOINT, *arguments, env=place.env(), code=code)

        self.assertIn("ONLINE", entry("alluxio", "info", "nodes"))
        uri = f"file://{place.root}/source"
        self.assertIn("Mounted", entry("ensure-mount", "/data", uri, "alluxio.user.ufs.retries=2", "alluxio.user.ufs.deadline=20s"))
        self.assertIn("already", entry("ensure-mount", "/data", uri))
        self.assertIn("remove it first", entry("ensure-mount", "/data", f"file://{place.root}/state", code=2))
        listed = entry("alluxio", "mount", "list")
        self.assertIn("alluxio.user.ufs.deadline=20s", listed)
        self.assertIn("alluxio.user.ufs.retries=2", listed)

        if os.geteuid() == 0 and os.path.exists("/dev/fuse"):
            mount = place.start("fuse", "--fuse-opts=allow_other", place.point, "/")
            file = place.point / "data/file"
            until("the cluster's mount", file.exists, mount)
            self.assertEqual(file.read_text(), "hello\n")
            mount.send_signal(signal.SIGTERM)
            self.assertEqual(mount.wait(60), 0, place.said(mount))
        worker.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(60), 0, place.said(worker))
        self.assertIn("OFFLINE", entry("alluxio", "info", "nodes"))


if __name__ == "__main__":
    unittest.main()
