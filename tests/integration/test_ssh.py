"""The carrier of kind ssh against a real sshd: the forced command, its limits, and a gateway that was stolen."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from firstkit.clusters import ssh
from firstkit.clusters.carrier import ClusterClient, cluster_client
from firstkit.clusters.checking import Case, check
from firstkit.clusters.ssh import Login, SshCarrier
from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.ids import new_id
from firstkit.onsite.allowed import ALLOWED_FILE
from firstkit.onsite.command import REQUEST_LIMIT_BYTES
from firstkit.schedulers.records import load
from firstkit.schedulers.scheduler import JobSpec, Resources
from firstkit.states import JobState
from firstkit.wire import to_dict
from sshd import FarCluster, far_cluster, lock_key, make_key

LIMIT_S = 20.0
SCHEDULER = {"kind": "local", "cpus": 1, "memory_gib": 1, "env": {}}


@pytest.fixture
def far() -> Iterator[FarCluster]:
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    with far_cluster(folder) as made:
        yield made
        for path in (made.state_dir / "jobs").glob("job-*"):
            for process in processes_of(path.name):
                process.kill()
    shutil.rmtree(folder)


@pytest.fixture
async def client(far: FarCluster) -> AsyncIterator[ClusterClient]:
    made = cluster_client(far.config, "far")
    yield made
    await made.close()


@pytest.fixture
async def carrier(far: FarCluster) -> AsyncIterator[SshCarrier]:
    made = SshCarrier(login(far), 20.0)
    yield made
    await made.close()


def login(far: FarCluster, **changes: Any) -> Login:
    settings = far.config.clusters["far"].carrier
    assert settings.kind == "ssh"
    made = Login(settings.host, settings.user, settings.key_file, settings.known_hosts, settings.port, 5.0)
    return replace(made, **changes)


def processes_of(job_id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FIRST_JOB_ID") == job_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def request(far: FarCluster, **more: Any) -> dict[str, Any]:
    return {"state_dir": str(far.state_dir), "scheduler": SCHEDULER, **more}


def by_hand(far: FarCluster, *options: str, command: str = "", data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The ordinary ssh, in the hands of somebody who has the gateway's key."""
    own = ["-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={far.folder}/known_hosts"]
    where = ["-i", f"{far.folder}/key", "-p", str(far.sshd.port), f"{login(far).user}@127.0.0.1"]
    argv = ["ssh", *own, *options, *where, *([command] if command else [])]
    return subprocess.run(argv, input=data, capture_output=True, timeout=60, check=False)


def replica(far: FarCluster, **changes: Any) -> ReplicaSpec:
    (deployment,) = far.config.deployments()
    return replace(deployment.replica_spec("rep-1"), **changes)


def job(far: FarCluster, *replicas: ReplicaSpec, **needs: Any) -> JobSpec:
    link = {"kind": "socket", "path": str(far.folder / "nobody.sock")}
    job_id = new_id("job")
    pilot = {"job_id": job_id, "cluster": "far", "link": link, "enrolment_token": "t", "replicas": to_dict(replicas)}
    return JobSpec(job_id, Resources(**{"memory_bytes": 2**29, **needs}), pilot)


# -- verbs -------------------------------------------------------------------------------------------------------------


async def test_a_job_from_submission_to_its_end(far: FarCluster, client: ClusterClient) -> None:
    spec = job(far, replica(far))
    scheduler_id = await client.submit(spec)
    assert await client.submit(spec) == scheduler_id
    async with asyncio.timeout(LIMIT_S):
        while not (far.state_dir / "jobs" / spec.job_id / "replicas" / "rep-1" / "engine.sock").exists():
            await asyncio.sleep(0.05)
    assert (await client.poll())[spec.job_id].state is JobState.RUNNING
    assert (await client.capacity()).free_cpus == 0
    assert (await client.estimate(Resources())).starts_at is None
    # The job runs from the file of its version, which stays, not from the gate, which the next version replaces.
    argv = load(str(far.state_dir / "jobs" / spec.job_id)).order.argv  # type: ignore[union-attr]
    assert argv[2].startswith(f"{far.state_dir}/bin/first-")
    await client.cancel(spec.job_id)
    async with asyncio.timeout(LIMIT_S):
        while not (await client.poll())[spec.job_id].state.is_final:
            await asyncio.sleep(0.05)
    assert far.sshd.logins() == 1


