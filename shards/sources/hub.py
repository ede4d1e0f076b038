"""The files of a dataset or model on the Hugging Face Hub, at one commit."""

import json
import sys
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.folder import files_below
from shards.index import write_atomic
from shards.sources import needed

NAME = "source.json"
TYPES = ("dataset", "model")


def download(
    repo: str, out: Path, *, repo_type: str, revision: str | None, include: str | None
) -> str:
    """Fetch a repository's files into `out`, and note in source.json of which commit they are.

    A second start goes on with that commit, whatever was pushed since. A token is taken from the
    environment or where `hf auth login` keeps it. `include` are patterns with commas between.

    Returns:
        What was fetched.

    Raises:
        UserError: no such repository or revision, no access to it, nothing that is included, or
            `out` holds something else.
    """
    hub = needed("huggingface_hub")
    for part in ("errors", "utils"):  # no attributes of it before something has loaded them
        needed(f"huggingface_hub.{part}")
    if repo_type not in TYPES:
        raise UserError(f"--repo_type={repo_type}: one of {', '.join(TYPES)}")
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    asked = {"repo": repo, "type": repo_type, "revision": revision, "include": include}
    commit = noted(out, asked)
    try:
        commit = commit or resolve(hub, asked)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / NAME, json.dumps({**asked, "commit": commit}, indent=2).encode() + b"\n")
        hub.snapshot_download(
            repo,
            repo_type=repo_type,
            revision=commit,
            local_dir=out,
            allow_patterns=include.split(",") if include else None,
            ignore_patterns=NAME,
        )
    except hub.errors.HFValidationError as error:
        raise UserError(f"{repo}: no name of a repository ({error})") from None
    except (hub.errors.HTTPError, OSError, ValueError) as error:  # the last: of names
        if isinstance(error, OSError) and error.errno:  # the disk's
            raise
        raise UserError(f"{repo}: {told(hub, error, asked)}") from None
    count = sum(path != NAME for path in files_below(out))
    if not count:
        raise UserError(f"{repo}: no file fits --include={include}; see the repository's file list")
    return f"{count} files of {repo} at {commit} in {out}"


def noted(out: Path, asked: dict[str, Any]) -> str | None:
    """The commit of an earlier start, if it asked for the same."""
    try:
        there = json.loads((out / NAME).read_text(encoding="utf-8"))
        commit = str(there.pop("commit", ""))
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{out / NAME}: not ours to read; give another place") from None
    if there != asked:
        raise UserError(f"{out}: holds {there} at commit {commit}; give another place")
    return commit


def resolve(hub: Any, asked: dict[str, Any]) -> str:
    """The commit that a branch, a tag or nothing stands for now."""
    info = hub.HfApi().repo_info(asked["repo"], repo_type=asked["type"], revision=asked["revision"])
    return str(info.sha)


def told(hub: Any, error: Exception, asked: dict[str, Any]) -> str:
    """An error of the Hub in a line, with the way out; never a request, which carries the token."""
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return "gated; ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {asked['revision']!r}; give a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no such {asked['type']}, or a private one; check the name, --repo_type and HF_TOKEN"
        )
    return " ".join(str(error).split())[:200] + "; start again to go on"
