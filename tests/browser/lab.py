"""A real JupyterLab and a real browser for tests: started on a free port, in folders of their own."""

import ast
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
from jupyter_client import BlockingKernelClient
from playwright.sync_api import Locator, Page, expect

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(__file__).parent / "screenshots"
START_SECONDS = 120
ANSWER_MS = 30_000
RUN_MS = 180_000  # a cell may load a model, on a busy machine
EXECUTED = re.compile(r"\[\d+\]")


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def start_lab(folder: Path) -> Iterator["Lab"]:
    """JupyterLab on a folder; its settings, kernels and history are in the folder, too."""
    token = secrets.token_hex(16)
    kinds = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    environment = os.environ | {f"JUPYTER_{kind}": str(folder / f".{kind.lower()}") for kind in kinds}
    environment |= {"IPYTHONDIR": str(folder / ".ipython"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings = folder / ".config_dir" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}))
    port = find_free_port()
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    options += ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    options += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            lab = Lab(folder, f"http://127.0.0.1:{port}", token)
            lab.wait_until_ready(process)
            yield lab
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


class Lab:
    """A running JupyterLab."""

    def __init__(self, folder: Path, url: str, token: str) -> None:
        self.folder, self.url, self.token = folder, url, token

    def ask(self, path: str, method: str = "GET") -> object:
        request = Request(  # noqa: S310
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urlopen(request, timeout=60) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else None

    def wait_until_ready(self, process: subprocess.Popen) -> None:
        last = time.monotonic() + START_SECONDS
        while time.monotonic() < last:
            assert process.poll() is None, (self.folder / "lab.log").read_text()
            try:
                self.ask("/api/status")
                return
            except OSError:
                time.sleep(0.3)
        raise TimeoutError((self.folder / "lab.log").read_text())

    def open_notebook(self, page: Page, name: str, cells: list[str]) -> "OpenNotebook":
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.folder / name)
        page.goto(f"{self.url}/lab/workspaces/{Path(name).stem}/tree/{name}?reset&token={self.token}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=RUN_MS)
        opened = OpenNotebook(self, page, name)
        opened.wait_until_idle()
        return opened


class OpenNotebook:
    """A notebook in the browser, with a second line to its kernel that reads what the tests check."""

    def __init__(self, lab: Lab, page: Page, name: str) -> None:
        self.lab, self.page, self.name = lab, page, name

    @property
    def kernel_id(self) -> str:
        (session,) = [found for found in self.lab.ask("/api/sessions") if found["path"] == self.name]
        return session["kernel"]["id"]

    def wait_until_idle(self) -> None:
        """Wait until the status bar says so: only then is the page connected to the kernel."""
        status = self.page.locator("#jp-main-statusbar")
        expect(status).to_contain_text("Python 3 (ipykernel) | Idle")

    def run_cell(self, number: int) -> Locator:
        """Run a cell as a user does; returns its place in the page when the kernel is done."""
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        prompt = cell.locator(".jp-InputPrompt").first
        expect(prompt).to_have_text(EXECUTED, timeout=RUN_MS)
        return cell

    def run_cell_again(self, number: int) -> Locator:
        """Run a cell after its kernel was restarted, when the page has noticed."""
        self.wait_until_idle()
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)
        old = cell.locator(".mask-canvas, .review-grid").first.element_handle()
        self.run_cell(number)
        self.page.wait_for_function("old => !old || !old.isConnected", arg=old, timeout=RUN_MS)
        return cell

    def ask_kernel(self, code: str, expression: str = "None") -> object:
        """Run code in the notebook's kernel and give the value of a JSON-able expression."""
        client = BlockingKernelClient()
        client.load_connection_file(str(self.lab.folder / ".runtime_dir" / f"kernel-{self.kernel_id}.json"))
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            answer = client.execute_interactive(
                code,
                store_history=False,
                user_expressions={"asked": f"__import__('json').dumps({expression})"},
                output_hook=lambda message: None,
                timeout=60,
            )["content"]
        finally:
            client.stop_channels()
        assert answer["status"] == "ok", answer
        asked = answer["user_expressions"]["asked"]
        assert asked["status"] == "ok", asked
        return json.loads(ast.literal_eval(asked["data"]["text/plain"]))

    def restart_kernel(self) -> None:
        """Restart through the menu, as a user does."""
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.locator(".lm-Menu-item[data-command='kernelmenu:restart']").click()
        self.page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
        self.wait_until_idle()

    def freeze_kernel(self) -> int:
        """Let the kernel answer no more, without JupyterLab noticing; returns its process."""
        process = self.ask_kernel("import os", "os.getpid()")
        os.kill(process, signal.SIGSTOP)
        return process

    def kill_kernel(self, process: int) -> None:
        """End a frozen kernel, as a full memory does; JupyterLab says so and starts a new one."""
        os.kill(process, signal.SIGKILL)
        self.page.locator(".jp-Dialog").get_by_role("button", name="Ok").click()

    def take_screenshot(self, name: str) -> Path:
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path
