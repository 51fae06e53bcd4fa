"""`armillary submit chain`: stages that follow each other, as jobs of which each waits for others' success."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import Field

from ..settings import Settings, SettingsError, find_config, load_settings
from .cluster_profile import ClusterProfile
from .job_script import Resources
from .stages import STAGES, CheckedStage, check_stage
from .submit import PreparedJob, SubmitError, submit, write_script


class ChainStage(Settings):
    """One stage of a chain."""

    stage: str
    name: str | None = None
    """What other stages call it; by default its stage."""
    config: str | tuple[str, ...] = ()
    """Settings file; several tokenizers are the tasks of an array."""
    words: tuple[str, ...] = ()
    """Arguments of `index`."""
    overrides: tuple[str, ...] = ()
    """`section.key=value`."""
    resources: Resources = Resources()
    after: tuple[str, ...] | None = None
    """Names of the stages that must have succeeded; by default the stage before."""

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or self.stage

    @property
    def arguments(self) -> tuple[str, ...]:
        """As on the command line of `armillary submit`."""
        configs = (self.config,) if isinstance(self.config, str) else self.config
        return (*configs, *self.words, *self.overrides)


class ChainSettings(Settings):
    """Stages, in the order in which they are submitted."""

    stages: tuple[ChainStage, ...] = Field(min_length=1)


@dataclass(frozen=True)
class ChainLink:
    """A stage of a chain, checked, with the names of those it waits for."""

    name: str
    after: tuple[str, ...]
    checked: CheckedStage


@dataclass(frozen=True)
class SubmittedLink:
    """A stage of a chain and its job; the number is None where nothing was submitted."""

    name: str
    after: tuple[str, ...]
    job: PreparedJob
    number: str | None


def read_chain(
    path: str, cluster: ClusterProfile, check_index: Callable[[Sequence[str]], object], first: str | None = None
) -> list[ChainLink]:
    """All stages of a chain from `first` on, checked before any is submitted. Raises SettingsError.

    What comes before `first` is taken as done: nothing waits for it.
    """
    found = find_config(path)
    stages = load_settings(ChainSettings, found).stages
    names = [stage.label for stage in stages]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise SettingsError(f"{found}: two stages are called {doubled[0]!r}; give them a `name`")
    if first is not None and first not in names:
        raise SettingsError(f"{found}: --from {first}: no such stage; there are {', '.join(names)}")
    begin = 0 if first is None else names.index(first)
    links = []
    for index, stage in enumerate(stages):
        after = stage.after if stage.after is not None else tuple(names[max(0, index - 1) : index])
        unknown = [name for name in after if name not in names[:index]]
        if unknown:
            raise SettingsError(f"{found}: {stage.label}: after {unknown[0]!r}: no stage before it has this name")
        if index < begin:
            continue
        try:
            checked = _check(stage, cluster, check_index)
        except SettingsError as error:
            raise SettingsError(f"{found}: stage {stage.label}: {error}") from None
        links.append(ChainLink(stage.label, tuple(name for name in after if name in names[begin:]), checked))
    return links


def submit_chain(links: Sequence[ChainLink], cluster: ClusterProfile, dry_run: bool = False) -> list[SubmittedLink]:
    """Submit the stages; each waits for the success of those it comes after, and is cancelled if one of them fails.

    Raises SubmitError, which says what has been submitted by then.
    """
    submitted: list[SubmittedLink] = []
    numbers: dict[str, str] = {}
    for link in links:
        options: dict[str, str | None] = {}
        if link.after:
            waits = ":".join(numbers.get(name, f"<{name}>") for name in link.after)
            own = link.checked.resources.dependency
            options = {"dependency": f"afterok:{waits}" + (f",{own}" if own else ""), "kill-on-invalid-dep": "yes"}
        job = write_script(link.checked, cluster, options)
        number = None
        if not dry_run:
            try:
                number = submit(job)
            except SubmitError as error:
                sent = " ".join(numbers.values())
                note = f"; submitted before it, and waiting: {sent} (scancel {sent})" if sent else ""
                raise SubmitError(f"stage {link.name}: {error}{note}") from None
            numbers[link.name] = number
        submitted.append(SubmittedLink(link.name, link.after, job, number))
    return submitted


def _check(stage: ChainStage, cluster: ClusterProfile, check_index: Callable[[Sequence[str]], object]) -> CheckedStage:
    if stage.stage not in STAGES:
        raise SettingsError(f"no stage {stage.stage!r}; there are {', '.join(STAGES)}")
    if stage.words and stage.stage != "index":
        raise SettingsError("words are for index; other stages have `config` and `overrides`")
    return check_stage(stage.stage, stage.arguments, stage.resources, cluster, check_index)
