"""What the run command shows while the platform starts, and once it runs."""

from __future__ import annotations

import time

from rich.console import Console

from mixpeek_ray.cli.events import Event, Failed, Progress, Ready
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.settings import Settings


class Reporter:
    """Prints a line a step to standard output, and failures to standard error."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = RunPaths.of(settings.home_path)
        self._console = Console(soft_wrap=True, highlight=False)
        self._errors = Console(soft_wrap=True, highlight=False, stderr=True)
        self._started_s = time.monotonic()

    def event(self, event: Event) -> None:
        """Show ``event``."""
        match event:
            case Progress(step=step):
                self._console.print(f"[dim]{self._elapsed()}[/dim] {step} …")
            case Ready():
                self._ready(event)
            case Failed(message=message):
                self.failed(message)

    def failed(self, message: str) -> None:
        """Show why the platform does not run."""
        self._errors.print(message, markup=False, style="red")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started_s:5.1f} s"

    def _ready(self, ready: Ready) -> None:
        self._console.print(f"[dim]{self._elapsed()}[/dim] [green]Ready.[/green]")
        rows = [("API", ready.api_url), ("Documentation", f"{ready.api_url}/docs")]
        if self._settings.dev_organization:
            rows += [
                ("API key", str(self._settings.dev_key_path)),
                ("Namespace", "any name; it is made on first use, for example ns_abc123"),
            ]
        rows += [
            ("Ray dashboard and jobs", ready.dashboard_url),
            ("Second shell", f"source {self._paths.exports}"),
            ("Log", str(self._paths.log)),
            ("Stop", "Ctrl-C here, or `mixpeek-ray down`"),
        ]
        for label, value in rows:
            self._console.print(f"  {label:<23}", end="")
            self._console.print(value, markup=False)
