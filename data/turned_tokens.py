"""Tokens of images that were turned: stores of the same objects beside those of the images as they were taken.

`<tokens>/turned/1` to `7` hold the images as `ImageObservation.turned` has them, and nothing else. Training draws among
them, so that a model learns from an object what stays when it is seen from another side.
"""

from pathlib import Path

from .token_shards import TokenStoreError
from .token_store import TokenStore


def turned_folder(tokens: str | Path, number: int) -> Path:
    """Where the tokens of images turned so lie."""
    return Path(tokens) / "turned" / str(number)


def open_turned(store: TokenStore, turns: int, tokens: str | Path | None = None) -> list[TokenStore]:
    """The stores of images in `turns` ways but the first, which is `store`'s. `tokens`: where `store` lies, if it is a
    copy of that. Raises TokenStoreError if one is missing, of other objects or by another tokenizer."""
    found = []
    for number in range(1, turns):
        folder = turned_folder(tokens or store.folder, number)
        if not folder.is_dir():
            raise TokenStoreError(
                f"{folder}: no tokens of turned images; expected {turns - 1} such stores. Tokenize with turns={turns}"
            )
        turned = TokenStore(folder)
        if turned.digest != store.digest:
            raise TokenStoreError(f"{folder}: its objects are not those of {store.folder}. Tokenize both anew.")
        for modality in turned.modalities:
            theirs, ours = turned.tokenizer_hashes[modality.name], store.tokenizer_hashes.get(modality.name)
            if theirs != ours:
                raise TokenStoreError(
                    f"{folder}: {modality.name} was made by tokenizer {theirs}, expected {ours} of {store.folder}"
                )
        found.append(turned)
    return found
