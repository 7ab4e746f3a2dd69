"""``make lab``, ``make lab-down``: two real Slurm clusters on this machine, and FIRST over both of them.

All lies below FOLDER, which examples/two-clusters.yaml names; nothing else of the machine is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from firstkit.cli.common import open_server
from firstkit.cli.demonstration import MODEL, Unusable, built_in
from firstkit.cli.demonstration_key import ensure_key
from firstkit.cli.serving import serving
from firstkit.testing import slurm_lab

FOLDER = Path("/tmp/first-lab")  # noqa: S108 - see _make_folder
CONFIG = Path(__file__).parents[1] / "examples" / "two-clusters.yaml"
FIRST = Path(sys.executable).with_name("first")
LIVE_LIMIT_S = 120.0


def up() -> None:
    """Start what does not run yet, wait until the model is live, and say what to try."""
    _make_folder()
    server = open_server(CONFIG)
    if serving(server.state_dir) is None:
        weights = built_in().weights
        clusters = slurm_lab.up(FOLDER)
        for cluster in clusters:
            print(f"Slurm runs: {cluster.name}, {len(cluster.node_states())} nodes.", flush=True)
        (FOLDER / "models").mkdir(exist_ok=True)
        link = FOLDER / "models" / "smollm2.gguf"
        link.unlink(missing_ok=True)
        link.symlink_to(weights)
        server.state_dir.mkdir(mode=0o700, exist_ok=True)
        ensure_key(server)
        _serve()
    _wait_until_live()
    print(_welcome(server.base_url, ensure_key(server)))


def down() -> None:
    """End all that ``up`` started, jobs included, and remove the folder."""
    if not FOLDER.exists():
        print("Nothing was running.")
        return
    _make_folder()
    subprocess.run([FIRST, "down", "--config", CONFIG], check=False)
    slurm_lab.down(FOLDER)
    shutil.rmtree(FOLDER)
    print("Both clusters have ended.")


def _make_folder() -> None:
    """The folder has a name that anybody knows: it must be ours alone before anything in it is trusted."""
    try:
        FOLDER.mkdir(mode=0o700)
    except FileExistsError:
        found = FOLDER.lstat()
        if found.st_uid != os.getuid() or not FOLDER.is_dir() or FOLDER.is_symlink() or found.st_mode & 0o022:
            raise Unusable(f"{FOLDER} is not yours alone.", "Remove it, or ask its owner to.") from None


def _serve() -> None:
    with (FOLDER / "serve.log").open("ab") as log:
        subprocess.Popen(
            [FIRST, "serve", "--config", CONFIG], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _wait_until_live() -> None:
    give_up_at = time.monotonic() + LIVE_LIMIT_S
    while True:
        command = [FIRST, "status", "--config", CONFIG, "--json"]
        status = subprocess.run(command, check=False, capture_output=True, text=True)
        if status.returncode == 0 and '"status": "live"' in status.stdout:
            return
        if time.monotonic() > give_up_at:
            raise Unusable(f"{MODEL} is not live after {LIVE_LIMIT_S:.0f} s.", f"See {FOLDER / 'serve.log'}.")
        time.sleep(0.2)


def _welcome(base_url: str, key: str) -> str:
    first, config = os.path.relpath(FIRST), os.path.relpath(CONFIG)
    return f"""
FIRST serves the model {MODEL} on two Slurm clusters.

  URL      {base_url}
  API key  {key}

  export FIRST_CONFIG={config} FIRST_API_KEY={key}
  {first} chat "Name three fruits."
  {first} status
  {first} explain {MODEL}
  {first} cluster drain sophia --message "trying it out"     # it starts on polaris, then leaves sophia
  SLURM_CONF={FOLDER}/polaris/slurm.conf squeue
  {first} cluster resume sophia

'make lab-down' ends all of it."""


if __name__ == "__main__":
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except (Unusable, slurm_lab.LabError) as exc:
        print(f"{exc}\n{getattr(exc, 'next_step', '')}".strip(), file=sys.stderr)
        sys.exit(1)
