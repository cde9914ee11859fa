"""Services that tests need, from Debian's packages where the user is root; and no skipping in CI."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# several processes test at once: threads that wait must not spin, which OpenMP decides when it is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

# scipy reads this when it is first imported; without it scikit-learn skips one of its estimator checks
os.environ["SCIPY_ARRAY_API"] = "1"
if not torch.cuda.is_available():
    # triton reads this when it is first imported; kernels for GPUs are then interpreted on the CPU
    os.environ["TRITON_INTERPRET"] = "1"
# pandas would take the folder tests/bottleneck for the package of that name, which it can do without
sys.modules.setdefault("bottleneck", None)
NO_SKIP = os.environ.get("LOGITKIT_NO_SKIP") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With LOGITKIT_NO_SKIP=1 a skipped test is a failed one."""
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report


def _debian(*packages: str) -> None:
    """Install Debian packages if the user is root and apt is there; otherwise do nothing."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    with (Path(tempfile.gettempdir()) / "logitkit-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt does not wait for another process that installs
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(
            command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )


def _postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of an empty database on a PostgreSQL server on loopback, started here and stopped at the end."""
    if _postgres_bin() is None:
        _debian("postgresql")
    programs = _postgres_bin()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    # The server refuses to run as root, so it runs as the user that its package makes.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="logitkit-postgres-"))
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(*command: str | Path) -> None:
        subprocess.run(
            [str(c) for c in command], check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL
        )

    call(programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"
    control = [programs / "pg_ctl", "-D", folder / "data", "-w"]
    call(*control, "-o", options, "-l", folder / "log", "start")
    try:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        call(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A headless Chromium driven by selenium, with its console log on."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        _debian("chromium", "chromium-driver")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("Chromium is not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    quiet = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=1280,900",
    )  # fmt: skip
    for flag in quiet:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
