"""fer download: gets FER2013 from Kaggle through the user's own account."""

import os
import re
import shutil
from pathlib import Path

from fer import UserError, config, extra
from fer.files import write
from fer.run import make_folder

COMPETITION = "challenges-in-representation-learning-facial-expression-recognition-challenge"
ACCOUNT = (
    "create a token at kaggle.com/settings, then set KAGGLE_USERNAME and KAGGLE_KEY or put "
    "kaggle.json into ~/.kaggle"
)


def run(cfg: config.DownloadConfig, given_keys: list[str]) -> None:
    competition = cfg.source == "competition"
    if not competition and not re.fullmatch(r"[\w-]+/[\w-]+", cfg.source):
        raise UserError(
            f"source={cfg.source}: should be competition, or OWNER/NAME of a data set on Kaggle"
        )
    with extra("download", "download"):
        import kagglehub
        from kagglehub.exceptions import CredentialError, KaggleApiHTTPError, UnauthenticatedError
    fetch = kagglehub.competition_download if competition else kagglehub.dataset_download
    try:
        downloaded = Path(fetch(COMPETITION if competition else cfg.source))
    except (UnauthenticatedError, CredentialError):
        raise UserError(f"download: not logged in to Kaggle; {ACCOUNT}") from None
    except KaggleApiHTTPError as error:
        rules = f"accept the rules at kaggle.com/c/{COMPETITION} first, and " if competition else ""
        raise UserError(
            f"download: Kaggle refused ({str(error).splitlines()[0][:100]}); {rules}{ACCOUNT}"
        ) from None
    except OSError as error:
        raise UserError(
            f"download: cannot reach Kaggle ({type(error).__name__}); try again later"
        ) from None
    out = make_folder(Path(cfg.out))
    names = sorted(entry.name for entry in downloaded.iterdir())
    existing = [name for name in names if os.path.lexists(out / name)]
    if existing:
        raise UserError(
            f"{out / existing[0]}: already exists; move it away, or choose another folder with out="
        )
    shutil.copytree(downloaded, out, dirs_exist_ok=True, copy_function=copy_file)
    print(f"{', '.join(names)} in {out}\nnext:\n  fer inspect data.path={out}")


def copy_file(source: str, target: str) -> str:
    """Copy a file, whole or not at all."""
    with Path(source).open("rb") as content:
        write(target, lambda file: shutil.copyfileobj(content, file))
    return target
