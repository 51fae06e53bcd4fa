"""Pushing a dataset to the Hugging Face Hub: its files as they are, and a card by which `datasets` reads them.

The card names one configuration for each modality: `datasets.load_dataset("owner/name", "image--hsc")`. What lies on
the Hub opens as a dataset of ours again (`huggingface_hub.snapshot_download`), and as HATS catalogues in LSDB.
"""

from pathlib import Path

from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HTTPError

from .dataset import ObservationDataset
from .hats_catalogue import DATASET_FOLDER, UNPLACED_FOLDER
from .modalities import Modality
from .observations import ObservationError

CARD = "README.md"

_KINDS = ("coefficients", "image", "scalar", "spectrum")
_LOCAL_FILES = ("*pieces.json", ".*", "*/.*", CARD)
"""Not pushed as they are: which local files the dataset was made from, what writers leave, and the card."""
_MOST_PROBLEMS = 10
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
"""The Hub's categories of a number of rows: below 10^3, 10^4, ..."""


class PublishError(RuntimeError):
    """The Hub refused, or could not be reached; the message says what it answered."""


def push_to_hub(
    dataset_folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Push a dataset folder to the dataset repository `owner/name`, made if there is none; returns its address.

    The folder is validated first, all of it. Catalogues of the repository that the folder does not have are deleted
    there (its history keeps them), so that no pixel is counted twice. A README.md in the folder is kept as the card's
    text. Pushing the same folder again goes on where an interrupted push ended. `revision` is a branch, made if there
    is none; `token` defaults to the one `hf auth login` has saved; `api` replaces the Hub's client.

    Raises ObservationError on an invalid dataset, and PublishError if the Hub refuses, or if the repository is public
    already and `private` was not set to False.
    """
    from .validate import validate_dataset  # reads every file: only this function needs it

    folder = Path(dataset_folder)
    problems = validate_dataset(folder)
    if problems:
        shown = [f"  {problem}" for problem in problems[:_MOST_PROBLEMS]]
        more = [f"  and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ObservationError("\n".join([f"{folder}: not a valid dataset, nothing was pushed", *shown, *more]))
    card = dataset_card(folder, repo_id)
    api = api or HfApi(token=token)
    try:
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True, token=token)
        if private and not api.repo_info(repo_id, repo_type="dataset", token=token).private:
            raise PublishError(f"{repo_id}: exists already and is public; to push there, set private=False")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True, token=token)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            revision=revision,
            token=token,
            commit_message="Dataset of Armillary",
            allow_patterns=[f"{kind}/*" for kind in _KINDS],
            ignore_patterns=list(_LOCAL_FILES),
            delete_patterns=[f"{kind}/*" for kind in _KINDS],
        )
        api.upload_file(  # last: what the card promises is there
            path_or_fileobj=card.encode(),
            path_in_repo=CARD,
            repo_id=repo_id,
            repo_type="dataset",
            revision=revision,
            token=token,
            commit_message="Card",
        )
    except (HTTPError, OSError, ValueError) as error:
        raise PublishError(f"{repo_id}: {type(error).__name__}: {error}") from error
    return str(address)


def dataset_card(dataset_folder: str | Path, repo_id: str | None = None) -> str:
    """The card of a dataset folder: README.md with one configuration for each modality.

    The text is that of a README.md in the folder, where there is one; only its `configs` are set. Raises
    ObservationError if the folder is no dataset.
    """
    folder = Path(dataset_folder)
    dataset = ObservationDataset(folder)
    own = folder / CARD
    text = own.read_text(encoding="utf-8") if own.is_file() else _text(dataset, repo_id or "<owner>/<name>")
    card = DatasetCard(text if text.startswith("---") else f"---\nconfigs: []\n---\n\n{text}")
    card.data.configs = [_configuration(folder, modality) for modality in dataset.modalities]
    if not own.is_file():
        card.data.tags = ["astronomy", "hats", "armillary"]
        card.data.size_categories = [_size(max(dataset.num_objects(m.name) for m in dataset.modalities))]
    return str(card)


def _configuration(folder: Path, modality: Modality) -> dict[str, object]:
    patterns = [f"{modality.name}/{DATASET_FOLDER}/**/*.parquet"]
    if any((folder / modality.name / UNPLACED_FOLDER).glob("*.parquet")):
        patterns.append(f"{modality.name}/{UNPLACED_FOLDER}/*.parquet")
    is_placed = any((folder / modality.name / DATASET_FOLDER).rglob("*.parquet"))
    paths = patterns if is_placed else patterns[1:]
    return {"config_name": configuration_name(modality), "data_files": [{"split": "train", "path": paths}]}


def configuration_name(modality: Modality) -> str:
    """What `datasets` calls a modality: names of configurations may not have a slash."""
    return modality.name.replace("/", "--")


def _text(dataset: ObservationDataset, repo_id: str) -> str:
    rows = [
        f"| `{configuration_name(m)}` | {dataset.num_objects(m.name):,} | {m.unit} | {m.description} |"
        for m in dataset.modalities
    ]
    first = configuration_name(dataset.modalities[0])
    return "\n".join(
        [
            f"# {repo_id.split('/')[-1]}",
            "",
            "Observations of objects on the sky: one HATS catalogue (Parquet by HEALPix pixel) for each modality, with",
            "`object_id`, `ra` and `dec` (degrees, ICRS) in every row. Masks are True where a value is valid. Shapes,",
            "bands and the instrument's card are JSON in the metadata of every file.",
            "",
            "| configuration | objects | unit | what |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "```python",
            "import datasets, huggingface_hub, lsdb",
            "from armillary.data.dataset import ObservationDataset",
            "",
            f'table = datasets.load_dataset("{repo_id}", "{first}", split="train", streaming=True)',
            f'catalogue = lsdb.open_catalog("hf://datasets/{repo_id}/{dataset.modalities[0].name}")',
            f'dataset = ObservationDataset(huggingface_hub.snapshot_download("{repo_id}", repo_type="dataset"))',
            "```",
            "",
        ]
    )


def _size(count: int) -> str:
    return next((name for power, name in enumerate(_SIZES, start=3) if count < 10**power), "other")
