from pathlib import Path
from typing import Any

import pytest

from firstkit.clusters.carrier import ClusterClient, cluster_client, result_of, time_limit_s
from firstkit.clusters.local import LocalCarrier
from firstkit.clusters.ssh import Login, SshCarrier
from firstkit.config import parse_config
from firstkit.errors import ClaimedBefore, ConfigError, FirstError, SchedulerRefused, SchedulerSilent
from firstkit.onsite.check import Finding, Site
from firstkit.schedulers.scheduler import Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState
from firstkit.wire import to_dict


class WrittenCarrier:
    """Answers with what the test put in."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def run(self, verb: str, request: dict[str, Any]) -> Any:
        self.asked.append((verb, request))
        return self.result

    async def close(self) -> None:
        self.asked.append(("close", {}))


def client(result: Any) -> tuple[ClusterClient, WrittenCarrier]:
    carrier = WrittenCarrier(result)
    return ClusterClient(carrier, "/state", {"kind": "local"}), carrier


async def test_submit_carries_the_whole_spec() -> None:
    cluster, carrier = client("local-1")
    spec = JobSpec("job-a", Resources(cpus_per_node=2), {"token": "x"})
    assert await cluster.submit(spec) == "local-1"
    request = {"state_dir": "/state", "scheduler": {"kind": "local"}, "job": to_dict(spec)}
    assert carrier.asked == [("submit", request)]


async def test_poll_capacity_and_cancel() -> None:
    news = JobNews("job-a", "local-1", JobState.RUNNING, node="n1", started_at=1.5)
    cluster, _ = client({"job-a": to_dict(news)})
    assert await cluster.poll() == {"job-a": news}
    capacity = Capacity(1, 2, 3, 4, 0, 1, 2, 3)
    cluster, _ = client(to_dict(capacity))
    assert await cluster.capacity() == capacity
    cluster, carrier = client(None)
    await cluster.cancel("job-a")
    assert carrier.asked[0][1]["job_id"] == "job-a"


async def test_estimate_check_and_close() -> None:
    cluster, carrier = client({"starts_at": 5.0, "reason": "r"})
    assert await cluster.estimate(Resources(nodes=2)) == Estimate(5.0, "r")
    assert carrier.asked[0][1]["resources"]["nodes"] == 2
    site = Site("first-1.pyz", "0.1", "3.9", "n1", "me", (Finding("a", "ok", "b"),))
    cluster, carrier = client(to_dict(site))
    assert await cluster.check(job_id="job-a") == site
    assert carrier.asked[0][1]["job_id"] == "job-a"
    await cluster.close()
    assert carrier.asked[-1][0] == "close"


@pytest.mark.parametrize("result", [None, [], "x", {"job-a": {"state": "SINGING"}}, {"job-a": None}])
async def test_a_result_of_another_shape_is_silence(result: Any) -> None:
    cluster, _ = client(result)
    with pytest.raises(SchedulerSilent):
        await cluster.poll()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"ok": False, "error": "silent", "message": "m"}, SchedulerSilent),
        ({"ok": False, "error": "refused", "code": "refused", "message": "m"}, SchedulerRefused),
        ({"ok": False, "error": "refused", "code": "claimed", "message": "m"}, ClaimedBefore),
        ({"ok": False, "error": "invalid", "message": "m"}, SchedulerRefused),
        ({"ok": False, "error": "of a later version", "message": "m"}, SchedulerSilent),
        ({"ok": "yes"}, SchedulerSilent),
        ([], SchedulerSilent),
    ],
)
def test_answers_that_are_no_result(answer: Any, error: type[FirstError]) -> None:
    with pytest.raises(error) as caught:
        result_of(answer)
    assert type(caught.value) is error


def test_a_client_as_configured(tmp_path: Path) -> None:
    text = """
    clusters:
      here: {scheduler: {kind: local, cpus: 1}, env: {A: b}, state_dir: %s}
      far:
        scheduler: {kind: slurm, command_timeout: 7}
        carrier: {kind: ssh, host: far-login, port: 2222, user: me, key_file: ~/key, known_hosts: /h,
                  connect_timeout: 3}
        link: {kind: tunnel}
        state_dir: /far/state
      cloud: {kind: external}
    server: {pilot_listen: "127.0.0.1:1"}
    models: {}
    """
    config = parse_config(text % tmp_path)
    assert isinstance(cluster_client(config, "here")._carrier, LocalCarrier)
    far = cluster_client(config, "far")
    assert isinstance(far._carrier, SshCarrier)
    assert far._carrier._login == Login("far-login", "me", Path.home() / "key", Path("/h"), 2222, 3.0)
    assert far._carrier._time_limit_s == time_limit_s(config.clusters["far"]) > 7
    assert far._request["state_dir"] == "/far/state"
    for name in ("cloud", "nowhere"):
        with pytest.raises(ConfigError, match=name):
            cluster_client(config, name)
