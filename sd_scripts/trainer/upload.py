"""Uploading saved files to the Hugging Face Hub. A failing upload warns; the file on the disk stays."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.trainer.reporting import Reporter


class Uploader:
    """Uploads to the repository that the options name; `async_upload` does it beside the training.

    The token comes from the option or the environment (HF_TOKEN) and is never printed.
    """

    def __init__(self, options: SavingOptions, reporter: Reporter, api: HfApi | None = None) -> None:
        self._repo = options.huggingface_repo_id or ""
        self._type = options.huggingface_repo_type or "model"
        self._folder = options.huggingface_path_in_repo
        self._private = options.huggingface_repo_visibility != "public"
        self._async = options.async_upload
        self._reporter = reporter
        self._api = api or HfApi(token=options.huggingface_token or os.environ.get("HF_TOKEN"))
        self._running: list[Thread] = []

    def check(self) -> None:
        """Make sure, before training, that the repository is there and may be written.

        Raises UserError when it cannot be reached or made.
        """
        try:
            self._api.create_repo(self._repo, repo_type=self._type, private=self._private, exist_ok=True)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise UserError(
                f"The repository '{self._repo}' cannot be reached or made: {_short(error)}",
                "huggingface_repo_id",
                "Check the name, the token and the network, or leave the upload out.",
            ) from error

    def upload(self, path: Path, *, is_last: bool) -> None:
        """Upload a file or folder under its name; the last one is waited for even with async_upload."""
        if self._async and not is_last:
            thread = Thread(target=self._upload, args=(path,), name=f"upload {path.name}")
            thread.start()
            self._running = [other for other in self._running if other.is_alive()] + [thread]
            return
        self.wait()
        self._upload(path)

    def wait(self) -> None:
        """Wait for uploads that run beside the training."""
        for thread in self._running:
            thread.join()
        self._running = []

    def _upload(self, path: Path) -> None:
        target = f"{self._folder.strip('/')}/{path.name}" if self._folder else path.name
        try:
            if path.is_dir():
                self._api.upload_folder(
                    repo_id=self._repo, repo_type=self._type, folder_path=str(path), path_in_repo=target
                )
            else:
                self._api.upload_file(
                    repo_id=self._repo, repo_type=self._type, path_or_fileobj=str(path), path_in_repo=target
                )
        except (HfHubHTTPError, OSError, ValueError) as error:
            message = f"{path.name} was saved but not uploaded: {_short(error)}"
            self._reporter.warn("upload", message, "It stays on the disk.", "huggingface_repo_id")
            return
        self._reporter.say(f"uploaded {path.name} to {self._repo}")


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
