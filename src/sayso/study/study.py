"""Study: the only code that knows file names; docs/study-folder.md has the format."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sayso.base import files
from sayso.base.errors import UserError, quoted, unknown_name
from sayso.base.records import from_row, sampler_from_row
from sayso.base.types import SPLITS, Prompt, Sample
from sayso.study import sample_records
from sayso.study.generations import Generations
from sayso.study.identity import canonical_options, canonical_run, stored_model
from sayso.study.info import PromptChoice, StudyInfo, parse_info
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked

if TYPE_CHECKING:
    from PIL import Image

    from sayso.feedback.store import Feedback


class Study:
    """A study folder: stages read files of it and write others, and nothing else passes."""

    def __init__(self, path: Path, info: StudyInfo) -> None:
        self.path = path
        self.info = info

    @classmethod
    def create(cls, path: str | Path, info: StudyInfo) -> "Study":
        """Make a new study folder.

        Raises: UserError: if there is something at `path` already.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; a study is a folder: choose another path")
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} exists and is not empty; choose another path")
        path.mkdir(parents=True, exist_ok=True)
        files.write_json(path / "study.json", asdict(info))
        return cls(path, info)

    @classmethod
    def open(cls, path: str | Path) -> "Study":
        """Open an existing study folder.

        Raises: UserError: if there is none, it is a file, or of a newer format.
        """
        path = Path(path)
        if path.is_file():
            raise UserError(f"{path} is a file; give the study's folder")
        if not (path / "study.json").is_file():
            raise UserError(f"no study at {path}; make one with: sayso new {quoted(path)}")
        return cls(path, parse_info(path, files.read_json(path / "study.json")))

    def with_models(self, **places: str) -> "Study":
        """Write other places of `base_model` or `clip_model` into study.json."""
        info = replace(self.info, **places)
        files.write_json(self.path / "study.json", asdict(info))
        return Study(self.path, info)

    # prompts

    def prompts(self, which: PromptChoice = "all") -> list[Prompt]:
        """The prompts in file order: of one split, "test" (seen and unseen) or "all".

        Raises: UserError: if the study has no prompts at all, or two of one id.
        """
        rows = files.read_lines(self.path / "prompts.jsonl")
        if not rows:
            raise UserError(
                f"{self.path} has no prompts; make some with: sayso prompts {quoted(self.path)}"
            )
        where = self.path / "prompts.jsonl"
        placed = ((f"{where} line {n}", row) for n, row in enumerate(rows, 1))
        prompts = [
            from_row(Prompt, row, line) for line, row in sample_records.each_once("prompt", placed)
        ]
        splits = {"all": SPLITS, "test": ("seen", "unseen")}.get(which, (which,))
        return [p for p in prompts if p.split in splits]

    @property
    def has_prompts(self) -> bool:
        return (self.path / "prompts.jsonl").is_file()

    def write_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Write prompts.jsonl whole."""
        lines = [json.dumps(asdict(p), ensure_ascii=False) for p in prompts]
        files.write_bytes(self.path / "prompts.jsonl", ("\n".join(lines) + "\n").encode())

    def add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Append prompts to prompts.jsonl."""
        files.append_lines(self.path / "prompts.jsonl", [asdict(p) for p in prompts])

    # samples

    def samples(self, model: str | None = None) -> list[Sample]:
        """The records of all generated images, or of the model as it is now, oldest first.

        Args:
            model: its canonical name; images of an earlier model of that name are left out.
        Raises: UserError: if the model is a run that is not finished.
        """
        if model is not None:
            return Generations(self).of(model)
        return [self._sample(row, where) for where, row in sample_records.read_records(self.path)]

    def _sample(self, row: files.JsonObject, where: str) -> Sample:
        sampler = sampler_from_row(row.get("sampler"), where)
        sample = from_row(Sample, row | {"sampler": sampler}, where)
        model = stored_model(self, sample.model)
        return sample if model == sample.model else replace(sample, model=model)

    def add_samples(
        self,
        samples: Sequence[Sample],
        images: Sequence["Image.Image"],
        latents: Mapping[str, Any] | None = None,
        records: Path | None = None,
    ) -> None:
        """Keep one batch: images, then the shard of latents, then the records.

        The records come last and in one write, so a crash leaves no record without its files.
        `latents` maps sample id → tensor [c, h, w]; all samples of the batch name the same shard.
        Images that were not drawn here have none, and their samples name no shard. `records` is the
        file of one of several processes (`writers_file`); None = samples.jsonl.
        """
        for sample, image in zip(samples, images, strict=True):
            with files.new_file(self.path / sample.path, sync_name=False) as path:
                image.save(path, "PNG")
        files.sync_names(self.path / sample.path for sample in samples)
        if latents is not None:
            from safetensors.torch import save

            files.write_bytes(self.path / samples[0].latents, save(dict(latents)))
        records = records or self.path / sample_records.FILE
        files.append_lines(records, [asdict(s) for s in samples])

    @property
    def sample_files(self) -> list[Path]:
        """The files that hold the records of samples now."""
        return sample_records.record_files(self.path)

    def image_path(self, sample_id: str) -> str:
        """Where the image of a sample lives, relative to the study."""
        return f"images/{sample_id[:2]}/{sample_id}.png"

    def latents_path(self, batch_id: str) -> str:
        """Where the shard of latents of a batch lives, relative to the study."""
        return f"latents/{batch_id}.safetensors"

    def image(self, sample: Sample) -> "Image.Image":
        """The image, decoded, RGB.

        Raises: UserError: if the file is missing or not a whole picture.
        """
        from sayso.base.pictures import read_picture

        with self._refusing(sample) as path:
            return read_picture(path)

    def image_bytes(self, sample: Sample) -> bytes:
        """The image's file as it is, after its checksums were verified.

        Raises: UserError: as `image`.
        """
        from sayso.base.pictures import verified

        with self._refusing(sample) as path:
            return verified(path)

    def image_hash(self, sample: Sample) -> str:
        """The SHA-256 of the image's file, in hex digits. Raises: UserError: if it is gone."""
        with self._refusing(sample) as path:
            return files.sha256(path)

    @contextmanager
    def _refusing(self, sample: Sample) -> Iterator[Path]:
        """Where the image is, for the block; what is wrong with it becomes one line."""
        path = self.path / sample.path
        try:
            yield path
        except FileNotFoundError:
            raise UserError(
                f"image {path} is missing; restore it, or delete its line in samples.jsonl and "
                "generate again"
            ) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"image {path} is damaged ({error}); restore it, or delete it and its line in "
                "samples.jsonl and generate again"
            ) from None

    def secret(self) -> bytes:
        """What the rating app signs sessions with; made at first use, for the owner only."""
        return files.read_or_make_secret(self.path / "server.secret")

    # feedback and runs

    @cached_property
    def feedback(self) -> "Feedback":
        """The vote store: SQLite in the study, or the database that study.json names.

        Raises: UserError: if an earlier version put the study's votes elsewhere.
        """
        from sayso.feedback.misplaced_votes import refuse_misplaced
        from sayso.feedback.store import Feedback

        if self.info.feedback_url:
            return Feedback(self.info.feedback_url)
        own = self.path / "feedback.db"
        if not own.exists():
            refuse_misplaced(own, lambda: {sample.id for sample in self.samples()})
        return Feedback(own)

    def use_database(self, url: str) -> None:
        """Keep the votes in the database at `url` from now on; study.json remembers it.

        Raises: UserError: if the address is none, or there are votes in another database.
        """
        from sayso.feedback.database import from_anywhere
        from sayso.feedback.store import Feedback

        if url == self.info.feedback_url:
            return
        url = from_anywhere(url)
        if url == self.info.feedback_url:
            return
        store = Feedback(url)
        if self.feedback.ratings(excluded=True) or self.feedback.comparisons(excluded=True):
            raise UserError(
                f"{self.path} has votes in {self.feedback.database.name}; the votes of a study "
                "stay in one database: omit --db, or start with a copy of the study without votes"
            )
        self.info = replace(self.info, feedback_url=url)
        files.write_json(self.path / "study.json", asdict(self.info))
        self.feedback = store

    def run(
        self,
        stage: str,
        name: str,
        config: Any,
        options: Any = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        main: bool = True,
    ) -> Run:
        """The run folder `runs/<stage>-<name>`, made or resumed; the rest is of `open_run`.

        Args:
            config: the stage's config dataclass, or a mapping.
            options: a plug-in, whose fields are options too.
        """
        path, seed = self._run_path(stage, name), self.info.seed
        wanted = replace(asked(config, options), canonical=partial(canonical_options, self))
        return open_run(path, wanted, seed, inputs=inputs, main=main)

    def _run_path(self, stage: str, name: str) -> Path:
        return self.path / "runs" / (f"{stage}-{name}" if name else stage)

    def begun(self, stage: str, name: str) -> Run | None:
        """The run if it is begun or finished, not opened to work on it; else None."""
        run = Run(self._run_path(stage, name))
        return run if (run.path / "config.json").exists() else None

    def runs(self, stage: str = "") -> list[Run]:
        """The runs there are, of one stage if named, by name."""
        found = sorted(self.path.glob(f"runs/{stage + '-' if stage else ''}*/config.json"))
        return [Run(config.parent) for config in found]

    def find_run(self, name: str, stage: str = "") -> Run:
        """The existing run called `name`, e.g. "runs/fit-clip_head" or "fit-clip_head".

        Args:
            stage: that makes such runs; only runs of it are named in place of a missing one.
        Raises: UserError: if there is none (the nearest is named).
        """
        path = self.path / canonical_run(self, name)
        if (path / "config.json").exists():
            return Run(path)
        kind = f"run of {stage}" if stage else "run"
        if known := [run.name for run in self.runs(stage)]:
            raise unknown_name(kind, name, known)
        advice = f"; make one with: sayso {stage} {quoted(self.path)}" if stage else ""
        raise UserError(f"unknown {kind} {name!r}: {self.path} has none yet{advice}")

    @property
    def cache(self) -> Path:
        """Folder of what can be computed again: embeddings of prompts and images."""
        return self.path / "cache"

    def export_key(self) -> bytes:
        """The secret that turns raters' names into pseudonyms; made at first use, mode 0600."""
        path = self.path / "export.key"
        if not path.exists():
            files.write_bytes(path, secrets.token_bytes(32), mode=0o600)
        return path.read_bytes()

    def export_path(self, name: str) -> Path:
        """Where `sayso export` writes unless told otherwise."""
        return self.path / "exports" / name

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json, the study's headline numbers."""
        files.write_json(self.path / "summary.json", summary)

    def write_report(self, html: str) -> Path:
        """Write report.html and say where."""
        files.write_bytes(self.path / "report.html", html.encode())
        return self.path / "report.html"
