"""fer download: FER2013 from Kaggle, through the user's own account. Knows nothing of what the
files hold.
"""

import re
import shutil
from pathlib import Path

from fer import UserError, config, extra
from fer.run import make_folder

COMPETITION = "challenges-in-representation-learning-facial-expression-recognition-challenge"
ACCOUNT = (
    "make a token at kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY, or put its "
    "kaggle.json into ~/.kaggle"
)


def run(cfg: config.DownloadConfig, typed: list[str]) -> None:
    competition = cfg.source == "competition"
    if not competition and not re.fullmatch(r"[\w-]+/[\w-]+", cfg.source):
        raise UserError(f"source={cfg.source}: should be competition, or OWNER/NAME of a data set")
    with extra("download", "download"):
        import kagglehub
        from kagglehub.exceptions import CredentialError, KaggleApiHTTPError, UnauthenticatedError
    fetch = kagglehub.competition_download if competition else kagglehub.dataset_download
    try:
        found = Path(fetch(COMPETITION if competition else cfg.source))
    except (UnauthenticatedError, CredentialError):
        raise UserError(f"download: Kaggle does not know you; {ACCOUNT}") from None
    except KaggleApiHTTPError as error:
        rules = f"accept the rules at kaggle.com/c/{COMPETITION} first, and " if competition else ""
        raise UserError(
            f"download: Kaggle refused ({str(error).splitlines()[0][:100]}); {rules}{ACCOUNT}"
        ) from None
    except OSError as error:
        raise UserError(
            f"download: Kaggle cannot be reached ({type(error).__name__}); try again later"
        ) from None
    out = make_folder(Path(cfg.out))
    names = sorted(entry.name for entry in found.iterdir())
    if there := [name for name in names if (out / name).exists()]:
        raise UserError(
            f"{out / there[0]}: exists already; move it away, or choose another folder with out="
        )
    shutil.copytree(found, out, dirs_exist_ok=True)
    print(f"{', '.join(names)} in {out}\nnext:\n  fer inspect data.path={out}")
