"""What of the catalogue is to be fetched, and from where: the hub's own listing says files, sizes and sums.

huggingface_hub asks the hub (HF_ENDPOINT, HF_TOKEN and the login it keeps); the bytes go through m3esr/transfer.py,
because that library starts a broken download again from its beginning.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3esr.errors import UserError
from m3esr.transfer import LOGIN, RemoteFile
from models import receipts
from models.catalogue import choose_files, is_there, matches_sum
from models.sources import FILE, Part, Source


@dataclass(frozen=True)
class Plan:
    """The files of one source that are not there yet. commit: the hub's revision they come from; "" elsewhere."""

    source: Source
    files: tuple[RemoteFile, ...]
    commit: str = ""

    def bytes_left(self, root: Path) -> int:
        """What has still to be fetched into the models folder."""
        return sum(file.bytes_left(root / self.source.folder) for file in self.files)


def is_offline(asked: bool = False) -> bool:
    """Whether the hub must not be asked: --offline, or HF_HUB_OFFLINE as the hub's own library reads it."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def lacking_parts(root: Path, source: Source) -> list[Part]:
    """The parts of a source that are not in the models folder, or not wholly."""
    return [part for part in source.parts if not is_there(root / source.folder, part)]


def make_plans(root: Path, sources: Iterable[Source]) -> list[Plan]:
    """What to fetch, source by source; asks the hub. Raises UserError when it does not answer or refuses."""
    plans = []
    for source in sources:
        parts = lacking_parts(root, source)
        if not parts:
            continue
        if parts[0].url:
            files = [RemoteFile(part.path, part.url, part.num_bytes, bool(part.sha256), part.sha256) for part in parts]
            plans.append(Plan(source, tuple(files)))
        else:
            plans.append(_ask_hub(root, source, parts))
    return plans


def _ask_hub(root: Path, source: Source, parts: list[Part]) -> Plan:
    from huggingface_hub import HfApi, get_token, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint)
    info = _answer(source, lambda: api.model_info(source.folder, files_metadata=True))
    gate = _gate(source)
    if source.gate or info.gated:
        _answer(source, lambda: api.auth_check(source.folder))
    listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    files = []
    for part in parts:
        chosen = choose_files(part, listed)
        if not chosen:
            raise UserError(
                f"{source.folder} has nothing for '{part.path or 'its root'}' any more. See docs/weights.md for other "
                "ways to get it."
            )
        for path in chosen:
            url = hf_hub_url(source.folder, path, revision=info.sha, endpoint=endpoint)
            files.append(_remote(source, part, path, listed[path], url, headers, gate))
    kept = receipts.read(root / source.folder)
    return Plan(source, tuple(file for file in files if not _is_fetched(root, source, file, kept)), info.sha or "")


def _remote(
    source: Source, part: Part, path: str, sibling: Any, url: str, headers: dict[str, str], gate: str
) -> RemoteFile:
    known = part.sha256 if part.kind == FILE else ""
    sha256 = sibling.lfs.sha256 if sibling.lfs else known
    if known and not matches_sum(known, sha256):
        raise UserError(
            f"{source.folder}/{path} has changed on the hub since this version was made (sum {sha256}, expected "
            f"{part.sha256}). Nothing was fetched."
        )
    is_size_known = sibling.size is not None
    num_bytes = sibling.size if is_size_known else part.num_bytes
    git_sha1 = "" if sha256 else sibling.blob_id or ""
    return RemoteFile(path, url, num_bytes, is_size_known, sha256, git_sha1, headers, gate)


def _is_fetched(root: Path, source: Source, file: RemoteFile, kept: dict[str, receipts.FileRecord]) -> bool:
    # of a part that is half there, the whole files of the last pull
    record = kept.get(file.path)
    return bool(
        record
        and record.sha256
        and record.num_bytes == file.num_bytes
        and (not file.sha256 or matches_sum(file.sha256, record.sha256))
        and (root / source.folder / file.path).is_file()
    )


def _gate(source: Source) -> str:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    step = source.gate[:1].upper() + source.gate[1:] + ". " if source.gate else ""
    return f"{step}The page: {endpoint.rstrip('/')}/{source.folder}. Then: hf auth login, or set HF_TOKEN."


def _answer(source: Source, ask: Any) -> Any:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        return ask()
    except GatedRepoError as error:
        raise UserError(f"{source.folder} is gated and this login is not let in. {_gate(source)}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no {source.folder}, or shows it to nobody without a login. {LOGIN}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{source.folder}: the hub must not be asked (HF_HUB_OFFLINE)") from error
    except HfHubHTTPError as error:
        raise UserError(f"{source.folder}: the hub answers {error.response.status_code}") from error
    except Exception as error:
        # the library has changed its HTTP client twice; every one calls these so
        if "Connect" in type(error).__name__ or "Timeout" in type(error).__name__:
            raise UserError(
                f"{source.folder}: the hub does not answer ({error}). Is there a way out of this machine? A mirror: "
                "HF_ENDPOINT. Without any: docs/weights.md, 'Machines without a way out'."
            ) from error
        raise
