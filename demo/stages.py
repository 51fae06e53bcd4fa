"""The stages of the demo that make the model: data, tokenizers, tokens, pretraining, alignment, embeddings, index.

Each calls what the command of the same name calls. A stage that was interrupted goes on where it stood, one that is
done is passed over.
"""

from pathlib import Path

from ..data.dataset import ObservationDataset
from ..data.dataset_writer import DatasetWriter
from ..data.simulation.write_sky import write_simulated_dataset
from ..serving.index.build_index import build_index
from ..training.align import AlignSettings, align
from ..training.embed import EmbedSettings, embed
from ..training.pretrain import PretrainSettings, pretrain
from ..training.tokenize import TokenizeSettings, tokenize
from ..training.tokenizers import TrainTokenizerSettings, train_tokenizer
from .real_observations import read_all
from .settings import DemoSettings
from .split import write_demo_parts

REAL_PIECE = "real observations"


def make_data(folder: Path, settings: DemoSettings) -> None:
    """Simulate the sky, read the real files, and split the objects."""
    write_simulated_dataset(settings.sky, folder / "data")
    # The real HSC field and the MaNGA spectra come without positions.
    with DatasetWriter(folder / "data", allow_unplaced=True) as writer:
        if not writer.has_piece(REAL_PIECE):
            with writer.piece(REAL_PIECE):
                for observation in read_all(settings.sky.image_sizes["image/hsc"]):
                    writer.write(observation)
    write_demo_parts(folder / "parts", ObservationDataset(folder / "data"), settings.split)


def train_tokenizers(folder: Path, settings: DemoSettings) -> None:
    """Train the image and the spectrum tokenizer, and fit the scalar one."""
    sizes = settings.tokenizers
    common = {"data": str(folder / "data"), "held_out": str(folder / "parts" / "held-out.txt")}
    for kind, loop in (("image", sizes.image_loop), ("spectrum", sizes.spectrum_loop), ("scalar", None)):
        run = folder / "tokenizers" / kind
        if (run / "tokenizer" / "config.json").is_file():
            continue
        chosen = {"kind": kind, "run": str(run), kind: getattr(sizes, kind), "prior": sizes.image_prior}
        if loop is not None:
            chosen["loop"] = loop
        train_tokenizer(TrainTokenizerSettings.model_validate({**common, **chosen}))


def make_tokens(folder: Path, settings: DemoSettings) -> None:
    """Tokenize all observations, images in as many ways as alignment is to see them."""
    tokenize(
        TokenizeSettings(
            data=str(folder / "data"),
            tokenizers=str(folder / "tokenizers"),
            tokens=str(folder / "tokens"),
            turns=settings.align.turns,
        )
    )


def pretrain_model(folder: Path, settings: DemoSettings) -> None:
    """Pretrain the masked transformer."""
    stage = settings.pretrain
    pretrain(
        PretrainSettings.model_validate(
            {
                "tokens": str(folder / "tokens"),
                "tokenizers": str(folder / "tokenizers"),
                "run": str(folder / "pretrain"),
                "held_out": str(folder / "parts" / "held-out.txt"),
                **stage.model_dump(),
            }
        )
    )


def align_model(folder: Path, settings: DemoSettings) -> None:
    """Train the contrastive head; objects of validation choose its best state."""
    align(
        AlignSettings.model_validate(
            {
                "checkpoint": str(folder / "pretrain" / "checkpoint"),
                "tokens": str(folder / "tokens"),
                "run": str(folder / "align"),
                "held_out": str(folder / "parts" / "held-out.txt"),
                "validation": str(folder / "parts" / "validation.txt"),
                **settings.align.model_dump(),
            }
        )
    )


def embed_objects(folder: Path, settings: DemoSettings) -> None:
    """Embed every image and spectrum."""
    embed(
        EmbedSettings(
            checkpoint=str(folder / "align" / "checkpoint"),
            tokens=str(folder / "tokens"),
            embeddings=str(folder / "embeddings"),
        )
    )


def index_objects(folder: Path, settings: DemoSettings) -> None:
    """Build the index of all objects; labels are those of the training objects alone."""
    build_index(
        folder / "embeddings",
        folder / "index",
        folder / "data",
        held_out=folder / "parts" / "held-out.txt",
        validation=folder / "parts" / "validation.txt",
    )