async def test_fifty_calls_share_one_connection_and_few_sessions(
    far: FarCluster, client: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most, real = 0, 0, ssh._session

    async def counted(*args: Any) -> Any:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        try:
            return await real(*args)
        finally:
            at_once -= 1

    monkeypatch.setattr(ssh, "_session", counted)
    answers = await asyncio.gather(*(client.capacity() for _ in range(50)))
    assert {answer.cpus for answer in answers} == {1}
    assert most == ssh.SESSIONS
    assert far.sshd.logins() == 1


async def test_what_the_gate_refuses_is_a_refusal(far: FarCluster, carrier: SshCarrier) -> None:
    with pytest.raises(SchedulerRefused, match="asks for 99 cores"):
        await ClusterClient(carrier, str(far.state_dir), SCHEDULER).estimate(Resources(cpus_per_node=99))
    with pytest.raises(SchedulerRefused, match="this key is for the verbs submit, poll"):
        await carrier.run("install", request(far))


async def test_words_on_the_error_output_are_told_on_one_line(far: FarCluster, carrier: SshCarrier) -> None:
    (far.state_dir / "bin" / "first").write_text("import sys\nsys.exit('no\\nroom\\x1b[2J' + 'x' * 9999)")
    with pytest.raises(SchedulerSilent, match=r"gave no answer \(exit status 1\): no room \[2Jx+$") as caught:
        await carrier.run("poll", request(far))
    assert len(caught.value.message) < 400


async def test_an_answer_without_end_is_not_read(
    far: FarCluster, carrier: SshCarrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    (far.state_dir / "bin" / "first").write_text("while True: print('x' * 99999)")
    monkeypatch.setattr(ssh, "ANSWER_LIMIT_BYTES", 1_000_000)
    with pytest.raises(SchedulerSilent, match="an answer of more than 1000000 bytes"):
        await carrier.run("poll", request(far))
    far.install()
    assert await carrier.run("poll", request(far)) == {}
    assert far.sshd.logins() == 1


async def test_a_request_over_the_limit_is_not_sent(far: FarCluster, carrier: SshCarrier) -> None:
    with pytest.raises(SchedulerSilent, match="longer than"):
        await carrier.run("poll", request(far, filling="x" * REQUEST_LIMIT_BYTES))


# -- silence -----------------------------------------------------------------------------------------------------------


async def test_a_connection_that_dies_in_the_middle_of_a_call_is_silence_and_then_made_anew(
    far: FarCluster, carrier: SshCarrier
) -> None:
    assert await carrier.run("poll", request(far)) == {}
    async with held(far.state_dir / "local.lock"):
        calls = [asyncio.create_task(carrier.run("poll", request(far))) for _ in range(3)]
        async with asyncio.timeout(LIMIT_S):
            while sum("gate" in words for words in living(far).values()) < 3:
                await asyncio.sleep(0.02)
        far.sshd.kill_connections()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, SchedulerSilent)
            assert "was lost during 'poll'" in outcome.message
    assert await asyncio.gather(*(carrier.run("poll", request(far)) for _ in range(5))) == [{}] * 5
    assert far.sshd.logins() == 2


@asynccontextmanager
async def held(lock: Path) -> AsyncIterator[None]:
    """Somebody else holds the lock, so that verbs wait."""
    holder = await asyncio.create_subprocess_exec(
        *("flock", str(lock), "-c", "echo held; exec sleep 60"), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        await holder.stdout.readline()
        yield
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        await holder.communicate()


def living(far: FarCluster) -> dict[psutil.Process, list[str]]:
    """What runs below sshd, with the words of each command."""
    found = {}
    for child in far.sshd.children():
        try:
            if words := child.cmdline():
                found[child] = words
        except psutil.Error:
            continue  # it has just ended
    return found


async def test_a_peer_that_is_dead_is_noticed_before_the_time_is_over(
    far: FarCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "KEEPALIVE_S", 0.3)
    carrier = SshCarrier(login(far), 60.0)
    await carrier.run("poll", request(far))
    stopped = living(far)
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(SchedulerSilent, match="was lost during 'poll'"):
        await carrier.run("poll", request(far))
    assert time.monotonic() - began < 50, "and not after the 60 s of the verb"
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    assert await carrier.run("poll", request(far)) == {}
    await carrier.close()


async def test_a_verb_that_does_not_answer_in_time_leaves_the_connection(far: FarCluster) -> None:
    carrier = SshCarrier(login(far, connect_timeout_s=0.5), 0.5)
    await carrier.run("poll", request(far))
    gate = far.state_dir / "bin" / "first"
    good = gate.read_text()
    gate.write_text("import time; time.sleep(30)")
    with pytest.raises(SchedulerSilent, match=r"'poll' on 127\.0\.0\.1 did not answer within 0\.5 s"):
        await carrier.run("poll", request(far))
    gate.write_text(good)
    carrier._time_limit_s = 20.0
    assert await carrier.run("poll", request(far)) == {}
    assert far.sshd.logins() == 1
    await carrier.close()


async def test_no_sshd_is_silence_at_once_and_not_asked_again_for_a_while(far: FarCluster, carrier: SshCarrier) -> None:
    far.sshd.stop()
    with pytest.raises(SchedulerSilent, match=r"no connection to 127\.0\.0\.1:\d+"):
        await carrier.run("poll", request(far))
    with pytest.raises(SchedulerSilent, match=r"no connection to .*; next attempt in \d+ s"):
        await carrier.run("poll", request(far))
    far.sshd.start()
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                assert await carrier.run("poll", request(far)) == {}
                break
            except SchedulerSilent:
                await asyncio.sleep(0.05)
    assert far.sshd.logins() == 1


async def test_a_host_that_accepts_and_says_nothing_is_silence_in_time(far: FarCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        carrier = SshCarrier(login(far, port=mute.getsockname()[1], connect_timeout_s=0.5), 20.0)
        began = time.monotonic()
        with pytest.raises(SchedulerSilent):
            await carrier.run("poll", request(far))
        assert time.monotonic() - began < 15, "and not after the 20 s of the verb"


async def test_a_host_that_allows_too_few_sessions_is_told_apart(far: FarCluster) -> None:
    far.sshd.stop()
    with (far.folder / "sshd_config").open("a") as file:
        file.write("MaxSessions 1\n")
    far.sshd.start()
    carrier = SshCarrier(login(far), 20.0)
    outcomes = await asyncio.gather(*(carrier.run("poll", request(far)) for _ in range(4)), return_exceptions=True)
    assert {} in outcomes
    refusals = [outcome.message for outcome in outcomes if isinstance(outcome, SchedulerSilent)]
    assert all("its MaxSessions has to be 4 or more" in words for words in refusals)
    assert far.sshd.logins() == 1
    await carrier.close()


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_host_with_another_key_is_not_spoken_to(far: FarCluster) -> None:
    far.sshd.stop()
    (far.folder / "host_key").unlink()
    make_key(far.folder / "host_key")
    far.sshd.start()
    carrier = SshCarrier(login(far), 20.0)
    with pytest.raises(SchedulerSilent, match=r"the host key of .* is another than there") as caught:
        await carrier.run("poll", request(far))
    assert f"{far.folder}/known_hosts" in caught.value.message
    assert far.sshd.logins() == 0


async def test_a_host_that_nobody_knows_is_not_trusted_at_first_sight(far: FarCluster) -> None:
    (far.folder / "known_hosts").write_text("")
    carrier = SshCarrier(login(far), 20.0)
    with pytest.raises(SchedulerSilent, match="is not in"):
        await carrier.run("poll", request(far))
    assert (far.folder / "known_hosts").read_text() == ""
    assert far.sshd.logins() == 0


async def test_only_the_key_that_is_named_is_tried(far: FarCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an agent that has the right key nor files in ~/.ssh help a wrong one."""
    make_key(far.folder / "other")
    home = far.folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    shutil.copy(far.folder / "key", home / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(home))
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", f"{far.folder}/agent", stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            while not (far.folder / "agent").exists():
                await asyncio.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", f"{far.folder}/agent")
        adding = await asyncio.create_subprocess_exec("ssh-add", "-q", f"{far.folder}/key")
        assert await adding.wait() == 0
        carrier = SshCarrier(login(far, key_file=far.folder / "other"), 20.0)
        with pytest.raises(SchedulerSilent, match=r"does not accept the key .*/other"):
            await carrier.run("poll", request(far))
    finally:
        agent.kill()
        await agent.wait()
    assert far.sshd.logins() == 0


@pytest.mark.parametrize("fault", ["missing", "open", "encrypted", "no key", "known_hosts"])
async def test_files_that_cannot_be_used_are_named(far: FarCluster, fault: str) -> None:
    key = far.folder / "key"
    if fault == "missing":
        key.unlink()
    elif fault == "open":
        key.chmod(0o644)
    elif fault == "encrypted":
        lock_key(key)
    elif fault == "no key":
        key.write_text("s3cret")
    else:
        (far.folder / "known_hosts").unlink()
    with pytest.raises(SchedulerSilent) as caught:
        await SshCarrier(login(far), 20.0).run("poll", request(far))
    assert str(far.folder / ("known_hosts" if fault == "known_hosts" else "key")) in caught.value.message
    assert "s3cret" not in caught.value.message


# -- a key in the wrong hands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "sh -c id",
        "/bin/sh",
        "poll; id",
        "poll ",
        " poll",
        "poll\n",
        "POLL",
        "poll --help",
        "gate",
        "cluster poll",
        "$(id)",
    ],
)
def test_nothing_but_a_verb_is_run(far: FarCluster, command: str) -> None:
    done = by_hand(far, command=command, data=json.dumps(request(far)).encode())
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["error"]) == (False, "invalid")
    assert b"uid=" not in done.stdout + done.stderr


def test_no_shell_no_terminal_no_files_no_forwarding(far: FarCluster) -> None:
    assert json.loads(by_hand(far, data=b"id\nexit\n").stdout)["error"] == "invalid"
    terminal = by_hand(far, "-tt", data=b"id\nexit\n")
    assert terminal.returncode != 0
    assert b"uid=" not in terminal.stdout
    assert b"PTY allocation request failed" in terminal.stderr
    options = ["-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={far.folder}/known_hosts"]
    options += ["-i", f"{far.folder}/key", "-P", str(far.sshd.port)]
    target = f"{login(far).user}@127.0.0.1:{far.folder}"
    (far.folder / "up").write_text("x")
    for program in (["scp", "-O"], ["scp", "-s"]):
        up = [*program, *options, f"{far.folder}/up", f"{target}/arrived"]
        down = [*program, *options, f"{target}/host_key", f"{far.folder}/taken"]
        for argv in (up, down):
            assert subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode != 0
    assert not (far.folder / "arrived").exists()
    assert not (far.folder / "taken").exists()


async def test_no_port_is_forwarded_and_nothing_is_listened_on(far: FarCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.settimeout(0.0)
        connection = await ssh.open_connection(login(far))
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", inner.getsockname()[1])
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.start_server(lambda *_: False, "127.0.0.1", 0)
        with pytest.raises(BlockingIOError):
            inner.accept()
        connection.close()
        await connection.wait_closed()


def test_a_request_without_end_is_refused(far: FarCluster) -> None:
    done = by_hand(far, command="poll", data=b" " * (REQUEST_LIMIT_BYTES + 1))
    answer = json.loads(done.stdout)
    assert "longer than" in answer["message"]


async def refused(far: FarCluster, client: ClusterClient, spec: JobSpec, words: str) -> None:
    with pytest.raises(SchedulerRefused, match=words) as caught:
        await client.submit(spec)
    assert type(caught.value) is SchedulerRefused
    assert not (far.state_dir / "jobs" / spec.job_id).exists()
    assert processes_of(spec.job_id) == []


async def test_engines_that_are_not_on_the_list_do_not_run(far: FarCluster, client: ClusterClient) -> None:
    own = replica(far).engine
    shell = EngineSpec("command", "shell", argv=("/bin/sh", "-c", "id > /tmp/x; {socket}"))
    await refused(far, client, job(far, replica(far, engine=shell)), f'the engine "shell" is not in .*{ALLOWED_FILE}')
    for name, value in (("argv", shell.argv), ("setup", "id"), ("env", {"LD_PRELOAD": "/x.so"}), ("python", "/x")):
        other = replica(far, engine=replace(own, **{name: value}))
        await refused(far, client, job(far, replica(far), other), f'"fake" is defined otherwise in .*: {name}')
    await refused(far, client, job(far, replica(far, args={"trust-remote-code": True})), "trust-remote-code")
    assert await client.poll() == {}


async def test_weights_elsewhere_are_not_read(far: FarCluster, client: ClusterClient) -> None:
    models = far.folder / "models"
    elsewhere = ["/etc/passwd", f"{models}/../key", f"{models}x", "small", f"{models}//small", "~/.ssh"]
    for weights in elsewhere:
        await refused(far, client, job(far, replica(far, weights=weights)), "the weights .* are not at a place")


async def test_options_of_the_scheduler_are_those_of_the_list(far: FarCluster, client: ClusterClient) -> None:
    await refused(far, client, job(far, directives=("--output=/x",)), "the directive")
    await refused(far, client, job(far, partition="big"), "the partition")
    await refused(far, client, job(far, constraint="a\nb"), "printable")


async def test_neither_environment_nor_state_directory_can_be_chosen(far: FarCluster, carrier: SshCarrier) -> None:
    spec = to_dict(job(far, replica(far)))
    for name in ("LD_PRELOAD", "BASH_ENV", "PATH", "PYTHONPATH", "SLURM_CONF"):
        settings = {**SCHEDULER, "env": {name: "/tmp/x"}}
        with pytest.raises(SchedulerSilent, match=r"scheduler\.env is not what"):
            await carrier.run("submit", {**request(far, job=spec), "scheduler": settings})
    with pytest.raises(SchedulerSilent, match=r"scheduler\.kind is not what"):
        await carrier.run("poll", {**request(far), "scheduler": {"kind": "slurm"}})
    for folder in ("/tmp", f"{far.folder}/other", f"{far.state_dir}/jobs"):
        with pytest.raises(SchedulerSilent, match="this key is for"):
            await carrier.run("submit", {**request(far, job=spec), "state_dir": folder})
    assert not (far.folder / "other").exists()


async def test_variables_of_the_ssh_session_do_not_reach_the_gate(far: FarCluster) -> None:
    (far.state_dir / "bin" / "first").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    done = by_hand(far, "-o", "SetEnv=BASH_ENV=/tmp/x LD_PRELOAD=/tmp/x PATH=/tmp/x", command="poll")
    environment = json.loads(done.stdout)
    assert "LD_PRELOAD" not in environment
    assert "BASH_ENV" not in environment
    assert environment["PATH"] != "/tmp/x"


async def test_without_its_list_the_gate_does_nothing(far: FarCluster, client: ClusterClient) -> None:
    path = far.state_dir / ALLOWED_FILE
    good = path.read_text()
    path.unlink()
    with pytest.raises(SchedulerRefused, match="is missing: nothing is allowed"):
        await client.poll()
    for bad in ("{", "[]", '{"engines": 7}', json.dumps({**json.loads(good), "max_node": 1})):
        path.write_text(bad)
        with pytest.raises(SchedulerRefused, match="cannot be understood"):
            await client.poll()
    path.write_text(good)
    path.chmod(0o666)
    with pytest.raises(SchedulerRefused, match="may be written by others"):
        await client.poll()
    path.chmod(0o600)
    assert await client.poll() == {}


# -- first cluster check -----------------------------------------------------------------------------------------------


async def test_check_looks_at_all_of_it(far: FarCluster, client: ClusterClient) -> None:
    found = {finding.what: finding async for finding in check(Case("far", far.config, client, poll_s=0.05), True, 30.0)}
    statuses = {what: finding.status for what, finding in found.items() if finding.status != "ok"}
    assert statuses == {"link (node)": "failed", "shared files": "warning"} or statuses == {"link (node)": "failed"}
    assert {"carrier", "program", "Python", "state directory", ALLOWED_FILE, "scheduler", "m@far: job"} <= set(found)
    assert {"m@far: program", "m@far: weights", "m@far: weights (node)", "trial job", "Python there"} <= set(found)
    assert "does not reach the gateway: 127.0.0.1:1" in found["link (node)"].found
    assert all(finding.fix for finding in found.values() if finding.status != "ok")


async def test_check_says_what_the_list_does_not_allow(far: FarCluster, client: ClusterClient) -> None:
    path = far.state_dir / ALLOWED_FILE
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "engines": [], "partitions": ["other"]}))
    found = {finding.what: finding async for finding in check(Case("far", far.config, client))}
    assert 'the engine "fake" is not in' in found["m@far"].found
    assert found["m@far: job"].status == "failed"
    path.write_text(json.dumps(document))
    (far.folder / "models" / "small").rmdir()
    found = {finding.what: finding async for finding in check(Case("far", far.config, client))}
    assert found["m@far: weights"].status == "failed"


async def test_check_without_an_answer(far: FarCluster, client: ClusterClient) -> None:
    far.sshd.stop()
    [finding] = [finding async for finding in check(Case("far", far.config, client))]
    assert (finding.what, finding.status) == ("carrier", "failed")
