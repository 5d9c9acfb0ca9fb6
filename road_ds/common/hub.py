"""Model names to folders: the embedded sample, a folder on disk, or a repository of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from road_ds.common.errors import RoadError, first_line
from road_ds.common.log import is_main, warn
from road_ds.common.sealed import Fingerprint, Manifest, check, fingerprints, read_manifest, write_manifest
from road_ds.common.strict_json import quote

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample_data"


HUB_NAME = re.compile(r"([A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?")


EXPORTED = "road_files.json"  # beside config.json: what every file was when it was exported
TASK_FILE = "road_task.json"  # beside config.json: how the head's rows are encoded and its logits read
ENCODER = "encoder"  # the folder beside the heads' that has the encoder which they share, where they share one


@contextmanager
def readable(name: str, about: str = "") -> Iterator[None]:
    """RoadError where a name cannot be looked up: no permission, no such home, too long, a NUL."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RoadError(f"{about}{quote(name)}: cannot be read: {why}") from None


def sample_path(name: str) -> Path:
    """The file or folder that `sample:NAME` stands for. RoadError when the embedded sample has no such entry."""
    with readable(f"sample:{name}"):
        path = (SAMPLE / name).resolve()
        found = SAMPLE in path.parents and path.exists()
    if not found:
        known = ", ".join(
            sorted(p.name for p in SAMPLE.iterdir() if p.suffix not in (".py", ".md") and p.name[0] not in "_.")
        )
        raise RoadError(f"sample:{name}: the embedded sample has no {name!r}; it has {known}")
    return path


def expanded(name: str | Path, about: str = "") -> Path:
    """The path that a user means, `~` written out; about: the setting, for the RoadError where there is no such home."""
    with readable(str(name), about):
        return Path(name).expanduser()


def local_file(name: str) -> Path:
    """The path of a data file: `sample:NAME` inside the embedded sample, anything else as it is."""
    if name.startswith("sample:"):
        return sample_path(name.removeprefix("sample:"))
    return expanded(name)


def trained_heads(name: str) -> dict[str, Path]:
    """The models that a run folder holds, by head; nothing for a name that is no run folder."""
    with readable(name):
        folder = Path(name).expanduser() / "model"
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        models = [path for path in found if (path / "config.json").exists()]
    return {path.name: path for path in models if path.name != ENCODER or (path / TASK_FILE).exists()}


def head_folder(name: str, head: str) -> str:
    """The model that a name means: a run folder's model for this head (or its only one), anything else as it is."""
    heads = trained_heads(name)
    if head not in heads and len(heads) > 1:
        raise RoadError(
            f"{name}: the run has {f'no model for the head {head}' if head else 'several models'}: "
            f"name one of {', '.join(map(str, heads.values()))}"
        )
    return str(heads.get(head) or next(iter(heads.values()), name))


def model_folder(name: str, *, weights: bool = True) -> Path:
    """The folder with a model's config, tokenizer and, if asked for, weights; downloaded to the hub's cache if need be.

    `name` is `sample:NAME`, a folder, or a hub name with an optional revision (`org/name@revision`). A run folder
    stands for the first of its heads: they share encoder and tokenizer. Only safetensors
    weights are fetched. RoadError for an unknown name, an unreachable hub and a gated repository.
    """
    if name.startswith("sample:"):
        return sample_path(name.removeprefix("sample:"))
    heads = trained_heads(name)
    with readable(name):
        folder = next(iter(heads.values()), Path(name).expanduser())
        there = folder.is_dir()
        whole = (folder / "config.json").exists() or (folder / "tokenizer_config.json").exists()
    if there and not whole:
        raise RoadError(
            f"{name}: the folder holds no config.json: expected a Hugging Face model folder{models_below(folder)}"
        )
    if there:
        return folder
    if not HUB_NAME.fullmatch(name):
        raise RoadError(f"{name}: no such folder, and not a hub name (org/name): check the path")
    return _download(name, weights)


def models_below(folder: Path) -> str:
    """Which folders inside hold a model, for an error about one that does not."""
    weights = sorted(file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/model*.safetensors"))
    found = list(dict.fromkeys(str(file.parent) for file in weights if (file.parent / "config.json").exists()))
    return f"; there is {'one' if len(found) == 1 else 'a model each'} in {', '.join(found[:8])}" if found else ""


def note_files(folder: Path, *beside: str) -> None:
    """Writes down what the files of an exported folder are, all but its model card, and those beside it that it reads."""
    files = fingerprints(folder) | {name: Fingerprint.of(folder / name) for name in beside}
    files.pop("README.md", None)
    write_manifest(folder / EXPORTED, Manifest(files=files))


def warn_of_changes(folder: Path) -> None:
    """Names the files of an exported folder that are not as they were exported: changed on purpose, or damaged."""
    if not is_main() or not (folder / EXPORTED).exists():
        return
    try:
        manifest = read_manifest(folder / EXPORTED, Manifest)
    except RoadError as error:
        warn(f"{error}: whether the model is as it was exported cannot be told")
        return
    for name, written in manifest.files.items():
        try:
            check(folder / name, written)
        except RoadError as error:
            warn(f"{error}: not as it was exported")


def _download(name: str, weights: bool) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.txt", "*.model"] + (["*.safetensors"] if weights else [])
    use_folder = "or give a folder that holds config.json, the tokenizer and model.safetensors instead of the name"
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except HFValidationError:
        raise RoadError(f"{name}: no such folder, and not a hub name (org/name): check the path") from None
    except GatedRepoError:
        raise RoadError(
            f"{name}: the repository is gated: accept its terms on the hub and log in with `hf auth login`, {use_folder}"
        ) from None
    except RevisionNotFoundError:
        raise RoadError(
            f"{name}: the repository has no revision {revision!r}: leave @{revision} out, {use_folder}"
        ) from None
    except RepositoryNotFoundError:
        raise RoadError(
            f"{name}: no such folder and no such model on the hub (or it is private): check the spelling, {use_folder}"
        ) from None
    except LocalEntryNotFoundError:
        raise RoadError(
            f"{name}: no such folder, and the hub cannot be reached and the model is not in its cache: connect, {use_folder}"
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise RoadError(
            f"{name}: the download failed ({(str(error).splitlines() or [type(error).__name__])[0]}): try again, {use_folder}"
        ) from None


def upload(folder: Path, name: str, private: bool) -> str:
    """Uploads a folder's files to a hub's model repository, made where it is not there; its address.

    RoadError for a name that is none, without a login, and where the hub refuses; nothing of the login is in it.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise RoadError(f"{quote(name)}: no hub name: expected ORG/NAME of letters, digits, - _ .") from None
    if "/" not in name:
        raise RoadError(f"{name}: whose? expected ORG/NAME, with your own name for ORG where it is yours")
    disable_progress_bars()
    api = HfApi(library_name="road_ds")
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=[".*"], commit_message="Trained with road_ds"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise RoadError(
                f"{name}: not logged in, or by a token that is not known: `hf auth login` (HF_TOKEN)"
            ) from None
        if status == 403:
            raise RoadError(f"{name}: this login may not write there: give a token that may, or another name") from None
        raise RoadError(f"{name}: the hub refuses it: {first_line(error)}") from None
    except (httpx.HTTPError, OSError, ValueError) as error:  # of a card that the hub does not take, too
        raise RoadError(f"{name}: the upload failed: {first_line(error)}: try again") from None
    return str(address)
