"""Where files are kept on this machine, and how they come there."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from pathlib import Path

from robseg.errors import UserError
from robseg.home import home

HUB_FILE = re.compile(r"hf:([\w.-]+/[\w.-]+)/(.+)")
URL = re.compile(r"(https?):/{1,2}(.+)")  # One slash where a path library has joined the two.


def stored_weights(name: str) -> Path | None:
    """The file with the weights of the named model that lies in the folder of models, if there is one."""
    places = (home() / "models" / f"{name}{suffix}" for suffix in (".safetensors", ".pth", ".pt"))
    return next((path for path in places if path.is_file()), None)


def fetch(source: str) -> Path:
    """The file that a checkpoint is named by, on this machine.

    source: a path; a URL (http or https); or hf:OWNER/NAME/FILE for a file of the Hugging Face Hub. The latter two may
        end in #sha256=<hex digits>, and are downloaded once.

    Raises UserError where the download fails, saying where else the file can be put, or has another sha256. A path is
    returned as it is.
    """
    if Path(source).exists():
        return Path(source)
    address, _, wanted = source.partition("#sha256=")
    url, hub = URL.fullmatch(address), HUB_FILE.fullmatch(address)
    if url:
        path = _download(f"{url[1]}://{url[2]}")
    elif hub:
        path = _hub_file(hub[1], hub[2])
    else:
        return Path(source)
    if wanted and (found := sha256_of(path)) != wanted.lower():
        raise UserError(f"The file of '{address}' has the sha256 {found}, not {wanted}; it was changed or damaged.")
    return path


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_folder(name: str, revision: str | None) -> Path:
    """The files of a model of the Hugging Face Hub, from the cache or the network; UserError where neither has it."""
    import huggingface_hub

    try:
        place = _snapshot(name, revision, ["*.json", "*.txt", "*.safetensors"])
        if not any(place.glob("*.safetensors")):
            place = _snapshot(name, revision, ["*.json", "*.txt", "*.bin"])
        return place
    except Exception as error:
        # The client raises a dozen kinds, of its own, of its HTTP library and of the operating system.
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise UserError(
                f"There is no folder '{name}', and the Hugging Face Hub has no model '{name}' that you may read "
                f"(HTTP {status}); check the name, or log in with 'hf auth login'."
            ) from error
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise UserError(
            f"'{name}' is no folder, is not in the Hugging Face cache ({cache}), and the Hub cannot be reached; put "
            f"config.json, preprocessor_config.json and model.safetensors of https://huggingface.co/{name} into a "
            "folder and name that as hf:FOLDER."
        ) from error


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        if (cached / "config.json").is_file() and any(cached.glob(patterns[-1])):
            return cached
    except (OSError, ValueError):
        pass  # Not in the cache: ask the network.
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _hub_file(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:
        raise UserError(
            f"'{file}' of the Hub's '{name}' is not in the Hugging Face cache and cannot be fetched "
            f"({type(error).__name__}); download it from https://huggingface.co/{name} and give its path."
        ) from error


def _download(url: str) -> Path:
    folder = home() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", url.split("?")[0].rstrip("/").rpartition("/")[2]) or "file"
    path = folder / name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}.part"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
        os.replace(part, path)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)).splitlines()[0]
        raise UserError(
            f"'{url}' cannot be downloaded ({reason}); fetch the file by other means and give its path, or put it at "
            f"{path}."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path
